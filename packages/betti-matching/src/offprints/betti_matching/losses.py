"""The Betti matching loss (Definition 3 of the paper) and its sum with the Dice loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from offprints.betti_matching._targets import check_ignore, check_range, ignored, one_hot
from offprints.betti_matching._terms import in_output_precision, in_working_precision, transformed
from offprints.betti_matching.bars import image_losses, propagates
from offprints.betti_matching.images import check_images
from offprints.betti_matching.options import (
    Comparison,
    Construction,
    LossFiltration,
    LossOptions,
    Nonfinite,
    Unmatched,
)
from offprints.shared.validation import (
    Reduction,
    check_bool,
    check_choice,
    check_number,
    reduce,
)

_REDUCTIONS = ("mean", "sum", "none")


class ModuleOptions(TypedDict, total=False):
    """Keyword arguments of `BettiMatchingLoss`."""

    filtration: LossFiltration
    construction: Construction
    comparison: Comparison
    relative: bool
    reduced: bool
    dims: Sequence[int] | None
    reduction: Reduction
    from_logits: bool
    softmax: bool
    to_onehot: bool
    include_background: bool
    weights: tuple[float, float]
    min_persistence: float
    unmatched: Unmatched
    nonfinite: Nonfinite
    num_workers: int | None
    spatial_dims: int | None


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
    ignore: Bool[Tensor, "batch #channels *spatial"] | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    min_persistence: float = 0.0,
    unmatched: Unmatched = "diagonal",
    nonfinite: Nonfinite = "auto",
    num_workers: int | None = None,
    spatial_dims: int | None = None,
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
        target: the same shape and device; floating, integer or boolean, in [0, 1] where `pred` is.
        filtration: ``"superlevel"`` (bright structures), ``"sublevel"`` or ``"bothlevel"`` (the sum of the two).
        construction: ``"V"`` (foreground 4-/6-connected) or ``"T"`` (8-/26-connected) for superlevel structures.
        comparison: match through the union of the two images or through their intersection.
        relative: surround the images by a frame that is foreground from the start.
        reduced: drop the essential bar.
        dims: homology dimensions to sum over; all by default.
        reduction: over the ``batch * channels`` images; ``"none"`` returns ``[batch, channels]``.
        ignore: voxels that do not count, boolean, of the shape of `pred` or with one channel. There the prediction is
            taken to be the target, and it gets no gradient.
        weights: factors of the terms of matched and of unmatched bars.
        min_persistence: unmatched bars shorter than this are left out, and matched ones if both are.
        unmatched: what becomes of unmatched bars of the prediction: ``"diagonal"``, as in the paper, makes them vanish;
            ``"corner"`` makes them last, birth at 1 and death at 0 (the other way round in ``"sublevel"``).
        nonfinite: ``"raise"`` refuses a prediction of NaN or infinite values; ``"propagate"`` gives such an image a
            loss and a gradient of NaN, so that `torch.amp.GradScaler` skips the step. ``"auto"`` propagates under
            autocast and for half types, and raises otherwise.
        num_workers: threads; by default as many as torch uses (`torch.get_num_threads`).
        spatial_dims: number of axes of an image. Only ``[batch, channels, length]`` with many channels needs it, since
            that is what ``[batch, height, width]`` looks like.

    Returns:
        The loss in the dtype of `pred`. Half types are computed in float32; the result stays float32 under autocast
        and where float16 cannot hold it (compiled and mapped code, which cannot look, returns float32 for float16).

    Raises:
        TypeError: `pred` is not a floating tensor or `target` not a real one.
        ValueError: shapes or devices differ, an axis is empty, a value is NaN or infinite, `target` is a mask on
            another scale, an option is unknown.

    Example:
        >>> target = torch.zeros(1, 1, 5, 5)
        >>> target[..., 1:4, 1:4] = 1
        >>> target[..., 2, 2] = 0  # a ring
        >>> pred = target.clone()
        >>> pred[..., 2, 3] = 0.3  # nearly broken
        >>> betti_matching_loss(pred, target)
        tensor(0.9800)
    """
    options = LossOptions(
        filtration,
        construction,
        comparison,
        relative,
        reduced,
        dims,
        weights,
        min_persistence,
        unmatched,
        nonfinite,
        num_workers,
        spatial_dims,
    )
    check_images(pred, target, ("pred", "target"), floating=True, spatial_dims=options.spatial_dims)
    p, y = in_working_precision(pred, target)
    if ignore is not None:
        p, y = ignored(p, y, check_ignore(ignore, pred))
    losses = image_losses(p, y, p.detach(), options, "pred", propagate=propagates(options, pred))
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
    p, y = in_working_precision(pred, target)
    check_range(y)
    return in_output_precision(reduce(_image_dice(p, y), reduction), pred)


class BettiMatchingLoss(nn.Module):
    """`betti_matching_loss` as a module; with ``from_logits`` (default, as in the paper) the sigmoid is applied inside.

    Args:
        from_logits: the input holds logits; otherwise probabilities.
        softmax: logits of classes that exclude each other: softmax over the channels in place of the sigmoid.
        to_onehot: the target holds class labels, ``[batch, *spatial]`` or ``[batch, 1, *spatial]``, of as many classes
            as the input has channels.
        include_background: whether channel 0 counts.
        **options: those of `betti_matching_loss`; `ignore` is an argument of the call.

    Example:
        >>> logits = torch.tensor([[-4.0, 4.0, -1.0, 4.0, -4.0]])[None]  # two components that should be one
        >>> mask = torch.tensor([[0, 1, 1, 1, 0]])[None]
        >>> BettiMatchingLoss()(logits, mask)
        tensor(0.5091)
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
        softmax: bool = False,
        to_onehot: bool = False,
        include_background: bool = True,
        weights: tuple[float, float] = (1.0, 1.0),
        min_persistence: float = 0.0,
        unmatched: Unmatched = "diagonal",
        nonfinite: Nonfinite = "auto",
        num_workers: int | None = None,
        spatial_dims: int | None = None,
    ) -> None:
        super().__init__()
        self.options = LossOptions(
            filtration,
            construction,
            comparison,
            relative,
            reduced,
            dims,
            weights,
            min_persistence,
            unmatched,
            nonfinite,
            num_workers,
            spatial_dims,
        )
        check_choice(reduction, "reduction", _REDUCTIONS)
        self.reduction = reduction
        self.from_logits = check_bool(from_logits, "from_logits")
        self.softmax = check_bool(softmax, "softmax")
        self.to_onehot = check_bool(to_onehot, "to_onehot")
        self.include_background = check_bool(include_background, "include_background")
        if softmax and not from_logits:
            raise ValueError("softmax must be False where from_logits is: the input holds probabilities")

    def forward(
        self,
        input: Float[Tensor, "batch channels *spatial"],
        target: Shaped[Tensor, "..."],
        ignore: Bool[Tensor, "batch #channels *spatial"] | None = None,
    ) -> Float[Tensor, "*reduced"]:
        """The reduced loss of logits (or probabilities) `input` and `target`, both ``[batch, channels, *spatial]``.

        `ignore` is that of `betti_matching_loss`.
        """
        x, p, y, _ = self._prepare(input, target, ignore)
        return in_output_precision(self._betti(x, p, y, input), input)

    def _betti(self, x: Tensor, p: Tensor, y: Tensor, input: Tensor) -> Tensor:
        seen = p.detach()
        if self.from_logits:
            # the probability of an infinite logit is finite: mark it, so that the matching does not overlook it
            seen = seen.masked_fill(~x.detach().isfinite(), float("nan"))
        losses = image_losses(p, y, seen, self.options, "input", propagate=propagates(self.options, input))
        return reduce(losses, self.reduction)

    def _prepare(
        self, input: Tensor, target: Tensor, ignore: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Input, probabilities and targets of the channels that count, and what is ignored."""
        if self.to_onehot:
            target = one_hot(target, input, ignore)
        check_images(input, target, ("input", "target"), floating=True, spatial_dims=self.options.spatial_dims)
        if not self.include_background and input.shape[1] == 1:
            raise ValueError("input must have two channels or more where include_background is False, got 1")
        if ignore is not None:
            ignore = check_ignore(ignore, input)
        x, y = in_working_precision(input, target)
        if ignore is not None:  # masked before the sigmoid: what is ignored may be NaN
            x = x.masked_fill(ignore.all(1, keepdim=True) if self.softmax else ignore, 0.0)
        p = (x.softmax(1) if self.softmax else x.sigmoid()) if self.from_logits else x
        if not self.include_background:
            p, y, x = p[:, 1:], y[:, 1:], x[:, 1:]
            ignore = ignore if ignore is None or ignore.shape[1] == 1 else ignore[:, 1:]
        if ignore is not None:
            p, y = ignored(p, y, ignore)
        return x, p, y, ignore

    def extra_repr(self) -> str:
        """The options."""
        shown = {name: getattr(self.options, name) for name in _SHOWN}
        shown |= {"reduction": self.reduction, "from_logits": self.from_logits, "softmax": self.softmax}
        shown |= {"to_onehot": self.to_onehot, "include_background": self.include_background}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


_SHOWN = [name for name in LossOptions.__dataclass_fields__ if name != "filtrations"]


def _forwarded(name: str) -> property:
    """An option of the record, as an attribute of the module that may be set."""

    def fget(self: BettiMatchingLoss) -> Any:
        return getattr(self.options, name)

    def fset(self: BettiMatchingLoss, value: Any) -> None:
        self.options = replace(self.options, **{name: value})

    return property(fget, fset, doc=f"The option `{name}`, checked when it is set.")


for _name in _SHOWN:
    setattr(BettiMatchingLoss, _name, _forwarded(_name))


class DiceBettiMatchingLoss(BettiMatchingLoss):
    """``Dice + alpha * Betti matching``, the training loss of the paper (alpha = 0.5).

    `last_dice` and `last_betti` are the two terms of the last call as floats for logging: means over the images for
    ``reduction="none"``; NaN before the first call, under `torch.func` and, for `last_betti`, where alpha is 0. They
    are fetched from the device when they are read. With ``alpha=0`` nothing is matched: the term costs nothing, and
    infinite logits pass.

    Args:
        alpha: weight of the Betti matching term, at least 0. It may be changed during training.
        base_loss: takes the place of Dice: called with the module's `input` and `target` as they are, and returns a
            tensor of the shape of the reduced loss. `last_dice` is then its value.
        **options: those of `BettiMatchingLoss`; `reduction` applies to both terms.

    Example:
        >>> criterion = DiceBettiMatchingLoss(alpha=0.1, relative=True)
        >>> loss = criterion(torch.zeros(1, 1, 8, 8), torch.eye(8)[None, None])
        >>> round(loss.item(), 4) == round(criterion.last_dice + 0.1 * criterion.last_betti, 4)
        True
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        base_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        **options: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number(alpha, "alpha", low=0.0)
        if base_loss is not None and not callable(base_loss):
            raise TypeError(f"base_loss must be a module or function of input and target, got {base_loss!r}")
        self.base_loss = base_loss
        self._last: tuple[Tensor, Tensor | None] | None = None

    def forward(
        self,
        input: Float[Tensor, "batch channels *spatial"],
        target: Shaped[Tensor, "..."],
        ignore: Bool[Tensor, "batch #channels *spatial"] | None = None,
    ) -> Float[Tensor, "*reduced"]:
        """The reduced sum of both terms for logits (or probabilities) `input`, ``[batch, channels, *spatial]``."""
        x, p, y, left_out = self._prepare(input, target, ignore)
        alpha = check_number(self.alpha, "alpha", low=0.0)
        betti = self._betti(x, p, y, input) if alpha > 0 else None
        if self.base_loss is None:
            if betti is None:
                check_range(y)
            base = reduce(_image_dice(p, y, left_out), self.reduction)
        else:
            base = self._base(input, target, p)
        self._last = None if transformed() else (base.detach(), None if betti is None else betti.detach())
        return in_output_precision(base if betti is None else base + alpha * betti, input)

    def _base(self, input: Tensor, target: Tensor, p: Tensor) -> Tensor:
        assert self.base_loss is not None
        base = self.base_loss(input, target)
        wanted = tuple(p.shape[:2]) if self.reduction == "none" else ()
        if not isinstance(base, Tensor) or not base.is_floating_point():
            raise TypeError(f"base_loss must return a floating tensor, got {type(base).__name__}")
        if tuple(base.shape) != wanted:
            raise ValueError(f"base_loss must return a tensor of shape {wanted}, got {tuple(base.shape)}")
        return base.to(p.dtype)

    @property
    def last_dice(self) -> float:
        """The Dice term (or the base loss) of the last call."""
        return float("nan") if self._last is None else float(self._last[0].mean())

    @property
    def last_betti(self) -> float:
        """The Betti matching term of the last call, before the weight alpha."""
        if self._last is None or self._last[1] is None:
            return float("nan")
        return float(self._last[1].mean())

    def extra_repr(self) -> str:
        """Alpha and the options."""
        return f"alpha={self.alpha}, {super().extra_repr()}"


def _image_dice(p: Tensor, t: Tensor, ignore: Tensor | None = None) -> Tensor:
    axes = tuple(range(2, p.ndim))
    smooth = 1e-5
    if ignore is not None:
        p, t = p.masked_fill(ignore, 0.0), t.masked_fill(ignore, 0.0)
    return 1 - (2 * (p * t).sum(axes) + smooth) / (p.sum(axes) + t.sum(axes) + smooth)
