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
BLOCK_ELEMENTS = 1 << 18


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


def _stablemax_block(x: Tensor, label: Tensor, work: Tensor) -> Tensor:
    # s(x) = max(x, 0) + 1 / (1 - min(x, 0)): neither logarithm nor exponential of the whole block is needed.
    inverse = torch.clamp(x, max=0, out=work).sub_(1).reciprocal_()  # negative
    s = x.clamp(min=0).sub_(inverse)
    s_label = s.gather(1, label)
    s.scatter_(1, label, 0)
    total = s.sum(1, keepdim=True)
    # dL/dx_j = p_j g'(x_j): for x_j >= 0 the product s_j / (1 + |x_j|) is 1, for x_j < 0 it is s_j squared.
    if x.device.type == "cpu" and _moderate(total) and _moderate(s_label):
        ratio = total / s_label
        share = ratio / (1 + ratio)
        inverse.square_().mul_((s_label + total).reciprocal_())
        loss = ratio.log1p_()
    else:
        # Scaled by the largest term, a sum of huge terms cannot overflow and a sum of tiny ones keeps its digits.
        tiny = torch.finfo(s.dtype).tiny
        largest = s.amax(1, keepdim=True).clamp_(min=tiny)
        total = s.div_(largest).sum(1, keepdim=True)
        d = largest.log() + total.log() - s_label.log()
        ratio = (largest / s_label) * total
        share = torch.where(d < 10, ratio / (1 + ratio), torch.sigmoid(d))
        inverse.square_().mul_(share / total.clamp(min=tiny) / largest)
        loss = torch.where(d < 10, ratio.log1p(), softplus(d))
    inverse.scatter_(1, label, -share / (1 + x.gather(1, label).abs()))
    return loss.squeeze(1)


def _moderate(terms: Tensor) -> bool:
    """Whether quotients of such numbers neither overflow nor lose digits; False where there is a NaN."""
    low, high = (bound.item() for bound in terms.aminmax())
    return low > 1e-15 and high < 1e15


def _softmax_block(x: Tensor, label: Tensor, work: Tensor) -> Tensor:
    others = work.copy_(x).scatter_(1, label, -torch.inf)
    # Where every other class is masked by -inf, subtracting the maximum would give NaN.
    largest = others.amax(1, keepdim=True)
    largest.masked_fill_(largest == -torch.inf, 0)
    terms = others.sub_(largest).exp_()
    total = terms.sum(1, keepdim=True)
    d = largest.sub_(x.gather(1, label)).add_(total.log())
    share = torch.sigmoid(d)
    terms.mul_(share / total.clamp_(min=torch.finfo(x.dtype).tiny)).scatter_(1, label, -share)
    return softplus(d).squeeze(1)


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
        x = logits[part].to(compute)
        in_place = gradient is not None and gradient.dtype == compute
        work = gradient[part] if gradient is not None and in_place else torch.empty_like(x)
        losses[part] = block(x, label[part], work)
        if gradient is not None and not in_place:
            gradient[part] = work
    return losses
