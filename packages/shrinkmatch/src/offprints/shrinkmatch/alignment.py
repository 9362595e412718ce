"""Distribution alignment: pseudo-labels divided by the mean of the model's recent predictions (step 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.distributed import all_reduce_
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_number,
    check_probabilities,
    check_same_device,
    check_tensor,
)

Mode = Literal["queue", "ema"]
MODES = ("queue", "ema")


def check_momentum(momentum: float, name: str) -> float:
    """A momentum, in [0, 1)."""
    return check_number(momentum, name, low=0, high=1, open_high=True)


def keep_wide(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion of a module's tensors that moves them but does not narrow them to a half type.

    Running means do not move in a half type: a step of 0.001 is below half of the last bit.
    """

    def convert(x: Tensor) -> Tensor:
        made = fn(x)
        halved = made.is_floating_point() and made.element_size() < 4 <= x.element_size()
        return x.to(made.device) if halved else made

    return convert


class DistributionAlignment(nn.Module):
    """Divide probabilities by a running mean of the model's predictions, and renormalize the rows.

    ``"queue"``: the mean of the means of the last ``length`` batches (the paper's on CIFAR and ImageNet). ``"ema"``:
    ``m <- momentum m + (1 - momentum) mean(p)``, the first batch's mean as it is (the paper's on STL-10). The batch
    itself is in the mean by which it is divided.

    The state is in buffers, kept in float32 (float64 after ``double()``) when the module is converted to a half type;
    it changes in training mode alone.

    Args:
        num_classes: C.
        mode: ``"queue"`` or ``"ema"``.
        length: Batches in the queue.
        momentum: Of the running mean, in [0, 1).
        across_processes: Whether batches' means are averaged over processes; False where each process trains a network
            of its own.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Example:
        >>> alignment = DistributionAlignment(2)
        >>> alignment(torch.tensor([[0.9, 0.1], [0.6, 0.4]]))
        tensor([[0.7500, 0.2500], [0.3333, 0.6667]])
        >>> alignment.target_free_mean
        tensor([0.7500, 0.2500])
    """

    means: Tensor
    updates: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        mode: Mode = "queue",
        length: int = 32,
        momentum: float = 0.999,
        across_processes: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = check_number(num_classes, "num_classes", low=1, integer=True)
        check_choice(mode, "mode", MODES)
        self.mode: Mode = mode
        self.length = check_number(length, "length", low=1, integer=True)
        self.momentum = check_momentum(momentum, "momentum")
        self.across_processes = check_bool(across_processes, "across_processes")
        rows = self.length if mode == "queue" else 1
        self.register_buffer("means", torch.zeros(rows, self.num_classes, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistributionAlignment:
        return cast("DistributionAlignment", super()._apply(keep_wide(fn), recurse))  # type: ignore[no-untyped-call]

    @property
    def target_free_mean(self) -> Float[Tensor, " classes"]:
        """The current mean of the model's predictions, ``(C,)``; 1/C before the first update."""
        filled = self.updates.clamp(min=1, max=len(self.means))
        return torch.where(self.updates > 0, self.means.sum(0) / filled, 1 / self.num_classes)

    def forward(self, probs: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Aligned probabilities, ``(B, C)``, in the type of ``probs`` and without a graph.

        In evaluation mode nothing is updated, and before the first update ``probs`` come back unchanged.

        Raises:
            TypeError: not a floating tensor.
            ValueError: not ``(B, C)``, empty, not finite, negative, rows that do not sum to 1, another device.
        """
        check_tensor(probs, "probs", shape=(None, self.num_classes))
        check_probabilities(probs, "probs")
        check_same_device(probs, self.updates, names=("probs", "the module"))
        p = probs.detach().to(working_dtype(probs))
        if self.training:
            self.update(p)
        return self.align(p).to(probs.dtype)

    @torch.no_grad()
    def update(self, p: Float[Tensor, "batch classes"]) -> None:
        """Take the mean of a batch of predictions into the running mean; `forward` does so in training mode."""
        mean = p.detach().mean(0).to(self.means.dtype)
        if self.across_processes:
            all_reduce_(mean, op="mean")
        if self.mode == "queue":
            self.means.index_copy_(0, (self.updates % self.length).view(1), mean.unsqueeze(0))
        else:
            moved = self.momentum * self.means[0] + (1 - self.momentum) * mean
            self.means.copy_(torch.where(self.updates > 0, moved, mean).unsqueeze(0))
        self.updates.add_(1)

    @torch.no_grad()
    def align(self, p: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Divide by the running mean as it is, and renormalize; nothing is updated in any mode."""
        # The smallest normal number keeps 0/0 and the sum of a row within the type: p sums to 1.
        mean = self.target_free_mean
        ratios = p.detach() / mean.clamp(min=torch.finfo(mean.dtype).tiny)
        return torch.where(self.updates > 0, ratios / ratios.sum(1, keepdim=True), p.detach())

    def extra_repr(self) -> str:
        """The settings, as they appear in the module's repr."""
        setting = f"length={self.length}" if self.mode == "queue" else f"momentum={self.momentum:g}"
        return f"{self.num_classes}, mode={self.mode!r}, {setting}"
