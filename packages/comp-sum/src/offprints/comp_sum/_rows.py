"""Comp-sum losses of rows of logits: one softmax, one sum, one product, and one buffer that becomes the gradient.

With S the softmax and q the sum of the probabilities of the other classes, u = q / S_y is the argument of Phi_tau, and
the gradient is S_y^(tau-1) (S - e_y), whose entry at y is -S_y^(tau-1) q. Nothing here is a difference of nearly equal
numbers: q is added up, it is never 1 - S_y. Loss and gradient keep their relative accuracy down to the smallest number
of the type, where log-softmax has rounded to 0 from a margin of 17 (float32) or 37 (float64) on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from offprints.shared.device import working_dtype
from offprints.shared.validation import Reduction, check_labels, reduce

# Rows are taken in blocks that stay in a core's cache; an accelerator takes them all at once.
BLOCK_ELEMENTS = 1 << 18
# By type, a logarithm whose exponential and its inverse are normal numbers with room to be added up.
LARGEST = {torch.float32: 80.0, torch.float64: 690.0}


def exponent_of(tau: float) -> float:
    """Return 1 - tau within the range of float32: infinity times a loss of 0 would be NaN."""
    return max(1.0 - tau, -1e38)


def power(s: Tensor, tau: float) -> Tensor:
    """Phi_tau by s = log(1 + u): s itself for tau = 1, else (e^((1-tau) s) - 1) / (1-tau), exact near tau = 1."""
    if tau == 1:
        return s
    exponent = exponent_of(tau)
    x = exponent * s
    if tau < 1 or not torch.is_grad_enabled():
        return torch.expm1(x) / exponent
    # torch takes the derivative of expm1 from its value, as 1 + value: near -1 nothing would be left of e^x.
    return torch.where(x < -0.5, x.exp() - 1, torch.expm1(x)) / exponent


def differentiable_losses(logits: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Losses ``[B]`` of ``logits`` ``[B, C]`` from torch's own operations: traceable, with derivatives of any order.

    They go through v = logsumexp of the others - z_y and log(1 + u) = softplus(v).
    """
    z = logits.to(working_dtype(logits))
    label = labels.unsqueeze(1)
    others = z.scatter(1, label, -torch.inf)
    largest = others.detach().amax(1, keepdim=True)
    largest = torch.where(largest == -torch.inf, 0, largest)
    total = (others - largest).exp().sum(1)
    empty = total == 0  # every other class is masked: the logarithm would have the derivative NaN
    own = z.gather(1, label).squeeze(1)
    own = torch.where(own == torch.inf, torch.nan, own)  # infinite confidence is no loss of 0
    log_total = torch.where(empty, -torch.inf, torch.where(empty, 1, total).log() + largest.squeeze(1))
    # torch's softplus turns linear at its threshold: at 20, the default, float64 would lose half of its digits.
    return power(F.softplus(log_total - own, threshold=50), tau)


class Terms(NamedTuple):
    """The gradient of each row's loss: ``weights`` times ``others``, with ``-own`` at the label.

    Attributes:
        others: ``[B, C]``, 0 at the labels.
        own: ``[B, 1]``, the sum of the others.
        weights: ``[B, 1]``; None for all 1.
        label: ``[B, 1]``.
    """

    others: Tensor
    own: Tensor
    weights: Tensor | None
    label: Tensor

    def gradient(self, scale: Any) -> Tensor:
        """The gradient times ``scale``, a number or ``[B]``, in the memory of ``others``: usable once."""
        if isinstance(scale, Tensor) and scale.ndim == 1:
            scale = scale.unsqueeze(1)
        gradient = self.others.scatter_(1, self.label, self.own.neg())
        return gradient.mul_(scale if self.weights is None else self.weights * scale)


def _ratios(z: Tensor, label: Tensor, tau: float, buffer: Tensor | None) -> tuple[Tensor, Terms] | None:
    """By e^(z_j - z_y), whose sum is u: the fewest operations. None for a batch that leaves the range of its type.

    The gradient is S_y^tau e^(z_j - z_y), and -S_y^tau u at y.
    """
    own = z.gather(1, label)
    ratios = (z - own if buffer is None else torch.sub(z, own, out=buffer)).exp_()
    # 0, but NaN of an infinite score: infinite confidence is no loss of 0.
    u = ratios.scatter_(1, label, own.sub_(own)).sum(1, keepdim=True)
    # S_y^tau is to be a normal number as well as u; NaN fails too.
    if not u.amax().item() <= math.exp(min(LARGEST[z.dtype] / max(tau, 1.0), 700.0)):
        return None
    s = u.log1p()
    return power(s, tau), Terms(ratios, u, (s * -tau).exp_() if tau else None, label)


def _probabilities(z: Tensor, label: Tensor, tau: float, buffer: Tensor | None) -> tuple[Tensor, Terms]:
    """By the softmax S and the sum q of the others: the gradient is S_y^(tau-1) S_j, and -S_y^(tau-1) q at y."""
    shares = torch.softmax(z, 1) if buffer is None else torch.softmax(z, 1, out=buffer)
    own = shares.gather(1, label)
    q = shares.scatter_(1, label, 0).sum(1, keepdim=True)
    # Where S_y is below the normal numbers its logarithm comes from the logits. An accelerator is not waited for: this
    # is computed for every batch.
    most, at = shares.max(1, keepdim=True)
    behind = z.gather(1, at) - z.gather(1, label) - most.log()
    s = torch.where(own < torch.finfo(z.dtype).tiny, behind, (q / own).log1p_())
    # Where the weight itself overflows, infinity times a probability that has vanished would be NaN.
    weights = (exponent_of(tau) * s).exp_().clamp_(max=torch.finfo(z.dtype).max) if tau != 1 else None
    return power(s, tau), Terms(shares, q, weights, label)


def _rows(z: Tensor, label: Tensor, tau: float, buffer: Tensor | None = None) -> tuple[Tensor, Terms]:
    """Losses ``[B, 1]`` and the terms of their gradient."""
    found = _ratios(z, label, tau, buffer) if z.device.type == "cpu" else None
    return _probabilities(z, label, tau, buffer) if found is None else found


def row_losses(logits: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Terms]:
    """Losses ``[B, 1]`` of ``logits`` ``[B, C]``, and the terms of their gradient.

    Raises:
        ValueError: a label is outside [0, C).
    """
    rows, classes = logits.shape
    label = labels.unsqueeze(1)
    compute = logits.dtype if logits.dtype in LARGEST else torch.float32
    step = rows if logits.device.type != "cpu" else max(1, BLOCK_ELEMENTS // classes)
    try:
        if rows <= step:
            return _rows(logits if logits.dtype == compute else logits.to(compute), label, tau)
        others = torch.empty(logits.shape, dtype=compute, device=logits.device)
        losses, own, weights = (others.new_ones(rows, 1) for _ in range(3))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            losses[part], terms = _rows(logits[part].to(compute), label[part], tau, others[part])
            own[part] = terms.own
            if terms.weights is not None:
                weights[part] = terms.weights
        return losses, Terms(others, own, weights, label)
    except (RuntimeError, IndexError):  # torch looks at every index anyway: a check of our own would be a second look
        check_labels(labels, "target", num_classes=classes)
        raise


class _CompSum(torch.autograd.Function):
    """The reduced losses of rows; their gradient is one product in the buffer that the forward pass has filled."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, tau: float, reduction: Reduction) -> Tensor:
        losses, terms = row_losses(logits, labels, tau)
        if ctx.needs_input_grad[0]:
            ctx.settings, ctx.terms = (tau, reduction), terms
            ctx.save_for_backward(logits, labels)
        if reduction == "mean":
            return losses.mean()
        return losses.sum() if reduction == "sum" else losses.squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels = ctx.saved_tensors
        tau, reduction = ctx.settings
        if torch.is_grad_enabled() or batched(grad):  # create_graph, or several gradients at once
            with torch.enable_grad():
                value = reduce(differentiable_losses(logits, labels, tau), reduction)
                (gradient,) = torch.autograd.grad(value, logits, grad, create_graph=True)
            return gradient, None, None, None
        terms, ctx.terms = ctx.terms, None
        if terms is None:  # a second backward through a retained graph
            _, terms = row_losses(logits, labels, tau)
        scale: Any = grad
        if reduction != "none" and grad.device.type == "cpu":  # a number costs a small batch less than a tensor
            scale = grad.item() / (logits.shape[0] if reduction == "mean" else 1)
        elif reduction == "mean":
            scale = grad / logits.shape[0]
        gradient = terms.gradient(scale)
        return gradient if gradient.dtype == logits.dtype else gradient.to(logits.dtype), None, None, None


def batched(x: Tensor) -> bool:
    """Whether this stands for several tensors, as in `torch.autograd.grad(..., is_grads_batched=True)`."""
    return torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_legacy_batchedtensor(x)


def transforming() -> bool:
    """Whether torch traces or transforms: ``torch.compile``, ``torch.func``, forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def comp_sum(logits: Tensor, labels: Tensor, tau: float, reduction: Reduction) -> Tensor:
    """Reduced losses, by the fast code where torch neither traces nor transforms it."""
    if transforming():
        return reduce(differentiable_losses(logits, labels, tau), reduction)
    result: Tensor = _CompSum.apply(logits, labels, tau, reduction)
    return result


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norm of the rows, whose derivatives at 0 are 0 and not NaN: the root never sees the 0."""
    squares = x.square().sum(1)
    zero = squares == 0
    return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())
