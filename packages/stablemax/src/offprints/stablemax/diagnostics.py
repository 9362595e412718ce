"""How much of a batch still gives gradient, and how much of the gradient only scales the weights up (sections 3, 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from offprints.shared.validation import check_bool, check_choice, check_labels, check_number, check_tensor
from offprints.stablemax import _projection as projection
from offprints.stablemax._sharding import add_up_, layout, listed, matrix
from offprints.stablemax.activations import log_stablemax


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what is not a floating type.

    Raises:
        TypeError: not a type at all.
        ValueError: not a floating one.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {type(dtype).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type, got {dtype}")


def _rows(logits: Tensor) -> Tensor:
    check_tensor(logits, "logits", min_ndim=2, finite=False)
    return logits.detach().movedim(1, -1).reshape(-1, logits.shape[1])


def samples(logits: Tensor, target: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Rows ``[N, K]`` of logits ``[batch, K, ...]`` and their labels, those left out that are to be ignored."""
    rows = _rows(logits)
    check_number(ignore_index, "ignore_index", integer=True)
    target = check_labels(target, "target", num_classes=logits.shape[1], ignore_index=ignore_index)
    expected = (logits.shape[0], *logits.shape[2:])
    if target.shape != expected:
        raise ValueError(
            f"target must have shape {expected} for logits {tuple(logits.shape)}, got {tuple(target.shape)}"
        )
    labels = target.reshape(-1)
    kept = labels != ignore_index
    return rows[kept], labels[kept]


def _share(hit: Tensor, values: Tensor) -> float:
    """Mean of ``hit``; NaN where a value from which it was told is NaN, or where there are none."""
    return float(hit.double().masked_fill(values.isnan(), torch.nan).mean())


def softmax_collapse_fraction(
    logits: Float[Tensor, "batch classes *spatial"], *, dtype: torch.dtype | None = None
) -> float:
    """Share of samples whose softmax denominator, sum_j exp(z_j - max z), rounds to exactly 1 in `dtype` (default:
    the logits').

    NaN where a sample has no softmax: logits that are NaN or +inf, or nothing but -inf.

    Raises:
        TypeError: `logits` is not a floating tensor.
        ValueError: `logits` is not ``[batch, classes, ...]`` or empty, `dtype` is not a floating type.

    Example:
        >>> softmax_collapse_fraction(torch.tensor([[20.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        0.5
    """
    check_dtype(dtype)
    z = _rows(logits).to(dtype or logits.dtype)
    denominator = (z - z.amax(1, keepdim=True)).exp().sum(1)
    return _share(denominator == 1, denominator)


def zero_loss_fraction(
    logits: Float[Tensor, "batch classes *spatial"],
    target: Int[Tensor, "batch *spatial"],
    *,
    dtype: torch.dtype | None = None,
    loss: Literal["softmax", "stablemax"] = "softmax",
    ignore_index: int = -100,
) -> float:
    """Share of samples whose cross-entropy, by the log-probabilities in `dtype` (default: the logits'), is exactly 0.

    Samples labeled `ignore_index` do not count. NaN where a loss is NaN, or where no sample counts.

    Raises:
        TypeError: `logits` not floating or `target` not of an integer type.
        ValueError: shapes that do not fit, labels out of range, an unknown loss, `dtype` not a floating type.

    Example:
        >>> logits = torch.tensor([[20.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> zero_loss_fraction(logits, torch.tensor([0, 0]))
        0.5
    """
    check_choice(loss, "loss", ("softmax", "stablemax"))
    check_dtype(dtype)
    z, labels = samples(logits, target, ignore_index)
    z = z.to(dtype or logits.dtype)
    if len(z) == 0:
        return float("nan")
    log_probability = torch.log_softmax(z, 1) if loss == "softmax" else log_stablemax(z, 1)
    of_label = log_probability.gather(1, labels.unsqueeze(1))
    return _share(of_label == 0, of_label)


def zero_gradient_fraction(
    logits: Float[Tensor, "batch classes *spatial"],
    target: Int[Tensor, "batch *spatial"],
    *,
    dtype: torch.dtype | None = None,
    which: Literal["target", "all"] = "target",
    ignore_index: int = -100,
) -> float:
    """Share of samples whose logit gradient is exactly 0, for the softmax cross-entropy averaged over the batch as in
    training.

    The log-probabilities are taken in `dtype` (default: the logits'), so that the factor 1 / batch takes part in
    what underflows. Samples labeled `ignore_index` do not count. NaN where a gradient is NaN, or where no sample
    counts.

    Args:
        logits: Logits.
        target: Labels.
        dtype: Type of the log-softmax.
        which: `"target"`: the gradient of the right class's logit; `"all"`: of all of the sample's logits.
        ignore_index: Label of samples that do not count.

    Raises:
        TypeError: `logits` not floating or `target` not of an integer type.
        ValueError: shapes that do not fit, labels out of range, an unknown `which`, `dtype` not a floating type.

    Example:
        >>> logits = torch.tensor([[20.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> zero_gradient_fraction(logits, torch.tensor([0, 0]))
        0.5
    """
    check_choice(which, "which", ("target", "all"))
    check_dtype(dtype)
    rows, labels = samples(logits, target, ignore_index)
    if len(rows) == 0:
        return float("nan")
    with torch.enable_grad():
        leaf = rows.requires_grad_()
        loss = F.nll_loss(torch.log_softmax(leaf.to(dtype or leaf.dtype), 1), labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
    looked_at = gradient.gather(1, labels.unsqueeze(1)) if which == "target" else gradient
    return _share((looked_at == 0).all(1), looked_at.abs().sum(1))


@torch.no_grad()
def alignment_terms(params: Iterable[Parameter], *, process_group: object = None) -> Tensor:
    """<w, -g>, <w, w>, <g, g> and 1 where there is a gradient, of each parameter: ``[4, tensors]``, in double
    precision and of whole parameters where these are sharded. Parameters without a gradient have <w, w> alone.
    """
    everyone = listed(params)
    if not everyone:
        return torch.zeros(4, 0)
    layouts = [layout(param, False, process_group) for param in everyone]
    shards = [matrix(param, False, one.size)[0] for param, one in zip(everyone, layouts, strict=True)]
    totals = projection.dots(shards, shards[0].weight.device)
    add_up_(totals, layouts, projection.offsets(shards))
    return torch.stack(
        [-totals[projection.WG], totals[projection.WW], totals[projection.GG], totals[projection.PRESENT]]
    )


def cosine(terms: Tensor) -> Tensor:
    """Cosines of negative gradients and weights; 0 where either is zero."""
    value = terms[0] / (terms[1].sqrt() * terms[2].sqrt())
    return torch.where((terms[1] == 0) | (terms[2] == 0), 0, value)


def nlm_alignment(params: Iterable[Parameter], *, per_tensor: bool = False) -> float | list[float]:
    """Cosine between the negative gradient and the weights: +1 is pure naive loss minimization, scaling all weights up.

    Over all parameters as one vector, or per tensor; 0 where weights or gradient are zero. Parameters without a
    gradient are skipped. Sharded parameters (DTensor) are taken as whole, with one collective.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: no parameter has a gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> weight.grad = torch.tensor([-0.3, -0.4])
        >>> round(nlm_alignment([weight]), 4)
        1.0
    """
    check_bool(per_tensor, "per_tensor")
    terms = alignment_terms(params)
    terms = terms[:, terms[3] > 0]
    if terms.shape[1] == 0:
        raise ValueError("params must hold at least one parameter with a gradient")
    if per_tensor:
        return [float(value) for value in cosine(terms)]
    return float(cosine(terms.sum(1)))
