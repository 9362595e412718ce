"""Minibatch optimal-transport coupling of data and noise: an exact assignment, independent of the rest."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_same_device, check_same_shape, check_tensor


def _cost(x: Tensor, noise: Tensor) -> Tensor:
    # |x_i - z_j|^2 = |x_i|^2 + |z_j|^2 - 2 x_i z_j, and the squares are constants of the assignment.
    with float32_region(x.device):
        return torch.matmul(x.flatten(1), noise.flatten(1).T).neg_()


@torch.no_grad()
def ot_permutation(x: Float[Tensor, "batch *shape"], noise: Float[Tensor, "batch *shape"]) -> Int[Tensor, " batch"]:
    """The permutation that pairs each ``x[i]`` with ``noise[perm[i]]`` at the least total squared distance.

    Exact optimal transport between two batches of equal size (an optimal plan of uniform weights is a permutation):
    one matrix product, one copy of ``[B, B]`` numbers to the host, one assignment. Where several permutations are
    optimal, any of them. On a GPU the call waits for the device; to overlap it, couple in the data loader.

    Args:
        x: Data ``[B, ...]``, floating.
        noise: The same shape. Products are taken in float32 at least, also under autocast.

    Returns:
        int64 ``[B]``, on the device of ``x``.

    Raises:
        TypeError: not floating tensors.
        ValueError: shapes or devices that differ, fewer than two axes, an empty batch, NaN or infinite values.
    """
    check_tensor(x, "x", finite=False)
    check_tensor(noise, "noise", finite=False)
    check_same_shape(x, noise, ("x", "noise"))
    check_same_device(x, noise, names=("x", "noise"))
    if x.ndim < 2:
        raise ValueError(f"x must have a batch axis and at least one more, got shape {tuple(x.shape)}")
    from scipy.optimize import linear_sum_assignment

    dtype = working_dtype(x, noise)
    cost = _cost(x.to(dtype), noise.to(dtype)).cpu()
    # A NaN or an infinity anywhere in the batches shows in the products: looking at B^2 numbers is enough.
    if not bool(cost.isfinite().all()):
        check_tensor(x, "x", validate=True)
        check_tensor(noise, "noise", validate=True)
        # Finite, but too large for float32: their common scale does not matter.
        scale = x.abs().max().double().clamp(min=1.0) * noise.abs().max().double().clamp(min=1.0)
        cost = _cost(x.cpu().double() / scale.cpu(), noise.cpu().double())
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(columns).to(device=x.device, dtype=torch.int64)


def ot_couple(x: Float[Tensor, "batch *shape"], noise: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """The noise in the order that goes with ``x``: ``noise[ot_permutation(x, noise)]``.

    Labels, if any, stay with ``x``. Couple within each rank's batch. Raises as :func:`ot_permutation`.
    """
    return noise.index_select(0, ot_permutation(x, noise))
