"""A linear layer and the StableMax cross-entropy in one, for vocabularies whose logits do not fit in memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor
from offprints.stablemax._rows import row_losses
from offprints.stablemax.activations import at_least_float32

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    kept: Tensor,
    rows: int,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Gradients]:
    """Sum of the losses and its gradients, a few whole rows of logits at a time, so that one pass does both."""
    compute = at_least_float32(hidden.dtype)
    loss = torch.zeros((), dtype=compute, device=hidden.device)
    grads: Gradients = (
        torch.empty_like(hidden) if wanted[0] else None,
        torch.zeros(weight.shape, dtype=compute, device=weight.device) if wanted[1] else None,
        torch.zeros(weight.shape[:1], dtype=compute, device=weight.device) if bias is not None and wanted[2] else None,
    )
    buffer = torch.empty((rows, weight.shape[0]), dtype=compute, device=hidden.device) if any(wanted) else None
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        logits = F.linear(hidden[part], weight, bias)
        gradient = None if buffer is None else buffer[: logits.shape[0]]
        losses = row_losses(logits, target[part], "stablemax", gradient)
        loss += torch.where(kept[part], losses, 0).sum()
        if gradient is None:
            continue
        gradient.masked_fill_(~kept[part].unsqueeze(1), 0)
        small = gradient.to(hidden.dtype)
        if grads[0] is not None:
            grads[0][part] = small @ weight
        if grads[1] is not None:
            if compute == hidden.dtype:
                grads[1].addmm_(small.T, hidden[part])
            else:
                grads[1].add_(small.T @ hidden[part])
        if grads[2] is not None:
            grads[2].add_(gradient.sum(0))
    return loss, grads


class _LinearStableMax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kept: Tensor, rows: int
    ) -> Tensor:
        ctx.rows = rows
        loss, ctx.gradients = _sweep(hidden, weight, bias, target, kept, rows, ctx.needs_input_grad[:3])
        ctx.save_for_backward(hidden, weight, bias, target, kept)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, kept = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second backward through a retained graph
            _, gradients = _sweep(hidden, weight, bias, target, kept, ctx.rows, ctx.needs_input_grad[:3])
        inputs = (hidden, weight, bias)
        scaled = (
            None if gradient is None or input is None else gradient.mul_(grad_loss.to(gradient.dtype)).to(input.dtype)
            for gradient, input in zip(gradients, inputs, strict=True)
        )
        return (*scaled, None, None, None)


def linear_stablemax_cross_entropy(
    hidden: Float[Tensor, "batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, " batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """``stablemax_cross_entropy(F.linear(hidden, weight, bias), target)`` without ever holding the logits ``[batch,
    classes]``.

    At most ``batch * chunk_size`` logits (and at least one row) exist at a time. Rows are taken whole: the loss and
    the gradients of a block come from one pass, the logits are computed once. The result does not depend on
    ``chunk_size`` beyond rounding. Half types multiply in their own type and add in float32; the loss is float32
    (float64 for float64 inputs).

    Raises:
        TypeError: a floating argument that is not floating, ``target`` not of an integer type.
        ValueError: empty batch, fewer than 2 classes, shapes or types that do not fit, a label outside [0, classes)
            that is not ``ignore_index``, ``chunk_size`` < 1, an unknown reduction.
    """
    check_tensor(hidden, "hidden", ndim=2, finite=False)
    check_tensor(weight, "weight", shape=(None, hidden.shape[1]), finite=False)
    check_choice(reduction, "reduction", ("mean", "sum"))
    check_number(chunk_size, "chunk_size", low=1, integer=True)
    check_number(ignore_index, "ignore_index", integer=True)
    classes = weight.shape[0]
    if classes < 2:
        raise ValueError(f"weight must have at least 2 rows, one a class, got shape {tuple(weight.shape)}")
    if bias is not None:
        check_tensor(bias, "bias", shape=(classes,), finite=False)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise ValueError(f"{name} must have the type of hidden, {hidden.dtype}, got {tensor.dtype}")
    target = check_labels(target, "target", length=len(hidden), num_classes=classes, ignore_index=ignore_index)

    if torch.is_autocast_enabled(hidden.device.type):
        # The loop below is one operation to autograd: its inputs take the type in which F.linear would have run.
        low = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(low), weight.to(low), None if bias is None else bias.to(low)
    kept = target != ignore_index
    labels = target.where(kept, 0)
    rows = min(len(hidden), max(1, len(hidden) * chunk_size // classes))
    loss = _LinearStableMax.apply(hidden, weight, bias, labels, kept, rows)
    return loss if reduction == "sum" else loss / kept.sum().clamp(min=1)
