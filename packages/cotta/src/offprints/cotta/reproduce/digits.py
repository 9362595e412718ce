"""Experiments on the spot: a network trained on small images, and their stream of fifteen corruptions.

The quick one takes digits on photographs, the medium one Fashion-MNIST.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.cotta._wrapping.asking import confidences
from offprints.cotta.augmentation import ImageAugmentation
from offprints.cotta.confidence import source_confidence_threshold
from offprints.cotta.configuration import configure_model
from offprints.cotta.corruptions import CORRUPTIONS, CorruptionStream
from offprints.cotta.reproduce.evaluation import Adaptation, Method, adapted, follow, segment_errors
from offprints.cotta.reproduce.fashion import SmallResNet, clothing
from offprints.shared.datasets import digits, pictures, tensor_batches
from offprints.shared.device import make_generator, map_batches

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


@dataclass(frozen=True, kw_only=True)
class DigitSettings:
    """An experiment that trains its source model on the spot.

    Attributes:
        data: digits on photographs, or Fashion-MNIST.
        runs: networks and streams, with seeds of their own.
        train_images: source images; the others are the stream's.
        held_out: so many of them are not trained on: CoTTA's threshold comes from these.
        test_images: at most so many of the others.
        epochs: of the source training.
        corruptions: so many of the fifteen, in order.
        passes: over all of them.
        threshold_quantile: of the source model's mean confidence on batches of held-out images, CoTTA's threshold.
        threshold_margin: taken off.
        adaptation: settings of TENT and CoTTA.
    """

    data: Literal["digits", "fashion"] = "digits"
    runs: int = 1
    train_images: int = 997
    held_out: int = 200
    test_images: int = 600
    epochs: int = 20
    corruptions: int = 15
    passes: int = 1
    threshold_quantile: float = 0.05
    threshold_margin: float = 0.0
    adaptation: Adaptation = field(
        default_factory=lambda: Adaptation(
            learning_rate=1e-3,
            tent_learning_rate=1e-3,
            ema_decay=0.99,
            num_augmentations=4,
            confidence_threshold=None,
            batch_size=40,
        )
    )


def digits_on_photographs(seed: int) -> tuple[Float[Tensor, "N 3 32 32"], Int[Tensor, " N"]]:
    """scikit-learn's digits, each the difference from a random crop of one of four photographs; 8-bit values."""
    ink, labels = digits(layout="image")
    ink = F.interpolate(F.pad(ink, (1, 1, 1, 1)), size=(32, 32), mode="bilinear", align_corners=False)
    generator = make_generator(seed)
    photographs = list(pictures(PHOTOGRAPHS).values())
    choice = torch.randint(len(photographs), (len(ink),), generator=generator)
    place = torch.rand(len(ink), 2, generator=generator)
    backgrounds = torch.empty(len(ink), 3, 32, 32)
    for number, photograph in enumerate(photographs):
        chosen = (choice == number).nonzero().squeeze(1)
        room = torch.tensor(photograph.shape[1:]) - 32
        rows, columns = (place[chosen] * room).long().unbind(1)
        steps = torch.arange(32)
        crops = photograph[:, rows[:, None, None] + steps[:, None], columns[:, None, None] + steps]
        backgrounds[chosen] = crops.transpose(0, 1).float() / 255
    return ((backgrounds - ink).abs() * 255).round() / 255, labels


class DigitNet(nn.Module):
    """Six convolutions with batch norm, every second one halving the image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, width in enumerate((16, 16, 32, 32, 64, 64)):
            layers += [nn.Conv2d(before, width, 3, stride=1 + i % 2, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)]
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        return self.classifier(self.features(x - 0.5).mean((2, 3)))


def network(settings: DigitSettings) -> nn.Module:
    """The untrained network of an experiment."""
    return DigitNet() if settings.data == "digits" else SmallResNet()


def train_source(
    images: Float[Tensor, "N C 32 32"], labels: Int[Tensor, " N"], settings: DigitSettings, seed: int, device: str
) -> nn.Module:
    """A network trained on source images; every second batch is seen through the views' augmentation.

    Without it the averaged views are images that the network cannot read, and CoTTA is worse than batch statistics.
    """
    torch.manual_seed(seed)  # the weights; a unit has random streams of its own
    model = network(settings).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = make_generator(seed, device)
    augmentation = ImageAugmentation(flip_probability=0)
    step = 0
    for _ in range(settings.epochs):
        for x, y in tensor_batches(images, labels, batch_size=50, generator=generator):
            if step % 2:
                x = augmentation(x, 1, generator=generator)[0]
            step += 1
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def split(seed: int, settings: DigitSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source images and labels, and those of the stream."""
    images, labels = digits_on_photographs(seed) if settings.data == "digits" else clothing()
    order = torch.randperm(len(images), generator=make_generator(seed))
    train, test = order[: settings.train_images], order[settings.train_images :][: settings.test_images]
    return images[train], labels[train], images[test], labels[test]


def stream_of(images: Tensor, labels: Tensor, seed: int, settings: DigitSettings) -> CorruptionStream:
    """The corruptions of 8-bit images."""
    return CorruptionStream(
        (images * 255).to(torch.uint8),
        labels,
        corruptions=CORRUPTIONS[: settings.corruptions],
        repeats=settings.passes,
        batch_size=settings.adaptation.batch_size,
        seed=seed,
    )


def run_source(seed: int, settings: DigitSettings, device: str) -> dict[str, Any]:
    """A source model: its weights, its error without corruption, its threshold; and the stream's first image."""
    train_x, train_y, test_x, test_y = split(seed, settings)
    train_x, held_out = train_x[settings.held_out :].to(device), train_x[: settings.held_out].to(device)
    source = train_source(train_x, train_y[settings.held_out :].to(device), settings, seed, device)
    answers = map_batches(source, test_x, batch_size=200, device=device).argmax(1)
    shown = stream_of(test_x[:1], test_y[:1], seed, settings)
    size = settings.adaptation.batch_size
    threshold = source_confidence_threshold(
        source,
        held_out.split(size),
        quantile=settings.threshold_quantile,
        margin=settings.threshold_margin,
        norm="batch",
    )
    return {
        "weights": source.state_dict(),
        "threshold": threshold,
        "clean_open": share_open(source, test_x, threshold, size, device),
        "clean": 100 * float((answers != test_y).double().mean()),
        "examples": torch.cat([test_x[:1], *(batch.x for batch in islice(shown, len(shown.schedule)))]),
    }


def share_open(source: nn.Module, images: Tensor, threshold: float, size: int, device: str) -> float:
    """How often the gate would open on images without corruption: on the mean confidence of so many below it."""
    gate = configure_model(copy.deepcopy(source))
    answers = [map_batches(gate, x, batch_size=len(x), device=device) for x in images.split(size)]
    return float(torch.stack([confidences(logits).mean() < threshold for logits in answers]).double().mean())


def run_stream(
    seed: int, settings: DigitSettings, source: dict[str, Any], method: Method, device: str
) -> dict[str, Any]:
    """The stream, followed by one method from the source model: errors ``[passes, corruptions]``, what CoTTA saw."""
    *_, images, labels = split(seed, settings)
    model = network(settings).to(device)
    model.load_state_dict(source["weights"])
    augmentation = ImageAugmentation(flip_probability=0)
    threshold = source["threshold"]
    wrapper = adapted(method, model, settings.adaptation, seed=seed, augmentation=augmentation, threshold=threshold)
    stream = stream_of(images, labels, seed, settings)
    followed = follow(wrapper, stream, device)
    errors = segment_errors(followed, settings.passes * len(stream.schedule)).view(settings.passes, -1)
    return {"errors": errors, "confidence": followed["confidence"], "augmented": followed["augmented"]}
