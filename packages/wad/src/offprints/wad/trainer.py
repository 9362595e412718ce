"""The student's training in rounds: ask the teacher, train, move the samples that the student believes most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import evaluating, local_seed, map_batches, modes_kept, resolve_device, training_region
from offprints.shared.validation import check_bool, check_number
from offprints.wad._checks import as_samples
from offprints.wad._training import check_seed, check_trainable, place_of, shuffled_batches
from offprints.wad.features import BATCH, check_teacher, teacher_features
from offprints.wad.knowledge import Knowledge, check_anchor_labels, knowledge_of
from offprints.wad.losses import WADOutput, weighted_distillation
from offprints.wad.selection import polynomial_decay, select_reliable


class WADTrainer:
    """Train a student by weight-aware distillation; steps 2 to 4 of the method.

    In each round the teacher labels and weighs the samples that are still unlabeled, the student is trained on batches
    of both kinds with a new Adam, and the `int(alpha_r * U)` samples whose pseudo-labels it believes most are moved to
    the labeled ones, with the teacher's pseudo-label. They are anchors of the next round's pseudo-labels too, so that a
    wrong one attracts its neighbors: `alpha=0` switches that off.

    Args:
        student: Maps samples to logits `(N, K)`; trained in place. Transforms of its inputs for training alone belong
            to it.
        teacher: A fitted `SimCLRTeacher`, another module that maps samples to features (in evaluation mode), or the
            pair `(Z_labeled, Z_unlabeled)` of features.
        rounds: At least 1; with 1 nothing is moved.
        steps_per_round: Batches in each round.
        alpha: Share that is moved, before it decays, in [0, 1]; see `polynomial_decay`.
        lr: Of Adam.
        batch_size: Labeled samples a step, and as many unlabeled ones. Fewer samples than that are repeated.
        normalize_weights: As in `WADLoss`.
        device: Where to train; None: where the student is.
        seed: Of batches and of the student's own draws, whatever the global seeds, which are left alone; None draws
            from the global streams.

    Attributes:
        history_: One dict a step: `step`, `round`, and the fields of `WADOutput`.
        knowledge_: One dict a round: `round`, and, of the samples still unlabeled, `positions` in X_unlabeled,
            `pseudo_labels`, `weights`; what `error_decomposition` needs.
        selected_: Round, from 1, to the positions in X_unlabeled that were moved after it, the most believed first.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Example:
        >>> X, y, X_unlabeled = torch.randn(6, 4), torch.tensor([0, 1, 2] * 2), torch.randn(50, 4)
        >>> trainer = WADTrainer(torch.nn.Linear(4, 3), (X, X_unlabeled), rounds=2, steps_per_round=5, seed=0)
        >>> len(trainer.fit(X, y, X_unlabeled).history_)
        10
    """

    history_: list[dict[str, float]]
    knowledge_: list[dict[str, Any]]
    selected_: dict[int, Tensor]

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[Any],
        *,
        rounds: int = 6,
        steps_per_round: int = 1500,
        alpha: float = 0.1,
        lr: float = 5e-4,
        batch_size: int = 32,
        normalize_weights: bool = False,
        device: str | torch.device | None = None,
        seed: int | None = None,
    ) -> None:
        place = place_of(student, "student")
        check_trainable(student, "student")
        check_teacher(teacher)
        self.student, self.teacher = student, teacher
        self.rounds = check_number(rounds, "rounds", low=1, integer=True)
        self.steps_per_round = check_number(steps_per_round, "steps_per_round", low=1, integer=True)
        self.alpha = check_number(alpha, "alpha", low=0, high=1)
        self.lr = check_number(lr, "lr", low=0, open_low=True)
        self.batch_size = check_number(batch_size, "batch_size", low=1, integer=True)
        self.normalize_weights = check_bool(normalize_weights, "normalize_weights")
        self.device = resolve_device(device, like=place)
        self.seed = check_seed(seed, "seed")

    def weigh(self, knowledge: Knowledge) -> Float[Tensor, " unlabeled"]:
        """The weights `(U,)` of the unlabeled samples: the teacher's. A subclass may weigh otherwise."""
        return knowledge.weights

    def fit(self, X_labeled: Any, y: Any, X_unlabeled: Any) -> Self:
        """Train the student.

        Args:
            X_labeled: `(L, ...)` samples, floating, array or tensor.
            y: `(L,)` integers in [0, K), every class at least once, K at least 2.
            X_unlabeled: `(U, ...)` samples of the same shape; classes beyond the K may be among them.

        Raises:
            NotFittedError: the teacher is a `SimCLRTeacher` that was not fitted.
            TypeError: samples that are not floating, labels that are not integers.
            ValueError: NaN, infinities, empty, other lengths or shapes, a class without a sample, features that have
                no direction, a student that does not give `(N, K)`, a training that diverges.
        """
        place = place_of(self.student, "student")
        kind: dict[str, Any] = {"dtype": place.dtype, "device": self.device}
        x_labeled, x_unlabeled = (
            as_samples(X_labeled, "X_labeled", **kind),
            as_samples(X_unlabeled, "X_unlabeled", **kind),
        )
        if x_labeled.shape[1:] != x_unlabeled.shape[1:]:
            raise ValueError(
                "X_labeled and X_unlabeled must have samples of the same shape,"
                f" got {tuple(x_labeled.shape[1:])} and {tuple(x_unlabeled.shape[1:])}"
            )
        labels = anchor_labels(y, len(x_labeled)).to(self.device)
        with training_region(self.device), local_seed(self.seed), modes_kept(self.student):
            self.student.to(self.device)
            z_labeled, z_unlabeled = teacher_features(self.teacher, X_labeled, X_unlabeled, self.device)
            self._run(x_labeled, labels, x_unlabeled, z_labeled, z_unlabeled)
        return self

    def _run(self, x: Tensor, labels: Tensor, pool: Tensor, anchors: Tensor, z_pool: Tensor) -> None:
        """All rounds, of samples and unit features."""
        num_classes = int(labels.max()) + 1
        remaining = torch.arange(len(pool), device=self.device)
        history: list[dict[str, float]] = []
        rounds: list[dict[str, Any]] = []
        selected: dict[int, Tensor] = {}
        for r in range(1, self.rounds + 1):
            knowledge = knowledge_of(z_pool[remaining], anchors, labels, num_classes=num_classes)
            weights = self._weights(knowledge)
            rounds.append(
                {
                    "round": r,
                    "positions": remaining.cpu(),
                    "pseudo_labels": knowledge.pseudo_labels.cpu(),
                    "weights": weights.cpu(),
                }
            )
            history += self._train(r, x, labels, pool, remaining, knowledge.pseudo_labels, weights, num_classes)
            share = polynomial_decay(r, self.alpha, self.rounds - 1)
            moved = remaining[:0]
            if int(share * len(remaining)) > 0:
                chosen = select_reliable(self._logits(pool, remaining), knowledge.pseudo_labels, fraction=share)
                moved = remaining[chosen]
                x = torch.cat([x, pool[moved]])
                labels = torch.cat([labels, knowledge.pseudo_labels[chosen]])
                anchors = torch.cat([anchors, z_pool[moved]])
                kept = torch.ones(len(remaining), dtype=torch.bool, device=self.device)
                kept[chosen] = False
                remaining = remaining[kept]
            selected[r] = moved.cpu()
        self.history_, self.knowledge_, self.selected_ = history, rounds, selected

    def _logits(self, pool: Tensor, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows classes"]:
        """The student's logits of these rows, without a copy of the pool."""
        with evaluating(self.student):
            return map_batches(lambda part: self.student(pool[part]), rows, batch_size=BATCH)

    def _weights(self, knowledge: Knowledge) -> Tensor:
        weights, wanted = self.weigh(knowledge), knowledge.weights
        if (
            not isinstance(weights, Tensor)
            or weights.shape != wanted.shape
            or not bool(((weights >= 0) & weights.isfinite()).all())
        ):
            raise ValueError(
                f"weigh must return {len(wanted)} weights that are finite and not negative, got {weights!r:.80}"
            )
        return weights.detach().to(wanted)

    def _train(
        self,
        r: int,
        x: Tensor,
        labels: Int[Tensor, " labeled"],
        pool: Tensor,
        remaining: Int[Tensor, " unlabeled"],
        pseudo_labels: Int[Tensor, " unlabeled"],
        weights: Float[Tensor, " unlabeled"],
        num_classes: int,
    ) -> list[dict[str, float]]:
        """One round's steps."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.lr, fused=self.device.type in ("cpu", "cuda"))
        batches = [
            shuffled_batches(len(rows), self.steps_per_round, self.batch_size).to(self.device)
            for rows in (labels, remaining)
        ]
        self.student.train()
        terms = []
        for of_x, of_u in zip(*batches, strict=True):
            logits = self.student(torch.cat([x[of_x], pool[remaining[of_u]]]))
            if not isinstance(logits, Tensor) or logits.shape != (2 * self.batch_size, num_classes):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(
                    f"student must return logits of shape (N, {num_classes}), a column a class of y; for"
                    f" {2 * self.batch_size} samples got {got}"
                )
            output = weighted_distillation(
                logits[: self.batch_size],
                labels[of_x],
                logits[self.batch_size :],
                pseudo_labels[of_u],
                weights[of_u],
                normalize_weights=self.normalize_weights,
            )
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            terms.append(torch.stack([term.detach() for term in output]))
        optimizer.zero_grad()
        values = torch.stack(terms).cpu()
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"lr={self.lr:g} makes the training of the student diverge: lower lr, or scale X_labeled and"
                " X_unlabeled"
            )
        first = (r - 1) * self.steps_per_round
        return [
            {"step": first + number + 1, "round": r, **dict(zip(WADOutput._fields, row, strict=True))}
            for number, row in enumerate(values.tolist())
        ]


def anchor_labels(y: Any, length: int) -> Int[Tensor, " labeled"]:
    """Labels 0..K-1, array or tensor, as a tensor; every class has a sample.

    Raises:
        TypeError: not integers.
        ValueError: another length, negative, a class left out, one class.
    """
    if not isinstance(y, Tensor):
        if np.ma.is_masked(y):
            raise ValueError("y must not have masked entries")
        array = np.asarray(y)
        if array.dtype.kind not in "iu":
            raise TypeError(f"y must have an integer type, got {array.dtype}")
        y = torch.from_numpy(array.astype(np.int64))
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y must have an integer type, got {y.dtype}")
    if y.numel() == 0 or y.ndim != 1:
        raise ValueError(f"y must have 1 dimension and not be empty, got shape {tuple(y.shape)}")
    largest = int(y.max())
    if largest >= length:
        raise ValueError(f"y must have every class in [0, K), got the label {largest} among {length} samples")
    return check_anchor_labels(y.detach(), "y", length, max(largest + 1, 2))
