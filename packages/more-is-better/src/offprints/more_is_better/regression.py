"""Kernel ridge regression at many ridges: one factorization for all of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_tensor, should_check

FEW = 4  # fewer ridges than this are factorized one by one


def ridge_path(
    K_train: Float[Tensor, "n n"],
    K_test: Float[Tensor, "m n"],
    y_train: Float[Tensor, "n *outputs"],
    y_test: Float[Tensor, "m *outputs"],
    ridges: Float[Tensor, " ridges"],
) -> tuple[Float[Tensor, " ridges"], Float[Tensor, " ridges"]]:
    """Train and test error of ``f(x) = K(x, X) (K(X, X) + ridge I)^-1 y`` at every ridge, in float64.

    The ridge is on the kernel matrix that is not divided by n, as scikit-learn's ``KernelRidge(alpha)`` has it. One
    eigendecomposition serves all ridges and outputs; up to three positive ridges take a Cholesky factor each.

    Args:
        K_train: Kernel matrix of the training points, symmetric.
        K_test: Kernel of the test points with the training points.
        y_train: Targets of the training points.
        y_test: Targets of the test points.
        ridges: Ridges >= 0 in any order; 0 is the solution of minimum norm, in which eigenvalues below rounding
            (n times float64's precision times the largest) count as 0.

    Returns:
        train_mse, test_mse: Means over the points, summed over the outputs.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: shapes that do not fit, NaN or infinity, a kernel matrix that is not symmetric, a negative ridge.

    Example:
        >>> X, y = torch.randn(30, 5), torch.randn(30)
        >>> K = relu_nngp(X.double())
        >>> train_mse, test_mse = ridge_path(K[:20, :20], K[20:, :20], y[:20], y[20:], torch.tensor([0.0, 0.1, 1.0]))
        >>> bool((train_mse.diff() > 0).all())
        True
    """
    K = check_kernel(K_train, "K_train")
    check_tensor(K_test, "K_test", shape=(None, len(K)))
    y, y_new = check_targets(y_train, "y_train", len(K)), check_targets(y_test, "y_test", len(K_test))
    if y.shape[1] != y_new.shape[1]:
        raise ValueError(f"y_train and y_test must have as many outputs, got {y.shape[1]} and {y_new.shape[1]}")
    check_tensor(ridges, "ridges", ndim=1)
    if should_check(ridges) and bool((ridges < 0).any()):
        raise ValueError(f"ridges must not be negative, got {float(ridges.min())}")
    y, y_new, K_new = (x.to(device=K.device, dtype=torch.float64) for x in (y, y_new, K_test))
    steps = ridges.to(device=K.device, dtype=torch.float64)

    duals = _by_cholesky(K, y, steps) if len(steps) < FEW and bool((steps > 0).all()) else None
    if duals is not None:
        train = (steps[:, None, None] * duals).square().sum((1, 2)) / len(K)  # the residual is ridge times the dual
        return train, torch.stack([_mse(K_new @ dual, y_new) for dual in duals])

    eigvals, eigvecs = torch.linalg.eigh(K)
    parts, projected = eigvecs.T @ y, K_new @ eigvecs
    eigvals = torch.where(eigvals.abs() > len(K) * torch.finfo(K.dtype).eps * eigvals.abs().max(), eigvals, 0.0)
    below = eigvals + steps[:, None]
    inverse = torch.where(below == 0, 0.0, 1 / torch.where(below == 0, 1.0, below))
    train = (1 - eigvals * inverse).square() @ parts.square().sum(1) / len(K)
    test = torch.stack([_mse(projected @ (row[:, None] * parts), y_new) for row in inverse])
    return train, test


def _by_cholesky(K: Tensor, y: Tensor, ridges: Tensor) -> Tensor | None:
    """Dual coefficients ``[S, n, C]``; None where a matrix is not positive definite in rounding."""
    factors, info = torch.linalg.cholesky_ex(K + ridges[:, None, None] * torch.eye(len(K), dtype=K.dtype).to(K.device))
    if bool(info.any()):
        return None
    return torch.cholesky_solve(y.expand(len(ridges), *y.shape), factors)


def _mse(predicted: Tensor, y: Tensor) -> Tensor:
    return (predicted - y).square().sum(1).mean()


def check_kernel(K: Tensor, name: str) -> Tensor:
    """A kernel matrix in float64: square, finite, symmetric up to the rounding of its own type."""
    check_tensor(K, name, ndim=2)
    if K.shape[0] != K.shape[1]:
        raise ValueError(f"{name} must be square, got shape {tuple(K.shape)}")
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5}.get(K.dtype, 2e-2)
    double = K.to(torch.float64)
    if should_check(K):
        seen = double.detach()
        apart = float((seen - seen.T).abs().max())
        if apart > tolerance * float(seen.abs().max()):
            raise ValueError(f"{name} must be symmetric, got entries that differ from their mirror by {apart:.3g}")
    return (double + double.T) / 2


def check_targets(y: Tensor, name: str, length: int) -> Tensor:
    """Targets ``[n, C]``; ``[n]`` counts as one column."""
    check_tensor(y, name, ndim=(1, 2))
    if len(y) != length:
        raise ValueError(f"{name} must have length {length}, as many as its kernel has points, got {len(y)}")
    return y[:, None] if y.ndim == 1 else y
