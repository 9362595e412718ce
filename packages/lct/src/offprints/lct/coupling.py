"""Minibatch optimal-transport coupling of data and noise: an exact assignment, independent of the rest."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_same_device, check_same_shape, check_tensor

# Below, products of float32 lose their digits.
SMALLEST = 1e-30


def _centered(x: Tensor) -> Tensor:
    """Without the mean, which adds the same to a whole row or column of costs: no assignment sees it, digits do."""
    return x - x.mean(0, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    """In float64 and brought to a largest entry of 1."""
    x = x.cpu().double()
    largest = x.abs().max()
    return x / torch.where(largest > 0, largest, 1.0)


def _cost(x: Tensor, noise: Tensor) -> Tensor:
    # |x_i - z_j|^2 = |x_i|^2 + |z_j|^2 - 2 x_i z_j, and the squares are constants of the assignment.
    with float32_region(x.device):
        return torch.matmul(x.flatten(1), noise.flatten(1).T).neg_()


def _groups(labels: Tensor, length: int) -> list[np.ndarray]:
    """Rows of each group of equal labels, each in rising order."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must have an integer type, got {labels.dtype}")
    if labels.ndim not in (1, 2) or len(labels) != length or labels.numel() == 0:
        raise ValueError(f"labels must have shape ({length},) or ({length}, *), got {tuple(labels.shape)}")
    rows = labels.detach().cpu().reshape(length, -1).to(torch.int64).numpy()
    _, group = np.unique(rows, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group))[:-1])


@torch.no_grad()
def ot_permutation(
    x: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "batch *shape"],
    *,
    labels: Int[Tensor, " batch *attributes"] | None = None,
) -> Int[Tensor, " batch"]:
    """The permutation that pairs each ``x[i]`` with ``noise[perm[i]]`` at the least total squared distance.

    Exact optimal transport between two batches of equal size (an optimal plan of uniform weights is a permutation):
    one matrix product, one copy of ``[B, B]`` numbers to the host, one assignment. Where several permutations are
    optimal, any of them. On a GPU the call waits for the device; to overlap it, couple in the data loader.

    Where a network is conditioned on labels, give them here: pairs are then made within each group of equal labels.
    Otherwise the noise that goes with a class is no longer standard normal (it lies on the side of the class), while
    sampling draws standard normal noise for it.

    Args:
        x: Data ``[B, ...]``, floating.
        noise: The same shape. Products are taken in float32 at least, also under autocast.
        labels: Integers or booleans ``[B]``, or ``[B, k]`` for k attributes of which all must be equal.

    Returns:
        int64 ``[B]``, on the device of ``x``.

    Raises:
        TypeError: not floating tensors; labels that are not integers.
        ValueError: shapes or devices that differ, fewer than two axes, an empty batch, NaN or infinite values.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0], [3.0]])
        >>> noise = torch.tensor([[2.0], [0.5], [-2.0]])
        >>> ot_permutation(x, noise).tolist()
        [2, 1, 0]
        >>> ot_permutation(x, noise, labels=torch.tensor([0, 0, 1])).tolist()
        [1, 0, 2]
    """
    check_tensor(x, "x", finite=False, min_ndim=2)
    check_tensor(noise, "noise", finite=False)
    check_same_shape(x, noise, ("x", "noise"))
    check_same_device(x, noise, names=("x", "noise"))
    groups = None if labels is None else _groups(labels, len(x))
    from scipy.optimize import linear_sum_assignment

    dtype = working_dtype(x, noise)
    cost = _cost(_centered(x.to(dtype)), _centered(noise.to(dtype))).cpu()
    # A NaN or an infinity anywhere in the batches shows in the products: looking at B^2 numbers is enough.
    largest = float(cost.abs().max())
    if not SMALLEST < largest < math.inf:
        check_tensor(x, "x", validate=True)
        check_tensor(noise, "noise", validate=True)
        # Finite, but beyond the ends of float32: the scales of both do not matter.
        cost = _cost(_centered(_unit(x)), _centered(_unit(noise)))
    try:
        numbers = cost.numpy()
    except RuntimeError as error:
        raise RuntimeError("an assignment needs numbers: couple before torch.func's transforms, not inside") from error
    if groups is None:
        _, columns = linear_sum_assignment(numbers)
    else:
        columns = np.empty(len(x), dtype=np.int64)
        for rows in groups:
            columns[rows] = rows[linear_sum_assignment(numbers[np.ix_(rows, rows)])[1]]
    return torch.from_numpy(columns).to(device=x.device, dtype=torch.int64)


def ot_couple(
    x: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "batch *shape"],
    *,
    labels: Int[Tensor, " batch *attributes"] | None = None,
) -> Float[Tensor, "batch *shape"]:
    """The noise in the order that goes with ``x``: ``noise[ot_permutation(x, noise, labels=labels)]``.

    Labels stay with ``x``; give them, so that pairs are made within each class. Couple within each rank's batch.
    Raises as :func:`ot_permutation`.

    Example:
        >>> x, noise = torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [-1.0]])
        >>> ot_couple(x, noise).tolist()
        [[-1.0], [1.0]]
    """
    permutation = ot_permutation(x, noise, labels=labels)
    return noise.index_select(0, permutation)
