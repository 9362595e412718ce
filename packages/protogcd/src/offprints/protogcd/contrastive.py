"""The contrastive terms: InfoNCE between the views of all samples, SupCon among the labeled ones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offprints.protogcd._rows import products, unit_rows
from offprints.protogcd.pseudo_labels import check_temperature
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_labels, check_tensor


def info_nce(projections: Float[Tensor, "rows dim"], *, temperature: float = 1.0) -> Float[Tensor, ""]:
    """InfoNCE: the mean cross-entropy of finding the other view of a sample among all other rows.

    Similarities are cosines by the temperature. A row of zeros has the cosine 0 with all.

    Args:
        projections: `(2 B, E)`, the second views after the first.
        temperature: Of the similarities.

    Returns:
        A number; float32 for half types.

    Raises:
        TypeError: `projections` are not floating, or the temperature is no number.
        ValueError: `projections` are not `(2 B, E)`, empty or not finite; the temperature is not positive.

    Example:
        >>> view = torch.eye(3)
        >>> info_nce(torch.cat([view, view]))
        tensor(0.9048)
    """
    check_views(projections, "projections")
    temperature = check_temperature(temperature)
    return of_views(cosines(projections), temperature)


def supervised_contrastive(
    projections: Float[Tensor, "rows dim"], labels: Int[Tensor, " rows"], *, temperature: float = 0.07
) -> Float[Tensor, ""]:
    """SupCon: the mean cross-entropy of finding the rows of the own class among all other rows.

    For each row the logarithms of the probabilities of the other rows of its class are averaged. Rows that are alone
    in their class are left out; without any pair, and without any row, the loss is 0.

    Args:
        projections: `(M, E)`, M may be 0.
        labels: `(M,)` integers.
        temperature: Of the similarities, which are cosines.

    Returns:
        A number; float32 for half types.

    Raises:
        TypeError: `projections` are not floating, `labels` not integers, or the temperature is no number.
        ValueError: Other shapes, values that are not finite; the temperature is not positive.

    Example:
        >>> projections = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> supervised_contrastive(projections, torch.tensor([0, 0, 1]), temperature=1.0)
        tensor(0.3285)
    """
    check_tensor(projections, "projections", ndim=2, allow_empty=True)
    if projections.shape[1] == 0:
        raise ValueError(f"projections must not be empty, got shape {tuple(projections.shape)}")
    temperature = check_temperature(temperature)
    if len(projections):
        labels = check_labels(labels, "labels", length=len(projections))
    if not isinstance(labels, Tensor) or labels.shape != (len(projections),):
        got = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be a tensor of shape ({len(projections)},), got {got}")
    if len(projections) == 0:
        return projections.to(working_dtype(projections)).sum()
    among = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return of_classes(cosines(projections), labels, among, temperature)


def check_views(x: Tensor, name: str) -> Tensor:
    """Two views of as many samples each."""
    check_tensor(x, name, ndim=2)
    if len(x) % 2:
        raise ValueError(f"{name} must have an even number of rows, two views of each sample, got {len(x)}")
    return x


def cosines(projections: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows rows"]:
    """Cosines of all pairs of rows; both terms start from them."""
    rows = unit_rows(projections.to(working_dtype(projections)))
    return products(rows, rows)


def of_views(similarity: Float[Tensor, "rows rows"], temperature: float) -> Float[Tensor, ""]:
    """`info_nce` of cosines."""
    scaled = similarity / temperature
    itself = torch.eye(len(scaled), dtype=torch.bool, device=scaled.device)
    chosen = scaled.masked_fill(itself, torch.finfo(scaled.dtype).min).logsumexp(1)
    return chosen.mean() - scaled.diagonal(len(scaled) // 2).mean()


def of_classes(
    similarity: Float[Tensor, "rows rows"],
    labels: Int[Tensor, " rows"],
    among: Bool[Tensor, " rows"],
    temperature: float,
) -> Float[Tensor, ""]:
    """`supervised_contrastive` of cosines, of the rows in `among`: the shapes do not depend on how many these are."""
    scaled = similarity / temperature
    itself = torch.eye(len(scaled), dtype=torch.bool, device=scaled.device)
    others = among[:, None] & among & ~itself
    positives = others & (labels[:, None] == labels)
    number = positives.sum(1)
    # The smallest number in place of minus infinity: a row without others has a finite value, which is not counted.
    chosen = scaled.masked_fill(~others, torch.finfo(scaled.dtype).min).logsumexp(1)
    own = scaled.masked_fill(~positives, 0).sum(1) / number.clamp(min=1)
    terms = (chosen - own).masked_fill(number == 0, 0)
    return terms.sum() / (number > 0).sum().clamp(min=1)
