"""From images to their losses: the matching of a whole batch, for eager, mapped and compiled code alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offprints.betti_matching._targets import SLACK, wrong_range
from offprints.betti_matching._terms import Layout, padded, square_terms, sum_of_squares
from offprints.betti_matching.matching import VoxelPairs, framed, match_voxels
from offprints.betti_matching.options import LossOptions, MatchingOptions, check_dims


def bars(stacked: Tensor, options: LossOptions, name: str, *, propagate: bool) -> tuple[Tensor, Tensor]:
    """Ends and weights of the bars of `sum_of_squares`, for ``[2, images, *shape]`` (predictions, targets).

    An image whose prediction is not finite is a ValueError that calls it `name`, or, with `propagate`, gets a loss of
    NaN.
    """
    dims = check_dims(options.dims, stacked.ndim - 2) or ()
    if torch.compiler.is_compiling():
        plain = {key: getattr(options, key) for key in _PLAIN} | {"dims": list(dims), "weights": list(options.weights)}
        return _operator(stacked, name, propagate, *plain.values())
    found: tuple[Tensor, Tensor] = _Bars.apply(stacked, name, propagate, dims, options)
    return found


def image_losses(
    p: Tensor, y: Tensor, seen: Tensor, options: LossOptions, name: str, *, propagate: bool
) -> Float[Tensor, "batch channels"]:
    """Loss of every image; the matching is that of `seen` and `y`."""
    stacked = torch.stack((seen, y.detach())).flatten(1, 2)
    ends, weights = bars(stacked, options, name, propagate=propagate)
    frames = tuple(one.filtration for one in options.filtrations) if options.relative else ()
    return sum_of_squares(p, y, ends, weights, frames)


def propagates(options: LossOptions, x: Tensor) -> bool:
    """Whether what is not finite in `x` gives a loss of NaN, not an error."""
    if options.nonfinite != "auto":
        return options.nonfinite == "propagate"
    half = x.dtype not in (torch.float32, torch.float64)
    return half or torch.is_autocast_enabled(x.device.type)


def _on_host(
    stacked: Tensor, name: str, propagate: bool, dims: Sequence[int], options: LossOptions
) -> tuple[Tensor, Tensor]:
    preds, targets = stacked.cpu().numpy()
    spoiled = check_values(preds, targets, name, propagate)
    if spoiled is not None:
        preds = preds.copy()
        preds[spoiled] = 0
    frames = tuple(one.filtration for one in options.filtrations) if options.relative else ()
    layout = Layout(preds.shape[1:], frames)
    parts = []
    for i, one in enumerate(options.filtrations):
        found = match_voxels(preds, targets, one, num_workers=options.num_workers)
        matchings = [[matching[k] for k in dims] for matching in found]
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
    if low < -SLACK or high > 1 + SLACK:
        seen = preds[finite]
        if not seen.size or (seen.min() >= -SLACK and seen.max() <= 1 + SLACK):
            raise ValueError(wrong_range(float(low), float(high)))
    return None if finite.all() else ~finite


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
    def forward(
        stacked: Tensor, name: str, propagate: bool, dims: tuple[int, ...], options: LossOptions
    ) -> tuple[Tensor, Tensor]:
        return _on_host(stacked, name, propagate, dims, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        return (None,) * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], stacked: Tensor, *options: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        together = stacked.movedim(in_dims[0], 1)
        ends, weights = _Bars.apply(together.flatten(1, 2), *options)
        sizes = together.shape[1:3]
        return (ends.unflatten(0, sizes), weights.unflatten(0, sizes)), (0, 0)


_PLAIN = {  # the options that a matching needs, by the operator's types
    "filtration": "str",
    "construction": "str",
    "comparison": "str",
    "relative": "bool",
    "reduced": "bool",
    "dims": "int[]",
    "weights": "float[]",
    "min_persistence": "float",
    "unmatched": "str",
    "num_workers": "int?",
}
_SCHEMA = "(Tensor stacked, str name, bool propagate, {}) -> (Tensor, Tensor)".format(
    ", ".join(f"{kind} {key}" for key, kind in _PLAIN.items())
)


# A custom operator, so that a compiled training step calls the matching instead of tracing into it. Only compiled code
# calls it: the first call loads the whole compiler.
@torch.library.custom_op("offprints_betti_matching::bars", mutates_args=(), schema=_SCHEMA)
def _operator(stacked: Tensor, name: str, propagate: bool, *values: Any) -> tuple[Tensor, Tensor]:
    options = LossOptions(**dict(zip(_PLAIN, values, strict=True)))
    return _on_host(stacked, name, propagate, tuple(options.dims or ()), options)


@_operator.register_fake
def _(stacked: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    images, count = stacked.shape[1], torch.library.get_ctx().new_dynamic_size(min=1)
    kind = torch.promote_types(stacked.dtype, torch.float32)
    return stacked.new_empty((images, 2, count), dtype=torch.int64), stacked.new_empty((images, count), dtype=kind)
