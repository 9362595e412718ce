"""The two regularizers: predictions spread over all classes, prototypes kept apart."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.protogcd._rows import products, unit_rows
from offprints.protogcd.pseudo_labels import check_logits, check_temperature, tempered
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_tensor, should_check

UNIT = 1e-4  # rows whose length is so close to 1 count as unit ones
SCALE = 0.1  # the temperature at which the separation has the factor 1


def entropy_regularization(logits: Float[Tensor, "rows K"], *, temperature: float = 0.1) -> Float[Tensor, ""]:
    """The divergence of the mean prediction from the uniform distribution, `sum_k p_k log p_k + log K`.

    `p` is the mean of `softmax(logits / temperature)` over the rows. The term lies in [0, log K] and is 0 where the
    mean prediction is uniform: it keeps new classes from staying empty. It is computed from logarithms, so that a
    class that nobody predicts has a finite gradient.

    Args:
        logits: `(N, K)`, all views.
        temperature: Of the predictions.

    Returns:
        A number; float32 for half types.

    Raises:
        TypeError: `logits` are not floating, or the temperature is no number.
        ValueError: `logits` are not `(N, K)` with K >= 2, empty or not finite; the temperature is not positive.

    Example:
        >>> entropy_regularization(torch.tensor([[9.0, 0.0], [9.0, 0.0]]))  # all in one class: log 2
        tensor(0.6931)
    """
    check_logits(logits)
    return divergence(tempered(logits, check_temperature(temperature)).log_softmax(-1))


def divergence(log_p: Float[Tensor, "rows K"]) -> Float[Tensor, ""]:
    """`entropy_regularization` of logarithms of predictions."""
    above_uniform = log_p.logsumexp(0) - math.log(log_p.shape[0]) + math.log(log_p.shape[1])
    return (above_uniform.exp() * above_uniform).sum() / log_p.shape[1]


def prototype_separation(prototypes: Float[Tensor, "K dim"], *, temperature: float = 0.1) -> Float[Tensor, ""]:
    """How close prototypes are to each other.

    `temperature / 0.1 * mean_k log( 1 / (K - 1) sum_{j != k} exp(P_k . P_j / temperature) )`. At the temperature 0.1 it
    lies between `-1 / ((K - 1) temperature)`, which a simplex reaches (it takes K - 1 dimensions), and
    `1 / temperature`, where all prototypes are one.

    Args:
        prototypes: `(K, D)`, K >= 2. Rows are divided by their length, but for those whose length is 1 up to 1e-4:
            these go in as they are, and so does their gradient, which has a part along the row.
        temperature: How much near pairs count before far ones.

    Returns:
        A number; float32 for half types.

    Raises:
        TypeError: `prototypes` are not floating, or the temperature is no number.
        ValueError: `prototypes` are not `(K, D)` with K >= 2, not finite, or a row is zero; the temperature is not
            positive.

    Example:
        >>> round(prototype_separation(torch.ones(3, 2)).item(), 4)  # all prototypes are one
        10.0
    """
    check_prototypes(prototypes)
    return separation(prototypes, check_temperature(temperature))


def check_prototypes(prototypes: Tensor, name: str = "prototypes") -> Tensor:
    """At least two rows, none of them zero."""
    check_tensor(prototypes, name, ndim=2)
    if len(prototypes) < 2:
        raise ValueError(f"{name} must have at least 2 rows, got shape {tuple(prototypes.shape)}")
    check_directions(prototypes, name)
    return prototypes


def check_directions(x: Tensor, name: str) -> None:
    """No row of zeros; not looked for on an accelerator, where a zero row counts as orthogonal to all others."""
    if should_check(x) and not bool(x.detach().any(1).all()):
        raise ValueError(f"{name} must have no row of zeros, got {int((~x.detach().any(1)).sum())}")


def separation(prototypes: Float[Tensor, "K dim"], temperature: float) -> Float[Tensor, ""]:
    """`prototype_separation` without its checks."""
    wide = prototypes.to(working_dtype(prototypes))
    is_unit = (torch.linalg.vector_norm(wide.detach(), dim=1, keepdim=True) - 1).abs() <= UNIT
    # A head's prototypes are unit ones; whether all are is looked at where nothing is waited for.
    ready = should_check(wide) and bool(is_unit.all())
    rows = wide if ready else torch.where(is_unit, wide, unit_rows(wide))
    # A difference from the cosine 1 is what the temperature divides: none of its exponentials overflows.
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    closeness = (products(rows, rows) / temperature).masked_fill(itself, -math.inf)
    terms = closeness.logsumexp(1) - math.log(len(rows) - 1)
    return temperature / SCALE * terms.mean()
