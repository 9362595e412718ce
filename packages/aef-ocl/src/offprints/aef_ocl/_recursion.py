"""Step 3: the recursion over batches, by triangular factors, which keep R symmetric and show where rounding wins."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offprints.aef_ocl._gram import add_gram_, mirror_


def recursion_(R: Tensor, W: Tensor, X: Tensor, Y: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """R and W after one batch. W may change in place; R may where all of the batch succeeds.

    A batch with as many rows as features goes through the Gram form at once, a large one in blocks.

    Raises:
        numpy.linalg.LinAlgError: gamma is too small for the precision.
    """
    D = len(R)
    if len(X) >= D:
        precision = inverse(R, gamma)
        add_gram_(precision, X)
        R = inverse(mirror_(precision), gamma)
        return R, W + R @ (X.T @ (Y - X @ W))
    rows = max(1, D // 4)
    R = R if len(X) <= rows else R.clone()
    for x, y in zip(X.split(rows), Y.split(rows), strict=True):
        U = x @ R
        S = U @ x.T
        S.diagonal().add_(1)
        L = factor(S, gamma, 0.5)
        T = torch.linalg.solve_triangular(L, U, upper=False)
        W.addmm_(T.T, torch.linalg.solve_triangular(L, y - x @ W, upper=False))
        mirror_(add_gram_(R, T, alpha=-1))
    return R, W


def factor(matrix: Tensor, gamma: float, floor: float) -> Tensor:
    """The Cholesky factor. No exact pivot is below the smallest eigenvalue: one below ``floor`` is rounding."""
    L, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not bool((L.diagonal().square() >= floor).all()):
        raise too_small(gamma, matrix.dtype)
    return L


def inverse(matrix: Tensor, gamma: float) -> Tensor:
    """The inverse of a symmetric positive definite matrix, laid out as a stored state is: it goes on bit for bit."""
    return torch.cholesky_inverse(factor(matrix, gamma, 0.0)).contiguous()


def too_small(gamma: float, dtype: torch.dtype) -> np.linalg.LinAlgError:
    """What to raise where rounding has taken over."""
    return np.linalg.LinAlgError(
        f"gamma={gamma:g} is too small for these features X in {dtype}: rounding is as large; "
        "raise gamma or scale X down"
    )
