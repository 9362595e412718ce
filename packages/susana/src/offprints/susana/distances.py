"""Euclidean distances: of all pairs, and of chosen pairs with a gradient that touches nothing else."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_number, check_same_device, check_tensor, should_check

EPS = 1e-6  # inside of the root of every distance of the paper
EXACT = 2**22  # products of sizes up to which differences are formed one by one
COLUMNS = 512  # features multiplied at once in double precision


def pairwise_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, eps: float = 1e-6) -> Float[Tensor, "n m"]:
    """Compute the paper's distance sqrt(sum_j (x_j - y_j)^2 + eps) of every row of `x` from every row of `y`.

    The `eps` inside of the root bounds the gradient of rows that coincide. Small problems are computed from the
    differences, large ones by a product of the centered rows in double precision, so that close rows far from the
    origin keep their digits in both. Half types are computed, and returned, in float32.

    Args:
        x: Rows ``[n, d]``.
        y: Rows ``[m, d]``.
        eps: What is added to the squared distance, at least 0.

    Returns:
        Distances ``[n, m]``.

    Raises:
        TypeError: `x` or `y` is not a floating tensor, `eps` is not a number.
        ValueError: They are not 2-D, empty, not finite or of different widths; `eps` is negative; distances that
            overflow.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> pairwise_distance(x, x[:1])
        tensor([[1.0000e-03],
                [5.0000e+00]])
    """
    check_tensor(x, "x", ndim=2)
    check_tensor(y, "y", ndim=2)
    check_pair(x, y, ("x", "y"))
    eps = check_number(eps, "eps", low=0)
    with float32_region(x.device):
        distances = safe_root(squared_distances(x, y), eps)
    if should_check(distances) and not bool(distances.detach().amax().isfinite()):
        raise ValueError("x and y must have distances whose squares are finite in their type, got inf")
    return distances


def check_pair(x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
    """Check that two sets of rows have one width and one device."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[1]} must have as many features as {names[0]}, {x.shape[1]}, got shape {tuple(y.shape)}"
        )
    check_same_device(x, y, names=names)


def safe_root(squared: Tensor, eps: float) -> Tensor:
    """sqrt(squared + eps), with the gradient 0 instead of infinity where the root is 0."""
    total = squared + eps
    if eps > 0:
        return total.sqrt()
    zero = total == 0
    return total.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The squared distances of all pairs, with gradients; of half types in float32."""
    dtype = working_dtype(x, y)
    if x.shape[0] * y.shape[0] * x.shape[1] <= EXACT:
        return (x.to(dtype)[:, None] - y.to(dtype)[None]).square().sum(-1)
    return _by_product(x, y).to(dtype)


@torch.no_grad()
def nearest_matrix(x: Tensor, y: Tensor) -> Tensor:
    """Something that is ordered in every row as the distances of all pairs, without gradients, to find neighbors in.

    Of features in double precision, and in small problems, these are the distances, from differences: members of tight
    clusters that are far apart are told from each other. In large problems in single precision they are the squares, by
    a product whose error is 1e-16 of the squared size of the centered features.
    """
    x, y = x.detach(), y.detach()
    if working_dtype(x, y) == torch.float64 or x.shape[0] * y.shape[0] * x.shape[1] <= EXACT:
        wide = _widest(x)
        return torch.cdist(x.to(wide), y.to(wide), compute_mode="donot_use_mm_for_euclid_dist")
    return _by_product(x, y)


def _widest(x: Tensor) -> torch.dtype:
    """Double precision, which MPS has not."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _by_product(x: Tensor, y: Tensor) -> Tensor:
    """|x|^2 + |y|^2 - 2 x.y of the rows less the mean of `y`, which loses few digits, in blocks of columns."""
    wide = _widest(x)
    total: Tensor | None = None
    for start in range(0, x.shape[1], COLUMNS):
        part = y[:, start : start + COLUMNS].to(wide)
        center = part.detach().mean(0)
        a, b = x[:, start : start + COLUMNS].to(wide) - center, part - center
        norms = a.square().sum(1)[:, None] + b.square().sum(1)
        block = norms.sub_(a @ b.mT, alpha=2) if not norms.requires_grad else norms - 2 * (a @ b.mT)
        total = block if total is None else total + block
    assert total is not None  # there is at least one column
    return total.clamp_min(0)


def chosen_distances(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], index: Int[Tensor, "n w"]
) -> Float[Tensor, "n w"]:
    """The distances sqrt(|x_i - y_index_ij|^2 + 1e-6) of chosen pairs, from their differences.

    Neither this nor its gradient makes anything of the size of all pairs times the features: both go through the
    pairs in blocks of rows.
    """
    dtype = working_dtype(x, y)
    # A view: the compiler refuses one tensor in two places, as of a set among itself.
    squared: Tensor = _ChosenPairs.apply(x.to(dtype), y.to(dtype).view_as(y), index)
    return (squared + EPS).sqrt()


def _blocks(x: Tensor, index: Tensor, m: int) -> range:
    """Starts of blocks of rows whose differences take no more memory than the matrix of all pairs."""
    budget = max(2**18, x.shape[0] * m)
    return range(0, x.shape[0], max(1, budget // (index.shape[1] * x.shape[1])))


class _ChosenPairs(torch.autograd.Function):
    """Squared distances of chosen pairs; the gradient is made of operations that have gradients themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        blocks = _blocks(x, index, y.shape[0])
        parts = [
            (x[start : start + blocks.step, None] - y[index[start : start + blocks.step]]).square().sum(-1)
            for start in blocks
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y, index = ctx.saved_tensors
        of_x, of_y = [], torch.zeros_like(y)
        blocks = _blocks(x, index, y.shape[0])
        for start in blocks:
            rows = slice(start, start + blocks.step)
            pull = 2 * gradient[rows, :, None] * (x[rows, None] - y[index[rows]])
            of_x.append(pull.sum(1))
            of_y = of_y.index_add(0, index[rows].flatten(), -pull.flatten(0, 1))
        return of_x[0] if len(of_x) == 1 else torch.cat(of_x), of_y, None
