"""A linear layer and its cross-entropy in one, for vocabularies whose logits do not fit in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.device import working_dtype
from offprints.shared.validation import Reduction, check_choice, check_labels, check_number, check_tensor
from offprints.stablemax._rows import Terms, differentiable_losses, expected_losses, row_losses
from offprints.stablemax.losses import any_ignored, batched, transforming, uniform_distribution

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Options:
    """What the losses of a row depend on besides its logits, and how many rows of logits exist at a time."""

    terms: Terms
    rows: int
    label_smoothing: float
    class_weight: Tensor | None

    def losses(self, logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
        """Losses of rows from torch's own operations."""
        losses = differentiable_losses(logits, labels, self.terms, kept)
        if self.class_weight is not None:
            losses = losses * self.class_weight.to(losses.dtype)[labels]
        if self.label_smoothing > 0:
            uniform = uniform_distribution(logits.shape[1], self.class_weight, losses)
            expected = expected_losses(logits, uniform, self.terms, kept)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * expected
        return losses

    def losses_into(self, logits: Tensor, labels: Tensor, kept: Tensor, gradient: Tensor | None) -> Tensor:
        """The same without a graph; the gradient is written into ``gradient``, 0 for ignored rows."""
        if self.label_smoothing > 0:
            with torch.set_grad_enabled(gradient is not None):
                leaf = logits.detach().requires_grad_(gradient is not None)
                losses = self.losses(leaf, labels, kept)
                if gradient is not None:
                    gradient.copy_(torch.autograd.grad(losses.sum(), leaf)[0])
            return losses.detach()
        losses = row_losses(logits, labels, self.terms, gradient).masked_fill_(~kept, 0)
        if gradient is not None:
            gradient.masked_fill_(~kept.unsqueeze(1), 0)
        if self.class_weight is not None:
            factor = self.class_weight.to(losses.dtype)[labels]
            losses.mul_(factor)
            if gradient is not None:
                gradient.mul_(factor.unsqueeze(1))
        return losses


def _sweep(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    labels: Tensor,
    kept: Tensor,
    scale: Tensor | None,
    options: _Options,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Gradients]:
    """Losses ``[N]`` and the gradients of their sum weighted by ``scale``, a few whole rows of logits at a time."""
    hidden, weight, bias = inputs
    compute = working_dtype(hidden)
    all_losses = torch.empty(len(hidden), dtype=compute, device=hidden.device)
    grads: Gradients = (
        torch.empty_like(hidden) if wanted[0] else None,
        torch.zeros(weight.shape, dtype=compute, device=weight.device) if wanted[1] else None,
        torch.zeros(weight.shape[:1], dtype=compute, device=weight.device) if bias is not None and wanted[2] else None,
    )
    buffer = None
    if any(wanted):
        buffer = torch.empty((options.rows, weight.shape[0]), dtype=compute, device=hidden.device)
    for start in range(0, len(hidden), options.rows):
        part = slice(start, start + options.rows)
        logits = F.linear(hidden[part], weight, bias)
        gradient = None if buffer is None else buffer[: len(logits)]
        all_losses[part] = options.losses_into(logits, labels[part], kept[part], gradient)
        if gradient is None:
            continue
        if scale is not None:
            gradient.mul_(scale[part].unsqueeze(1))
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
    return all_losses, grads


class _FusedSum(torch.autograd.Function):
    """Sum of ``scale`` times the losses; one pass makes it and the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        labels: Tensor,
        kept: Tensor,
        options: _Options,
    ) -> Tensor:
        inputs, wanted = (hidden, weight, bias), ctx.needs_input_grad[:3]
        losses, ctx.gradients = _sweep(inputs, labels, kept, scale, options, wanted)
        ctx.options = options
        ctx.save_for_backward(*inputs, scale, labels, kept, losses)
        return (losses * scale).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, scale, labels, kept, losses = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled() or batched(grad):  # create_graph, or several gradients at once
            with torch.enable_grad():
                hidden, weight, bias = inputs
                value = (_materialized(hidden, weight, bias, labels, kept, ctx.options) * scale).sum()
            return _graph_gradients(value, grad, (*inputs, scale), wanted)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second backward through a retained graph
            _, gradients = _sweep(tuple(inputs), labels, kept, scale, ctx.options, wanted[:3])
        scaled = (
            None if gradient is None or input is None else gradient.mul_(grad.to(gradient.dtype)).to(input.dtype)
            for gradient, input in zip(gradients, inputs, strict=True)
        )
        return (*scaled, grad * losses if wanted[3] else None, None, None, None)


class _FusedLosses(torch.autograd.Function):
    """The losses themselves; what weights they get is known when going backward, which makes the logits once more."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        kept: Tensor,
        options: _Options,
    ) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(hidden, weight, bias, labels, kept)
        return _sweep((hidden, weight, bias), labels, kept, None, options, (False, False, False))[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, kept = ctx.saved_tensors
        inputs, wanted = (hidden, weight, bias), ctx.needs_input_grad
        if torch.is_grad_enabled() or batched(grad):
            with torch.enable_grad():
                value = _materialized(*inputs, labels, kept, ctx.options)
            return _graph_gradients(value, grad, inputs, wanted)
        _, gradients = _sweep(inputs, labels, kept, grad, ctx.options, wanted[:3])
        typed = (
            None if gradient is None or input is None else gradient.to(input.dtype)
            for gradient, input in zip(gradients, inputs, strict=True)
        )
        return (*typed, None, None, None)


def _uncompiled(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """Apply a function that the compiler is to leave alone: it would unroll the loop over blocks."""
    apply: Any = function.apply
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)
    result: Tensor = apply(*args)
    return result


def _materialized(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kept: Tensor, options: _Options
) -> Tensor:
    """Losses through whole logits, for second derivatives and transforms."""
    return options.losses(F.linear(hidden, weight, bias), labels, kept)


def _graph_gradients(
    value: Tensor, grad: Tensor, inputs: tuple[Tensor | None, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    asked = [want and input is not None for input, want in zip(inputs, wanted, strict=False)]
    leaves = [input for input, want in zip(inputs, asked, strict=True) if want and input is not None]
    found = iter(torch.autograd.grad(value, leaves, grad, create_graph=True))
    return (*(next(found) if want else None for want in asked), None, None, None)


def _checked(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Hidden states ``[N, D]`` and labels ``[N]``."""
    check_tensor(hidden, "hidden", min_ndim=2, finite=False)
    check_tensor(weight, "weight", shape=(None, hidden.shape[-1]), finite=False)
    classes = weight.shape[0]
    if classes < 2:
        raise ValueError(f"weight must have at least 2 rows, one per class, got shape {tuple(weight.shape)}")
    if bias is not None:
        check_tensor(bias, "bias", shape=(classes,), finite=False)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise ValueError(f"{name} must have the type of hidden, {hidden.dtype}, got {tensor.dtype}")
    target = check_labels(target, "target", num_classes=classes, ignore_index=ignore_index)
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target must have shape {tuple(hidden.shape[:-1])} for hidden {tuple(hidden.shape)}, "
            f"got {tuple(target.shape)}"
        )
    return hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)


def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    chunk_size: int,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    terms: Terms,
) -> Tensor:
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    check_number(chunk_size, "chunk_size", low=1, integer=True)
    check_number(ignore_index, "ignore_index", integer=True)
    check_number(label_smoothing, "label_smoothing", low=0, high=1)
    rows_of_hidden, target = _checked(hidden, weight, target, bias, ignore_index)
    shape, classes, hidden = hidden.shape[:-1], weight.shape[0], rows_of_hidden
    if class_weight is not None:
        check_tensor(class_weight, "class_weight", shape=(classes,))
    if token_weight is not None:
        check_tensor(token_weight, "token_weight", shape=tuple(shape))
        token_weight = token_weight.reshape(-1).to(working_dtype(hidden))

    if torch.is_autocast_enabled(hidden.device.type):
        # The loop below is one operation to autograd: its inputs take the type in which F.linear would have run.
        low = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(low), weight.to(low), None if bias is None else bias.to(low)
    kept = target != ignore_index
    labels = target.where(kept, 0)
    if any_ignored(kept):  # 0 times NaN is not 0: what is to be ignored must not reach the products
        hidden = torch.where(kept.unsqueeze(1), hidden, 0)
    rows = min(len(hidden), max(1, len(hidden) * chunk_size // classes))
    options = _Options(terms, rows, label_smoothing, class_weight)
    fused = not transforming()
    if reduction == "none":
        if fused:
            losses = _uncompiled(_FusedLosses, hidden, weight, bias, labels, kept, options)
        else:
            losses = _materialized(hidden, weight, bias, labels, kept, options)
        losses = losses if token_weight is None else losses * torch.where(kept, token_weight, 0)
        return losses.reshape(shape)
    scale = torch.ones(1, dtype=working_dtype(hidden), device=hidden.device).expand(len(hidden))
    scale = scale if token_weight is None else torch.where(kept, token_weight, 0)
    if fused:
        total = _uncompiled(_FusedSum, hidden, weight, bias, scale, labels, kept, options)
    else:
        total = (_materialized(hidden, weight, bias, labels, kept, options) * scale).sum()
    if reduction == "sum":
        return total
    if class_weight is None and token_weight is None:
        return total / kept.sum().clamp(min=1)
    counted = scale if class_weight is None else scale * class_weight.to(scale.dtype)[labels]
    return total / torch.where(kept.any(), torch.where(kept, counted, 0).sum(), 1)


def linear_stablemax_cross_entropy(
    hidden: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    class_weight: Float[Tensor, " classes"] | None = None,
    token_weight: Float[Tensor, "*batch"] | None = None,
) -> Tensor:
    """`stablemax_cross_entropy(F.linear(hidden, weight, bias), target)` without ever holding the logits ``[batch,
    classes]``.

    At most `batch * chunk_size` logits (and at least one row) exist at a time. Rows are taken whole: the loss and
    the gradients of a block come from one pass, the logits are computed once (twice for `reduction="none"`). The
    result does not depend on `chunk_size` beyond rounding. Half types multiply in their own type and add in float32;
    the loss is float32 (float64 for float64 inputs). Second derivatives and the transforms of `torch.func` are right,
    but hold whole logits.

    Args:
        hidden: Inputs of the layer, ``[N, D]`` or ``[B, T, D]``.
        weight: Weights of the layer.
        target: Labels, of the shape of `hidden` without its last axis.
        bias: Bias of the layer.
        chunk_size: Bound on the logits that exist at a time, divided by the number of rows.
        ignore_index: Label of rows that do not count.
        reduction: `"mean"`, `"sum"` or `"none"`.
        label_smoothing: As in `stablemax_cross_entropy`.
        class_weight: Weights of the classes, `weight` of `stablemax_cross_entropy`.
        token_weight: Factors of the single losses. The mean divides by the sum of the weights that count, of the label
            times of the token.

    Raises:
        TypeError: a floating argument that is not floating, `target` not of an integer type.
        ValueError: empty batch, fewer than 2 classes, shapes or types that do not fit, a label outside [0, classes)
            that is not `ignore_index`, `chunk_size` < 1, an unknown reduction, `label_smoothing` outside [0, 1].

    Example:
        ```python
        hidden, head = torch.randn(2, 8, 16), torch.nn.Linear(16, 1000)
        target = torch.randint(1000, (2, 8))
        loss = linear_stablemax_cross_entropy(hidden, head.weight, target, head.bias)
        loss.backward()
        ```
    """
    return _linear_cross_entropy(
        hidden,
        weight,
        target,
        bias,
        chunk_size,
        ignore_index,
        reduction,
        label_smoothing,
        class_weight,
        token_weight,
        "stablemax",
    )


def linear_exact_cross_entropy(
    hidden: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    class_weight: Float[Tensor, " classes"] | None = None,
    token_weight: Float[Tensor, "*batch"] | None = None,
) -> Tensor:
    """`exact_cross_entropy(F.linear(hidden, weight, bias), target)` without ever holding the logits ``[batch,
    classes]``.

    Arguments, memory and errors are those of `linear_stablemax_cross_entropy`.

    Raises:
        TypeError: as `linear_stablemax_cross_entropy`.
        ValueError: as `linear_stablemax_cross_entropy`.

    Example:
        ```python
        hidden, head = torch.randn(2, 8, 16), torch.nn.Linear(16, 1000)
        target = torch.randint(1000, (2, 8))
        each = linear_exact_cross_entropy(hidden, head.weight, target, head.bias, reduction="none")
        ```
    """
    return _linear_cross_entropy(
        hidden,
        weight,
        target,
        bias,
        chunk_size,
        ignore_index,
        reduction,
        label_smoothing,
        class_weight,
        token_weight,
        "softmax",
    )
