"""Cross-entropy of rows of logits without absorption, forward and gradient in one sweep.

Cross-entropy adds exp(z_y) to the other terms and takes the logarithm of the ratio: once z_y leads by about 17
(float32) the others are rounded away, loss and gradient become exactly zero. Here the label's own term never enters
the sum. With S the sum of the others' terms relative to the label's, L = log(1 + S), dL/dz_y = -S / (1 + S) and the
other classes share S / (1 + S) in proportion to their terms. The value is the same; only the rounding differs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from offprints.stablemax.activations import at_least_float32, signed_log

Terms = Literal["softmax", "stablemax"]

# Rows are taken in blocks whose temporaries stay in a core's cache; an accelerator takes them all at once.
BLOCK_ELEMENTS = 1 << 17


def softplus(d: Tensor) -> Tensor:
    """log(1 + e^d) to full relative precision at both ends (torch's own turns linear at d = 20)."""
    return d.clamp(min=0) + torch.log1p(torch.exp(-d.abs()))


def differentiable_losses(logits: Tensor, target: Tensor, terms: Terms) -> Tensor:
    """Losses ``[N]`` of ``logits`` ``[N, K]`` from torch's own operations, traceable and differentiable twice."""
    g = logits.to(at_least_float32(logits.dtype))
    g = signed_log(g) if terms == "stablemax" else g
    label = target.unsqueeze(1)
    others = g.scatter(1, label, -torch.inf)
    return softplus(others.logsumexp(1) - g.gather(1, label).squeeze(1))


def _stablemax_block(x: Tensor, label: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
    # s(x) = (1 + max(x, 0)) / (1 - min(x, 0)): neither logarithm nor exponential of the whole block is needed.
    below = 1 - x.clamp(max=0)
    s = x.clamp(min=0).add_(1).div_(below)
    s_label = s.gather(1, label)
    s.scatter_(1, label, 0)
    # Scaled by the largest term, a sum of huge terms cannot overflow and a sum of tiny ones keeps its digits.
    tiny = torch.finfo(s.dtype).tiny
    largest = s.amax(1, keepdim=True).clamp_(min=tiny)
    total = s.div_(largest).sum(1, keepdim=True)
    d = largest.log() + total.log() - s_label.log()
    ratio = (largest / s_label) * total
    loss = torch.where(d < 10, ratio.log1p(), softplus(d))
    if not gradient:
        return loss.squeeze(1), None
    # dL/dx_j = p_j g'(x_j): for x_j >= 0 the product s_j / (1 + |x_j|) is 1, for x_j < 0 it is s_j squared.
    share = torch.where(d < 10, ratio / (1 + ratio), torch.sigmoid(d))
    grad = below.square_().reciprocal_().mul_(share / total.clamp(min=tiny) / largest)
    grad.scatter_(1, label, -share / (1 + x.gather(1, label).abs()))
    return loss.squeeze(1), grad


def _softmax_block(x: Tensor, label: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
    others = x.scatter(1, label, -torch.inf)
    # Where every other class is masked by -inf, subtracting the maximum would give NaN.
    largest = others.amax(1, keepdim=True)
    largest = largest.masked_fill(largest == -torch.inf, 0)
    terms = others.sub_(largest).exp_()
    total = terms.sum(1, keepdim=True)
    d = (largest - x.gather(1, label)) + total.log()
    loss = softplus(d)
    if not gradient:
        return loss.squeeze(1), None
    share = torch.sigmoid(d)
    grad = terms.mul_(share / total.clamp(min=torch.finfo(x.dtype).tiny))
    grad.scatter_(1, label, -share)
    return loss.squeeze(1), grad


def row_losses(logits: Tensor, target: Tensor, terms: Terms, gradient: Tensor | None = None) -> Tensor:
    """Losses ``[N]`` of ``logits`` ``[N, K]``; writes their gradients into ``gradient`` ``[N, K]`` when it is given."""
    rows, classes = logits.shape
    compute = at_least_float32(logits.dtype)
    block = _stablemax_block if terms == "stablemax" else _softmax_block
    step = rows if logits.device.type != "cpu" else max(1, BLOCK_ELEMENTS // classes)
    losses = torch.empty(rows, dtype=compute, device=logits.device)
    label = target.unsqueeze(1)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        losses[part], grad = block(logits[part].to(compute), label[part], gradient is not None)
        if gradient is not None and grad is not None:
            gradient[part] = grad
    return losses
