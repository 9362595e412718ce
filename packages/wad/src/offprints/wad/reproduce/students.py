"""The methods that are compared: WAD, and the same training with a part of it switched off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offprints.shared.device import evaluating, local_seed, make_generator
from offprints.wad import Knowledge, WADTrainer, error_decomposition

WAD, SUPERVISED, UNWEIGHTED, PERMUTED = "WAD", "supervised", "unweighted", "weights permuted"
ALPHA = 0.1


def moving(method: str) -> str:
    """The name of the same method with samples that are moved to the labeled ones."""
    return f"{method}, samples moved"


class Unweighted(WADTrainer):
    """Every pseudo-label counts fully."""

    def weigh(self, knowledge: Knowledge) -> Tensor:
        """Ones."""
        return torch.ones_like(knowledge.weights)


class Supervised(WADTrainer):
    """The same batches, and nothing learned from the unlabeled ones."""

    def weigh(self, knowledge: Knowledge) -> Tensor:
        """Zeros."""
        return torch.zeros_like(knowledge.weights)


class Permuted(WADTrainer):
    """The same weights, each on another sample: as much distillation, from samples that nothing chose."""

    def weigh(self, knowledge: Knowledge) -> Tensor:
        """A permutation that does not touch the batches' stream."""
        order = torch.randperm(len(knowledge.weights), generator=make_generator(self.seed or 0))
        return knowledge.weights[order.to(knowledge.weights.device)]


TRAINERS: Mapping[str, type[WADTrainer]] = {
    SUPERVISED: Supervised,
    UNWEIGHTED: Unweighted,
    moving(UNWEIGHTED): Unweighted,
    PERMUTED: Permuted,
    WAD: WADTrainer,
    moving(WAD): WADTrainer,
}


def train_student(
    method: str,
    make_student: Callable[[], nn.Module],
    features: tuple[Tensor, Tensor],
    labeled: tuple[Tensor, Tensor],
    unlabeled: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    **options: Any,
) -> dict[str, Any]:
    """Train one student, and say how well it does and what it was taught.

    Args:
        method: A key of `TRAINERS`.
        make_student: Draws the student's weights from the global stream.
        features: The teacher's, of labeled and unlabeled samples.
        labeled: Samples and labels.
        unlabeled: Samples and true labels, -1 for unknown classes.
        test: Samples of target classes and labels.
        seed: Of weights and batches; with the same one all methods start alike and see the same batches.
        device: Where to train.
        options: Of `WADTrainer`.

    Returns:
        `accuracy`; `pseudo-labeling` and `invasion`, the errors of each round; `effective weight`, the mean of each.
    """
    with local_seed(seed):
        student = make_student().to(device)
    alpha = ALPHA if method in (moving(WAD), moving(UNWEIGHTED)) else 0.0
    trainer = TRAINERS[method](student, features, alpha=alpha, seed=seed, **options)
    trainer.fit(*labeled, unlabeled[0])
    with evaluating(student):
        predicted = torch.cat([student(part.to(device)).argmax(1).cpu() for part in test[0].split(1000)])
    errors = [
        error_decomposition(r["pseudo_labels"], r["weights"], unlabeled[1][r["positions"]]) for r in trainer.knowledge_
    ]
    return {
        "accuracy": float((predicted == test[1]).double().mean()),
        "pseudo-labeling": [error.pseudo_labeling for error in errors],
        "invasion": [error.invasion for error in errors],
        "effective weight": [float(r["weights"].double().mean()) for r in trainer.knowledge_],
    }
