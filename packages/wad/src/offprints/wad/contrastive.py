"""The teacher's loss, NT-Xent of two views, and its training on it, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_number, check_same_device, check_same_shape, check_tensor
from offprints.wad._checks import normalized, require
from offprints.wad._training import check_trainable, shuffled_batches
from offprints.wad.augmentation import SimCLRAugmentation

if TYPE_CHECKING:
    from offprints.wad.teacher import SimCLRTeacher


def nt_xent(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"], *, temperature: float = 0.5
) -> Float[Tensor, ""]:
    """Normalized temperature-scaled cross-entropy of the projections of two views of a batch (step 1, SimCLR).

    Each of the 2B projections is to find its other view among the 2B - 1 others: the mean over them of
    `-log(exp(cos(z, z') / temperature) / sum over the others of exp(cos / temperature))`. Computed by log-sum-exp, so
    that small temperatures keep their digits; half types in float32, and then returned in float32. Rows need not have
    length 1. One pair alone has nothing to be told from: 0.

    Args:
        z1: `(B, D)` projections of the first view.
        z2: `(B, D)` of the second, in the same order.
        temperature: Of the cosines, positive.

    Raises:
        TypeError: not floating tensors; `temperature` not a number.
        ValueError: other shapes, empty, NaN or infinite, rows of zeros, `temperature` not positive.

    Example:
        >>> z = torch.eye(3)
        >>> nt_xent(z, z, temperature=0.5)
        tensor(0.4327)
    """
    check_tensor(z1, "z1", ndim=2)
    check_tensor(z2, "z2", ndim=2)
    check_same_shape(z1, z2, ("z1", "z2"))
    check_same_device(z1, z2, names=("z1", "z2"))
    temperature = check_number(temperature, "temperature", low=0, open_low=True)
    for z, name in ((z1, "z1"), (z2, "z2")):
        require((z.detach() != 0).any(1).all(), f"{name} must have no rows of zeros, which have no direction")
    return contrastive_loss(z1, z2, temperature)


def contrastive_loss(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"], temperature: float
) -> Float[Tensor, ""]:
    """The same of arguments that a training makes: nothing waits for an accelerator."""
    dtype = working_dtype(z1, z2)
    with float32_region(z1.device):
        z = normalized(torch.cat([z1.to(dtype), z2.to(dtype)]))
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
        other = torch.arange(len(z), device=z.device).roll(len(z1))
        return F.cross_entropy(logits, other)


class ContrastiveTraining:
    """The training of a teacher, epoch by epoch, with a state that can be stored.

    Args:
        teacher: Trained in place; takes its scale from the images.
        images: `(N, C, H, W)`, where the teacher is and of its type.
        epochs: In all, which the schedule needs.
        batch_size, lr, momentum, weight_decay, warmup_epochs, temperature, augment: As in `SimCLRTeacher.fit`.

    Raises:
        TypeError, ValueError: an option of the wrong kind or out of range, fewer than two images.
    """

    def __init__(
        self,
        teacher: SimCLRTeacher,
        images: Tensor,
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        momentum: float,
        weight_decay: float,
        warmup_epochs: int,
        temperature: float,
        augment: Callable[[Tensor], Tensor] | None,
    ) -> None:
        batch_size = check_number(batch_size, "batch_size", low=2, integer=True)
        self.lr = check_number(lr, "lr", low=0, open_low=True)
        momentum = check_number(momentum, "momentum", low=0, high=1, open_high=True)
        self.weight_decay = check_number(weight_decay, "weight_decay", low=0)
        warmup_epochs = check_number(warmup_epochs, "warmup_epochs", low=0, integer=True)
        self.temperature = check_number(temperature, "temperature", low=0, open_low=True)
        check_augment(augment)
        if len(images) < 2:
            raise ValueError(f"images must be at least 2, which are told from each other, got {len(images)}")
        check_trainable(teacher, "encoder and head")
        self.augment = SimCLRAugmentation() if augment is None else augment
        self.teacher, self.images, self.batch_size = teacher, images, min(batch_size, len(images))
        self.steps = len(images) // self.batch_size
        low, high = images.min(), images.max()
        teacher.low.copy_(low)
        teacher.high.copy_(torch.where(high > low, high, low + 1))
        self.optimizer = torch.optim.SGD(
            teacher.parameters(), lr=self.lr, momentum=momentum, weight_decay=self.weight_decay
        )
        warmup, total = warmup_epochs * self.steps, epochs * self.steps

        def factor(step: int) -> float:
            if step < warmup:
                return 0.1 + 0.9 * step / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.epochs_done = 0

    def epoch(self) -> dict[str, float]:
        """One pass; its number and its mean loss.

        Raises:
            ValueError: the loss is not finite, or `augment` does not return the batch.
        """
        self.teacher.train()
        losses = []
        for rows in shuffled_batches(len(self.images), self.steps, self.batch_size).to(self.images.device):
            scaled = self.teacher.scaled(self.images[rows])
            views = torch.cat([viewed(self.augment, scaled) for _ in range(2)])
            first, second = self.teacher.project(views).chunk(2)
            loss = contrastive_loss(first, second, self.temperature)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        self.optimizer.zero_grad()
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise ValueError(
                f"lr={self.lr:g}, weight_decay={self.weight_decay:g} and temperature={self.temperature:g} make the"
                " training of the teacher diverge: lower lr, or scale images"
            )
        self.epochs_done += 1
        return {"step": self.epochs_done, "loss": mean}

    def state_dict(self) -> dict[str, Any]:
        """All that a training needs to go on, besides the random streams."""
        return {
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epochs_done": self.epochs_done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epochs_done = state["epochs_done"]


def check_augment(augment: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: neither None nor callable.
    """
    if augment is not None and not callable(augment):
        raise TypeError(f"augment must be a callable or None, got {type(augment).__name__}")


def viewed(augment: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Views of images by a callable of the user's, which must keep the batch.

    Raises:
        ValueError: it returns something else.
    """
    views = augment(images.clone())
    if not isinstance(views, Tensor) or views.ndim != 4 or len(views) != len(images) or views.dtype != images.dtype:
        got = f"{views.dtype} {tuple(views.shape)}" if isinstance(views, Tensor) else type(views).__name__
        raise ValueError(f"augment must return one image for each of {len(images)}, in {images.dtype}, got {got}")
    return views
