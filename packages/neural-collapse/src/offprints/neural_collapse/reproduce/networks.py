"""Images with chosen class sizes, a network with a deep linear head, and its training with separate decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.neural_collapse.closed_form import gof_solution
from offprints.neural_collapse.heads import LinearHead, separate_decay
from offprints.neural_collapse.probe import NCProbe
from offprints.shared.datasets import class_subset, digits, tensor_batches, vision_dataset
from offprints.shared.device import local_seed, make_generator

Source = Literal["digits", "fashion_mnist", "cifar10"]
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One network.

    Attributes:
        source: The images.
        counts: Images of each class.
        depth: Linear layers of the head.
        bias: Whether the last of them has a bias.
        decay: Of each of them and of the features; the geometry that it predicts is what is measured against.
        decayed: Whether to apply it.
        hidden: Width of the ReLU layers and between the linear ones.
        layers: ReLU layers, all of this width but the last.
        features: Width of the last one, which gives the features.
        batch_norm: Whether the ReLU layers have BatchNorm.
        steps: Of Adam.
        batch_size: Images a step; 0 for all of them.
        lr: Learning rate.
        beta2: Of Adam. With 0.999 the large gradients of the beginning hold the small ones of decay back for long.
        schedule: What it does; "step" divides it by 10 half way.
        evaluations: How often the metrics are measured.
        device: Where.
        data: Folder of the data set's folder.
        download: Whether to fetch it.
    """

    source: Source
    counts: tuple[int, ...]
    depth: int
    bias: bool
    decay: float
    decayed: bool
    hidden: int
    layers: int
    features: int
    batch_norm: bool
    steps: int
    batch_size: int
    lr: float
    schedule: Literal["cosine", "step", "constant"]
    beta2: float = 0.999
    evaluations: int = 10
    device: str = "cpu"
    data: Path | None = None
    download: bool = False


def load_images(source: Source, data: Path | None, download: bool) -> tuple[Tensor, Tensor]:
    """Flat training images and their labels; CIFAR normalized as in the official code, the others in [0, 1]."""
    if source == "digits":
        return digits()
    found: Any = vision_dataset(source, "train", download=download, root=data)
    pixels = torch.from_numpy(np.asarray(found.data)).float() / 255
    if source == "cifar10":
        pixels = (pixels - torch.tensor(CIFAR_MEAN)) / torch.tensor(CIFAR_STD)
    return pixels.flatten(1), torch.as_tensor(found.targets)


def chosen_images(training: Training, seed: int) -> tuple[Tensor, Tensor]:
    """As many images of each class as asked for."""
    X, y = load_images(training.source, training.data, training.download)
    wanted = dict(enumerate(training.counts))
    index = torch.from_numpy(np.asarray(class_subset(y, wanted, seed=seed)))
    return X[index].to(training.device), y[index].to(training.device)


def network(training: Training, inputs: int) -> nn.Sequential:
    """ReLU layers, orthogonally initialized, and the linear head, called ``head``."""
    widths = [inputs, *[training.hidden] * (training.layers - 1), training.features]
    model = nn.Sequential()
    for number in range(training.layers):
        linear = nn.Linear(widths[number], widths[number + 1])
        nn.init.orthogonal_(linear.weight)
        model.append(linear)
        if training.batch_norm:
            model.append(nn.BatchNorm1d(widths[number + 1]))
        model.append(nn.ReLU())
    options: dict[str, Any] = {"depth": training.depth, "width": training.hidden, "bias": training.bias}
    model.add_module("head", LinearHead(training.features, len(training.counts), **options))
    return model


def train_network(training: Training, seed: int) -> dict[str, Any]:
    """One unit: the metrics through the training, against the geometry that the theory predicts.

    1/(2B) ||logits - Y||^2 + `separate_decay`. The features are summed over the batch, so that their decay is that of
    all N samples times N / B.
    """
    X, y = chosen_images(training, seed)
    N, K = len(y), len(training.counts)
    B = training.batch_size or N
    decays = [training.decay] * training.depth
    target = gof_solution(training.counts, weight_decay=decays, feature_decay=training.decay)
    geometry = "etf" if training.bias else "of" if len(set(training.counts)) == 1 else "gof"
    history: dict[str, list[float]] = {"step": []}
    with local_seed(seed):
        model = network(training, X.shape[1]).to(training.device)
        head: Any = model.get_submodule("head")
        optimizer = torch.optim.Adam(model.parameters(), lr=training.lr, betas=(0.9, training.beta2))
        factors: dict[str, Any] = {
            "cosine": lambda step: (1 + np.cos(np.pi * step / training.steps)) / 2,
            "step": lambda step: 1.0 if step < training.steps / 2 else 0.1,
            "constant": lambda step: 1.0,
        }
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factors[training.schedule])
        generator = make_generator(seed)
        batches: Iterator[tuple[Tensor, ...]] = iter(())
        evaluate_at = set(np.linspace(0, training.steps, training.evaluations + 1).round().astype(int).tolist())
        for step in range(training.steps + 1):
            if step in evaluate_at:
                model.eval()
                probe = NCProbe(model, "head.0", num_classes=K).run(tensor_batches(X, y, batch_size=4096))
                model.train()
                history["step"].append(step)
                for name, value in vars(probe.compute(geometry=geometry, target=target)).items():
                    history.setdefault(name, []).append(value)
            if step == training.steps:
                break
            if B == N:
                x, labels = X, y
            else:
                batch = next(batches, None)
                if batch is None:
                    batches = tensor_batches(X, y, batch_size=B, generator=generator, drop_last=True)
                    batch = next(batches)
                x, labels = batch
            features = model[:-1](x)
            residual = head(features) - F.one_hot(labels, K)
            loss = residual.square().sum() / (2 * len(labels))
            if training.decayed:
                options = {"weight_decay": training.decay, "feature_decay": training.decay * N / B}
                loss = loss + separate_decay(head, features, **options)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(X).argmax(1) == y).double().mean().item()
    return {**history, "accuracy": accuracy}
