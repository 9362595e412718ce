"""Cross-entropy losses that do not collapse: of StableMax, and of softmax evaluated without absorption."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor
from offprints.stablemax._rows import Terms, differentiable_losses, row_losses
from offprints.stablemax.activations import at_least_float32, signed_log

Reduction = Literal["mean", "sum", "none"]


class _RowLosses(torch.autograd.Function):
    """Losses of rows; the gradient is made together with them and kept in the one buffer that becomes the result."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, terms: Terms) -> Tensor:
        ctx.terms = terms
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(logits, target)
        return row_losses(logits, target, terms, ctx.gradient)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, None, None]:
        logits, target = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: second derivatives are asked for
            losses = differentiable_losses(logits, target, ctx.terms)
            (grad,) = torch.autograd.grad(losses, logits, grad_losses, create_graph=True)
            return grad, None, None
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second backward through a retained graph
            gradient = torch.empty_like(logits)
            row_losses(logits, target, ctx.terms, gradient)
        # An ignored row's loss has weight 0; its gradient is 0 even where its logits are NaN.
        gradient.mul_(grad_losses.to(gradient.dtype).unsqueeze(1))
        ignored = grad_losses == 0
        if gradient.device.type != "cpu" or bool(ignored.any()):
            gradient.masked_fill_(ignored.unsqueeze(1), 0)
        return gradient, None, None


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
    if input.ndim < 2:
        raise ValueError(f"input must have shape (N, K) or (N, K, d1, ...), got {tuple(input.shape)}")
    classes = input.shape[1]
    if classes < 2:
        raise ValueError(f"input must have at least 2 classes along dimension 1, got shape {tuple(input.shape)}")
    target = check_labels(target, "target", num_classes=classes, ignore_index=ignore_index)
    expected = (input.shape[0], *input.shape[2:])
    if target.shape != expected:
        raise ValueError(f"target must have shape {expected} for input {tuple(input.shape)}, got {tuple(target.shape)}")
    if weight is not None:
        check_tensor(weight, "weight", shape=(classes,))

    logits = input.movedim(1, -1).reshape(-1, classes)
    labels = target.reshape(-1)
    kept = labels != ignore_index
    labels = labels.where(kept, 0)
    if torch.compiler.is_compiling():
        losses = differentiable_losses(logits, labels, terms)
    else:
        losses = _RowLosses.apply(logits, labels, terms)
    row_weight = (torch.ones_like(losses) if weight is None else weight.to(losses.dtype)[labels]) * kept
    losses = torch.where(kept, losses, 0) * row_weight
    if label_smoothing > 0:
        uniform = torch.where(kept, _uniform_losses(logits, weight, terms), 0)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    if reduction == "none":
        return losses.reshape(expected)
    if reduction == "sum":
        return losses.sum()
    total = row_weight.sum()
    return losses.sum() / torch.where(kept.any(), total, 1)


def _uniform_losses(logits: Tensor, weight: Tensor | None, terms: Terms) -> Tensor:
    """Cross-entropy of each row with the uniform distribution over the classes, weighted as torch does."""
    g = logits.to(at_least_float32(logits.dtype))
    log_probability = torch.log_softmax(signed_log(g) if terms == "stablemax" else g, 1)
    if weight is not None:
        log_probability = log_probability * weight.to(log_probability.dtype)
    return -log_probability.mean(1)


def stablemax_cross_entropy(
    input: Float[Tensor, "batch classes *spatial"],
    target: Int[Tensor, "batch *spatial"],
    weight: Float[Tensor, " classes"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of :func:`stablemax` probabilities, L = -log StableMax(x)_y, with the conventions of
    ``F.cross_entropy``.

    The gradient (p_i - 1[i = y]) / (1 + |x_i|) is never singular, and the label's term is kept out of the sum, so that
    float32 gives what the paper computes in float64. Half types are computed in float32: the loss is float32 (float64
    for float64 logits), the gradient has the input's type. Where all labels are ignored the mean is 0, connected to
    the graph. NaN logits give a NaN loss.

    Raises:
        TypeError: ``input`` or ``weight`` not floating, ``target`` not of an integer type.
        ValueError: empty batch, fewer than 2 classes, shapes that do not fit, a label outside [0, classes) that is not
            ``ignore_index``, an unknown reduction, ``label_smoothing`` outside [0, 1].
    """
    return _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, "stablemax")


def exact_cross_entropy(
    input: Float[Tensor, "batch classes *spatial"],
    target: Int[Tensor, "batch *spatial"],
    weight: Float[Tensor, " classes"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Ordinary softmax cross-entropy, evaluated so that nothing is absorbed: ``F.cross_entropy`` without Softmax
    Collapse.

    The value is that of ``F.cross_entropy``; in float32 it stays different from zero down to margins of about 87
    instead of 17, and so does its gradient. Types, conventions and errors are those of :func:`stablemax_cross_entropy`.

    Raises:
        TypeError: ``input`` or ``weight`` not floating, ``target`` not of an integer type.
        ValueError: as :func:`stablemax_cross_entropy`.
    """
    return _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, "softmax")


class _CrossEntropyLoss(nn.Module):
    weight: Tensor | None

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

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
        }


class StableMaxCrossEntropyLoss(_CrossEntropyLoss):
    """Module form of :func:`stablemax_cross_entropy`; ``weight`` ``[classes]`` is a buffer."""

    def forward(self, input: Float[Tensor, "batch classes *spatial"], target: Int[Tensor, "batch *spatial"]) -> Tensor:
        """Loss of ``input`` against the labels ``target``."""
        return stablemax_cross_entropy(input, target, self.weight, **self._options)


class ExactCrossEntropyLoss(_CrossEntropyLoss):
    """Module form of :func:`exact_cross_entropy`; ``weight`` ``[classes]`` is a buffer."""

    def forward(self, input: Float[Tensor, "batch classes *spatial"], target: Int[Tensor, "batch *spatial"]) -> Tensor:
        """Loss of ``input`` against the labels ``target``."""
        return exact_cross_entropy(input, target, self.weight, **self._options)
