"""The graph of nearest neighbors that the semantic term rewards."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_choice, check_number, check_tensor

KERNELS = ("gauss", "cosine", "laplace")
BLOCK_ENTRIES = 2**24


@torch.no_grad()
def knn_similarity(
    features: Float[Tensor, "samples dim"],
    *,
    k: int = 20,
    kernel: Literal["gauss", "cosine", "laplace"] = "gauss",
    bandwidth: float = 2.0,
) -> Float[Tensor, "samples samples"]:
    """Similarity of every sample to its ``k`` most similar others, as a sparse COO matrix that is not symmetric.

    ``exp(-||x_i - x_j||^2 / (2 h^2 D))`` for ``"gauss"``, ``exp(-||x_i - x_j|| / (h D))`` for ``"laplace"``, with
    bandwidth ``h`` and feature dimension ``D``; the cosine for ``"cosine"``. Rows are computed in blocks; the full
    matrix is never stored.

    Args:
        features: ``(N, D)``, of the backbone before training.
        k: Entries of a row, ``1 <= k < N``.
        kernel: The similarity.
        bandwidth: ``h``, positive; not used by the cosine.

    Raises:
        TypeError: features that are not a floating tensor.
        ValueError: features that are not finite or not a table, ``k`` out of range, an unknown kernel.
    """
    check_tensor(features, "features", ndim=2)
    samples, dim = features.shape
    check_number(k, "k", low=1, high=samples, open_high=True, integer=True)
    check_choice(kernel, "kernel", KERNELS)
    check_number(bandwidth, "bandwidth", low=0, open_low=True)
    x = features.detach()
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    # Distances are differences of norms: around the mean they lose the fewest digits.
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
    if kernel == "gauss":
        nearest = (nearest.clamp(max=0) / (2 * bandwidth**2 * dim)).exp()
    elif kernel == "laplace":
        nearest = (-nearest.neg().clamp(min=0).sqrt() / (bandwidth * dim)).exp()
    column, order = column.sort(1)
    row = torch.arange(samples, device=x.device).repeat_interleave(k)
    at = torch.stack([row, column.flatten()])
    entries = nearest.gather(1, order).flatten().to(features.dtype)
    size = (samples, samples)
    return torch.sparse_coo_tensor(at, entries, size, check_invariants=False, is_coalesced=True)
