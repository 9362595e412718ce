"""The graph of nearest neighbors that the semantic term rewards."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_choice, check_number, check_tensor

KERNELS = ("gauss", "cosine", "laplace")
BLOCK_ENTRIES = 2**24
FARTHEST = 40.0  # squared distance of a nearest neighbor, in bandwidths, beyond which there is no similarity left


@torch.no_grad()
def knn_similarity(
    features: Float[Tensor, "samples dim"],
    *,
    k: int = 20,
    kernel: Literal["gauss", "cosine", "laplace"] = "gauss",
    bandwidth: float | Literal["auto"] = 2.0,
) -> Float[Tensor, "samples samples"]:
    """Similarity of every sample to its ``k`` most similar others, as a sparse COO matrix that is not symmetric.

    ``exp(-||x_i - x_j||^2 / (2 h^2 D))`` for ``"gauss"``, ``exp(-||x_i - x_j|| / (h D))`` for ``"laplace"``, with
    bandwidth ``h`` and feature dimension ``D``; the cosine for ``"cosine"``. Rows are computed in blocks; the full
    matrix is never stored.

    The paper's ``h = 2`` is made for features of about unit variance. With ``"auto"`` the unit is in the data: the
    typical distance to the ``k``-th neighbor takes the place of ``h sqrt(D)`` (``h D`` for ``"laplace"``), so that a
    factor of all features changes nothing.

    Args:
        features: ``(N, D)``, of the backbone before training.
        k: Entries of a row, ``1 <= k < N``.
        kernel: The similarity.
        bandwidth: ``h``, positive, or ``"auto"``; not used by the cosine.

    Raises:
        TypeError: features that are not a floating tensor.
        ValueError: features that are not finite or not a table, ``k`` out of range, an unknown kernel.

    Warns:
        UserWarning: the bandwidth is so small that half of the samples would have no similar one. It is taken in units
            of the features' standard deviation instead.

    Example:
        >>> graph = knn_similarity(torch.tensor([[0.0], [1.0], [5.0]]), k=1)
        >>> graph.to_dense()[0]
        tensor([0.0000, 0.8825, 0.0000])
    """
    check_tensor(features, "features", ndim=2)
    samples, dim = features.shape
    check_number(k, "k", low=1, high=samples, open_high=True, integer=True)
    check_choice(kernel, "kernel", KERNELS)
    if not isinstance(bandwidth, str):
        bandwidth = check_number(bandwidth, "bandwidth", low=0, open_low=True)
    else:
        check_choice(bandwidth, "bandwidth", ("auto",))
    x = features.detach()
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    # Squares of huge and of tiny numbers leave the type: they are taken in units of the largest. Distances are
    # differences of norms: around the mean they lose the fewest digits.
    unit = float(x.abs().max()) or 1.0
    x = x / unit
    x = torch.nn.functional.normalize(x, dim=1) if kernel == "cosine" else x - x.mean(0)
    norms = x.square().sum(1)
    values, columns = [], []
    for rows in torch.arange(samples, device=x.device).split(max(1, BLOCK_ENTRIES // samples)):
        products = x[rows] @ x.T
        if kernel != "cosine":
            products.mul_(2).sub_(norms).sub_(norms[rows].unsqueeze(1))  # -||x_i - x_j||^2
        products[torch.arange(len(rows), device=x.device), rows] = -torch.inf
        nearest, column = products.topk(k, dim=1)
        values.append(nearest)
        columns.append(column)
    nearest, column = torch.cat(values), torch.cat(columns)
    if kernel != "cosine":
        distance = nearest.neg().clamp(min=0).double().sqrt()  # ascending in every row
        power = 2 if kernel == "gauss" else 1
        if bandwidth == "auto":
            reach = float(distance[:, -1].median()) or float(distance.max()) or 1.0
        else:
            reach = bandwidth * dim ** (1 / power) / unit
            if not reach > float(distance[:, 0].median()) / FARTHEST ** (1 / power):
                spread = float(x.double().var(0, correction=0).mean().sqrt())
                warnings.warn(
                    f"bandwidth={bandwidth:g} is far too small for these features, whose similarities vanish; it is"
                    f' taken in units of their standard deviation, {spread * unit:.3g}. "auto" fits any scale',
                    stacklevel=2,
                )
                reach *= spread * unit
        nearest = (-((distance / reach) ** power) / power).exp()
    column, order = column.sort(1)
    row = torch.arange(samples, device=x.device).repeat_interleave(k)
    at = torch.stack([row, column.flatten()])
    entries = nearest.gather(1, order).flatten().to(features.dtype)
    size = (samples, samples)
    return torch.sparse_coo_tensor(at, entries, size, check_invariants=False, is_coalesced=True)
