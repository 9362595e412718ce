"""The paper's algorithm as the paper writes it: slow and plain, to be read first.

The tests show that the package's fast code equals it, and the benchmarks have it as their baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Vector = Sequence[float]


def cosine(a: Vector, b: Vector) -> float:
    """Cosine of the angle between two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def cross_entropy(logits: Vector, label: int) -> float:
    """Of one sample."""
    peak = max(logits)
    return peak + math.log(sum(math.exp(x - peak) for x in logits)) - logits[label]


def nt_xent(first: Sequence[Vector], second: Sequence[Vector], temperature: float) -> float:
    """1. The teacher's loss: every view is to find the other view of its image among all others."""
    z, size, total = [*first, *second], len(first), 0.0
    for i in range(2 * size):
        others = [j for j in range(2 * size) if j != i]
        logits = [cosine(z[i], z[j]) / temperature for j in others]
        total += cross_entropy(logits, others.index((i + size) % (2 * size)))
    return total / (2 * size)


def knowledge(
    unlabeled: Sequence[Vector], labeled: Sequence[Vector], labels: Sequence[int], num_classes: int
) -> tuple[list[list[float]], list[int], list[float]]:
    """2. What the teacher knows: scores, pseudo-labels and weights of the unlabeled samples."""
    scores, pseudo_labels, weights = [], [], []
    for u in unlabeled:
        s = [max(cosine(u, x) for x, y in zip(labeled, labels, strict=True) if y == k) for k in range(num_classes)]
        second, first = sorted(s)[-2:]
        scores.append(s)
        pseudo_labels.append(s.index(first))
        weights.append(first - second)  # = first * (1 - second / first)
    return scores, pseudo_labels, weights


def student_loss(
    logits_x: Sequence[Vector],
    labels_x: Sequence[int],
    logits_u: Sequence[Vector],
    pseudo_labels: Sequence[int],
    weights: Vector,
) -> float:
    """3. What the student minimizes: its own labels, and the teacher's as far as they have weight."""
    supervised = sum(map(cross_entropy, logits_x, labels_x)) / len(logits_x)
    taught = [w * cross_entropy(f, y) for w, f, y in zip(weights, logits_u, pseudo_labels, strict=True)]
    return supervised + sum(taught) / len(taught)


def rounds(
    unlabeled: Sequence[Vector],
    labeled: Sequence[Vector],
    labels: Sequence[int],
    num_classes: int,
    train: Callable[[list[int], list[int], list[float], dict[int, int]], None],
    student: Callable[[int], Vector],
    *,
    alpha: float,
    split: int,
) -> dict[int, list[int]]:
    """4. In every round ask the teacher, train the student, and move what it believes most to the labeled samples.

    `train(positions, pseudo_labels, weights, moved)` trains on the remaining unlabeled samples and on those that were
    moved, with their labels; `student(position)` gives the logits of an unlabeled sample.
    """
    anchors, targets, moved, selected = [*labeled], [*labels], dict[int, int](), dict[int, list[int]]()
    for r in range(1, split + 2):
        remaining = [i for i in range(len(unlabeled)) if i not in moved]
        _, pseudo_labels, weights = knowledge([unlabeled[i] for i in remaining], anchors, targets, num_classes)
        train(remaining, pseudo_labels, weights, moved)
        share = alpha * (1 - min(r, split) / split) ** 2 if split else 0.0
        losses = {i: cross_entropy(student(i), y) for i, y in zip(remaining, pseudo_labels, strict=True)}
        selected[r] = sorted(remaining, key=losses.__getitem__)[: int(share * len(remaining))]
        for i in selected[r]:
            moved[i] = pseudo_labels[remaining.index(i)]
            anchors.append(unlabeled[i])
            targets.append(moved[i])
    return selected
