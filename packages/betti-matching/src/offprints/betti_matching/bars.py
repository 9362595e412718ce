"""From images to the terms of the loss: the matching of a whole batch, for eager, mapped and compiled code alike."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.betti_matching._terms import Layout, padded, square_terms
from offprints.betti_matching.matching import VoxelPairs, framed, match_voxels
from offprints.betti_matching.options import LossOptions, MatchingOptions, check_dims

_SLACK = 0.01  # that interpolated masks may leave [0, 1] by


def bars(stacked: Tensor, options: LossOptions, name: str, *, propagate: bool) -> tuple[Tensor, Tensor]:
    """Ends and weights of the bars of `sum_of_squares`, for ``[2, images, *shape]`` (predictions, targets).

    An image whose prediction is not finite is a ValueError that calls it `name`, or, with `propagate`, gets a loss of
    NaN.
    """
    plain: dict[str, Any] = {key: getattr(options, key) for key in _PLAIN}
    plain["dims"] = list(check_dims(options.dims, stacked.ndim - 2) or ())
    plain["weights"] = list(options.weights)
    if torch.compiler.is_compiling():
        return _operator(stacked, name, propagate, *plain.values())
    found: tuple[Tensor, Tensor] = _Bars.apply(stacked, name, propagate, plain)
    return found


_PLAIN = (
    "filtration",
    "construction",
    "comparison",
    "relative",
    "reduced",
    "dims",
    "weights",
    "min_persistence",
    "unmatched",
    "num_workers",
)


def _on_host(stacked: Tensor, name: str, propagate: bool, plain: dict[str, Any]) -> tuple[Tensor, Tensor]:
    options = LossOptions(**{**plain, "weights": tuple(plain["weights"])})
    preds, targets = stacked.cpu().numpy()
    spoiled = check_values(preds, targets, name, propagate)
    if spoiled is not None:
        preds = preds.copy()
        preds[spoiled] = 0
    frames = tuple(one.filtration for one in options.filtrations) if options.relative else ()
    layout = Layout(preds.shape[1:], frames)
    parts = []
    for i, one in enumerate(options.filtrations):
        found = match_voxels(preds, targets, num_workers=options.num_workers, **asdict(one))
        matchings = [[matching[k] for k in plain["dims"]] for matching in found]
        if options.min_persistence > 0:
            matchings = [
                [_persistent(lists, pred, target, one, options.min_persistence) for lists in matching]
                for matching, pred, target in zip(matchings, preds, targets, strict=True)
            ]
        born, dies = (1, 0) if one.superlevel else (0, 1)
        parts.append(
            square_terms(
                matchings,
                layout,
                frame=i if options.relative else None,
                weights=options.weights,
                corner=(born, dies) if options.unmatched == "corner" else None,
            )
        )
    ends, weights = padded(parts, len(preds), spoiled)
    kind = torch.promote_types(stacked.dtype, torch.float32)
    return torch.from_numpy(ends).to(stacked.device), torch.from_numpy(weights).to(stacked.device, kind)


def check_values(preds: np.ndarray, targets: np.ndarray, name: str, propagate: bool = False) -> np.ndarray | None:
    """Refuse what is not finite, and masks on another scale than the predictions; the images to spoil, if any."""
    axes = tuple(range(1, preds.ndim))
    low, high = targets.min(), targets.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("target must be finite, got NaN or infinite values")
    finite = np.isfinite(preds).all(axis=axes)
    if not finite.all() and not propagate:
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    if low < -_SLACK or high > 1 + _SLACK:
        seen = preds[finite]
        if not seen.size or (seen.min() >= -_SLACK and seen.max() <= 1 + _SLACK):
            raise ValueError(wrong_range(float(low), float(high)))
    return None if finite.all() else ~finite


def wrong_range(low: float, high: float) -> str:
    """What is said of masks outside [0, 1], and what helps."""
    return (
        f"target must lie in [0, 1] as the prediction does, got values from {low:g} to {high:g}: "
        "divide 0/255 masks by 255 or pass target > 0; class labels need one channel per class"
    )


def _persistent(
    lists: VoxelPairs, pred: np.ndarray, target: np.ndarray, options: MatchingOptions, least: float
) -> VoxelPairs:
    """Without unmatched bars that are shorter than `least`, and pairs of which both are."""
    matched, alone, missed = lists
    f, g = (framed(image, options).ravel().astype(np.float64) for image in (pred, target))

    def long(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
        return abs(values[ends[:, 0]] - values[ends[:, 1]]) >= least

    keep = (matched[:, 1] < 0) | long(f, matched[:, :2]) | long(g, matched[:, 2:])
    return matched[keep], alone[long(f, alone)], missed[long(g, missed)]


class _Bars(torch.autograd.Function):
    """The terms have no gradient; images that are mapped over are more images of one batch."""

    @staticmethod
    def forward(stacked: Tensor, name: str, propagate: bool, plain: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return _on_host(stacked, name, propagate, plain)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        return None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], stacked: Tensor, name: str, propagate: bool, plain: dict[str, Any]
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        together = stacked.movedim(in_dims[0], 1)
        ends, weights = _Bars.apply(together.flatten(1, 2), name, propagate, plain)
        sizes = together.shape[1:3]
        return (ends.unflatten(0, sizes), weights.unflatten(0, sizes)), (0, 0)


# A custom operator, so that a compiled training step calls the matching instead of tracing into it. Only compiled code
# calls it: the first call loads the whole compiler.
@torch.library.custom_op("offprints_betti_matching::bars", mutates_args=())
def _operator(
    stacked: Tensor,
    name: str,
    propagate: bool,
    filtration: str,
    construction: str,
    comparison: str,
    relative: bool,
    reduced: bool,
    dims: list[int],
    weights: list[float],
    min_persistence: float,
    unmatched: str,
    num_workers: int | None,
) -> tuple[Tensor, Tensor]:
    values = (
        filtration,
        construction,
        comparison,
        relative,
        reduced,
        dims,
        weights,
        min_persistence,
        unmatched,
        num_workers,
    )
    return _on_host(stacked, name, propagate, dict(zip(_PLAIN, values, strict=True)))


@_operator.register_fake
def _(stacked: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    images, count = stacked.shape[1], torch.library.get_ctx().new_dynamic_size(min=1)
    kind = torch.promote_types(stacked.dtype, torch.float32)
    return stacked.new_empty((images, 2, count), dtype=torch.int64), stacked.new_empty((images, count), dtype=kind)
