"""The paper's data sets, network and training: DINO's ViT-B/16, of which the last block is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from offprints.protogcd import ProtoGCDLoss, PrototypeHead, balanced_sampler, dino_backbone, gcd_accuracy, gcd_split
from offprints.protogcd.backbone import trained_last
from offprints.shared.datasets import data_root, image_folder, vision_dataset
from offprints.shared.device import autocast, evaluating, make_generator
from offprints.shared.experiment import Part, Run
from offprints.shared.extras import require, require_folder
from offprints.shared.usage import UsageError

FOLDERS = ("imagenet100", "cub", "scars", "aircraft", "herbarium19")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OLD = {"cifar10": 5, "cifar100": 80, "imagenet100": 50}  # the first ones; the others have a list
FINAL_LR = 1e-3  # of the first one
SCORES = ("all", "old", "new")


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The paper's data sets.

    Attributes:
        dataset: ``cifar10``, ``cifar100``, or a folder of images: ``imagenet100``, ``cub``, ``scars``, ``aircraft``,
            ``herbarium19``. Empty leaves this preset out.
        old_classes: Number of old classes, the first ones; 0: those of the paper, of which the fine-grained sets have
            a list, ``old_classes.txt``, a name of a class a line.
        backbone: Name of another of timm's vision transformers; empty: the paper's.
        pretrained: Whether its weights are fetched (needs ``--download``) or random.
        image_size: Side of the crops.
        trainable_blocks: Of the backbone.
        hidden: Width of the projector.
        epochs: Of the training.
        batch_size: Images a step.
        lr: Of SGD, at the beginning.
        weight_decay: Of weights, not of biases.
        separation_weight: 0.1, and 0.05 for CUB.
        workers: Processes that load images.
    """

    dataset: Literal["", "cifar10", "cifar100", "imagenet100", "cub", "scars", "aircraft", "herbarium19"] = ""
    old_classes: int = 0
    backbone: str = ""
    pretrained: bool = True
    image_size: int = 224
    trainable_blocks: int = 1
    hidden: int = 2048
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-5
    separation_weight: float = 0.1
    workers: int = 8


@dataclass(frozen=True)
class Images:
    """A data set whose classes are numbered with the old ones first.

    Attributes:
        train, test: Data sets of ``(picture, label)`` with the labels as they come.
        train_labels, test_labels: The new numbers.
        old: Number of old classes.
        classes: Number of all classes.
    """

    train: Any
    test: Any
    train_labels: np.ndarray
    test_labels: np.ndarray
    old: int
    classes: int


def load_images(settings: PaperSettings, data: Path | None, download: bool) -> Images:
    """The data set by its name.

    Raises:
        MissingData: It is not there; the expected layout is shown.
        UsageError: A list of old classes names what is no class, or more old classes than there are.
    """
    name = settings.dataset
    if name in FOLDERS:
        tree = f"{name}/train/<class>/<image>.jpg\n{name}/test/<class>/<image>.jpg"
        folder = require_folder((data or data_root()) / name, tree)
        train, test = (image_folder(folder / split) for split in ("train", "test"))
        names = list(train.classes)  # type: ignore[attr-defined]
        listed = folder / "old_classes.txt"
        chosen = listed.read_text(encoding="utf-8").split() if listed.exists() else names[: OLD.get(name, 0)]
        order = [*chosen, *(n for n in names if n not in chosen)]
        if len(chosen) == 0 or set(chosen) - set(names) or list(test.classes) != names:  # type: ignore[attr-defined]
            raise UsageError(
                f"{listed} must name old classes, one a line, that are folders of train and test; the folders of both"
                " must be the same"
            )
        place = np.argsort([names.index(n) for n in order])
        old = len(chosen)
    else:
        train, test = (vision_dataset(name, s, download=download, root=data) for s in ("train", "test"))  # type: ignore[arg-type]
        old, place = OLD[name], np.arange(len(train.classes))  # type: ignore[attr-defined]
    old = settings.old_classes or old
    if old >= len(place):
        raise UsageError(f"--paper.old-classes must be below the number of classes, {len(place)}, got {old}")
    labels = [place[np.asarray(split.targets)] for split in (train, test)]  # type: ignore[attr-defined]
    return Images(train, test, labels[0], labels[1], old, len(place))


def transforms(size: int) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """For training and for evaluation."""
    v2: Any = require("torchvision.transforms.v2", package="protogcd", extra="claims")
    bigger = round(size / 0.875)
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    begin = v2.Resize((bigger, bigger), interpolation=v2.InterpolationMode.BICUBIC)
    return (
        v2.Compose([begin, v2.RandomCrop(size), v2.RandomHorizontalFlip(), *last]),
        v2.Compose([begin, v2.CenterCrop(size), *last]),
    )


class Views(Dataset[tuple[Tensor, int]]):
    """Views of the pictures of the given rows, and the row of each."""

    def __init__(self, pictures: Any, rows: np.ndarray, transform: Callable[[Any], Tensor], count: int) -> None:
        self.pictures, self.rows, self.transform, self.count = pictures, rows, transform, count

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        row = int(self.rows[number])
        picture = self.pictures[row][0]
        picture = picture.convert("RGB") if hasattr(picture, "convert") else picture
        return torch.stack([self.transform(picture) for _ in range(self.count)]), row


class Network(nn.Module):
    """Backbone and head."""

    def __init__(self, settings: PaperSettings, classes: int, download: bool) -> None:
        super().__init__()
        if settings.pretrained and not download:
            raise UsageError("the weights of the backbone are fetched with --download; --paper.no-pretrained has none")
        if settings.backbone:
            timm = require("timm", package="protogcd", extra="timm")
            made = timm.create_model(
                settings.backbone, pretrained=settings.pretrained, num_classes=0, img_size=settings.image_size
            )
            self.backbone = trained_last(made, settings.trainable_blocks)
        else:
            self.backbone = dino_backbone(pretrained=settings.pretrained, trainable_blocks=settings.trainable_blocks)
        dim = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.head = PrototypeHead(dim, classes, hidden=settings.hidden)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections, logits, prototypes."""
        found: tuple[Tensor, Tensor, Tensor] = self.head(self.backbone(pictures))
        return found


def train_paper(settings: PaperSettings, data: Path | None, download: bool, part: Part) -> dict[str, Any]:
    """Train, and measure the last epoch on the unlabeled training images and on the test images."""
    images = load_images(settings, data, download)
    split = gcd_split(images.train_labels, old_classes=range(images.old), seed=part.seed)
    device = part.device
    network = Network(settings, images.classes, download).to(device)
    known = torch.zeros(len(images.train_labels), dtype=torch.bool)
    known[torch.from_numpy(split.labeled)] = True
    labels = torch.from_numpy(images.train_labels)
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=part.precision == "float16")
    criterion = ProtoGCDLoss(total_epochs=settings.epochs, separation_weight=settings.separation_weight)
    first = 0
    if (found := part.restore()) is not None:
        first, state = found
        network.load_state_dict(state["network"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    rows = np.concatenate([split.labeled, split.unlabeled])
    views = Views(images.train, rows, transforms(settings.image_size)[0], 2)
    for epoch in part.progress(range(first, settings.epochs)):
        cosine = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (FINAL_LR + (1 - FINAL_LR) * cosine)
        # Of the epoch alone, so that a run that was stopped draws as one that was not.
        torch.manual_seed(part.seed * 100_003 + epoch)
        sampler = balanced_sampler(
            len(split.labeled), len(split.unlabeled), generator=make_generator(part.seed * 100_003 + epoch)
        )
        loader = DataLoader(views, settings.batch_size, sampler=sampler, num_workers=settings.workers, drop_last=True)
        network.train()
        total = torch.zeros((), device=device)
        for pictures, chosen in loader:
            both = pictures.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)
            with autocast(part.precision, device):
                projections, logits, prototypes = network(both)
            output = criterion(
                logits, projections, prototypes, labels[chosen].to(device), known[chosen].to(device), epoch=epoch
            )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(output.loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += output.loss.detach()
        part.log(epoch + 1, loss=float(total) / max(len(loader), 1), ratio=criterion.ratio(epoch))
        kept = {name for name, p in network.named_parameters() if p.requires_grad}
        state = {name: value for name, value in network.state_dict().items() if name in kept}
        part.checkpoint(
            epoch + 1, {"network": state, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        )
    of_unlabeled = predict(network, images.train, split.unlabeled, settings, part)
    of_test = predict(network, images.test, np.arange(len(images.test_labels)), settings, part)
    results = {}
    for name, found_labels, true in (
        ("unlabeled", of_unlabeled, images.train_labels[split.unlabeled]),
        ("test", of_test, images.test_labels),
    ):
        results[name] = gcd_accuracy(true, found_labels, true < images.old)._asdict()
    return results


def predict(network: Network, pictures: Any, rows: np.ndarray, settings: PaperSettings, part: Part) -> Tensor:
    """Classes of the pictures of the rows."""
    views = Views(pictures, rows, transforms(settings.image_size)[1], 1)
    found = []
    with evaluating(network), autocast(part.precision, part.device):
        for batch, _ in DataLoader(views, settings.batch_size, num_workers=settings.workers):
            found.append(network(batch[:, 0].to(part.device))[1].argmax(1).cpu())
    return torch.cat(found)


def reproduce_paper(settings: PaperSettings, data: Path | None, download: bool, run: Run) -> None:
    """Record accuracies beside nothing: the paper's figures could not be read again."""
    results = run.part(settings.dataset).once(lambda part: train_paper(settings, data, download, part))
    for name, words in (("unlabeled", "unlabeled training images"), ("test", "test images")):
        for score in SCORES:
            run.report_value(f"{name}-{score}", f"{settings.dataset}, {words}, accuracy: {score}", results[name][score])
    rows = [{"images": name, **{score: results[name][score] for score in SCORES}} for name in ("unlabeled", "test")]
    run.table(f"{settings.dataset}, last epoch", rows)
