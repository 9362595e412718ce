"""Cross-entropy losses that do not collapse: of StableMax, and of softmax evaluated without absorption."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd import forward_ad

from offprints.shared.validation import (
    Reduction,
    check_choice,
    check_labels,
    check_number,
    check_tensor,
    should_check,
)
from offprints.stablemax._rows import Terms, differentiable_losses, expected_losses, row_losses


def transforming() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is under way."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def batched(x: Tensor) -> bool:
    """Whether this stands for several tensors: inside vmap, or in `torch.autograd.grad(..., is_grads_batched=True)`."""
    return torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_legacy_batchedtensor(x)


class _RowLosses(torch.autograd.Function):
    """Losses of rows; the gradient is made together with them and kept in the one buffer that becomes the result."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, kept: Tensor | None, terms: Terms) -> Tensor:
        ctx.terms = terms
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(logits, target, kept)
        losses = row_losses(logits, target, terms, ctx.gradient)
        return losses if kept is None else losses.masked_fill_(~kept, 0)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: second derivatives are asked for
            return _differentiable_gradient(logits, target, kept, ctx.terms, grad_losses), None, None, None
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second backward through a retained graph
            gradient = torch.empty_like(logits)
            row_losses(logits, target, ctx.terms, gradient)
        if kept is None and grad_losses.stride() == (0,) and not batched(grad_losses) and _nonzero(grad_losses[0]):
            return gradient.mul_(grad_losses[0].to(gradient.dtype)), None, None, None  # of a mean or a sum
        # An ignored row's gradient is 0 even where its logits are NaN, and so is that of a loss without weight.
        ignored = grad_losses == 0 if kept is None else (grad_losses == 0) | ~kept
        scale = grad_losses.to(gradient.dtype).unsqueeze(1)
        if batched(grad_losses):  # several gradients at once, for which the one buffer is too small
            return torch.where(ignored.unsqueeze(1), 0, gradient * scale), None, None, None
        gradient.mul_(scale)
        if gradient.device.type != "cpu" or bool(ignored.any()):
            gradient.masked_fill_(ignored.unsqueeze(1), 0)
        return gradient, None, None, None


def _nonzero(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.item() != 0


def _differentiable_gradient(
    logits: Tensor, target: Tensor, kept: Tensor | None, terms: Terms, grad_losses: Tensor
) -> Tensor:
    losses = differentiable_losses(logits, target, terms, kept)
    # A row without a derivative, whose loss has no weight, is masked as in the other branch.
    sound = ~(losses.detach().isnan() & (grad_losses.detach() == 0))
    losses = differentiable_losses(logits, target, terms, sound if kept is None else kept & sound)
    (gradient,) = torch.autograd.grad(losses, logits, grad_losses, create_graph=True)
    return gradient


def losses_of_labels(logits: Tensor, labels: Tensor, kept: Tensor | None, terms: Terms) -> Tensor:
    """Losses ``[N]`` of ``logits`` ``[N, K]``, by the fast code where torch does not trace or transform it."""
    if torch.compiler.is_compiling() or transforming():
        return differentiable_losses(logits, labels, terms, kept)
    losses: Tensor = _RowLosses.apply(logits, labels, kept, terms)
    return losses


def any_ignored(kept: Tensor) -> bool:
    """Whether rows must be masked; where the answer would cost a synchronization, yes."""
    return not should_check(kept) or not bool(kept.all())


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
    terms: Terms,
) -> Tensor:
    check_tensor(input, "input", finite=False)
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    check_number(label_smoothing, "label_smoothing", low=0, high=1)
    check_number(ignore_index, "ignore_index", integer=True)
    if input.ndim == 0:
        raise ValueError("input must have shape (K,), (N, K) or (N, K, d1, ...), got a scalar")
    axis = 0 if input.ndim == 1 else 1
    classes = input.shape[axis]
    if classes < 2:
        raise ValueError(f"input must have at least 2 classes along dimension {axis}, got shape {tuple(input.shape)}")
    if weight is not None:
        check_tensor(weight, "weight", ndim=1)
        if len(weight) != classes:
            raise ValueError(
                f"weight must have one entry for each class of input {tuple(input.shape)}, {classes}, got {len(weight)}"
            )
    expected = input.shape[:axis] + input.shape[axis + 1 :]
    logits = input if input.ndim == 2 else input.movedim(axis, -1).reshape(-1, classes)
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == input.shape:
        probability = _checked_probabilities(target).movedim(axis, -1).reshape(-1, classes)
        losses = _losses_of_probabilities(logits, probability, weight, label_smoothing, terms)
        if reduction == "none":
            return losses.reshape(expected)
        return losses.sum() if reduction == "sum" else losses.mean()

    if isinstance(target, Tensor) and target.is_floating_point():
        raise TypeError(
            f"target must hold labels of an integer type, or probabilities of the shape of input {tuple(input.shape)}, "
            f"got {target.dtype} of shape {tuple(target.shape)}"
        )

    # Smallest and largest label are two operations where a full check takes eight: the fixed cost of a small batch.
    usual = (
        isinstance(target, Tensor)
        and target.dtype == torch.int64
        and target.shape == expected
        and not 0 <= ignore_index < classes
        and should_check(target)
        and all(0 <= bound.item() < classes for bound in target.aminmax())
    )
    kept = None
    if not usual:
        target = check_labels(target, "target", num_classes=classes, ignore_index=ignore_index)
        if target.shape != expected:
            raise ValueError(
                f"target must have shape {tuple(expected)} for input {tuple(input.shape)}, got {tuple(target.shape)}"
            )
        if any_ignored(keep := target.reshape(-1) != ignore_index):
            kept = keep
    labels = target.reshape(-1)
    labels = labels if kept is None else labels.where(kept, 0)
    losses = losses_of_labels(logits, labels, kept, terms)
    row_weight = None
    if weight is not None:
        row_weight = weight.to(losses.dtype)[labels]
        row_weight = row_weight if kept is None else torch.where(kept, row_weight, 0)
        losses = losses * row_weight
    if label_smoothing > 0:
        uniform = uniform_distribution(classes, weight, losses)
        losses = (1 - label_smoothing) * losses + label_smoothing * expected_losses(logits, uniform, terms, kept)
    if reduction == "none":
        return losses.reshape(expected)
    total = losses.sum()
    if reduction == "sum":
        return total
    if row_weight is not None:
        return total / (row_weight.sum() if kept is None else torch.where(kept.any(), row_weight.sum(), 1))
    return total / (len(losses) if kept is None else kept.sum().clamp(min=1))


def uniform_distribution(classes: int, weight: Tensor | None, like: Tensor) -> Tensor:
    """The uniform distribution over the classes, weighted as torch does."""
    return like.new_full((classes,), 1 / classes) if weight is None else weight.to(like.dtype) / classes


def _losses_of_probabilities(
    logits: Tensor, probability: Tensor, weight: Tensor | None, label_smoothing: float, terms: Terms
) -> Tensor:
    if label_smoothing > 0:
        probability = (1 - label_smoothing) * probability + label_smoothing / logits.shape[1]
    if weight is not None:
        probability = probability * weight.to(probability.dtype)
    return expected_losses(logits, probability, terms)


def _checked_probabilities(target: Tensor) -> Tensor:
    check_tensor(target, "target")
    if should_check(target) and bool((target.detach() < 0).any()):
        raise ValueError(f"target must not hold negative probabilities, got {float(target.detach().min())}")
    return target


def stablemax_cross_entropy(
    input: Float[Tensor, "batch classes *spatial"],
    target: Shaped[Tensor, "batch *spatial"],
    weight: Float[Tensor, " classes"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of `stablemax` probabilities, L = -log StableMax(x)_y, with the conventions of `F.cross_entropy`.

    The gradient (p_i - 1[i = y]) / (1 + |x_i|) is never singular, and the label's term is kept out of the sum, so that
    float32 gives what the paper computes in float64. Half types are computed in float32: the loss is float32 (float64
    for float64 logits), the gradient has the input's type. Where all labels are ignored the mean is 0, connected to
    the graph. NaN logits give a NaN loss, and so does a logit of +inf at the label; -inf masks a class.

    Args:
        input: Logits ``[N, K]``, ``[N, K, d1, ...]``, or ``[K]`` of a single sample.
        target: Labels ``[N]``, ``[N, d1, ...]`` or ``[]``; or probabilities of the shape of `input`, to which
            `ignore_index` does not apply and whose mean divides by the number of samples.
        weight: Weights of the classes.
        ignore_index: Label of samples that do not count.
        reduction: `"mean"`, `"sum"` or `"none"`; with `weight` the mean divides by the sum of the labels' weights.
        label_smoothing: Share of the uniform distribution in the target.

    Raises:
        TypeError: `input` or `weight` not floating, `target` neither of an integer type nor probabilities.
        ValueError: empty batch, fewer than 2 classes, shapes that do not fit, a label outside [0, classes) that is not
            `ignore_index`, a negative probability, an unknown reduction, `label_smoothing` outside [0, 1].

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
        >>> loss = stablemax_cross_entropy(logits, torch.tensor([0]))
        >>> round(loss.item(), 4)  # -log(3 / 4.5)
        0.4055
        >>> loss.backward()
        >>> logits.grad
        tensor([[-0.1111,  0.2222,  0.0556]])
    """
    return _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, "stablemax")


def exact_cross_entropy(
    input: Float[Tensor, "batch classes *spatial"],
    target: Shaped[Tensor, "batch *spatial"],
    weight: Float[Tensor, " classes"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Ordinary softmax cross-entropy, evaluated so that nothing is absorbed: `F.cross_entropy` without Softmax
    Collapse.

    The value is that of `F.cross_entropy`; in float32 it stays different from zero down to margins of about 87
    instead of 17, and so does its gradient. Arguments, types and errors are those of `stablemax_cross_entropy`.

    Raises:
        TypeError: as `stablemax_cross_entropy`.
        ValueError: as `stablemax_cross_entropy`.

    Example:
        >>> logits, target = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([0])
        >>> exact_cross_entropy(logits, target)
        tensor(1.8715e-13)
        >>> torch.nn.functional.cross_entropy(logits, target).item() == 0
        True
    """
    return _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, "softmax")


class _CrossEntropyLoss(nn.Module):
    weight: Tensor | None
    _terms: ClassVar[Terms]

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice(reduction, "reduction", ("mean", "sum", "none"))
        check_number(label_smoothing, "label_smoothing", low=0, high=1)
        check_number(ignore_index, "ignore_index", integer=True)
        if weight is not None:
            check_tensor(weight, "weight", ndim=1)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.label_smoothing = label_smoothing

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"

    def forward(
        self, input: Float[Tensor, "batch classes *spatial"], target: Shaped[Tensor, "batch *spatial"]
    ) -> Tensor:
        """Loss of `input` against labels or probabilities `target`."""
        return _cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing, self._terms
        )


class StableMaxCrossEntropyLoss(_CrossEntropyLoss):
    """Module form of `stablemax_cross_entropy`; `weight` ``[classes]`` is a buffer.

    Example:
        >>> criterion = StableMaxCrossEntropyLoss(label_smoothing=0.1)
        >>> criterion(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.5018)
    """

    _terms = "stablemax"


class ExactCrossEntropyLoss(_CrossEntropyLoss):
    """Module form of `exact_cross_entropy`; `weight` ``[classes]`` is a buffer.

    Example:
        >>> criterion = ExactCrossEntropyLoss(torch.tensor([1.0, 2.0]), reduction="sum")
        >>> criterion(torch.zeros(2, 2), torch.tensor([0, 1]))  # (1 + 2) log 2
        tensor(2.0794)
    """

    _terms = "softmax"
