"""Similarities as torch's sparse COO tensors, or dense."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.validation import check_tensor


@contextmanager
def quiet_sparse() -> Iterator[None]:
    """Without torch's notes that sparse tensors are in beta and their invariants unchecked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        yield


def check_similarity(similarity: Tensor, samples: int | None = None) -> None:
    """Refuse what is not a finite ``(samples, samples)`` matrix, dense, COO or CSR; None for any size."""
    check_tensor(similarity, "similarity", ndim=2, finite=False, dense=False)
    size = similarity.shape[0] if samples is None else samples
    check_tensor(similarity, "similarity", shape=(size, size), dense=False)
    if similarity.layout == torch.sparse_coo:
        check_tensor(similarity._values(), "similarity", allow_empty=True)
    elif similarity.layout == torch.sparse_csr:
        check_tensor(similarity.values(), "similarity", allow_empty=True)
    elif similarity.layout != torch.strided:
        raise ValueError(f"similarity must be dense, sparse COO or sparse CSR, got {similarity.layout}")


def as_coo(similarity: Tensor) -> Tensor:
    """Dense as it is, CSR as COO; without a graph."""
    with quiet_sparse():
        matrix = similarity.detach()
        if matrix.layout == torch.sparse_csr:
            matrix = matrix.to_sparse_coo()
        return matrix.coalesce() if matrix.layout == torch.sparse_coo else matrix


def both_ways(similarity: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """``S + S^T`` in float64, on a device that has it."""
    with quiet_sparse():
        matrix = as_coo(similarity.cpu() if similarity.device.type == "mps" else similarity).double()
        if matrix.layout == torch.strided:
            return matrix + matrix.T
        return (matrix + matrix.t()).coalesce()


def sub_matrix(similarity: Float[Tensor, "n n"], index: Int[Tensor, " m"]) -> Float[Tensor, "m m"]:
    """Rows and columns at ``index``, which may repeat."""
    if similarity.layout == torch.strided:
        return similarity[index[:, None], index]
    with quiet_sparse():
        at = torch.stack([torch.arange(len(index), device=index.device), index])
        ones = similarity.values().new_ones(len(index))
        chosen = torch.sparse_coo_tensor(at, ones, (len(index), len(similarity)), check_invariants=False)
        return torch.sparse.mm(torch.sparse.mm(chosen, similarity), chosen.t())


def multiply(matrix: Float[Tensor, "n n"], plans: Float[Tensor, "batch n k"]) -> Float[Tensor, "batch n k"]:
    """``matrix @ plan`` for a batch of plans in one product."""
    batch, n, k = plans.shape
    columns = plans.transpose(0, 1).reshape(n, batch * k)
    with quiet_sparse():
        return (matrix @ columns).view(n, batch, k).transpose(0, 1)
