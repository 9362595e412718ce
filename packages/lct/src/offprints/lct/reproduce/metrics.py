"""Distances between two samples."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two samples ``[n, d]``, without the pairs of a point with itself."""
    x, y = a.double(), b.double()
    within = [torch.cdist(t, t).sum() / (len(t) * (len(t) - 1)) for t in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two samples ``[n, d]``."""
    x, y = a.double(), b.double()
    first, second = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross)


def collapse(real: Tensor) -> tuple[float, float]:
    """Energy and Fréchet distance of a generator that always gives the mean."""
    return energy_distance(real.mean(0).expand(2, -1), real), float(real.double().var(0).sum())


def recall(real: Tensor, generated: Tensor, *, neighbors: int = 3, chunk: int = 1024) -> float:
    """Share of real features ``[n, d]`` within the generated manifold (Kynkaanniemi et al. 2019).

    The manifold is the union of balls around the generated features that reach to their k-th nearest neighbor.
    """
    radii = torch.cat([torch.cdist(part, generated).kthvalue(neighbors + 1).values for part in generated.split(chunk)])
    inside = [(torch.cdist(part, generated) <= radii).any(1) for part in real.split(chunk)]
    return float(torch.cat(inside).double().mean())
