"""The Betti matching loss (Definition 3 of the paper) and its sum with the Dice loss."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from offprints.betti_matching._checks import check_dims, check_images
from offprints.betti_matching._terms import (
    in_output_precision,
    in_working_precision,
    square_terms,
    sum_of_squares,
)
from offprints.betti_matching.matching import Comparison, Construction, Filtration, match_voxels
from offprints.shared.validation import check_choice, check_number, reduce

LossFiltration = Literal["superlevel", "sublevel", "bothlevel"]
Reduction = Literal["mean", "sum", "none"]


class LossOptions(TypedDict, total=False):
    """Keyword arguments of `BettiMatchingLoss`."""

    filtration: LossFiltration
    construction: Construction
    comparison: Comparison
    relative: bool
    reduced: bool
    dims: Sequence[int] | None
    reduction: Reduction
    from_logits: bool


class _Options(NamedTuple):
    filtration: str
    construction: str
    comparison: str
    relative: bool
    reduced: bool
    dims: Sequence[int] | None

    def check(self) -> None:
        check_choice(self.filtration, "filtration", ("superlevel", "sublevel", "bothlevel"))
        check_choice(self.construction, "construction", ("V", "T"))
        check_choice(self.comparison, "comparison", ("union", "intersection"))
        check_dims(self.dims)


def betti_matching_loss(
    pred: Float[Tensor, "batch channels *spatial"],
    target: Shaped[Tensor, "batch channels *spatial"],
    *,
    filtration: LossFiltration = "superlevel",
    construction: Construction = "V",
    comparison: Comparison = "union",
    relative: bool = False,
    reduced: bool = False,
    dims: Sequence[int] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    r"""Betti matching loss of probability maps; every ``(batch, channel)`` is one image with 1 to 3 axes.

    .. math:: L = \sum_{matched} 2\,[(b_f - b_g)^2 + (d_f - d_g)^2] + \sum_{unmatched} (b - d)^2

    over the bars :math:`(b, d)` of prediction f and target g: twice the squared distance to the matched bar, or to the
    diagonal (Section 3.3). The essential bar is compared by its birth alone. The matching is computed on the host, on
    threads, and is constant for autograd; the gradient reaches `pred`, and `target` if it requires one, through the
    voxels that give birth and death.

    A constant image has no bars but the essential one, so its gradient is only that of the essential bar: start from a
    network trained with the Dice loss, or raise the weight of this term slowly.

    Args:
        pred: probabilities ``[batch, channels, *spatial]``, floating and finite.
        target: the same shape and device; floating, integer or boolean.
        filtration: ``"superlevel"`` (bright structures), ``"sublevel"`` or ``"bothlevel"`` (the sum of the two).
        construction: ``"V"`` (foreground 4-/6-connected) or ``"T"`` (8-/26-connected) for superlevel structures.
        comparison: match through the union of the two images or through their intersection.
        relative: surround the images by a frame that is foreground from the start.
        reduced: drop the essential bar.
        dims: homology dimensions to sum over; all by default.
        reduction: over the ``batch * channels`` images; ``"none"`` returns ``[batch, channels]``.

    Returns:
        The loss in the dtype of `pred`; half types are computed in float32, and stay float32 under autocast.

    Raises:
        TypeError: `pred` is not a floating tensor or `target` not a real one.
        ValueError: shapes or devices differ, an axis is empty, a value is NaN or infinite, an option is unknown.
    """
    options = _Options(filtration, construction, comparison, relative, reduced, dims)
    check_images(pred, target, ("pred", "target"), floating=True)
    losses = _image_losses(*_probabilities(pred, target, from_logits=False), options, "pred")
    return in_output_precision(reduce(losses, reduction), pred)


def dice_loss(
    pred: Float[Tensor, "batch channels *spatial"],
    target: Shaped[Tensor, "batch channels *spatial"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Soft Dice loss ``1 - (2 sum(p t) + s) / (sum p + sum t + s)``, s = 1e-5, per image and channel.

    `pred` holds probabilities. Errors and dtypes as in `betti_matching_loss`, but infinite values propagate.
    """
    check_images(pred, target, ("pred", "target"), floating=True)
    p, y, _ = _probabilities(pred, target, from_logits=False)
    return in_output_precision(reduce(_image_dice(p, y), reduction), pred)


class BettiMatchingLoss(nn.Module):
    """`betti_matching_loss` as a module; with ``from_logits`` (default, as in the paper) the sigmoid is applied inside.

    Args:
        from_logits: the input holds logits; otherwise probabilities.
        **options: those of `betti_matching_loss`.
    """

    def __init__(
        self,
        *,
        filtration: LossFiltration = "superlevel",
        construction: Construction = "V",
        comparison: Comparison = "union",
        relative: bool = False,
        reduced: bool = False,
        dims: Sequence[int] | None = None,
        reduction: Reduction = "mean",
        from_logits: bool = True,
    ) -> None:
        super().__init__()
        self.filtration, self.construction, self.comparison = filtration, construction, comparison
        self.relative, self.reduced, self.dims = relative, reduced, dims
        self.reduction, self.from_logits = reduction, from_logits
        self._options().check()
        check_choice(reduction, "reduction", ("mean", "sum", "none"))

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"], target: Shaped[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "*reduced"]:
        """The reduced loss of logits (or probabilities) `input` and `target`, both ``[batch, channels, *spatial]``."""
        check_images(input, target, ("input", "target"), floating=True)
        p, y, seen = _probabilities(input, target, from_logits=self.from_logits)
        losses = _image_losses(p, y, seen, self._options(), "input")
        return in_output_precision(reduce(losses, self.reduction), input)

    def _options(self) -> _Options:
        return _Options(self.filtration, self.construction, self.comparison, self.relative, self.reduced, self.dims)

    def extra_repr(self) -> str:
        """The options."""
        shown = {**self._options()._asdict(), "reduction": self.reduction, "from_logits": self.from_logits}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class DiceBettiMatchingLoss(BettiMatchingLoss):
    """``Dice + alpha * Betti matching``, the training loss of the paper (alpha = 0.5).

    `last_dice` and `last_betti` are the two terms of the last call as floats for logging (means over the images where
    ``reduction="none"``, NaN before the first call). They are fetched from the device when they are read.

    Args:
        alpha: weight of the Betti matching term, at least 0. It may be changed during training.
        **options: those of `BettiMatchingLoss`; `reduction` applies to both terms.
    """

    def __init__(self, *, alpha: float = 0.5, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        check_number(alpha, "alpha", low=0.0)
        self.alpha = alpha
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"], target: Shaped[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "*reduced"]:
        """The reduced sum of both terms for logits (or probabilities) `input`, ``[batch, channels, *spatial]``."""
        check_images(input, target, ("input", "target"), floating=True)
        check_number(self.alpha, "alpha", low=0.0)
        p, y, seen = _probabilities(input, target, from_logits=self.from_logits)
        betti = reduce(_image_losses(p, y, seen, self._options(), "input"), self.reduction)
        dice = reduce(_image_dice(p, y), self.reduction)
        self._last = dice.detach(), betti.detach()
        return in_output_precision(dice + self.alpha * betti, input)

    @property
    def last_dice(self) -> float:
        """The Dice term of the last call."""
        return float("nan") if self._last is None else float(self._last[0].mean())

    @property
    def last_betti(self) -> float:
        """The Betti matching term of the last call, before the weight alpha."""
        return float("nan") if self._last is None else float(self._last[1].mean())

    def extra_repr(self) -> str:
        """Alpha and the options."""
        return f"alpha={self.alpha}, {super().extra_repr()}"


def _probabilities(x: Tensor, target: Tensor, *, from_logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and what the matching sees of the prediction."""
    x, target = in_working_precision(x, target)
    if not from_logits:
        return x, target, x.detach()
    p = x.sigmoid()
    # the probability of an infinite logit is finite: mark it, so that the matching refuses it all the same
    return p, target, p.detach().masked_fill(~x.detach().isfinite(), float("nan"))


def _image_dice(p: Tensor, t: Tensor) -> Tensor:
    axes = tuple(range(2, p.ndim))
    smooth = 1e-5
    return 1 - (2 * (p * t).sum(axes) + smooth) / (p.sum(axes) + t.sum(axes) + smooth)


def _image_losses(p: Tensor, y: Tensor, seen: Tensor, options: _Options, name: str) -> Tensor:
    """Loss of every image, ``[batch, channels]``."""
    options.check()
    images = math.prod(p.shape[:2])
    terms = _loss_terms(
        torch.stack((seen, y.detach())).reshape(2, images, *p.shape[2:]),
        options.filtration,
        options.construction,
        options.comparison,
        bool(options.relative),
        bool(options.reduced),
        list(check_dims(options.dims, p.ndim - 2) or ()),
        name,
    )
    return sum_of_squares(p, y, terms, _filtrations(options.filtration) if options.relative else ())


def _filtrations(filtration: str) -> tuple[str, ...]:
    return ("superlevel", "sublevel") if filtration == "bothlevel" else (filtration,)


# A custom operator, so that a compiled training step calls the matching instead of tracing into it.
@torch.library.custom_op("offprints_betti_matching::loss_terms", mutates_args=())
def _loss_terms(
    stacked: Tensor,
    filtration: str,
    construction: str,
    comparison: str,
    relative: bool,
    reduced: bool,
    dims: list[int],
    name: str,
) -> Tensor:
    """The terms of `sum_of_squares`, on the same device, for images ``[2, images, *shape]`` (predictions, targets)."""
    host = stacked.cpu().numpy()
    for side, label in zip(host, (name, "target"), strict=True):
        if not np.isfinite(side).all():
            raise ValueError(f"{label} must be finite, got NaN or infinite values")
    filtrations = _filtrations(filtration)
    terms = []
    for i, one in enumerate(filtrations):
        matchings = match_voxels(
            *host,
            filtration=cast(Filtration, one),
            construction=cast(Construction, construction),
            comparison=cast(Comparison, comparison),
            relative=relative,
            reduced=reduced,
        )
        chosen = [[matching[k] for k in dims] for matching in matchings]
        frames = {"frame": i, "frames": len(filtrations)} if relative else {}
        terms.append(square_terms(chosen, host.shape[2:], **frames))
    return torch.from_numpy(np.concatenate(terms, axis=1)).to(stacked.device)


@_loss_terms.register_fake
def _(stacked: Tensor, *options: Any) -> Tensor:
    return stacked.new_empty((4, torch.library.get_ctx().new_dynamic_size()), dtype=torch.int64)
