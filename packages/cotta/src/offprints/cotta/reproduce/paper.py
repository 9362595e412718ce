"""The paper's experiments on public data and weights, all from local folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from offprints.cotta.corruptions import CORRUPTIONS, StreamBatch, severity_schedule
from offprints.cotta.datasets import ACDC, CONDITIONS, ImageNetC, load_cifar_c
from offprints.cotta.metrics import confusion, iou_of
from offprints.cotta.multiscale import MultiScaleFlip
from offprints.cotta.reproduce.evaluation import Adaptation, Method, adapted, follow
from offprints.cotta.reproduce.networks import Normalized, ResNeXt, WideResNet, load_weights
from offprints.shared.datasets import data_root
from offprints.shared.extras import MissingData, require, require_folder

Benchmark = Literal["digits", "cifar10-c", "cifar10-c-gradual", "cifar100-c", "imagenet-c", "acdc"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The paper's data sets.

    Attributes:
        data: folder with CIFAR-10-C, CIFAR-100-C, ImageNet-C and ACDC; default: under ``OFFPRINTS_DATA``.
        weights: folder with the checkpoints, named below; default: ``weights`` in ``data``.
        orders: so many of the ten corruption orders on ImageNet-C.
        imagenet_images: of each corruption of ImageNet-C, evenly over the classes.
        rounds: over the conditions of ACDC.
        size: height and width of its images.
        images: at most so many of each segment.
        workers: processes that load images.
        depth: of the wide residual network.
        widen_factor: of the same.
    """

    data: Path | None = None
    weights: Path | None = None
    orders: int = 10
    imagenet_images: int = 5000
    rounds: int = 10
    size: tuple[int, int] = (540, 960)
    images: int | None = None
    workers: int = 4
    depth: int = 28
    widen_factor: int = 10

    def folder(self, name: str) -> Path:
        """The folder of one data set."""
        return data_root(name) if self.data is None else self.data / name

    def checkpoint(self, name: str) -> Path:
        """One file, or folder, of weights."""
        return (self.folder("weights") if self.weights is None else self.weights) / name


@dataclass(frozen=True, kw_only=True)
class Table:
    """What the paper reports of one experiment, in percent, and how the methods were set."""

    adaptation: Adaptation
    reported: dict[str, float] = field(default_factory=dict)


TABLES: dict[str, Table] = {
    "cifar10-c": Table(adaptation=Adaptation(), reported={"source": 43.5, "bn": 20.4, "tent": 20.7, "cotta": 16.2}),
    "cifar10-c-gradual": Table(
        adaptation=Adaptation(), reported={"source": 24.8, "bn": 13.7, "tent": 30.7, "cotta": 10.4}
    ),
    "cifar100-c": Table(
        adaptation=Adaptation(confidence_threshold=0.72),
        reported={"source": 46.4, "bn": 35.4, "tent": 60.9, "cotta": 32.5},
    ),
    "imagenet-c": Table(
        adaptation=Adaptation(
            optimizer="sgd",
            learning_rate=0.01,
            tent_learning_rate=0.00025,
            restore_probability=0.001,
            confidence_threshold=0.1,
            symmetric=True,
            batch_size=64,
        ),
        reported={"source": 82.4, "bn": 72.1, "tent": 66.5, "cotta": 63.0},
    ),
    "acdc": Table(
        adaptation=Adaptation(learning_rate=7.5e-6, tent_learning_rate=7.5e-6, confidence_threshold=0.69, batch_size=1),
        reported={"source": 56.7, "bn": 52.0, "tent": 52.3, "cotta": 58.6},
    ),
}


def corruption_orders() -> list[list[str]]:
    """The ten orders of the official configuration files."""
    file = resources.files("offprints.cotta.reproduce") / "data" / "orders.npz"
    with resources.as_file(file) as path, np.load(path, allow_pickle=False) as arrays:
        names, orders = arrays["names"].tolist(), arrays["orders"].tolist()
    return [[names[i] for i in order] for order in orders]


def source_model(benchmark: Benchmark, settings: PaperSettings) -> nn.Module:
    """The paper's source model with its public weights.

    Raises:
        MissingData: weights are missing; the message says which and where they are.
    """
    net: Any
    if benchmark in ("cifar10-c", "cifar10-c-gradual"):
        net = WideResNet(settings.depth, settings.widen_factor)
        where = "RobustBench's CIFAR-10 model 'Standard' (drive.google.com/uc?id=1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC)"
        return load_weights(net, settings.checkpoint("cifar10/Standard.pt"), where)
    if benchmark == "cifar100-c":
        where = (
            "RobustBench's CIFAR-100 model 'Hendrycks2020AugMix_ResNeXt'"
            " (drive.google.com/uc?id=1ocnHbvDdOBLvgNr6K7vEYL08hUdkD1Rv)"
        )
        net = load_weights(ResNeXt(), settings.checkpoint("cifar100/Hendrycks2020AugMix_ResNeXt.pt"), where)
        return Normalized(net, (0.5,) * 3, (0.5,) * 3).eval()
    if benchmark == "imagenet-c":
        models = require("torchvision.models", package="cotta", extra="vision")
        where = "torchvision's ResNet-50, IMAGENET1K_V1 (download.pytorch.org/models/resnet50-0676ba61.pth)"
        net = load_weights(models.resnet50(weights=None), settings.checkpoint("imagenet/resnet50.pth"), where)
        return Normalized(net, *IMAGENET).eval()
    folder = settings.checkpoint("segformer-b5-cityscapes")
    if not folder.is_dir():
        raise MissingData(
            f"{folder} does not exist; SegFormer-B5 trained on Cityscapes"
            " (huggingface.co/nvidia/segformer-b5-finetuned-cityscapes-1024-1024: config.json and the weights)"
        )
    transformers = require("transformers", package="cotta", extra="segformer")
    net = transformers.SegformerForSemanticSegmentation.from_pretrained(folder, local_files_only=True)
    return Normalized(net, *IMAGENET).eval()


def segments_of(benchmark: Benchmark, order: int) -> list[tuple[str, int]]:
    """The segments of a benchmark's stream."""
    if benchmark == "imagenet-c":
        return severity_schedule(corruption_orders()[order])
    return severity_schedule(CORRUPTIONS, gradual=benchmark == "cifar10-c-gradual")


def segment_batches(
    benchmark: Benchmark, corruption: str, severity: int, settings: PaperSettings, batch_size: int
) -> Iterator[StreamBatch]:
    """The batches of one segment."""
    pairs: Iterable[Sequence[Tensor]]
    if benchmark == "imagenet-c":
        images = ImageNetC(settings.folder("ImageNet-C"), corruption, severity)
        chosen = np.linspace(0, len(images), min(settings.imagenet_images, len(images)), endpoint=False).astype(int)
        chosen = chosen[: settings.images]
        subset: Dataset[Any] = Subset(images, chosen.tolist())
        pairs = DataLoader(subset, batch_size=batch_size, num_workers=settings.workers, pin_memory=False)
    else:
        classes: Literal[10, 100] = 100 if benchmark == "cifar100-c" else 10
        root = settings.folder(f"CIFAR-{classes}-C")
        x, y = load_cifar_c(root, corruption, severity, num_classes=classes)
        x, y = x[: settings.images], y[: settings.images]
        pairs = zip(x.split(batch_size), y.split(batch_size), strict=True)
    for x, y in pairs:
        yield StreamBatch(x, y, corruption, severity)


def run_classification(
    benchmark: Benchmark, method: Method, order: int, seed: int, settings: PaperSettings, device: str
) -> dict[str, Any]:
    """Errors in percent of each segment of one stream, followed by one method."""
    adaptation = TABLES[benchmark].adaptation
    wrapper = adapted(method, source_model(benchmark, settings).to(device), adaptation, seed=seed)
    errors = []
    for corruption, severity in segments_of(benchmark, order):
        batches = segment_batches(benchmark, corruption, severity, settings, adaptation.batch_size)
        followed = follow(wrapper, batches, device)
        errors.append(100 * float(followed["wrong"].sum() / followed["size"].sum()))
    return {"errors": errors}


def run_segmentation(method: Method, seed: int, settings: PaperSettings, device: str) -> dict[str, Any]:
    """Mean intersection over union in percent of each round over the conditions of ACDC."""
    adaptation = TABLES["acdc"].adaptation
    model = source_model("acdc", settings).to(device)
    return follow_conditions(
        adapted(method, model, adaptation, seed=seed, augmentation=MultiScaleFlip()), settings, device
    )


def follow_conditions(wrapper: nn.Module, settings: PaperSettings, device: str) -> dict[str, Any]:
    """The rounds of one adapted model; 19 classes, predictions enlarged to the labels."""
    require_folder(settings.folder("ACDC"), "ACDC/rgb_anon/... and ACDC/gt/... (acdc.vision.ee.ethz.ch)")
    rounds = []
    for _ in range(settings.rounds):
        conditions = []
        for condition in CONDITIONS:
            images: Dataset[Any] = ACDC(settings.folder("ACDC"), condition, "train", size=settings.size)
            if settings.images is not None:
                images = Subset(images, range(min(settings.images, len(images))))  # type: ignore[arg-type]
            matrix = torch.zeros(19, 19, dtype=torch.int64)
            for x, labels in DataLoader(images, batch_size=1, num_workers=settings.workers):
                logits = F.interpolate(wrapper(x.to(device)), size=labels.shape[1:], mode="bilinear")
                matrix += confusion(logits.argmax(1).cpu(), labels, 19)
            conditions.append(100 * iou_of(matrix))
        rounds.append(conditions)
    return {"iou": rounds}
