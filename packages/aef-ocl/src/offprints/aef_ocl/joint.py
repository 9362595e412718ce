"""Step 2 on all data at once: the joint solution that a stream must arrive at."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.aef_ocl._gram import as_targets
from offprints.aef_ocl._recursion import too_small
from offprints.aef_ocl._regions import check_magnitude, plain_region
from offprints.shared.validation import check_number, check_tensor


def ridge_solution(
    X: Float[Tensor, "B D"], Y: Int[Tensor, " B"] | Float[Tensor, "B K"], gamma: float
) -> Float[Tensor, "D K"]:
    """The joint solution of all rows at once, float64: what every stream of them must arrive at.

    It solves the least squares problem of the rows and sqrt(gamma) I below them by a QR factorization, without a Gram
    matrix: an independent way to the same minimum.

    Args:
        X: All rows.
        Y: Numbers of the classes, or targets.
        gamma: Weight of the penalty.

    Raises:
        TypeError: X not a floating tensor, labels that are floating or boolean.
        ValueError: empty, NaN or infinite, of another length; gamma not positive.
        numpy.linalg.LinAlgError: gamma is below the rounding of X'X, and the weights would have no digit.

    Example:
        >>> X, y = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1])
        >>> ridge_solution(X, y, 1.0)
        tensor([[0.3333, 0.3333]], dtype=torch.float64)
    """
    check_tensor(X, "X", ndim=2)
    check_magnitude(X, "X", torch.float64)
    gamma = check_number(gamma, "gamma", low=0, open_low=True)
    with plain_region(X.device):
        rows = X.to(torch.float64)
        targets = as_targets(Y, len(X), rows)
        D = X.shape[1]
        Q, R = torch.linalg.qr(torch.cat([rows, gamma**0.5 * torch.eye(D, device=X.device, dtype=rows.dtype)]))
        largest = float(R.diagonal().abs().max()) ** 2
        if largest * torch.finfo(torch.float64).eps > gamma:
            raise too_small(gamma, torch.float64)
        return torch.linalg.solve_triangular(R, Q[: len(X)].T @ targets, upper=True)
