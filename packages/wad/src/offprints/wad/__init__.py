"""Semi-supervised learning by weight-aware distillation under class distribution mismatch (arXiv 2308.11874)."""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING

from offprints.wad.contrastive import nt_xent
from offprints.wad.errors import ErrorDecomposition, error_decomposition
from offprints.wad.knowledge import Knowledge, teacher_knowledge
from offprints.wad.losses import WADLoss, WADOutput
from offprints.wad.mismatch import MismatchSplit, mismatch_split, rectify_labels
from offprints.wad.selection import polynomial_decay, select_reliable
from offprints.wad.teacher import SimCLRTeacher
from offprints.wad.trainer import WADTrainer

if TYPE_CHECKING:
    from offprints.wad.classifier import WADClassifier

__all__ = [
    "ErrorDecomposition",
    "Knowledge",
    "MismatchSplit",
    "SimCLRTeacher",
    "WADClassifier",
    "WADLoss",
    "WADOutput",
    "WADTrainer",
    "error_decomposition",
    "mismatch_split",
    "nt_xent",
    "polynomial_decay",
    "rectify_labels",
    "select_reliable",
    "teacher_knowledge",
]


def __getattr__(name: str) -> object:
    # The classifier stands on scikit-learn, which takes as long to import as torch.
    if name == "WADClassifier":
        value = _importlib.import_module("offprints.wad.classifier").WADClassifier
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
