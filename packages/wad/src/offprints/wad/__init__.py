"""Semi-supervised learning by weight-aware distillation under class distribution mismatch (arXiv 2308.11874)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.shared.lazy import attach as _attach
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

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(__name__, {"WADClassifier": "offprints.wad.classifier"})
