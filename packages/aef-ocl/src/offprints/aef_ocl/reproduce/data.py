"""The data of the presets as features: scans of digits; clothing in a small network's features; CLAD-C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.aef_ocl import CladC
from offprints.shared.datasets import digits, tensor_batches, vision_dataset
from offprints.shared.device import local_seed, make_generator, map_batches
from offprints.shared.extras import MissingData, require

# The benchmark's own, for a backbone without weights that say theirs.
CLAD_MEAN, CLAD_STD = (0.3252, 0.3283, 0.3407), (0.0265, 0.0241, 0.0252)


@dataclass(frozen=True)
class Data:
    """Features and labels to stream from, and to test on."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def scans(test_size: int, seed: int) -> Data:
    """A random split of scikit-learn's digits, 64 pixels in [0, 1] as features."""
    X, y = digits()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    test, train = order[:test_size], order[test_size:]
    return Data((X[train], y[train]), (X[test], y[test]))


# Clothing


def network(width: int, num_classes: int) -> nn.Sequential:
    """Convolutions, the average over the positions, and a linear layer, whose input is the feature."""

    def layer(inner: int, outer: int, size: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inner, outer, size, stride, padding=size // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outer), nn.ReLU()]

    return nn.Sequential(
        *layer(1, width, 3, 2),
        *layer(width, 2 * width, 3, 2),
        *layer(2 * width, 8 * width, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


def trained(images: Tensor, labels: Tensor, *, width: int, epochs: int, seed: int) -> nn.Sequential:
    """A network trained on images ``[N, 1, 28, 28]`` of classes 0, 1, ..."""
    with local_seed(seed):
        model = network(width, int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = epochs * max(1, len(labels) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = make_generator(seed)
    for _ in range(epochs):
        for x, y in tensor_batches(
            images, labels, batch_size=min(128, len(labels)), generator=generator, drop_last=True
        ):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def clothing(folder: Path | None, seed: int, *, width: int, epochs: int, download: bool) -> Data:
    """Fashion-MNIST in the features of a network that has seen five classes, of images that are not streamed."""

    def pictures(split: str) -> tuple[Tensor, Tensor]:
        found: Any = vision_dataset("fashion_mnist", split, download=download, root=folder)
        return found.data.unsqueeze(1).float() / 255, found.targets

    images, labels = pictures("train")
    draws = np.random.default_rng(seed)
    order = torch.from_numpy(draws.permutation(len(labels)))
    first, rest = order[: len(order) // 2], order[len(order) // 2 :]
    seen = torch.from_numpy(np.sort(draws.permutation(10)[:5]))
    own = first[torch.isin(labels[first], seen)]
    model = trained(images[own], torch.searchsorted(seen, labels[own]), width=width, epochs=epochs, seed=seed)
    body = model[:-1]

    def features(x: Tensor) -> Tensor:
        return map_batches(body, x, batch_size=500)

    test, test_labels = pictures("test")
    return Data((features(images[rest]), labels[rest]), (features(test), test_labels))


# CLAD-C


def load_backbone(name: str, weights: str, *, download: bool) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A torchvision model without its last layer, and the transform of its pictures; no weights: random ones."""
    models = require("torchvision.models", package="aef-ocl", extra="vision")
    transforms = require("torchvision.transforms.v2", package="aef-ocl", extra="vision")
    chosen = models.get_model_weights(name)[weights] if weights else None
    if chosen is not None:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
        if not file.is_file() and not download:
            raise MissingData(f"{file} is not there: --download fetches the weights of {name}")
    with local_seed(0):
        model = models.get_model(name, weights=chosen)
    for last in ("heads", "fc", "classifier"):
        if hasattr(model, last):
            setattr(model, last, nn.Identity())
    if chosen is not None:
        return model.eval(), chosen.transforms()
    plain = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)]
    return model.eval(), transforms.Compose([*plain, transforms.Normalize(CLAD_MEAN, CLAD_STD)])


def driving(
    folder: Path, split: Any, backbone: nn.Module, transform: Any, *, size: int, device: torch.device, workers: int
) -> dict[str, Tensor]:
    """Features, labels and periods of a split of CLAD-C."""
    dataset = CladC(folder, split, size=size, transform=transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=workers)
    backbone = backbone.to(device)
    made = [map_batches(backbone, images, batch_size=64, device=device).flatten(1) for images, _ in loader]
    return {"features": torch.cat(made), "labels": dataset.labels, "periods": dataset.periods}
