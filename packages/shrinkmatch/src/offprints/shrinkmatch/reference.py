"""The paper's algorithm as the paper writes it: slow and plain, to be read first.

The tests show that the package's fast code equals it, and the benchmarks time it in place of the official code, which
loops in the same way; nothing else uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities of one row."""
    powers = [exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits: Sequence[float], target: int) -> float:
    """Minus the logarithm of the target's probability."""
    return max(logits) + log(sum(exp(value - max(logits)) for value in logits)) - logits[target]


def align(probs: list[list[float]], queue: list[list[float]], length: int = 32) -> list[list[float]]:
    """Distribution alignment: divide by the mean of the last batches' means, this one's included, and renormalize."""
    classes = range(len(probs[0]))
    queue.append([sum(row[k] for row in probs) / len(probs) for k in classes])
    del queue[:-length]
    mean = [sum(past[k] for past in queue) / len(queue) for k in classes]
    ratios = [[row[k] / mean[k] for k in classes] for row in probs]
    return [[value / sum(row) for value in row] for row in ratios]


def shrunk_space(p: Sequence[float], threshold: float) -> tuple[list[int], int, float]:
    """The kept classes of one sample, likeliest first; the first kept rank c; the top class's confidence among them."""
    ranks = sorted(range(len(p)), key=lambda k: -p[k])  # stable: of equal classes the first comes first
    for c in range(2, len(p)):
        kept = [ranks[0], *ranks[c:]]  # ranks 1 .. c-1, the rivals, are removed
        confidence = p[ranks[0]] / sum(p[k] for k in kept)
        if confidence >= threshold or c == len(p) - 1:
            return kept, c, confidence
    return [ranks[0]], len(p), 1.0  # two classes: nothing can be removed and leave a choice


def shrink_loss(z: Sequence[float], p: Sequence[float], threshold: float) -> float:
    """The shrunk loss of one uncertain sample: its top class among the kept ones, asked of the strong view."""
    kept, _, confidence = shrunk_space(p, threshold)
    if confidence < threshold or len(kept) < 2:
        return 0.0
    restricted = [z[k] for k in kept]
    return max(p) * cross_entropy(restricted, 0)  # principle 1: by the original confidence


def shrinkmatch(
    z_x: Sequence[Sequence[float]],
    y_x: Sequence[int],
    z_w: Sequence[Sequence[float]],
    z_s: Sequence[Sequence[float]],
    z_a: Sequence[Sequence[float]],
    queue: list[list[float]],
    ratio: float | None,
    threshold: float = 0.95,
    weight: float = 1.0,
) -> tuple[float, float]:
    """The loss of one batch, and the running ratio of certain samples for the next; ``ratio`` is None at first."""
    # 1. Pseudo-labels of the weak view, aligned.
    probs = align([softmax(row) for row in z_w], queue)
    # 2. Certain samples: the whole pseudo-label, asked of the strong view.
    certain = [max(p) >= threshold for p in probs]
    parts = [
        sum(value * cross_entropy(z, k) for k, value in enumerate(p)) if sure else 0.0
        for z, p, sure in zip(z_s, probs, certain, strict=True)
    ]
    # 3. and 4. Uncertain samples: the top class in the shrunk space, asked of the auxiliary head.
    shrunk = [0.0 if sure else shrink_loss(z, p, threshold) for z, p, sure in zip(z_a, probs, certain, strict=True)]
    # 5. Principle 2: by the running ratio of certain samples.
    now = sum(certain) / len(certain)
    ratio = now if ratio is None else 0.999 * ratio + 0.001 * now
    # 6. All together; both means are over all unlabeled samples.
    supervised = sum(cross_entropy(z, y) for z, y in zip(z_x, y_x, strict=True)) / len(y_x)
    unlabeled = sum(parts) / len(parts) + ratio * sum(shrunk) / len(shrunk)
    return supervised + weight * unlabeled, ratio
