"""The metrics of neural collapse: NC1 (variability), NC2 (geometry of weights and features), NC3 (their alignment)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.neural_collapse.closed_form import GOFSolution
from offprints.neural_collapse.statistics import FeatureStatistics
from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor

GEOMETRIES = ("etf", "of", "gof")
_CHUNK = 512  # rows of features that are in float64 at once: they stay in the cache


@dataclass(frozen=True)
class NCMetrics:
    """How far features and classifier are from collapse; all are 0 there.

    With [A] = A / ||A|| (Frobenius), class means in the rows of A, the classifier W, and the target T of the geometry:

    Attributes:
        nc1: tr(Sigma_W pinv(Sigma_B)) / K, the variability within classes in units of that between them.
        nc2_w: || [W W^T] - T ||.
        nc2_h: || [A A^T] - T ||.
        nc3_wh: || [W A^T] - T ||.
        nc3_w_h: || [W] - [A] ||, or for ``"gof"`` || [W] - [D A] || with the scales D of the target.

    Example:
        >>> E = simplex_etf(3, 4)
        >>> metrics = nc_metrics(E.repeat(5, 1), torch.arange(3).repeat(5), E)
        >>> max(metrics.nc1, metrics.nc2_w, metrics.nc2_h, metrics.nc3_wh, metrics.nc3_w_h) < 1e-12
        True
    """

    nc1: float
    nc2_w: float
    nc2_h: float
    nc3_wh: float
    nc3_w_h: float


def nc_metrics(
    features: Float[Tensor, "samples dim"],
    labels: Int[Tensor, " samples"],
    weight: Float[Tensor, "classes dim"],
    *,
    geometry: str = "etf",
    target: GOFSolution | None = None,
    num_classes: int | None = None,
) -> NCMetrics:
    """The metrics of features that are in memory, and of the classifier that sees them.

    Computed in float64 whatever the types. NC1 needs no d x d matrix: the features are projected on the K - 1
    directions between the classes. For features that come in batches there is `FeatureStatistics`.

    Args:
        features: ``[N, d]``.
        labels: ``[N]``; every class needs a sample.
        weight: ``[K, d]``, the product of all linear layers that follow the features.
        geometry: ``"etf"``, simplex ETF and centered means, for a last layer with bias; ``"of"``, orthogonal frame, for
            one without; ``"gof"``, the general orthogonal frame ``target``.
        target: The frame for ``"gof"``, of `gof_solution`.
        num_classes: K; default: the rows of ``weight``.

    Returns:
        The metrics. A field that is 0/0 is NaN, with a warning that names it: all of W's when W is 0, all of the means'
        when these are 0, NC1 when all means coincide.

    Raises:
        TypeError: not floating tensors, labels not integers, ``target`` not a GOFSolution.
        ValueError: wrong shapes, NaN or infinite values, a label out of range, a class without samples, an unknown
            geometry, ``"gof"`` without ``target``.

    Example:
        >>> features, labels = torch.randn(60, 8), torch.arange(3).repeat(20)
        >>> nc_metrics(features, labels, torch.randn(3, 8)).nc1 > 1
        True
    """
    check_tensor(features, "features", ndim=2)
    weight = _check_weight(weight, features.shape[1])
    K = len(weight)
    if num_classes is not None and check_number(num_classes, "num_classes", low=2, integer=True) != K:
        raise ValueError(f"num_classes must be the number of rows of weight, {K}, got {num_classes}")
    if isinstance(labels, Tensor) and labels.ndim != 1:
        raise ValueError(f"labels must have 1 dimension, got shape {tuple(labels.shape)}")
    labels = check_labels(labels, "labels", length=len(features), num_classes=K)
    _check_geometry(geometry, target, K)
    features = features.detach()
    if features.device.type == "mps":  # which has no float64
        features = features.cpu()
    labels = labels.to(features.device)
    counts = torch.bincount(labels, minlength=K)
    _check_counts(counts)

    parts = list(zip(features.split(_CHUNK), labels.split(_CHUNK), strict=True))
    first = features[0].double()
    sums = torch.zeros(K, features.shape[1], dtype=torch.float64, device=features.device)
    for rows, its in parts:
        sums.index_add_(0, its, rows - first)
    means = sums / counts.unsqueeze(1)  # as seen from the first row
    directions = _between(means - (counts.double() / counts.sum()) @ means)
    projected, total = means @ directions, means.new_zeros(())
    for rows, its in parts:
        # The class means are taken off after the projection, which has fewer columns.
        residual = ((rows - first) @ directions).sub_(projected.index_select(0, its))
        total += residual.square_().sum()
    return _metrics(total / len(features), means + first, counts, weight, geometry, target)


def nc_metrics_from_statistics(
    stats: FeatureStatistics,
    weight: Float[Tensor, "classes dim"],
    *,
    geometry: str = "etf",
    target: GOFSolution | None = None,
) -> NCMetrics:
    """The metrics of features that were seen in batches; arguments and result are those of `nc_metrics`.

    Raises:
        TypeError: ``stats`` not a FeatureStatistics, ``weight`` not a floating tensor, ``target`` not a GOFSolution.
        ValueError: wrong shapes, NaN or infinite values, a class without samples, an unknown geometry, ``"gof"``
            without ``target``.

    Example:
        >>> stats = FeatureStatistics(3, 8)
        >>> for _ in range(4):
        ...     stats.update(torch.randn(15, 8), torch.arange(3).repeat(5))
        >>> nc_metrics_from_statistics(stats, torch.randn(3, 8)).nc1 > 1
        True
    """
    if not isinstance(stats, FeatureStatistics):
        raise TypeError(f"stats must be a FeatureStatistics, got {type(stats).__name__}")
    weight = _check_weight(weight, stats.dim)
    if len(weight) != stats.num_classes:
        raise ValueError(f"weight must have one row per class of stats, {stats.num_classes}, got {len(weight)}")
    _check_geometry(geometry, target, stats.num_classes)
    counts, means = stats.counts, stats.means
    _check_counts(counts)
    directions = _between(means - (counts.double() / counts.sum()) @ means)
    within = ((stats.within_covariance @ directions) * directions).sum()
    return _metrics(within, means, counts, weight, geometry, target)


def _check_weight(weight: Tensor, dim: int) -> Tensor:
    check_tensor(weight, "weight", ndim=2)
    if weight.shape[1] != dim:
        raise ValueError(f"weight must have the width of the features, {dim}, got shape {tuple(weight.shape)}")
    if len(weight) < 2:
        raise ValueError(f"weight must have at least 2 rows, one per class, got shape {tuple(weight.shape)}")
    return weight.detach()


def _check_geometry(geometry: str, target: GOFSolution | None, K: int) -> None:
    check_choice(geometry, "geometry", GEOMETRIES)
    if target is not None and not isinstance(target, GOFSolution):
        raise TypeError(f"target must be a GOFSolution, got {type(target).__name__}")
    if geometry == "gof" and target is None:
        raise ValueError("target must be the GOFSolution of the class sizes for geometry 'gof', got None")
    if target is not None and len(target.ww) != K:
        raise ValueError(f"target must have {K} classes as weight has, got {len(target.ww)}")


def _check_counts(counts: Tensor) -> None:
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"labels must have samples of every class, got none of {empty[:5]} ({len(empty)} classes)")


def _between(centered: Tensor) -> Tensor:
    """B ``[d, r]`` with tr(S pinv(Sigma_B)) / K = tr(B^T S B), where Sigma_B = centered^T centered / K.

    A direction counts if the variance along it is above 1e-15 max(K, d) of the largest.

    Through the eigenproblem of the smaller Gram matrix, never through a d x d decomposition where d > K.
    """
    scale = centered.abs().amax()
    scale = torch.where(scale > 0, scale, 1)
    A = centered / scale
    K, d = A.shape
    # pinv(A^T A) = A^T U L^-2 U^T A = V L^-1 V^T, with A A^T = U L U^T and A^T A = V L V^T.
    values, vectors = torch.linalg.eigh(A @ A.T if d >= K else A.T @ A)
    keep = values > 1e-15 * max(K, d) * values[-1].clamp(min=1e-300)
    inverse = torch.where(keep, values, 1).reciprocal() * keep
    return (A.T @ (vectors * inverse) if d >= K else vectors * inverse.sqrt()) / scale


def _metrics(
    within: Tensor, means: Tensor, counts: Tensor, weight: Tensor, geometry: str, target: GOFSolution | None
) -> NCMetrics:
    W, K = weight.to(device=means.device, dtype=torch.float64), len(means)
    centered = means - (counts.double() / counts.sum()) @ means
    # Means that differ by no more than the rounding of their own size coincide.
    size = means.abs().amax()
    coincide = centered.abs().amax() <= 1e-14 * size
    if geometry == "etf":
        A = torch.where(coincide, 0, centered)
        identity = torch.eye(K, dtype=torch.float64, device=means.device)
        frames = [(identity - 1 / K) / math.sqrt(K - 1)] * 3
        scaled = A
    else:
        A = means
        frames = [torch.eye(K, dtype=torch.float64, device=means.device) / math.sqrt(K)] * 3
        scaled = A
    if geometry == "gof" and target is not None:
        ww, hh, wh = (_unit(values.to(means.device)).diag() for values in (target.ww, target.hh, target.wh))
        frames = [ww, hh, wh]
        scaled = _row_scales(target).to(means.device).unsqueeze(1) * A
    W, A, scaled = (X / torch.where((peak := X.abs().amax()) > 0, peak, 1) for X in (W, A, scaled))
    values = {
        "nc1": torch.where(coincide, math.nan, within),
        "nc2_w": (_unit(W @ W.T) - frames[0]).norm(),
        "nc2_h": (_unit(A @ A.T) - frames[1]).norm(),
        "nc3_wh": (_unit(W @ A.T) - frames[2]).norm(),
        "nc3_w_h": (_unit(W) - _unit(scaled)).norm(),
    }
    return _told({name: float(value) for name, value in values.items()})


def _row_scales(target: GOFSolution) -> Tensor:
    """ww_k + N lambda_H, which takes class means to the rows of the classifier."""
    survives = ~target.collapsed
    scales = (target.ww / torch.where(survives, target.hh, 1)).sqrt()  # 0/0 for a collapsed class
    if not bool(survives.any()):
        return torch.full_like(scales, math.nan)
    # N lambda_H from the survivor with the smallest wh, where 1 - wh has the most digits.
    k = torch.where(survives, target.wh, math.inf).argmin()
    return torch.where(survives, scales, target.ww[k] * (1 - target.wh[k]) / target.wh[k])


def _unit(X: Tensor) -> Tensor:
    """[X]; NaN where X is 0."""
    norm = X.norm()
    return X / torch.where(norm > 0, norm, math.nan)


def _told(values: Mapping[str, float]) -> NCMetrics:
    undefined = [name for name, value in values.items() if math.isnan(value)]
    if undefined:
        warnings.warn(
            f"{', '.join(undefined)} are 0/0 and therefore NaN: the classifier, the class means or the target are "
            "zero, or all class means coincide",
            RuntimeWarning,
            stacklevel=4,  # the caller of the public function
        )
    return NCMetrics(**values)
