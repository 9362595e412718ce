"""The empirical eigensystem of a kernel matrix and a target (section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.more_is_better.regression import check_kernel, check_targets


@dataclass(frozen=True, eq=False)
class Eigensystem:
    """Eigenvalues, eigenvectors and coefficients on n points, float64.

    Attributes:
        eigvals: Eigenvalues of K / n, descending, >= 0.
        eigvecs: Values of the eigenfunctions at the points: column i is mode i, and ``eigvecs.T @ eigvecs = n I``.
        coeffs: Coefficients of the target in the eigenbasis, a column for each output.

    Example:
        >>> system = kernel_eigensystem(torch.eye(3), torch.ones(3))
        >>> system.eigvals
        tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """

    eigvals: Float[Tensor, " n"]
    eigvecs: Float[Tensor, "n n"]
    coeffs: Float[Tensor, "n outputs"]


def kernel_eigensystem(K: Float[Tensor, "n n"], y: Float[Tensor, "n *outputs"]) -> Eigensystem:
    """Decompose a kernel matrix and a target on n points: what `rf_risk` and `krr_risk` take.

    ``K phi / n = lambda phi`` with ``phi^T phi = n``; ``v = phi^T y / n``. Small negative eigenvalues are rounding and
    become 0. The predictions are then about a pool of n points: `finite_pool_correction` makes test errors of them.

    Args:
        K: Symmetric kernel matrix.
        y: Targets; one axis counts as one column.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: K is not square, symmetric, finite and positive semidefinite, or y does not fit.

    Example:
        >>> X = torch.randn(50, 4, dtype=torch.float64)
        >>> system = kernel_eigensystem(relu_ntk(X), X[:, 0])
        >>> risk = krr_risk(system.eigvals, system.coeffs, n=20, ridge=0.01)
        >>> system.coeffs.shape, bool(risk.test_mse < X[:, 0].square().mean())
        (torch.Size([50, 1]), True)
    """
    kernel = check_kernel(K, "K")
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-4}.get(K.dtype, 3e-2)
    targets = check_targets(y, "y", len(kernel)).to(device=kernel.device, dtype=torch.float64)
    eigvals, eigvecs = torch.linalg.eigh(kernel)
    least, largest = eigvals.detach()[[0, -1]].tolist()
    if least < -tolerance * max(largest, -least):
        raise ValueError(f"K must be positive semidefinite, got an eigenvalue of {least:.3g}")
    n = len(kernel)
    eigvals, eigvecs = eigvals.flip(0).clamp(min=0) / n, eigvecs.flip(1) * n**0.5
    return Eigensystem(eigvals, eigvecs, eigvecs.T @ targets / n)
