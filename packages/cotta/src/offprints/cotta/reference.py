"""Algorithm 1 of the paper, continual test-time adaptation, and its equations 1 to 8 as written: read it first.

One step on one batch, with the official code's choices where the paper leaves one. It is slow and plain: one view at a
time, one tensor at a time. `CoTTA` does the same faster and in more cases; the tests show that both agree.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def start(model: nn.Module) -> None:
    """Initialization: every batch-norm layer normalizes with the statistics of the current batch."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None


def step(
    x: Tensor,
    student: nn.Module,
    teacher: nn.Module,
    source: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: list[Callable[[Tensor], Tensor]],
    masks: list[Tensor],
    *,
    confidence_threshold: float = 0.92,
    ema_decay: float = 0.999,
) -> Tensor:
    """Answer a batch and adapt to it. Three copies of one model; N views; for each weight, where it is restored."""
    with torch.no_grad():
        # 1. The source model's confidence, which tells how far the domain has moved (section 3.2).
        confidence = source(x).softmax(1).amax(1).mean()

        # 2. The teacher's prediction: averaged over views where the confidence is low (equations 3 and 4).
        if confidence < confidence_threshold:
            target = torch.stack([teacher(view(x)) for view in views]).mean(0)
        else:
            target = teacher(x)

    # 3. The student learns it: the consistency loss, a cross-entropy (equation 1).
    loss = -(target.softmax(1) * student(x).log_softmax(1)).sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    with torch.no_grad():
        # 4. The teacher follows the student: a running average of the weights (equation 2).
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            t.copy_(ema_decay * t + (1 - ema_decay) * s)

        # 5. Stochastic restoration: a few weights get their source values back (equations 7 and 8).
        for s, original, mask in zip(student.parameters(), source.parameters(), masks, strict=True):
            s.copy_(mask * original + ~mask * s)

    # 6. The answer is the teacher's, from before this update.
    return target
