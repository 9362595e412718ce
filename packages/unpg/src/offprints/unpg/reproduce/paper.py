"""The paper's own training: a folder of face images, one subfolder an identity; LFW pairs as the test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from offprints.shared.datasets import data_root, image_folder, vision_dataset
from offprints.shared.device import autocast, evaluating
from offprints.shared.distributed import world_size
from offprints.shared.experiment.part import Part
from offprints.shared.extras import require
from offprints.unpg.backbones import iresnet
from offprints.unpg.losses import MarginLoss, UNPGLoss
from offprints.unpg.reproduce.small import HEADS, HeadName
from offprints.unpg.verification import verification_accuracy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Faces:
    """The paper's training.

    Attributes:
        folder: Folder of the identities' folders; relative ones are looked for under `OFFPRINTS_DATA`.
        depth: Of the IResNet: 34 for K-FACE, 100 for MS1MV2.
        image_size: Side that images are resized to.
        embedding: Width of the embeddings.
        epochs: Passes over the images.
        warmup: Epochs in which the learning rate rises.
        batch_size: Images a step, of all processes together.
        lr: Learning rate of SGD.
        scale: Of the cosines.
        margins: Of CosFace and ArcFace; MagFace has its own.
        whisker: 1.5 for MS1MV2, 1.0 for K-FACE.
        num_workers: Of the loaders.
        lfw: Whether to test on LFW pairs (torchvision's).
    """

    folder: Path = Path("faces")
    depth: Literal[34, 50, 100] = 100
    image_size: int = 112
    embedding: int = 512
    epochs: int = 20
    warmup: int = 3
    batch_size: int = 512
    lr: float = 0.1
    scale: float = 64.0
    margins: tuple[float, float] = (0.5, 0.5)
    whisker: float = 1.5
    num_workers: int = 8
    lfw: bool = True


def transform(size: int, *, flip: bool) -> Any:
    """Bicubic resize, a random flip in training, ImageNet's mean and standard deviation."""
    v2 = require("torchvision.transforms.v2", package="unpg", extra="claims")
    steps = [
        v2.ToImage(),
        v2.Resize((size, size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        *([v2.RandomHorizontalFlip()] if flip else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    return v2.Compose(steps)


def rate(step: int, steps: int, warm: int) -> float:
    """The factor of the learning rate: a linear rise, then half a cosine."""
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def train_faces(
    faces: Faces, head_name: HeadName, unified: bool, root: Path | None, download: bool, part: Part
) -> dict[str, Any]:
    """One part: a network trained as in the paper, checkpointed after every epoch, and its accuracy on LFW."""
    folder = faces.folder if faces.folder.is_absolute() else (root or data_root()) / faces.folder
    images: Any = image_folder(folder, transform=transform(faces.image_size, flip=True))
    network = iresnet(faces.depth, embedding_size=faces.embedding, image_size=faces.image_size).to(part.device)
    margin = {"cosface": faces.margins[0], "arcface": faces.margins[1]}
    options = {"scale": faces.scale} | ({"margin": margin[head_name]} if head_name in margin else {})
    head = HEADS[head_name](faces.embedding, len(images.classes), **options)
    loss_of = (UNPGLoss(head, whisker=faces.whisker) if unified else MarginLoss(head)).to(part.device)
    optimizer = torch.optim.SGD(
        [*network.parameters(), *loss_of.parameters()], lr=faces.lr, momentum=0.9, weight_decay=5e-4
    )
    scaler = torch.amp.GradScaler(part.device.type, enabled=part.precision == "float16")
    first = 0
    if (stored := part.restore()) is not None:
        first, state = stored
        network.load_state_dict(state["network"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    ranks = world_size()
    wrapped: nn.Module = DistributedDataParallel(network) if ranks > 1 else network
    loss_over_ranks: nn.Module = DistributedDataParallel(loss_of) if ranks > 1 else loss_of
    sampler: Any = DistributedSampler(images, seed=part.seed, drop_last=True) if ranks > 1 else None
    loader: Any = DataLoader(
        images,
        batch_size=max(1, faces.batch_size // ranks),
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=faces.num_workers,
        drop_last=True,
        pin_memory=part.device.type == "cuda",
    )
    steps, warm = faces.epochs * len(loader), faces.warmup * len(loader)
    loss = torch.zeros(())
    for epoch in part.progress(range(first, faces.epochs)):
        if sampler is not None:
            sampler.set_epoch(epoch)
        wrapped.train()
        for number, (x, y) in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = faces.lr * rate(epoch * len(loader) + number, steps, warm)
            x, y = x.to(part.device, non_blocking=True), y.to(part.device, non_blocking=True)
            with autocast(part.precision, part.device):
                embeddings = wrapped(x)
            loss = loss_over_ranks(embeddings, y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        part.log(epoch + 1, loss=loss.item())
        state = {
            "network": network.state_dict(),
            "head": head.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        part.checkpoint(epoch + 1, state)
    found: dict[str, Any] = {"loss": loss.item(), "identities": float(len(images.classes))}
    if faces.lfw:
        pairs = vision_dataset(
            "lfw_pairs", "10fold", transform=transform(faces.image_size, flip=False), root=root, download=download
        )
        found["lfw"] = lfw_accuracy(network, pairs, part.device)
    return found


def lfw_accuracy(network: nn.Module, pairs: Dataset[Any], device: torch.device) -> float:
    """Ten-fold accuracy of the cosines of images joined with their mirrors."""
    scores, same = [], []
    with evaluating(network):
        for left, right, equal in _batches(pairs, 64):
            a, b = (mirrored(network, side.to(device)) for side in (left, right))
            scores.append((a * b).sum(1).cpu())
            same.append(equal)
    return verification_accuracy(torch.cat(scores), torch.cat(same).bool()).accuracy


def mirrored(network: nn.Module, images: Tensor) -> Tensor:
    """Unit embeddings of images and of their mirrors, joined."""
    return F.normalize(torch.cat([network(images), network(images.flip(3))], 1))


def _batches(pairs: Dataset[Any], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    yield from DataLoader(pairs, batch_size=size)
