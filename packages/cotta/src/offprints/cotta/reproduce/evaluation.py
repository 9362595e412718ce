"""A stream, followed by one method: what all experiments have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offprints.cotta.adaptation import CoTTA
from offprints.cotta.baselines import BNAdapt, Source, Tent
from offprints.cotta.corruptions import StreamBatch

Method = Literal["source", "bn", "tent", "cotta", "shut", "single", "copied"]
CONTROLS = ("shut", "single", "copied")  # CoTTA with a part of the mechanism switched off
LABELS: dict[str, str] = {
    "source": "source",
    "bn": "BN adapt",
    "tent": "TENT",
    "cotta": "CoTTA",
    "shut": "CoTTA, gate shut",
    "single": "CoTTA, one view",
    "copied": "CoTTA, no weight average",
}


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How TENT and CoTTA adapt.

    Attributes:
        optimizer: of both; SGD with momentum 0.9, Nesterov for CoTTA.
        learning_rate: CoTTA's.
        tent_learning_rate: TENT's.
        ema_decay: the paper's alpha.
        restore_probability: the paper's p.
        confidence_threshold: the paper's p_th; None: from the source images.
        num_augmentations: the paper's N.
        symmetric: the symmetric loss.
        batch_size: images.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    tent_learning_rate: float = 1e-3
    ema_decay: float = 0.999
    restore_probability: float = 0.01
    confidence_threshold: float | None = 0.92
    num_augmentations: int = 32
    symmetric: bool = False
    batch_size: int = 200


def adapted(
    method: Method,
    model: nn.Module,
    settings: Adaptation,
    *,
    seed: int,
    augmentation: nn.Module | None = None,
    threshold: float | None = None,
) -> nn.Module:
    """The wrapper of a method around a model; ``threshold`` stands in where the settings leave it open."""
    if method == "source":
        return Source(model)
    if method == "bn":
        return BNAdapt(model)
    rate = settings.tent_learning_rate if method == "tent" else settings.learning_rate
    optimizer: Any = partial(torch.optim.Adam, lr=rate)
    if settings.optimizer == "sgd":
        optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9, nesterov=method != "tent")
    if method == "tent":
        return Tent(model, optimizer)
    threshold = threshold if settings.confidence_threshold is None else settings.confidence_threshold
    assert threshold is not None
    return CoTTA(
        model,
        optimizer,
        ema_decay=0.0 if method == "copied" else settings.ema_decay,
        restore_probability=settings.restore_probability,
        confidence_threshold=0.0 if method == "shut" else threshold,
        num_augmentations=1 if method == "single" else settings.num_augmentations,
        augmentation=augmentation,
        symmetric=settings.symmetric,
        seed=seed,
    )


def follow(wrapper: nn.Module, batches: Iterable[StreamBatch], device: torch.device | str) -> dict[str, Tensor]:
    """Answer all batches in order; per batch the wrong answers, the size, the confidence and whether views were used.

    The last two are NaN and 0 for methods that know neither.
    """
    rows = []
    for batch in batches:
        logits = wrapper(batch.x.to(device))
        wrong = (logits.argmax(1).cpu() != batch.y.cpu()).sum()
        confidence = float(getattr(wrapper, "last_confidence", torch.nan))
        rows.append([float(wrong), float(len(batch.y)), confidence, float(getattr(wrapper, "last_augmented", False))])
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return dict(zip(("wrong", "size", "confidence", "augmented"), columns, strict=True))


def segment_errors(followed: dict[str, Tensor], segments: int) -> Tensor:
    """Error in percent of each of so many equal segments."""
    wrong, size = (followed[key].view(segments, -1).sum(1) for key in ("wrong", "size"))
    return 100 * wrong / size
