"""The teacher's prediction: plain where the source model is confident, averaged over views where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from offprints.cotta._wrapping.asking import Asker, confidences, pixels_of
from offprints.cotta._wrapping.keeping import kept_buffers
from offprints.cotta._wrapping.per_view import Layout, ViewPredictor
from offprints.cotta.augmentation import ImageAugmentation
from offprints.cotta.multiscale import MultiScaleFlip
from offprints.shared.device import working_dtype


class Averaging(Protocol):
    """How the teacher's prediction is made: attributes of `CoTTA`, which may change between batches."""

    source: nn.Module
    teacher: nn.Module
    confidence_threshold: float
    num_augmentations: int
    augmentation: Any
    average: Literal["logits", "probabilities"]
    gate: Literal["batch", "sample"]
    precision: Literal["float32", "bfloat16"]

    @property
    def generator(self) -> torch.Generator:
        """Of the views."""


@dataclass(frozen=True)
class Target:
    """What the student learns: the teacher's logits, the source model's confidence, whether views were averaged."""

    logits: Tensor
    confidence: Tensor
    augmented: bool | Tensor


class TeacherPrediction:
    """Steps 1 and 2 of the method: the gate, and the average over views (equations 3 and 4)."""

    def __init__(self, ask: Asker, *, augmentation_batch: int | None, random: bool) -> None:
        self.layout = Layout(ask, enabled=not random)
        self.views = ViewPredictor(ask, augmentation_batch, separate=random)
        self._ask = ask

    @staticmethod
    def check_prediction(augmentation: Any, logits: Tensor) -> None:
        """Views that move pixels are no views of a dense prediction."""
        if isinstance(augmentation, ImageAugmentation) and pixels_of(logits) > 1:
            raise ValueError(
                f"augmentation must bring its views back for predictions of every pixel, {tuple(logits.shape)}, which"
                " ImageAugmentation does not: give augmentation=MultiScaleFlip()"
            )
        if isinstance(augmentation, MultiScaleFlip) and logits.ndim != 4:
            raise ValueError(
                f"augmentation=MultiScaleFlip() is for predictions of every pixel [B, K, h, w], got logits of shape"
                f" {tuple(logits.shape)}"
            )

    @torch.no_grad()
    def __call__(self, settings: Averaging, x: Tensor) -> Target:
        """The target for a batch."""
        with precision_of(settings.precision, x):
            with kept_buffers(settings.source):
                logits = self.layout.first_call(settings.source, x)
            self.check_prediction(settings.augmentation, logits)
            confidence = confidences(logits)
            confidence = (
                confidence.mean() if settings.gate == "batch" else confidence.reshape(len(confidence), -1).mean(1)
            )
            below = confidence < settings.confidence_threshold
            if bool(below.all()):
                target = self._average(settings, x)
            else:
                target = self._plain(settings.teacher, x)
                if bool(below.any()):  # some samples of the batch
                    chosen = below.view(-1, *[1] * (target.ndim - 1))
                    target = torch.where(chosen, self._average(settings, x), target)
        return Target(target, confidence, bool(below) if settings.gate == "batch" else below)

    def _plain(self, teacher: nn.Module, x: Tensor) -> Tensor:
        return self._ask(teacher, self.layout(x))

    def _average(self, settings: Averaging, x: Tensor) -> Tensor:
        """The mean of the teacher's predictions of the views, as logits."""
        teacher = settings.teacher
        average: Callable[..., Tensor] | None = getattr(settings.augmentation, "average_predictions", None)
        if average is not None:
            rule = "augmentation.average_predictions must return predictions of the batch"
            if settings.average == "logits":
                return check_rows(average(lambda view: self._plain(teacher, view), x), len(x), rule)
            mean = check_rows(average(lambda view: self._plain(teacher, view).softmax(1), x), len(x), rule)
            return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        total: Tensor | None = None
        group: list[Tensor] = []
        size = min(self.views.views_per_forward(x), settings.num_augmentations)
        for number, view in enumerate(views_of(settings, x), 1):
            group.append(self.layout(view))
            if len(group) < size and number < settings.num_augmentations:
                continue
            for logits in self.views(teacher, group):  # added in order, whatever the groups
                dtype = logits.dtype
                logits = logits.to(working_dtype(logits))
                if settings.average == "probabilities":
                    logits = logits.log_softmax(1)
                    total = logits if total is None else torch.logaddexp(total, logits)
                else:
                    total = logits if total is None else total + logits
            group = []
        assert total is not None
        if settings.average == "probabilities":
            return (total - math.log(settings.num_augmentations)).to(dtype)
        return (total / settings.num_augmentations).to(dtype)


def views_of(settings: Averaging, x: Tensor) -> Iterator[Tensor]:
    """The views of a batch, one after the other."""
    augmentation = settings.augmentation  # a function of the user's gets a batch of its own: it may work in place
    if isinstance(augmentation, ImageAugmentation):
        yield from augmentation.each_view(x, settings.num_augmentations, settings.generator)
        return
    for _ in range(settings.num_augmentations):
        yield check_rows(augmentation(x.clone()), len(x), "augmentation must return a view of the batch")


def check_rows(result: Any, rows: int, rule: str) -> Tensor:
    """What a function of the user returned: a tensor with as many rows as the batch; others would be broadcast."""
    if not isinstance(result, Tensor):
        raise TypeError(f"{rule}, got {type(result).__name__}")
    if result.ndim < 2 or len(result) != rows:
        raise ValueError(f"{rule}, {rows} rows, got shape {tuple(result.shape)}")
    return result


def precision_of(precision: str, x: Tensor) -> AbstractContextManager[None]:
    """Autocast to bfloat16, or what the caller has set."""
    return nullcontext() if precision == "float32" else torch.autocast(x.device.type, torch.bfloat16)
