"""Kernels of infinitely wide ReLU networks, fully connected (appendix on kernels)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_tensor


def relu_nngp(
    X1: Float[Tensor, "n1 features"], X2: Float[Tensor, "n2 features"] | None = None, *, depth: int = 1
) -> Float[Tensor, "n1 n2"]:
    """Covariance of the outputs of a random fully connected ReLU network, infinitely wide.

    `depth` times [dense layer with weights of variance 2 / fan-in, ReLU], then a dense layer of variance 1 / fan-in, no
    biases. With depth 1 it is the kernel of random features relu(W x), W ~ N(0, 2 / d):
    ``|x| |x'| / (pi d) (sin t + (pi - t) cos t)``, t the angle. It is computed in float64 and returned in the type of
    the inputs (float32 for half types); for small ridges, pass float64. No gradients.

    Args:
        X1: Inputs.
        X2: Others; None: the same, and the matrix is exactly symmetric.
        depth: Hidden layers, >= 1.

    Raises:
        TypeError: inputs that are not floating tensors.
        ValueError: inputs that are not 2-D, empty, NaN or infinite, of different widths; `depth` < 1.

    Example:
        >>> relu_nngp(torch.eye(2), depth=1)
        tensor([[0.5000, 0.1592],
                [0.1592, 0.5000]])
    """
    return _fully_connected(X1, X2, depth)[0]


def relu_ntk(
    X1: Float[Tensor, "n1 features"], X2: Float[Tensor, "n2 features"] | None = None, *, depth: int = 1
) -> Float[Tensor, "n1 n2"]:
    """Neural tangent kernel of the network of `relu_nngp`, in NTK parametrization.

    Args:
        X1, X2, depth: As in `relu_nngp`.

    Raises:
        TypeError, ValueError: As in `relu_nngp`.

    Example:
        >>> relu_ntk(torch.eye(2), depth=1)
        tensor([[1.0000, 0.1592],
                [0.1592, 1.0000]])
    """
    return _fully_connected(X1, X2, depth)[1]


@torch.no_grad()
def _fully_connected(X1: Tensor, X2: Tensor | None, depth: int) -> tuple[Tensor, Tensor]:
    """NNGP and NTK. The diagonal of the NNGP is the same after every layer, so that cosines are all there is."""
    check_number(depth, "depth", low=1, integer=True)
    check_tensor(X1, "X1", ndim=2)
    if X2 is not None:
        check_tensor(X2, "X2", shape=(None, X1.shape[1]))
    dtype = working_dtype(X1) if X2 is None else working_dtype(X1, X2)
    first = X1.to(torch.float64)
    second = first if X2 is None else X2.to(device=X1.device, dtype=torch.float64)
    units, lengths = zip(*(_unit(x) for x in ([first] if X2 is None else [first, second])), strict=True)
    cosine = units[0] @ units[-1].T
    scale = lengths[0] * lengths[-1].T / X1.shape[1]
    if X2 is None:
        cosine = (cosine + cosine.T) / 2
    cosine.clamp_(-1, 1)
    # The angle of nearly parallel inputs is a square root of what rounding leaves: of repeated ones it is exactly 0.
    i, j = (cosine > 1 - 1e-10).nonzero(as_tuple=True)
    cosine[i, j] = 1 - (units[0][i] - units[-1][j]).square().sum(1) / 2
    tangent = torch.zeros_like(cosine)
    for _ in range(depth):
        opposite = torch.acos(-cosine)  # pi - t
        tangent = (cosine + tangent) * (opposite / math.pi)
        cosine = (((1 - cosine) * (1 + cosine)).sqrt() + opposite * cosine) / math.pi
        cosine.clamp_(-1, 1)
    return (cosine * scale).to(dtype), ((cosine + tangent) * scale).to(dtype)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 and their lengths ``[n, 1]``; rows of zeros stay."""
    largest = x.abs().amax(1, keepdim=True)  # squares neither overflow nor vanish
    scaled = x / torch.where(largest > 0, largest, 1.0)
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0), length * largest
