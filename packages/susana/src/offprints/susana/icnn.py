"""The ICNN score, which says how well labels separate vectors by their neighbors, and the loss made of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import float32_region
from offprints.shared.validation import check_bool, check_number, check_tensor
from offprints.susana.distances import check_pair
from offprints.susana.neighbors import Neighborhoods, Plan, neighborhoods
from offprints.susana.prototypes import check_class_labels

LEAST = 1e-12  # a score below it counts as this in the loss


class ICNNComponents(NamedTuple):
    """The ICNN score and its parts, 0-dimensional tensors in [0, 1].

    Attributes:
        score: (lambda + gamma) / 2, or (lambda + omega + gamma) / 3; 1 is perfect separation.
        lambda_: (lambda_same + lambda_diff) / 2, the part that carries the gradient.
        lambda_same: How near neighbors of the own class are, in units of the nearest of another class.
        lambda_diff: How far neighbors of other classes are, in units of the farthest; 1 where there are none.
        omega: 1 less the variances of both kinds of distances.
        gamma: The share of neighbors that are of the own class; 1 where k was truncated.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1])
        >>> icnn_components(x, y, k=1).gamma
        tensor(1.)
    """

    score: Tensor
    lambda_: Tensor
    lambda_same: Tensor
    lambda_diff: Tensor
    omega: Tensor
    gamma: Tensor


def icnn_components(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    target: Float[Tensor, "m d"] | None = None,
    target_labels: Int[Tensor, " m"] | None = None,
    k: int = 4,
    window: int | None = None,
    drop_nearest: bool | None = None,
    include_omega: bool = False,
    eps: float = 1e-7,
) -> ICNNComponents:
    """Compute the ICNN score of labeled vectors among references, and its parts.

    Each row looks at its `k` nearest references, by the distance d = sqrt(|x - z|^2 + 1e-6). With s = 1 for those of
    its own class, r the distance of the nearest of another class in the window, and a = d / max(r, d_k):
    lambda_same = 1 - mean of a over neighbors of the own class, lambda_diff = mean of d over neighbors of other
    classes in units of the largest, lambda = their mean, gamma = mean of s, score = (lambda + gamma) / 2 (means are
    taken in rows first). Which references are neighbors is piecewise constant: the gradient goes through d alone.

    Special cases. A row whose window holds no other class has a = 0: give `window` at least the size of the largest
    class where classes are larger than `k`. Where no row has a neighbor of its own class (one sample a class),
    lambda_same is 1 and gamma 0. Where `k` + 1 references or fewer are left, `k` is cut to one less than them and gamma
    is 1. Any number of rows goes: all pairs are looked at in blocks. Half types are computed, and returned, in float32.

    Args:
        features: Vectors ``[n, d]``.
        labels: Their classes ``[n]``, any integers.
        target: References ``[m, d]``; default: the vectors themselves, each leaving itself out.
        target_labels: Their classes ``[m]``.
        k: Neighbors of a row, at least 1.
        window: Within how many neighbors the nearest of another class is looked for, from `k` (as cut) to the number of
            references; default `k` + 1.
        drop_nearest: Whether each row leaves out its nearest reference; default: only where there is no `target`. The
            authors' code always does, so that a query leaves out its own prototype: True gives its numbers.
        include_omega: Whether omega enters the score. It is computed in any case.
        eps: What is added to divisors, more than 0.

    Returns:
        The score and its parts.

    Raises:
        TypeError: Features are not floating tensors, labels not of an integer type, a switch is not a boolean.
        ValueError: Shapes that do not fit, empty or not finite features, distances that overflow; one of `target` and
            `target_labels` without the other; fewer than 3 references; `k` or `window` out of range.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
        >>> parts = icnn_components(x, torch.tensor([0, 0, 0, 1, 1, 1]), k=2)
        >>> parts.score, parts.gamma
        (tensor(0.9932), tensor(1.))
    """
    check_tensor(features, "features", ndim=2)
    labels = check_class_labels(labels, features, "labels", of="features")
    k, eps = check_settings(k, eps)
    include_omega = check_bool(include_omega, "include_omega")
    own = target is None
    drop = own if drop_nearest is None else check_bool(drop_nearest, "drop_nearest")
    if target is None or target_labels is None:
        if target is not None or target_labels is not None:
            given, missing = ("target", "target_labels") if target_labels is None else ("target_labels", "target")
            raise ValueError(f"{missing} must be given with {given}, got None")
        target, target_labels = features, labels
    else:
        check_tensor(target, "target", ndim=2)
        check_pair(features, target, ("features", "target"))
        target_labels = check_class_labels(target_labels, target, "target_labels", of="target")
    plan = Plan.of(len(target), k, own=own, drop=drop, name="features" if own else "target")
    if window is not None:
        check_number(window, "window", low=1, integer=True)
        available = len(target) - int(drop)
        if not plan.k <= window <= available:
            raise ValueError(f"window must be an integer in [{plan.k}, {available}], got {window}")
        plan = Plan(k=plan.k, window=int(window), truncated=plan.truncated, own=plan.own, drop=plan.drop)
    with float32_region(features.device):
        name = "features" if own else "features and target"
        found = neighborhoods(features, labels, target, target_labels, plan, name=name)
        return score_of(found, plan, include_omega=include_omega, eps=eps)


def check_settings(k: int, eps: float) -> tuple[int, float]:
    """Check the number of neighbors and what is added to divisors."""
    return check_number(k, "k", low=1, integer=True), check_number(eps, "eps", low=0, open_low=True)


def score_of(found: Neighborhoods, plan: Plan, *, include_omega: bool, eps: float) -> ICNNComponents:
    """Steps 3 to 8 of the score."""
    d, k = found.distance, plan.k
    eps = max(eps, torch.finfo(d.dtype).tiny)
    same = found.same.to(d.dtype)
    n_same, n_other = same.sum(1), (1 - same).sum(1)
    # 3. d / (r + eps), then by the largest of the row where that exceeds 1: both at once, and 0 where r is infinite.
    unit = torch.maximum(found.boundary + eps, d.amax(1))
    a = (d / unit[:, None]).masked_fill(~found.bounded[:, None], 0.0)
    # 4. Neighbors of the own class.
    near = same * a
    rows_same = (n_same > 0).to(d.dtype).sum()  # an integer and eps would add up in single precision
    lambda_same = 1 - (near.sum(1) / (n_same + eps)).sum() / (rows_same + eps)
    # 5. Neighbors of other classes.
    far = (1 - same) * d
    b = far / (far.amax() + eps)
    rows_other = (n_other > 0).to(d.dtype).sum()
    lambda_diff = torch.where(rows_other > 0, (b.sum(1) / (n_other + eps)).sum() / (rows_other + eps), 1.0)
    # 6. and 7.
    lambda_ = (lambda_same + lambda_diff) / 2
    gamma = torch.ones_like(lambda_) if plan.truncated else (n_same / k).mean()
    correction = min(1, d.numel() - 1)  # one single entry has no variance
    omega = 1 - (near.var(correction=correction) + b.var(correction=correction))
    # 8.
    score = (lambda_ + omega + gamma) / 3 if include_omega else (lambda_ + gamma) / 2
    return ICNNComponents(score, lambda_, lambda_same, lambda_diff, omega, gamma)


def icnn_score(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    target: Float[Tensor, "m d"] | None = None,
    target_labels: Int[Tensor, " m"] | None = None,
    k: int = 4,
    window: int | None = None,
    drop_nearest: bool | None = None,
    include_omega: bool = False,
    eps: float = 1e-7,
) -> Float[Tensor, ""]:
    """Compute the ICNN score in [0, 1] of labeled vectors: 1 where every class is a tight cluster away from the others.

    Arguments, special cases and errors are those of `icnn_components`, whose first entry this is.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]]), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> icnn_score(x, y, k=2), icnn_score(x, y.roll(1), k=2)
        (tensor(0.9932), tensor(0.4167))
    """
    return icnn_components(
        features,
        labels,
        target=target,
        target_labels=target_labels,
        k=k,
        window=window,
        drop_nearest=drop_nearest,
        include_omega=include_omega,
        eps=eps,
    ).score


def icnn_loss(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    target: Float[Tensor, "m d"] | None = None,
    target_labels: Int[Tensor, " m"] | None = None,
    k: int = 4,
    window: int | None = None,
    drop_nearest: bool | None = None,
    include_omega: bool = False,
    eps: float = 1e-7,
) -> Float[Tensor, ""]:
    """Compute the ICNN loss, -log of the score, which is taken for 1e-12 where it is below.

    Arguments, special cases and errors are those of `icnn_components`. With one sample a class the loss only spreads
    the samples evenly.

    Example:
        >>> x, y = torch.randn(12, 3, requires_grad=True), torch.arange(12) % 3
        >>> loss = icnn_loss(x, y)
        >>> loss.backward()
        >>> loss > 0, x.grad.shape
        (tensor(True), torch.Size([12, 3]))
    """
    return loss_of(
        icnn_score(
            features,
            labels,
            target=target,
            target_labels=target_labels,
            k=k,
            window=window,
            drop_nearest=drop_nearest,
            include_omega=include_omega,
            eps=eps,
        )
    )


def loss_of(score: Tensor) -> Tensor:
    """-log of a score."""
    return -score.clamp_min(LEAST).log()


class ICNNLoss(nn.Module):
    """The ICNN loss as a module: `icnn_loss` with its settings kept.

    Args:
        k: Neighbors of a row, at least 1.
        window: Within how many neighbors the nearest of another class is looked for; default `k` + 1.
        drop_nearest: Whether each row leaves out its nearest reference; default: only where there is no target.
        include_omega: Whether omega enters the score.
        eps: What is added to divisors, more than 0.

    Raises:
        TypeError, ValueError: As `icnn_components`.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]]), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> ICNNLoss(k=2)(x, y)
        tensor(0.0068)
    """

    def __init__(
        self,
        *,
        k: int = 4,
        window: int | None = None,
        drop_nearest: bool | None = None,
        include_omega: bool = False,
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        self.k, self.eps = check_settings(k, eps)
        self.window = None if window is None else check_number(window, "window", low=1, integer=True)
        self.drop_nearest = None if drop_nearest is None else check_bool(drop_nearest, "drop_nearest")
        self.include_omega = check_bool(include_omega, "include_omega")

    def forward(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        target: Float[Tensor, "m d"] | None = None,
        target_labels: Int[Tensor, " m"] | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the loss of vectors among references, by default among themselves."""
        return icnn_loss(
            features,
            labels,
            target=target,
            target_labels=target_labels,
            k=self.k,
            window=self.window,
            drop_nearest=self.drop_nearest,
            include_omega=self.include_omega,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Show the settings in the module's representation."""
        return (
            f"k={self.k}, window={self.window}, drop_nearest={self.drop_nearest}, "
            f"include_omega={self.include_omega}, eps={self.eps:g}"
        )
