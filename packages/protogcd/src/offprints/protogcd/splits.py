"""Which samples are labeled, and how a training draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

from offprints.protogcd._inputs import as_ids
from offprints.shared.validation import check_number

MOST_DRAWN = 2**24  # categories that torch draws from


class GCDSplit(NamedTuple):
    """Indices of samples, sorted; together they are all samples.

    Attributes:
        labeled: A part of the samples of old classes.
        unlabeled: The rest of them, and all samples of new classes.

    Example:
        >>> gcd_split([0, 0, 1, 1], old_classes=[0], seed=0).labeled.shape
        (1,)
    """

    labeled: np.ndarray
    unlabeled: np.ndarray


def gcd_split(labels: Any, *, old_classes: Sequence[int], labeled_fraction: float = 0.5, seed: int) -> GCDSplit:
    """Label a random part of the samples of old classes; the pool without labels mixes old and new classes.

    `int(labeled_fraction * n)` of the n samples of old classes are drawn, whatever their class, as in the paper.

    Args:
        labels: `(N,)` true classes, integers from 0.
        old_classes: The classes that are known, each with at least one sample.
        labeled_fraction: Share of their samples that is labeled, in (0, 1].
        seed: Seed of the draw; the global random state is left alone.

    Raises:
        TypeError: Labels, classes or a seed that are not integers.
        ValueError: Labels that are empty, negative or not of one axis; an old class that is absent or named twice, no
            old class; a fraction out of range, or one that labels nothing.

    Example:
        >>> split = gcd_split([0, 0, 0, 0, 1, 1, 2, 2], old_classes=[0, 1], seed=0)
        >>> len(split.labeled), len(split.unlabeled)
        (3, 5)
    """
    classes = as_ids(labels, "labels")
    old = as_ids(old_classes, "old_classes")
    fraction = check_number(labeled_fraction, "labeled_fraction", low=0, high=1, open_low=True)
    seed = check_number(seed, "seed", low=0, integer=True)
    if len(np.unique(old)) < len(old):
        raise ValueError(f"old_classes must name each class once, got {old.tolist()}")
    if len(absent := np.setdiff1d(old, classes)):
        raise ValueError(f"old_classes must be among labels, got {absent[0]}, which is not")
    candidates = np.flatnonzero(np.isin(classes, old))
    count = int(fraction * len(candidates))
    if count == 0:
        raise ValueError(f"labeled_fraction must label at least one of {len(candidates)} samples, got {fraction}")
    labeled = np.sort(np.random.default_rng(seed).choice(candidates, count, replace=False))
    return GCDSplit(labeled, np.setdiff1d(np.arange(len(classes)), labeled))


def balanced_sampler(
    num_labeled: int, num_unlabeled: int, *, generator: torch.Generator | None = None
) -> WeightedRandomSampler:
    """A sampler that draws labeled and unlabeled samples equally often, with replacement, as many as there are.

    The data set has the labeled samples first, the unlabeled ones after them, as
    `torch.utils.data.ConcatDataset([labeled, unlabeled])`.

    Args:
        num_labeled: Number of labeled samples, each of weight 1.
        num_unlabeled: Number of unlabeled ones, each of weight `num_labeled / num_unlabeled`.
        generator: On the CPU; None: torch's global stream.

    Raises:
        TypeError: Numbers that are not integers, something else for a generator.
        ValueError: Numbers below 1 or together above 2**24; a generator of another device.

    Example:
        >>> sampler = balanced_sampler(2, 98, generator=torch.Generator().manual_seed(0))
        >>> 35 < sum(index < 2 for index in sampler) < 65  # of 100
        True
    """
    labeled = check_number(num_labeled, "num_labeled", low=1, high=MOST_DRAWN, integer=True)
    unlabeled = check_number(num_unlabeled, "num_unlabeled", low=1, high=MOST_DRAWN, integer=True)
    if labeled + unlabeled > MOST_DRAWN:
        raise ValueError(f"num_labeled + num_unlabeled must be at most {MOST_DRAWN}, got {labeled + unlabeled}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
    weights = np.ones(labeled + unlabeled)
    weights[labeled:] = labeled / unlabeled
    with torch.device("cpu"):  # whatever the default device is
        return WeightedRandomSampler(weights.tolist(), labeled + unlabeled, generator=generator)
