"""More is better: random-feature regression on Gaussian data and on images, theory beside what is measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprints.more_is_better import (
    finite_pool_correction,
    kernel_eigensystem,
    powerlaw_spectrum,
    relu_nngp,
    rf_risk,
    ridge_path,
)
from offprints.more_is_better.reproduce.data import Task, load, signs
from offprints.shared.device import make_generator


def gaussian_trial(
    modes: int, n: int, widths: tuple[int, ...], ridges: tuple[float, ...], noise: float, seed: int
) -> dict[str, Any]:
    """One draw of samples and features: test errors ``[widths, ridges]``.

    The samples are Gaussian in the eigenbasis, so that the test error of a linear predictor needs no test points.
    """
    generator = make_generator(seed)
    eigvals, target = powerlaw_spectrum(modes, 1.5, 1.5)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = draw(n, modes)
    y = x @ target + noise**0.5 * draw(n)
    projection = draw(modes, max(widths)) * eigvals.sqrt()[:, None]
    every = x @ projection
    errors = torch.empty(len(widths), len(ridges), dtype=torch.float64)
    for i, width in enumerate(widths):
        features = every[:, :width] / width**0.5
        values, vectors = torch.linalg.eigh(features @ features.T)
        duals = vectors @ ((vectors.T @ y)[:, None] / (values.clamp(min=0)[:, None] + torch.tensor(ridges)))
        learned = projection[:, :width] @ (features.T @ duals) / width**0.5
        errors[i] = (learned - target[:, None]).square().sum(0) + noise
    return {"errors": errors}


def gaussian_theory(modes: int, n: int, widths: tuple[float, ...], ridges: tuple[float, ...], noise: float) -> Tensor:
    """The predicted errors ``[widths, ridges]``."""
    points = torch.tensor(widths, dtype=torch.float64)[:, None], torch.tensor(ridges, dtype=torch.float64)
    return rf_risk(*powerlaw_spectrum(modes, 1.5, 1.5), n, *points, noise_var=noise).test_mse


def image_trial(
    name: Task,
    points: int,
    n: int,
    widths: tuple[int, ...],
    ridges: tuple[float, ...],
    data: Path | None,
    download: bool,
    pool_seed: int,
    seed: int,
) -> dict[str, Any]:
    """One split and one draw of ReLU features: test errors ``[widths, ridges]``."""
    images, labels = load(name, points, data=data, download=download, seed=pool_seed)
    X, y = images.flatten(1), signs(name, labels)
    generator = make_generator(seed)
    order = torch.randperm(len(X), generator=generator)
    train, test = order[:n], order[n:]
    weight = torch.randn(max(widths), X.shape[1], generator=generator, dtype=X.dtype) * (2 / X.shape[1]) ** 0.5
    every = torch.relu(X @ weight.T)
    errors = []
    for width in widths:
        features = every[:, :width] / width**0.5
        kernels = features[train] @ features[train].T, features[test] @ features[train].T
        errors.append(ridge_path(*kernels, y[train], y[test], torch.tensor(ridges, dtype=X.dtype))[1])
    return {"errors": torch.stack(errors)}


def image_theory(
    name: Task,
    points: int,
    n: int,
    widths: tuple[float, ...],
    ridges: tuple[float, ...],
    data: Path | None,
    download: bool,
    pool_seed: int,
) -> dict[str, Any]:
    """Predicted errors ``[widths, ridges]`` from the kernel of the whole pool."""
    images, labels = load(name, points, data=data, download=download, seed=pool_seed)
    system = kernel_eigensystem(relu_nngp(images.flatten(1)), signs(name, labels))
    at = torch.tensor(widths, dtype=torch.float64)[:, None], torch.tensor(ridges, dtype=torch.float64)
    risk = rf_risk(system.eigvals, system.coeffs, n, *at)
    return {"errors": finite_pool_correction(risk.test_mse, risk.train_mse, n, len(images))}
