"""The quick preset's data: pairs of digits, one digit against all others, and what the methods need on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.lr_perceptron.rules import GRADIENT_METHODS, METHODS
from offprints.lr_perceptron.separation import separate
from offprints.lr_perceptron.sweeps import sweep
from offprints.lr_perceptron.theory import margin, radius
from offprints.shared import datasets

PERCEPTRONS = METHODS[2:]


def with_ones(images: Tensor) -> Tensor:
    """Samples with a last column of ones, whose weight is the intercept."""
    return torch.cat([images, images.new_ones(len(images), 1)], 1)


def digit_pair(pair: tuple[int, int], seed: int | None = None, fraction: float = 0.8) -> tuple[Tensor, Tensor]:
    """Two digits, the first labeled -1, in the file's order; with a seed a stratified part of them, permuted."""
    images, labels = datasets.digits(dtype=torch.float64)
    rows = np.flatnonzero(np.isin(labels.numpy(), pair))
    if seed is not None:
        generator = np.random.default_rng(seed)
        parts = [generator.permutation(rows[labels.numpy()[rows] == digit]) for digit in pair]
        rows = generator.permutation(np.concatenate([part[: round(fraction * len(part))] for part in parts]))
    return with_ones(images[rows]), torch.where(labels[rows] == pair[1], 1.0, -1.0).double()


def few_against_all(digit: int, count: int, seed: int, *, permute: bool = True) -> tuple[Tensor, Tensor]:
    """``count`` samples of a digit, labeled +1, and all samples of the other digits, labeled -1."""
    images, labels = datasets.digits(dtype=torch.float64)
    generator = np.random.default_rng(seed)
    chosen = generator.choice(np.flatnonzero(labels.numpy() == digit), count, replace=False)
    rows = np.sort(np.concatenate([chosen, np.flatnonzero(labels.numpy() != digit)]))
    if permute:
        rows = generator.permutation(rows)
    return with_ones(images[rows]), torch.where(labels[rows] == digit, 1.0, -1.0).double()


def pair_unit(
    pair: tuple[int, int], step_sizes: Sequence[float], control: float, loud: float, max_iter: int, seed: int
) -> dict[str, Any]:
    """What every method needs on a pair, its bound, and the largest loss on the way at two step sizes."""
    X, y = digit_pair(pair, seed)
    sizes = [*step_sizes, control]
    found: dict[str, Any] = {
        method: sweep(X, y, sizes, method=method, max_iter=max_iter).n_iter for method in GRADIENT_METHODS
    }
    found |= {method: separate(X, y, method=method, max_iter=max_iter).n_iter for method in PERCEPTRONS}
    for name, step_size, every in (("loud", loud, 1), ("quiet", min(step_sizes), 10)):
        history = separate(X, y, method="lr_gd", step_size=step_size, max_iter=max_iter, record_every=every).history
        found[f"{name} loss"] = float(history["loss"].max())
    return found | {"n": len(y), "margin": margin(X, y), "radius": radius(X)}


def imbalanced_unit(digit: int, count: int, max_iter: int, seed: int) -> dict[str, Any]:
    """What both batch perceptrons need."""
    X, y = few_against_all(digit, count, seed)
    return {method: separate(X, y, method=method, max_iter=max_iter).n_iter for method in PERCEPTRONS[:2]}


def curves_unit(pair: tuple[int, int], step_sizes: Sequence[float], max_iter: int, seed: int) -> dict[str, Any]:
    """Loss, accuracy and gradient norm on the way, for the figures."""
    X, y = digit_pair(pair, seed)
    found: dict[str, Any] = {}
    for step_size in step_sizes:
        every = 1 if step_size >= 1 else 10
        result = separate(X, y, method="lr_gd", step_size=step_size, max_iter=max_iter, record_every=every)
        found |= {f"{step_size:g} {key}": values for key, values in result.history.items()}
    history = separate(X, y, method="batch_perceptron", max_iter=max_iter, record_every=1).history
    return found | {f"batch perceptron {key}": values for key, values in history.items()}


def limit_unit(step_size: float, seed: int) -> dict[str, Any]:
    """How far LR+GD, in units of its step size, is from the batch perceptron over the whole run of the latter."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    y = torch.where(X @ torch.randn(5, generator=generator, dtype=torch.float64) > 0, 1.0, -1.0).double()
    perceptron = separate(X, y, method="batch_perceptron", keep_iterates=True)
    options: dict[str, Any] = {"max_iter": perceptron.n_iter, "keep_iterates": True, "stop": False}
    descent = separate(X, y, method="lr_gd", step_size=step_size, **options)
    assert descent.iterates is not None
    assert perceptron.iterates is not None
    error = (descent.iterates / step_size - perceptron.iterates).abs().max()
    return {"error": float(error / perceptron.iterates.abs().max())}
