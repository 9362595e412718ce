"""The paper's simulation: how many samples until a classifier is near the Bayes error (section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import make_generator
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_number,
    check_same_shape,
    check_tensor,
)


def _centers(n_classes: int) -> list[float]:
    """Coordinate of every class mean: -1, 1, 2, 4, ..."""
    return [-1.0, *(2.0**k for k in range(n_classes - 1))]


def _check_sizes(n_features: int, n_classes: int) -> None:
    check_number(n_features, "n_features", low=2, integer=True)
    check_number(n_classes, "n_classes", low=2, integer=True)


def gaussian_mixture(
    n_features: int,
    n_classes: int,
    n_samples: int,
    *,
    mode: str = "easy",
    rescale: bool = True,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Float[Tensor, "samples features"], Int[Tensor, " samples"]]:
    """Samples of the simulation's mixture, labels ``arange(n_samples) % n_classes``.

    Class 0 has mean -1 in every coordinate, class k >= 1 has 2^(k-1). The covariance is shared: n_features on the
    first half of the diagonal, 1 on the rest. ``"hard"`` adds the off-diagonal part of A^T A with
    A = 2 numpy.random.RandomState(0).rand(n, n) - 1. That sum is mostly indefinite; as NumPy's sampler does, V |L| V^T
    is then the covariance, where V L V^T is the eigendecomposition.

    Args:
        n_features: n.
        n_classes: K.
        n_samples: Number of samples.
        mode: ``"easy"`` or ``"hard"``.
        rescale: For K > 2, shift and scale: (x - 2^(K-3)) / 2^(K-3).
        generator: Of the draw; its device is that of the result. Default: torch's global one, on the CPU.
        dtype: Floating type of the samples.

    Raises:
        TypeError: ``dtype`` is not floating, a size not an integer.
        ValueError: fewer than 2 features or classes, no sample, an unknown mode; more classes than ``dtype`` can hold.

    Example:
        >>> X, y = gaussian_mixture(20, 2, 6, generator=torch.Generator().manual_seed(0))
        >>> X.shape, y
        (torch.Size([6, 20]), tensor([0, 1, 0, 1, 0, 1]))
    """
    _check_sizes(n_features, n_classes)
    check_number(n_samples, "n_samples", low=1, integer=True)
    check_choice(mode, "mode", ("easy", "hard"))
    check_bool(rescale, "rescale")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    if 2.0 ** min(n_classes - 2, 1023) * 2 > torch.finfo(dtype).max:
        raise ValueError(f"n_classes must leave the means, up to 2^(n_classes - 2), within {dtype}, got {n_classes}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    device = torch.device("cpu") if generator is None else generator.device
    half = n_features // 2
    variance = torch.ones(n_features, dtype=torch.float64, device=device)
    variance[:half] = n_features
    noise = torch.randn(n_samples, n_features, generator=generator, dtype=dtype, device=device)
    if mode == "easy":
        noise *= variance.sqrt().to(dtype)
    else:
        A = torch.from_numpy(2 * np.random.RandomState(0).rand(n_features, n_features) - 1).to(device)
        covariance = A.T @ A
        covariance.diagonal().copy_(variance)
        values, vectors = torch.linalg.eigh(covariance)
        noise = noise @ (values.abs().sqrt().unsqueeze(1) * vectors.T).to(dtype)
    labels = torch.arange(n_samples, device=device) % n_classes
    centers = torch.tensor(_centers(n_classes), dtype=dtype, device=device)
    samples = noise.add_(centers[labels].unsqueeze(1))
    if rescale and n_classes > 2:
        unit = 2.0 ** (n_classes - 3)
        samples.sub_(unit).div_(unit)
    return samples, labels


def bayes_error_two_gaussians(
    mean0: Float[Tensor, " d"], mean1: Float[Tensor, " d"], variance: Float[Tensor, " d"]
) -> float:
    """Bayes error of two equally likely Gaussians with one diagonal covariance: Phi(-Delta / 2), Delta^2 = sum
    (mean1 - mean0)^2 / variance.

    Raises:
        TypeError: not floating tensors.
        ValueError: not 1-D, of different shapes, not finite, a variance that is not positive.

    Example:
        >>> round(bayes_error_two_gaussians(-torch.ones(1), torch.ones(1), torch.ones(1)), 4)
        0.1587
    """
    for name, value in (("mean0", mean0), ("mean1", mean1), ("variance", variance)):
        check_tensor(value, name, ndim=1)
    check_same_shape(mean0, mean1, ("mean0", "mean1"))
    check_same_shape(mean0, variance, ("mean0", "variance"))
    if not bool((variance > 0).all()):
        raise ValueError(f"variance must be positive, got {float(variance.min())}")
    distance = ((mean1.double() - mean0.double()).square() / variance.double()).sum().sqrt()
    return math.erfc(float(distance) / math.sqrt(8)) / 2  # the tail to all digits


def bayes_error(n_features: int, n_classes: int) -> float:
    """Exact Bayes error of the easy mixture of any number of classes.

    The means lie on one line, so that the classes are one-dimensional Gaussians in order along Sigma^-1 1 and a
    sample is lost to its neighbors only.
    """
    half = n_features // 2
    precision = math.sqrt(half / n_features + n_features - half)
    centers = _centers(n_classes)
    gaps = torch.tensor(centers, dtype=torch.float64).diff()
    return float(2 / n_classes * torch.special.ndtr(-gaps * precision / 2).sum())


def samples_to_bayes(
    make_estimator: Callable[[], Any],
    n_features: int,
    *,
    n_classes: int = 2,
    margin: float = 0.01,
    repeats: int = 5,
    n_test: int = 10_000,
    max_samples: int | None = None,
    seed: int = 0,
) -> int:
    """Smallest m = 2 K, 2 K + s, ... (s = ceil(log n_features)) whose mean test error is below Bayes error + margin.

    Subsets of size m are drawn from one pool of the easy mixture, as in ``learning_curve`` without scaling; the Bayes
    error is exact for any number of classes.

    Args:
        make_estimator: Makes one.
        n_features: n.
        n_classes: K.
        margin: How near.
        repeats: Subsets a size.
        n_test: Test samples.
        max_samples: Size of the pool; default 100 n.
        seed: Of pool, test data and subsets.

    Raises:
        TypeError, ValueError: an argument out of range.
        RuntimeError: not reached with the whole pool.

    Example:
        >>> few = samples_to_bayes(GaussianNaiveBayes, 20, n_test=2000)
        >>> many = samples_to_bayes(lambda: LogisticRegression(tol=1e-4), 20, n_test=2000)
        >>> few < many
        True
    """
    _check_sizes(n_features, n_classes)
    check_number(margin, "margin", low=0, open_low=True)
    check_number(repeats, "repeats", low=1, integer=True)
    check_number(n_test, "n_test", low=1, integer=True)
    if not callable(make_estimator):
        raise TypeError(f"make_estimator must be callable, got {type(make_estimator).__name__}")
    pool = 100 * n_features if max_samples is None else max_samples
    check_number(pool, "max_samples", low=2 * n_classes, integer=True)
    check_number(seed, "seed", low=0, integer=True)
    from offprints.dis_vs_gen._harness import subset_errors  # with scikit-learn, which takes long to import

    generator = make_generator(seed)
    X, y = gaussian_mixture(n_features, n_classes, pool, generator=generator, dtype=torch.float32)
    X_test, y_test = gaussian_mixture(n_features, n_classes, n_test, generator=generator, dtype=torch.float32)
    target = bayes_error(n_features, n_classes) + margin
    for m in range(2 * n_classes, pool + 1, math.ceil(math.log(n_features))):
        (errors,) = subset_errors(
            [make_estimator], X, y, X_test, y_test, m, classes=np.arange(n_classes), repeats=repeats, scale=False,
            seed=seed, arrays=False,
        )  # fmt: skip
        if float(errors.mean()) < target:
            return m
    raise RuntimeError(f"mean test error did not come below {target:.4g} with {pool} samples")
