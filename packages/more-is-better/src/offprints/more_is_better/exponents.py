"""Power-law exponents of a kernel and a target, measured by proxies that finite samples bias little (section 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.more_is_better.regression import check_kernel, check_targets
from offprints.shared.validation import check_number

SIZES = 16  # by default
SINGULAR = 1e-12  # of the mean of the diagonal: pivots below are not told from 0


@dataclass(frozen=True, eq=False)
class PowerlawExponents:
    """Measured exponents, and the two curves whose slopes they are.

    Attributes:
        alpha: Exponent of the eigenvalues: kappa falls as ``n^-alpha``.
        beta: Exponent of the squared coefficients: the ridgeless test error falls as ``n^(1 - beta)``.
        sizes: Training sizes, ascending, int64.
        kappa: Estimates ``1 / Tr(K_n^-1)`` of the ridgeless kappa, means over the trials, float64.
        test_mse: Ridgeless test errors, means over the trials, float64.

    Example:
        >>> X = torch.randn(120, 6, dtype=torch.float64)
        >>> found = estimate_exponents(relu_ntk(X), X[:, 0].abs(), trials=2)
        >>> found.kappa.shape == found.sizes.shape, bool(found.alpha > 0)
        (True, True)
    """

    alpha: float
    beta: float
    sizes: Int[Tensor, " sizes"]
    kappa: Float[Tensor, " sizes"]
    test_mse: Float[Tensor, " sizes"]


def estimate_exponents(
    K: Float[Tensor, "n n"],
    y: Float[Tensor, "n *outputs"],
    *,
    sizes: Sequence[int] | None = None,
    n_test: int | None = None,
    trials: int = 10,
    fit_from: int | None = None,
    generator: torch.Generator | None = None,
) -> PowerlawExponents:
    """Measure the exponents alpha and beta of a task from its kernel matrix; `optimal_fitting_ratio` takes them.

    Each trial splits the points at random; the first s training points are the training set of size s. One Cholesky
    factor L of the largest gives all sizes: the rows of L^-1 add up to the traces of the inverses, and those of L^-1
    times the test kernel to the predictions. A matrix that is singular in rounding (repeated points, a kernel of finite
    rank) is decomposed size by size, without the eigenvalues below rounding.

    Args:
        K: Symmetric kernel matrix of all points.
        y: Targets; one axis counts as one column.
        sizes: Training sizes, at least two different ones. Default: sixteen, log-spaced up to all but the test points.
        n_test: Test points of a trial. Default: a fifth, or as many as `sizes` leave, whichever is less.
        trials: Random splits.
        fit_from: Least size that the fits use. Default: all.
        generator: Draws the splits. Default: torch's global one.

    Raises:
        TypeError: K or y is not a floating tensor, a size is not an integer.
        ValueError: K is not square, symmetric and finite, or its kappa does not fall (sizes beyond a finite rank); y
            does not fit, or is predicted without error; sizes and test points that the kernel does not have; fewer
            than two sizes to fit.

    Example:
        >>> X = torch.randn(200, 6, dtype=torch.float64)
        >>> found = estimate_exponents(relu_ntk(X), X[:, 0].abs(), trials=2)
        >>> ratio = optimal_fitting_ratio(found.alpha, found.beta, noise_rel=5.0)
        >>> bool(0 < ratio < 1)
        True
    """
    kernel = check_kernel(K, "K")
    targets = check_targets(y, "y", len(kernel)).to(device=kernel.device, dtype=torch.float64)
    check_number(trials, "trials", low=1, integer=True)
    chosen, held_out = _sizes(sizes, n_test, len(kernel))
    if fit_from is not None:
        check_number(fit_from, "fit_from", low=1, integer=True)
    fitted = np.array(chosen) >= (fit_from or 1)
    if fitted.sum() < 2:
        raise ValueError(f"fit_from must leave at least two of the sizes, got {fit_from} for {chosen}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")

    kappa, errors = torch.zeros(2, len(chosen), dtype=torch.float64, device=kernel.device)
    with torch.no_grad():
        for _ in range(trials):
            where = "cpu" if generator is None else generator.device
            order = torch.randperm(len(kernel), generator=generator, device=where).to(kernel.device)
            test, train = order[:held_out], order[held_out : held_out + chosen[-1]]
            blocks = kernel[train][:, train], kernel[train][:, test], targets[train], targets[test]
            curves = _by_cholesky(*blocks, chosen) or _by_eigenvalues(*blocks, chosen)
            kappa, errors = kappa + curves[0] / trials, errors + curves[1] / trials
    if not bool((errors > 0).all()) or not bool((kappa > 0).all()):
        raise ValueError("y must have a test error, and K a trace, that is not 0 at any size: there is no power law")
    logs = np.log(np.array(chosen))[fitted]
    slopes = [float(np.polyfit(logs, values.cpu().log().numpy()[fitted], 1)[0]) for values in (kappa, errors)]
    if slopes[0] >= 0:
        raise ValueError(
            f"K must have a kappa that falls with the size, got exponent {-slopes[0]:.3g}: is its rank finite?"
        )
    return PowerlawExponents(-slopes[0], 1 - slopes[1], torch.tensor(chosen), kappa, errors)


def _sizes(sizes: Sequence[int] | None, n_test: int | None, points: int) -> tuple[list[int], int]:
    """Training sizes, ascending, and the number of test points."""
    if n_test is not None:
        check_number(n_test, "n_test", low=1, integer=True)
        if n_test > points - 2:
            raise ValueError(f"n_test must leave at least two of K's {points} points to train on, got {n_test}")
    if sizes is None:
        if points < 4:
            raise ValueError(f"K must have at least 4 points, got {points}")
        largest = points - (n_test or max(1, points // 5))
        smallest = min(max(2, largest // 30), largest - 1)
        steps = np.geomspace(smallest, largest, SIZES)
        return sorted({round(float(step)) for step in steps}), points - largest
    given: Any = sizes.tolist() if hasattr(sizes, "tolist") else sizes  # of an array or a tensor
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise TypeError(f"sizes must be a sequence of integers, got {given!r} ({type(given).__name__})")
    listed = list(given)
    chosen = sorted({int(check_number(size, "sizes", low=1, integer=True)) for size in listed})
    if len(chosen) < 2:
        raise ValueError(f"sizes must hold at least two different sizes, got {listed}")
    left = points - chosen[-1]
    held_out = min(max(1, points // 5), left) if n_test is None else n_test
    if left < 1 or held_out > left:
        raise ValueError(
            f"sizes and n_test must leave test points: K has {points} points, the largest size is {chosen[-1]}"
            + ("" if n_test is None else f" and n_test is {n_test}")
        )
    return chosen, held_out


def _by_cholesky(
    K: Tensor, K_test: Tensor, y: Tensor, y_test: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """kappa and test error at every size from one factor; None where K is singular in rounding."""
    factor, info = torch.linalg.cholesky_ex(K)
    if bool(info) or float(factor.diagonal().min()) ** 2 < SINGULAR * float(K.diagonal().mean()):
        return None
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(K), dtype=K.dtype, device=K.device), upper=False)
    traces = inverse.square().sum(1).cumsum(0)
    whitened, parts = inverse @ K_test, inverse @ y
    left, errors, before = y_test.clone(), [], 0
    for size in sizes:
        left -= whitened[before:size].T @ parts[before:size]
        errors.append(left.square().sum(1).mean())
        before = size
    return 1 / traces[[size - 1 for size in sizes]], torch.stack(errors)


def _by_eigenvalues(
    K: Tensor, K_test: Tensor, y: Tensor, y_test: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The same, size by size, by the pseudo-inverse."""
    kappa, errors = [], []
    for size in sizes:
        eigvals, eigvecs = torch.linalg.eigh(K[:size, :size])
        kept = eigvals > SINGULAR * max(float(eigvals[-1]), math.ulp(0.0))
        eigvals, eigvecs = eigvals[kept], eigvecs[:, kept]
        left = y_test - K_test[:size].T @ eigvecs @ ((eigvecs.T @ y[:size]) / eigvals[:, None])
        trace = eigvals.reciprocal().sum()
        kappa.append(torch.where(trace > 0, 1 / trace, 0.0))
        errors.append(left.square().sum(1).mean())
    return torch.stack(kappa), torch.stack(errors)
