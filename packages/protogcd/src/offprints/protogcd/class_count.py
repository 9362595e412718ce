"""How many classes there are: a criterion of this project, since the paper's is not in its released code.

For every candidate K the samples are clustered by semi-supervised spherical k-means, and K is chosen by how clearly
samples without a label belong to one center, by how well held-out old classes are found again, or by both.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.protogcd._inputs import as_ids
from offprints.protogcd._rows import products, unit_rows
from offprints.protogcd.accuracy import matched
from offprints.shared.device import make_generator
from offprints.shared.tables import as_table
from offprints.shared.validation import check_choice, check_number

Criterion = Literal["silhouette", "accuracy", "product"]
CRITERIA = ("silhouette", "accuracy", "product")
ITERATIONS = 100
HELD_OUT = 0.4  # of the old classes


class ClassCountEstimate(NamedTuple):
    """The estimate, and the whole curve it is the maximum of.

    Attributes:
        n_classes: The candidate of the highest score, the smallest of equal ones.
        candidates: Numbers of classes that were tried.
        scores: Their scores. A flat curve says that the data do not tell the number.

    Example:
        >>> X, y = np.repeat(np.eye(4), 5, axis=0), np.repeat([0, -1, -1, -1], 5)
        >>> estimate_num_classes(X, y, max_classes=6).candidates
        [2, 3, 4, 5, 6]
    """

    n_classes: int
    candidates: list[int]
    scores: list[float]


@torch.no_grad()
def estimate_num_classes(
    features: Any,
    labels: Any,
    *,
    max_classes: int,
    min_classes: int | None = None,
    criterion: Criterion = "silhouette",
    n_init: int = 3,
    seed: int = 0,
) -> ClassCountEstimate:
    """Estimate the number of classes, old and new together, by this project's own criterion.

    For every candidate K: spherical k-means in which labeled samples stay in their class, from the means of the old
    classes and k-means++ centers among the samples without a label; of `n_init` runs the one with the largest sum of
    cosines to the assigned centers. Then

    - `"silhouette"`: `mean (b - a) / b` over samples without a label, with a and b one minus the cosines to the
      nearest and the second nearest center;
    - `"accuracy"`: how well the clusters match a seeded 2/5 of the old classes, at least one, with their labels
      withheld. It falls where one of these is split, and does not see one that is merged with a new class: often the
      curve is flat up to the number there is, and the estimate, the smallest of equal ones, too small;
    - `"product"`: both, with these labels withheld.

    Features are compared by their directions: center them where their origin means nothing.

    Args:
        features: `(N, D)`: tensor, array, data frame or list.
        labels: `(N,)` old classes as integers from 0, -1 for samples without a label.
        max_classes: The largest candidate.
        min_classes: The smallest one, at least 2; None: the number of old classes.
        criterion: What is scored.
        n_init: Runs of k-means for each candidate.
        seed: Seed of the centers and of the classes withheld.

    Raises:
        TypeError: Features that are not numbers, labels that are not integers.
        ValueError: Other shapes, values that are not finite; no sample without a label; candidates below 2, below the
            number of old classes or beyond what the samples allow; an unknown criterion; fewer than two old classes for
            "accuracy" and "product".

    Example:
        >>> X = np.repeat(np.eye(4), 5, axis=0) + 0.1 * np.random.default_rng(0).normal(size=(20, 4))
        >>> y = np.repeat([0, 1, -1, -1], 5)
        >>> estimate_num_classes(X, y, max_classes=6).n_classes
        4
    """
    table = as_table(features, "features")
    given = as_ids(labels, "labels", length=len(table), unlabeled=True)
    check_choice(criterion, "criterion", CRITERIA)
    n_init = check_number(n_init, "n_init", low=1, integer=True)
    seed = check_number(seed, "seed", low=0, integer=True)
    old = np.unique(given[given >= 0])
    free = int((given < 0).sum())
    if free == 0:
        raise ValueError("labels must hold at least one -1, a sample without a label, got none")
    lowest = max(2, len(old))
    largest = check_number(max_classes, "max_classes", low=lowest, high=len(old) + free, integer=True)
    smallest = lowest
    if min_classes is not None:
        smallest = check_number(min_classes, "min_classes", low=lowest, high=largest, integer=True)
    if criterion != "silhouette" and len(old) < 2:
        raise ValueError(f"criterion {criterion!r} needs at least 2 old classes in labels, got {len(old)}")

    withheld = np.empty(0, dtype=np.int64)
    if criterion != "silhouette":
        number = max(1, int(HELD_OUT * len(old)))
        withheld = np.random.default_rng(seed).choice(old, number, replace=False)
    probes = np.isin(given, withheld)
    place = np.searchsorted(np.setdiff1d(old, withheld), given)
    pinned = torch.from_numpy(np.where(probes | (given < 0), -1, place)).to(table.device)

    x = unit_rows(table.float())
    candidates = list(range(smallest, largest + 1))
    scores = []
    for centers, assigned in pinned_kmeans(x, pinned, candidates, n_init=n_init, seed=seed):
        score = 1.0
        if criterion != "accuracy":
            score = silhouette(x[pinned < 0], centers)
        if criterion != "silhouette":
            score *= float(matched(given[probes], assigned.cpu().numpy()[probes]).mean())
        scores.append(score)
    return ClassCountEstimate(candidates[int(np.argmax(scores))], candidates, scores)


def silhouette(x: Float[Tensor, "rows dim"], centers: Float[Tensor, "K dim"]) -> float:
    """How much nearer samples are to their center than to the second nearest one, in [0, 1]."""
    (second, first) = (1 - products(x, centers).topk(2, 1)[0].double()).clamp(min=0).unbind(1)[::-1]
    apart = second > 4 * torch.finfo(x.dtype).eps  # two centers in one place tell nothing
    return float(torch.where(apart, (second - first) / torch.where(apart, second, 1), 0).mean())


def pinned_kmeans(
    x: Float[Tensor, "rows dim"], pinned: Int[Tensor, " rows"], candidates: list[int], *, n_init: int, seed: int
) -> list[tuple[Float[Tensor, "K dim"], Int[Tensor, " rows"]]]:
    """Spherical k-means of unit rows for every candidate; rows whose `pinned` is not -1 stay in that cluster.

    Returns:
        For every candidate the centers, pinned ones first, and the cluster of every row.
    """
    free = pinned < 0
    old = int(pinned.max()) + 1
    means = _means(x[~free], pinned[~free], x.new_zeros(old, x.shape[1]))
    generator = make_generator(seed)
    best: list[tuple[float, Tensor, Tensor]] = [(-float("inf"), x, pinned)] * len(candidates)
    for _ in range(n_init):
        # One sequence of centers serves all candidates: each begins with as many of it as it has new classes.
        drawn = _plus_plus(x[free], means, max(candidates) - old, generator)
        for place, k in enumerate(candidates):
            found = _lloyd(x, pinned, torch.cat([means, drawn[: k - old]]))
            best[place] = max(best[place], found, key=lambda run: run[0])
    return [(centers, assigned) for _, centers, assigned in best]


def _plus_plus(
    x: Float[Tensor, "rows dim"], centers: Float[Tensor, "K dim"], count: int, generator: torch.Generator
) -> Float[Tensor, "count dim"]:
    """Rows drawn one after the other, each by its distance, one minus cosine, from the nearest center so far."""
    distance = x.new_ones(len(x)) if len(centers) == 0 else 1 - products(x, centers).amax(1)
    chosen = []
    for _ in range(count):
        mass = distance.double().clamp(min=0).cumsum(0)
        mass = mass if float(mass[-1]) > 0 else torch.ones_like(mass).cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu").to(x.device) * mass[-1]
        row = x[torch.searchsorted(mass, draw, right=True).clamp(max=len(x) - 1)]
        chosen.append(row)
        distance = torch.minimum(distance, 1 - products(x, row)[:, 0])
    return torch.cat(chosen) if chosen else x[:0]


def _lloyd(x: Tensor, pinned: Tensor, centers: Tensor) -> tuple[float, Tensor, Tensor]:
    """The sum of cosines to the assigned centers, these, and the cluster of every row."""
    assigned = pinned
    for _ in range(ITERATIONS):
        cosines = products(x, centers)
        nearest = torch.where(pinned < 0, cosines.argmax(1), pinned)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        centers = _means(x, assigned, centers)
    cosines = products(x, centers)
    return float(cosines.gather(1, assigned[:, None]).double().sum()), centers, assigned


def _means(x: Tensor, assigned: Tensor, centers: Tensor) -> Tensor:
    """Directions of the means of the clusters; a cluster without rows, or whose rows cancel, keeps its center."""
    sums = torch.zeros_like(centers).index_add_(0, assigned, x)
    return torch.where((sums != 0).any(1, keepdim=True), unit_rows(sums), centers)
