"""Losses of a linear layer's rows and their gradients, a few rows of logits at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.device import working_dtype
from offprints.stablemax._rows import Terms, differentiable_losses, expected_losses, row_losses
from offprints.stablemax.losses import batched, transforming, uniform_distribution

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Options:
    """What the losses of a row depend on besides its logits, and what bounds the logits that exist at a time."""

    terms: Terms
    chunk_size: int
    label_smoothing: float
    class_weight: Tensor | None

    def rows(self, batch: int, classes: int) -> int:
        """Rows of logits that exist at a time."""
        return min(batch, max(1, batch * self.chunk_size // classes))

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
    options: Options,
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
    buffer, rows = None, options.rows(len(hidden), len(weight))
    if any(wanted):
        buffer = torch.empty((rows, len(weight)), dtype=compute, device=hidden.device)
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
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


class _Fused(torch.autograd.Function):
    """Losses ``[N]``, or with ``scale`` the sum of ``scale`` times the losses.

    One pass makes the sum and its gradients. What weights the losses themselves get is known only when going backward,
    which makes the logits once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        labels: Tensor,
        kept: Tensor,
        options: Options,
    ) -> Tensor:
        inputs = (hidden, weight, bias)
        wanted = (False, False, False) if scale is None else ctx.needs_input_grad[:3]
        losses, gradients = _sweep(inputs, labels, kept, scale, options, wanted)
        ctx.options = options
        ctx.gradients = None if scale is None else gradients
        ctx.save_for_backward(*inputs, scale, labels, kept, None if scale is None else losses)
        return losses if scale is None else (losses * scale).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, scale, labels, kept, losses = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled() or batched(grad):  # create_graph, or several gradients at once
            with torch.enable_grad():
                hidden, weight, bias = inputs
                value = _materialized(hidden, weight, bias, labels, kept, ctx.options)
                value = value if scale is None else (value * scale).sum()
            return (*_graph_gradients(value, grad, (*inputs, scale), wanted), None, None, None)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # of the losses themselves, or a second backward through a retained graph
            _, gradients = _sweep(
                tuple(inputs), labels, kept, grad if scale is None else scale, ctx.options, wanted[:3]
            )
        factor = None if scale is None else grad
        scaled = (
            None if gradient is None or input is None else _scaled(gradient, factor).to(input.dtype)
            for gradient, input in zip(gradients, inputs, strict=True)
        )
        return (*scaled, grad * losses if wanted[3] else None, None, None, None)


def _scaled(gradient: Tensor, factor: Tensor | None) -> Tensor:
    return gradient if factor is None else gradient.mul_(factor.to(gradient.dtype))


def fused_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    labels: Tensor,
    kept: Tensor,
    options: Options,
) -> Tensor:
    """Losses ``[N]``, or with ``scale`` ``[N]`` the sum of ``scale`` times the losses.

    The compiler leaves the loop over blocks alone, it would unroll it; transforms of ``torch.func`` see whole logits.
    """
    if transforming():
        losses = _materialized(hidden, weight, bias, labels, kept, options)
        return losses if scale is None else (losses * scale).sum()
    apply: Any = _Fused.apply
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)
    result: Tensor = apply(hidden, weight, bias, scale, labels, kept, options)
    return result


def _materialized(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kept: Tensor, options: Options
) -> Tensor:
    """Losses through whole logits, for second derivatives and transforms."""
    return options.losses(F.linear(hidden, weight, bias), labels, kept)


def _graph_gradients(
    value: Tensor, grad: Tensor, inputs: tuple[Tensor | None, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    asked = [want and input is not None for input, want in zip(inputs, wanted, strict=False)]
    leaves = [input for input, want in zip(inputs, asked, strict=True) if want and input is not None]
    found = iter(torch.autograd.grad(value, leaves, grad, create_graph=True))
    return tuple(next(found) if want else None for want in asked)
