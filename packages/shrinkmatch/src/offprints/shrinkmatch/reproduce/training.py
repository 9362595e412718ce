"""One loop for all methods: what is compared differs in the terms of the loss alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from offprints.shared.device import Precision, autocast, map_batches
from offprints.shared.distributed import all_reduce_, world_size
from offprints.shared.usage import UsageError
from offprints.shrinkmatch import ShrinkMatchLoss, ShrinkMatchModel, StudentEMA, cosine_factor
from offprints.shrinkmatch.model import decay_groups

Method = Literal["supervised", "FixMatch", "FixMatch + DA", "ShrinkMatch", "strangers"]
CERTAIN, RESCUED, RIGHT_CERTAIN, RIGHT_RESCUED = range(4)  # columns of what is counted each step


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        steps: Steps.
        batch_size: Labeled samples a step.
        mu: Unlabeled samples a step, in units of that.
        lr: Of SGD, at its highest.
        weight_decay: But for biases and batch normalization.
        threshold: From which a sample is certain.
        ratio_momentum: Of the running ratio of certain samples.
        ema_decay: Of the averaged network.
        align: Distribution alignment of the methods that have one.
        pseudo_label: Target of the certain samples.
        unlabeled_weight: Of the unlabeled samples' losses.
    """

    steps: int = 400
    batch_size: int = 30
    mu: int = 5
    lr: float = 0.08
    weight_decay: float = 5e-4
    threshold: float = 0.95
    ratio_momentum: float = 0.95
    ema_decay: float = 0.99
    align: Literal["queue", "ema"] | None = "queue"
    pseudo_label: Literal["soft", "hard"] = "soft"
    unlabeled_weight: float = 1.0


class Trainer:
    """A network and what trains it, a step at a time; one process of several, if there are several."""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_classes: int,
        method: Method,
        recipe: Recipe,
        device: Any,
        precision: Precision = "float32",
    ) -> None:
        if precision == "float16":
            raise UsageError("--precision must be float32 or bfloat16 here: float16 needs its gradients scaled")
        self.method, self.recipe, self.device, self.precision = method, recipe, torch.device(device), precision
        self.model = ShrinkMatchModel(backbone, feature_dim, num_classes).to(device)
        self.ema = StudentEMA(self.model, recipe.ema_decay)
        self.criterion = ShrinkMatchLoss(
            num_classes=num_classes,
            threshold=recipe.threshold,
            align=None if method == "FixMatch" else recipe.align,
            pseudo_label=recipe.pseudo_label,
            ratio_momentum=recipe.ratio_momentum,
        ).to(device)
        self.optimizer = torch.optim.SGD(
            decay_groups(self.model, recipe.weight_decay), lr=recipe.lr, momentum=0.9, nesterov=True
        )
        self.model.train()
        self.trained: nn.Module = DistributedDataParallel(self.model) if world_size() > 1 else self.model
        self.counts = torch.zeros(recipe.steps, 4, device=device)
        self.removed = torch.zeros(num_classes, device=device)  # samples by how many classes were removed
        self.done = 0

    def step(self, x: Tensor, y: Tensor, weak: Tensor, strong: Tensor, truth: Tensor) -> Tensor:
        """Train on a labeled batch and two views of an unlabeled one, whose labels are for counting alone."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * cosine_factor(self.done, self.recipe.steps)
        with autocast(self.precision, self.device):
            logits_x, logits_w, logits_s, logits_a = self.trained(x, weak, strong)
        if self.method == "strangers":  # each sample is asked for the pseudo-label of another one
            logits_w = logits_w.roll(1, 0)
        out = self.criterion(logits_x, y, logits_w, logits_s, logits_a)
        unlabeled = 0.0 if self.method == "supervised" else self.recipe.unlabeled_weight
        shrunk = 1.0 if self.method in ("ShrinkMatch", "strangers") else 0.0
        # Times 0 and not left out: every parameter has a gradient, on every process.
        loss = out.supervised + unlabeled * (out.certain + shrunk * out.certain_ratio * out.shrink)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.ema.update(self.model)
        self._count(logits_w, truth)
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def _count(self, logits_w: Tensor, truth: Tensor) -> None:
        space = self.criterion.shrunk_space(logits_w)
        certain, right = ~space.uncertain, space.order[:, 0] == truth
        columns = [certain, space.reached, certain & right, space.reached & right]
        self.counts[self.done] = torch.stack([column.float().mean() for column in columns])
        self.removed.index_add_(0, space.first_kept - 1, space.reached.to(self.removed.dtype))

    def predictions(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """The averaged network's classes."""
        return map_batches(self.ema.module, images, batch_size=batch_size).argmax(1)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The averaged network's share of right predictions."""
        return float((self.predictions(images) == labels).float().mean())

    def results(self) -> dict[str, Tensor]:
        """What was counted, the mean of all processes."""
        counts, removed = self.counts.clone(), self.removed.clone()
        all_reduce_(counts, removed, op="mean")
        return {"counts": counts, "removed": removed}

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.counts,
            "removed": self.removed,
            "done": self.done,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name in ("model", "ema", "criterion", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.counts.copy_(state["counts"])
        self.removed.copy_(state["removed"])
        self.done = int(state["done"])


def utilization(counts: Tensor, *, rescued: bool) -> Tensor:
    """The share of the unlabeled samples that have a loss, at each step: certain, and rescued ones where they count."""
    return counts[:, CERTAIN] + counts[:, RESCUED] if rescued else counts[:, CERTAIN]


def in_quarter(counts: Tensor, quarter: int, *, rescued: bool) -> float:
    """The mean `utilization` over one of the four quarters of a training, 0 to 3."""
    first, last = (len(counts) * q // 4 for q in (quarter, quarter + 1))
    return float(utilization(counts, rescued=rescued)[first:last].mean())


def right_share(counts: Tensor, *, rescued: bool) -> float:
    """The share of right top classes among the rescued (or the certain) samples, after a quarter of a training."""
    used, right = (RESCUED, RIGHT_RESCUED) if rescued else (CERTAIN, RIGHT_CERTAIN)
    late = counts[len(counts) // 4 :].sum(0)
    return float(late[right] / late[used].clamp(min=1e-9))
