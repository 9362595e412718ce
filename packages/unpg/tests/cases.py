"""What several test files build."""

from __future__ import annotations

import torch
from torch import Tensor

from offprints.unpg import ArcFaceHead, CosFaceHead, MagFaceHead, MarginHead

HEADS: dict[str, type[MarginHead]] = {"cosface": CosFaceHead, "arcface": ArcFaceHead, "magface": MagFaceHead}


def make_head(name: str, dim: int, classes: int, dtype: torch.dtype = torch.float64, **options: float) -> MarginHead:
    """A head with seeded weights of unequal lengths."""
    head = HEADS[name](dim, classes, **{"scale": 8.0, **options}).to(dtype)
    draws = torch.Generator().manual_seed(classes)
    head.weight.data = torch.randn(classes, dim, generator=draws, dtype=torch.float64).to(dtype) * 2
    return head


def make_batch(rows: int, dim: int, classes: int, seed: int = 0, size: float = 9.0) -> tuple[Tensor, Tensor]:
    """Embeddings whose lengths lie on both sides of the ends of MagFace, and labels."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=draws, dtype=torch.float64) * size
    return x, torch.randint(classes, (rows,), generator=draws)
