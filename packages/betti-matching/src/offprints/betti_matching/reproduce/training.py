"""Training and scoring of a segmentation network: losses, crops, sliding windows, one resumable run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from offprints.betti_matching.losses import BettiMatchingLoss, dice_loss
from offprints.betti_matching.metrics import betti_matching_error, betti_number_error
from offprints.betti_matching.reproduce.data import Samples, skeleton
from offprints.betti_matching.reproduce.networks import UNet
from offprints.shared.device import autocast, make_generator
from offprints.shared.distributed import all_reduce_, rank, world_size
from offprints.shared.experiment import Part

LossName = Literal["dice", "cldice", "wasserstein", "betti_matching"]
Loss = Callable[[Tensor, Tensor], Tensor]


def training_loss(name: LossName, *, alpha: float, relative: bool) -> Loss:
    """The loss of logits: Dice, or Dice plus ``alpha`` times the loss named."""
    if name == "dice":
        return lambda logits, masks: dice_loss(logits.sigmoid(), masks)
    if name == "betti_matching":
        betti = BettiMatchingLoss(relative=relative)
        return lambda logits, masks: dice_loss(logits.sigmoid(), masks) + alpha * betti(logits, masks)
    from offprints.betti_matching.baselines import cldice_loss, wasserstein_loss

    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        p = logits.sigmoid()
        other = cldice_loss(p, masks) if name == "cldice" else wasserstein_loss(p, masks, relative=relative)
        return dice_loss(p, masks) + alpha * other

    return loss


# ---- crops and windows -----------------------------------------------------------------------------------------------


def balanced_crops(
    image: Float[Tensor, "channels h w"], mask: Float[Tensor, "1 h w"], *, size: int, count: int
) -> tuple[Float[Tensor, "count channels size size"], Float[Tensor, "count 1 size size"]]:
    """Random crops centered as often on a pixel of the foreground as on one of the background, as far as they fit."""
    image, mask = (_at_least(x, size) for x in (image, mask))
    height, width = mask.shape[-2:]
    foreground = mask.flatten().bool()
    images, masks = [], []
    for _ in range(count):
        wanted = foreground if torch.rand(()) < 0.5 else ~foreground
        places = wanted.nonzero().flatten() if wanted.any() else torch.arange(wanted.numel())
        center = int(places[torch.randint(len(places), ())])
        top = min(max(center // width - size // 2, 0), height - size)
        left = min(max(center % width - size // 2, 0), width - size)
        images.append(image[:, top : top + size, left : left + size])
        masks.append(mask[:, top : top + size, left : left + size])
    return torch.stack(images), torch.stack(masks)


def _at_least(x: Tensor, size: int) -> Tensor:
    """Zeros on the right and below where a side is shorter than ``size``."""
    missing = [max(0, size - side) for side in x.shape[-2:]]
    return nn.functional.pad(x, (0, missing[1], 0, missing[0]))


@torch.no_grad()
def sliding_window(
    model: nn.Module, image: Float[Tensor, "channels h w"], *, size: int, overlap: float = 0.25, batch_size: int = 16
) -> Float[Tensor, "1 h w"]:
    """Probabilities of a whole image: the mean of the logits of windows like those of training, then the sigmoid."""
    height, width = image.shape[-2:]
    padded = _at_least(image, size)
    step = max(1, int(size * (1 - overlap)))
    corners = [
        (top, left) for top in _starts(padded.shape[-2], size, step) for left in _starts(padded.shape[-1], size, step)
    ]
    total, hits = padded.new_zeros((2, 1, *padded.shape[-2:]))
    windows = iter(corners)
    while batch := list(islice(windows, batch_size)):
        logits = model(torch.stack([padded[:, top : top + size, left : left + size] for top, left in batch])).float()
        for (top, left), part in zip(batch, logits, strict=True):
            total[:, top : top + size, left : left + size] += part
            hits[:, top : top + size, left : left + size] += 1
    return (total / hits).sigmoid()[:, :height, :width]


def _starts(side: int, size: int, step: int) -> list[int]:
    return sorted({*range(0, side - size, step), side - size})


# ---- scores ----------------------------------------------------------------------------------------------------------


def image_scores(
    pred: Float[Tensor, "n 1 h w"], target: Float[Tensor, "n 1 h w"], *, relative: bool
) -> dict[str, Float[Tensor, " n"]]:
    """The scores of the paper's tables of ``pred >= 0.5``, of every image, in float64."""
    pred = (pred >= 0.5).double()
    target = target.double()
    size = (pred + target).sum((1, 2, 3))
    overlap = 2 * (pred * target).sum((1, 2, 3))
    masks = zip(pred[:, 0].bool().numpy(), target[:, 0].bool().numpy(), strict=True)
    parts = [betti_matching_error(pred, target, dims=[k], relative=relative, reduction="none") for k in (0, 1)]
    return {
        "dice": torch.where(size > 0, overlap / size.clamp(min=1), 1.0),
        "cldice": torch.tensor([centerline_dice(*pair) for pair in masks], dtype=torch.float64),
        "accuracy": (pred == target).double().mean((1, 2, 3)),
        "betti_number_error": betti_number_error(pred, target, relative=relative, reduction="none").flatten().double(),
        "betti_matching_error_0": parts[0].flatten().double(),
        "betti_matching_error_1": parts[1].flatten().double(),
        "betti_matching_error": (parts[0] + parts[1]).flatten().double(),
    }


def centerline_dice(pred: np.ndarray, target: np.ndarray) -> float:
    """ClDice of two boolean masks (Shit et al. 2021); 1 where both are empty, 0 where one is."""
    if not pred.any() or not target.any():
        return float(pred.any() == target.any())
    lines, wanted = skeleton(pred), skeleton(target)
    precision, sensitivity = lines[target].sum() / lines.sum(), wanted[pred].sum() / wanted.sum()
    return float(2 * precision * sensitivity / max(precision + sensitivity, 1e-12))


def mean_scores(
    model: nn.Module, samples: Samples, *, size: int, relative: bool, device: torch.device
) -> dict[str, float]:
    """Means of `image_scores` over all images, of which every rank takes its share."""
    sums: dict[str, Tensor] = {}
    count = torch.zeros((), dtype=torch.float64)
    for p, mask in _predictions(model, samples, size=size, device=device):
        for name, value in image_scores(p[None], mask[None], relative=relative).items():
            sums[name] = sums.get(name, 0.0) + value.sum()
        count += 1
    all_reduce_(count, *sums.values())
    return {name: float(value / count) for name, value in sums.items()}


def mean_dice(model: nn.Module, samples: Samples, *, size: int, device: torch.device) -> float:
    """Mean Dice score of the binarized predictions; every rank takes its share of the images."""
    sums = torch.zeros(2, dtype=torch.float64)
    for p, mask in _predictions(model, samples, size=size, device=device):
        pixels = p >= 0.5
        both = float(pixels.sum() + mask.sum())
        sums += torch.tensor([2 * float(mask[pixels].sum()) / both if both else 1.0, 1.0])
    all_reduce_(sums)
    return float(sums[0] / sums[1])


def _predictions(
    model: nn.Module, samples: Samples, *, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    model.eval()
    for image, mask in islice(zip(*samples, strict=True), rank(), None, world_size()):
        yield sliding_window(model, image.to(device), size=size).cpu(), mask
    model.train()


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: the paper's settings are those of `PAPER_DATASETS`."""

    loss: LossName
    seed: int  # of weights and crops
    alpha: float
    relative: bool
    in_channels: int
    channels: tuple[int, ...]
    patch: int
    patches_per_image: int
    batch_size: int  # images, on each device
    epochs: int
    warmup_epochs: int  # with Dice alone
    learning_rate: float
    keep_best: bool  # the network of the best Dice on the held-out images, else the last one
    validate_every: int  # epochs


def train(recipe: Recipe, training: Samples, held_out: Samples, part: Part) -> dict[str, Any]:
    """Train on random crops and score the network; continues from the checkpoint of this part of the run.

    Networks of one seed start alike and see the same crops, whatever their loss.
    """
    device = part.device
    torch.manual_seed(recipe.seed)
    model = UNet(recipe.in_channels, 1, channels=recipe.channels, strides=(2,) * (len(recipe.channels) - 1)).to(device)
    torch.manual_seed(recipe.seed * world_size() + rank())  # crops: of its own on every rank
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    scaler = torch.amp.GradScaler(device.type, enabled=part.precision == "float16")
    warmup = training_loss("dice", alpha=0.0, relative=recipe.relative)
    final = training_loss(recipe.loss, alpha=recipe.alpha, relative=recipe.relative)

    first = 0
    best: dict[str, Any] = {"dice": -1.0, "model": copy.deepcopy(model.state_dict())}
    found = part.restore()
    if found is not None:
        first, state = found
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        best = state["best"]
    wrapped: nn.Module = model
    if world_size() > 1:
        wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    every = max(1, recipe.epochs // 100)
    for epoch in part.progress(range(first, recipe.epochs)):
        loss = warmup if epoch < recipe.warmup_epochs else final
        total = steps = 0.0
        for images, masks in _batches(recipe, training, seed=recipe.seed, epoch=epoch):
            with autocast(part.precision, device):
                value = loss(wrapped(images.to(device)), masks.to(device))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            total, steps = total + float(value.detach()), steps + 1
        part.log(epoch + 1, loss=total / steps)
        if (epoch + 1) % recipe.validate_every == 0:
            dice = mean_dice(model, held_out, size=recipe.patch, device=device)
            part.log(epoch + 1, dice=dice)
            if dice > best["dice"]:
                best = {"dice": dice, "model": copy.deepcopy(model.state_dict())}
        if (epoch + 1) % every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            part.checkpoint(epoch + 1, state | {"scaler": scaler.state_dict(), "best": best})
    if recipe.keep_best:
        model.load_state_dict(best["model"])
    return {
        "scores": mean_scores(model, held_out, size=recipe.patch, relative=recipe.relative, device=device),
        "example": sliding_window(model.eval(), held_out.images[0].to(device), size=recipe.patch).cpu(),
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
    }


def _batches(recipe: Recipe, training: Samples, *, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: every image once, in an order that all ranks know, each rank taking its share."""
    count, ranks = len(training.images), world_size()
    order = torch.randperm(count, generator=make_generator(seed * 100_003 + epoch)).tolist()
    order += order[: -count % ranks]  # as many for each rank
    mine = order[rank() :: ranks]
    for start in range(0, len(mine), recipe.batch_size):
        crops = [
            balanced_crops(training.images[i], training.masks[i], size=recipe.patch, count=recipe.patches_per_image)
            for i in mine[start : start + recipe.batch_size]
        ]
        yield torch.cat([images for images, _ in crops]), torch.cat([masks for _, masks in crops])
