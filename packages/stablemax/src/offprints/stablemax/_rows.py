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
from torch.nn import functional as F

from offprints.shared.device import working_dtype
from offprints.stablemax.activations import signed_log

Terms = Literal["softmax", "stablemax"]

# Rows are taken in blocks whose temporaries stay in a core's cache; an accelerator takes them all at once.
BLOCK_ELEMENTS = 1 << 18


def softplus(d: Tensor) -> Tensor:
    """log(1 + e^d) to full relative precision at both ends (by default torch's turns linear at d = 20).

    One operation of torch's, so that its first and second derivative are right everywhere: a formula of clamp and abs
    has a seam at d = 0, where the derivatives of these do not add up to 1/2.
    """
    return F.softplus(d, threshold=50)


def log_terms(logits: Tensor, terms: Terms) -> Tensor:
    """Logarithms of the terms that are normalized: the logits, or g of them for StableMax."""
    g = logits.to(working_dtype(logits))
    return signed_log(g) if terms == "stablemax" else g


def _logsumexp(g: Tensor) -> Tensor:
    """Row-wise logsumexp ``[N, 1]`` whose derivatives are 0, not NaN, in a row of nothing but -inf."""
    largest = g.detach().amax(1, keepdim=True)
    largest = torch.where(largest == -torch.inf, 0, largest)
    total = (g - largest).exp().sum(1, keepdim=True)
    empty = total == 0
    return torch.where(empty, -torch.inf, largest + torch.where(empty, 1, total).log())


def differentiable_losses(logits: Tensor, target: Tensor, terms: Terms, kept: Tensor | None = None) -> Tensor:
    """Losses ``[N]`` of ``logits`` ``[N, K]`` from torch's own operations, traceable and differentiable twice.

    Rows outside ``kept`` have the loss 0. They are masked before anything is computed: a mask put on the result does
    not stop the gradient of a NaN.
    """
    if kept is not None:
        logits = torch.where(kept.unsqueeze(1), logits, 0)
    g = log_terms(logits, terms)
    label = target.unsqueeze(1)
    own = g.gather(1, label)
    own = torch.where(own == torch.inf, torch.nan, own)  # infinite confidence is no loss of 0
    losses = softplus(_logsumexp(g.scatter(1, label, -torch.inf)) - own).squeeze(1)
    return losses if kept is None else torch.where(kept, losses, 0)


def expected_losses(logits: Tensor, probability: Tensor, terms: Terms, kept: Tensor | None = None) -> Tensor:
    """Losses ``[N]`` expected under weights ``[N, K]`` or ``[K]`` of the classes: their sum times -log p.

    With k* the class of the largest term, -log p_k = (g_k* - g_k) + log(1 + S), S the sum of the others' terms
    relative to that of k*. Both are sums of what is not negative, so that again nothing is absorbed.
    """
    if kept is not None:
        logits = torch.where(kept.unsqueeze(1), logits, 0)
    g = log_terms(logits, terms)
    probability = probability.to(g.dtype)
    largest, at = g.max(1, keepdim=True)
    rest = softplus(_logsumexp(g.scatter(1, at, -torch.inf)) - largest).squeeze(1)
    # k* itself is 0 behind, without a gradient that would absorb that of the rest; so is a masked class without weight.
    nothing = ((probability == 0) & (g == -torch.inf)).scatter(1, at, True)
    behind = torch.where(nothing, 0, largest - g)
    losses = (probability * behind).sum(1) + probability.sum(-1) * rest
    return losses if kept is None else torch.where(kept, losses, 0)


def _stablemax_block(x: Tensor, label: Tensor, work: Tensor) -> Tensor:
    # s(x) = max(x, 0) + 1 / (1 - min(x, 0)): neither logarithm nor exponential of the whole block is needed.
    inverse = torch.clamp(x, max=0, out=work).sub_(1).reciprocal_()  # negative
    s = x.clamp(min=0).sub_(inverse)
    s_label = s.gather(1, label)
    s.scatter_(1, label, 0)
    total = s.sum(1, keepdim=True)
    # dL/dx_j = p_j g'(x_j): for x_j >= 0 the product s_j / (1 + |x_j|) is 1, for x_j < 0 it is s_j squared.
    if x.device.type == "cpu" and _moderate(torch.cat((total, s_label))):
        # A small batch costs what its operations cost to start, one with a Python number two: few, and without these.
        inverse_sum = (total + s_label).reciprocal_()
        inverse.square_().mul_(inverse_sum)
        loss = (total / s_label).log1p_()
        # 1 / (1 + |x|) of the label is its term or the inverse, whichever is smaller.
        slope = torch.minimum(s_label, s_label.reciprocal())
        of_label = slope.mul_(total.mul_(inverse_sum)).neg_()
    else:
        # Scaled by the largest term, a sum of huge terms cannot overflow and a sum of tiny ones keeps its digits.
        tiny = torch.finfo(s.dtype).tiny
        largest = s.amax(1, keepdim=True).clamp_(min=tiny)
        total = s.div_(largest).sum(1, keepdim=True)
        d = largest.log() + total.log() - _log_of_label(s_label)
        ratio = (largest / s_label) * total
        share = torch.where(d < 10, ratio / (1 + ratio), torch.sigmoid(d))
        inverse.square_().mul_(share / total.clamp(min=tiny) / largest)
        loss = torch.where(d < 10, ratio.log1p(), softplus(d))
        of_label = -share / (1 + x.gather(1, label).abs())
    inverse.scatter_(1, label, of_label)
    return loss.squeeze(1)


def _log_of_label(s_label: Tensor) -> Tensor:
    """Logarithm of the label's term, NaN where that is infinite: infinite confidence is no loss of 0."""
    return s_label.log().masked_fill_(s_label == torch.inf, torch.nan)


def _moderate(terms: Tensor) -> bool:
    """Whether quotients of such numbers neither overflow nor lose digits; False where there is a NaN."""
    low, high = (bound.item() for bound in terms.aminmax())
    return low > 1e-15 and high < 1e15


def _softmax_block(x: Tensor, label: Tensor, work: Tensor) -> Tensor:
    others = work.copy_(x).scatter_(1, label, -torch.inf)
    # Where every other class is masked by -inf, subtracting the maximum would give NaN.
    largest = others.amax(1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)
    terms = others.sub_(largest).exp_()
    total = terms.sum(1, keepdim=True)
    own = x.gather(1, label)
    d = largest.sub_(own.masked_fill_(own == torch.inf, torch.nan)).add_(total.log())
    share = torch.sigmoid(d)
    terms.mul_(share / total.clamp_(min=torch.finfo(x.dtype).tiny)).scatter_(1, label, -share)
    return softplus(d).squeeze(1)


def row_losses(logits: Tensor, target: Tensor, terms: Terms, gradient: Tensor | None = None) -> Tensor:
    """Losses ``[N]`` of ``logits`` ``[N, K]``; writes their gradients into ``gradient`` ``[N, K]`` when it is given."""
    rows, classes = logits.shape
    compute = working_dtype(logits)
    block = _stablemax_block if terms == "stablemax" else _softmax_block
    step = rows if logits.device.type != "cpu" else max(1, BLOCK_ELEMENTS // classes)
    if rows <= step and logits.dtype == compute:
        return block(logits, target.unsqueeze(1), torch.empty_like(logits) if gradient is None else gradient)
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
