"""The first-generation ICNN score, of the authors' earlier work on feature reduction (arXiv 2107.06992)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_bool, check_number, check_tensor
from offprints.susana.neighbors import Plan, neighborhoods
from offprints.susana.prototypes import check_class_labels


def original_icnn_score(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    k: int = 5,
    p: float = 2,
    q: float = 2,
    r: float = 2,
    include_omega: bool = False,
    scale_features: bool = False,
    eps: float = 1e-6,
) -> Float[Tensor, ""]:
    """Compute the first-generation ICNN score of labeled vectors, in [0, 1].

    With the distances of the k nearest other vectors scaled to [0, 1] in each row, a, and s = 1 for the own class:
    l_i = sum_j s (1 - a) + (1 - s) a; lambda = mean of (l_i / max l)^(1/p);
    omega = (1 - var(s a) - var((1 - s) a))^(1/q); gamma = mean of (share of s in the row)^(1/r); the score is
    (lambda + gamma) / 2, or the mean of the three. Nothing is rounded, as the earlier work does to two decimals. Half
    types are computed, and returned, in float32.

    Args:
        features: Vectors ``[n, d]``, at least 4.
        labels: Their classes ``[n]``, any integers.
        k: Neighbors of a vector, at least 1; 3 where there are not more vectors than this.
        p: Root taken of the terms of lambda, more than 0.
        q: Root taken of omega, more than 0.
        r: Root taken of the terms of gamma, more than 0.
        include_omega: Whether omega enters the score.
        scale_features: Whether every feature is scaled to [0, 1] first, as in the earlier work.
        eps: What is added to divisors, more than 0.

    Returns:
        The score, a 0-dimensional tensor.

    Raises:
        TypeError: `features` is not a floating tensor, `labels` not of an integer type, a switch is not a boolean.
        ValueError: Shapes that do not fit, not finite or fewer than 4 vectors, distances that overflow; a setting out
            of range.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [3.0], [50.0], [51.0], [53.0]]), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> round(original_icnn_score(x, y, k=2).item(), 3)
        1.0
    """
    check_tensor(features, "features", ndim=2)
    labels = check_class_labels(labels, features, "labels", of="features")
    k = check_number(k, "k", low=1, integer=True)
    p, q, r, eps = (
        check_number(value, name, low=0, open_low=True) for value, name in ((p, "p"), (q, "q"), (r, "r"), (eps, "eps"))
    )
    include_omega, scale_features = (
        check_bool(include_omega, "include_omega"),
        check_bool(scale_features, "scale_features"),
    )
    if len(features) < 4:
        raise ValueError(f"features must leave at least 3 references for each row, got {len(features) - 1}")
    k = 3 if k >= len(features) else k
    plan = Plan(k=k, window=k, truncated=False, own=True, drop=False)
    with float32_region(features.device):
        x = features.to(working_dtype(features))
        if scale_features:
            low, high = x.amin(0), x.amax(0)
            span = high - low
            x = (x - low) / span.masked_fill(span == 0, 1.0)
        found = neighborhoods(x, labels, x, labels, plan, name="features")
        d, same = found.distance, found.same.to(x.dtype)
        low, high = d.amin(1, keepdim=True), d.amax(1, keepdim=True)
        a = (d - low) / (high - low + eps)
        terms = (same * (1 - a) + (1 - same) * a).sum(1)
        lambda_ = _root(terms / (terms.amax() + eps), p).mean()
        gamma = _root(same.mean(1), r).mean()
        if not include_omega:
            return (lambda_ + gamma) / 2
        spread = (same * a).var() + ((1 - same) * a).var()
        return (lambda_ + gamma + _root((1 - spread).clamp_min(0), q)) / 3


def _root(value: Tensor, degree: float) -> Tensor:
    """value^(1/degree), with the gradient 0 instead of infinity at 0."""
    zero = value == 0
    return value.masked_fill(zero, 1.0).pow(1 / degree).masked_fill(zero, 0.0)
