"""Benchmarks of class distribution mismatch from any labeled data: few labels of some classes, a pool of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from offprints.shared.datasets import class_subset
from offprints.shared.validation import check_bool, check_number


class MismatchSplit(NamedTuple):
    """What `mismatch_split` returns.

    Attributes:
        labeled: Sorted indices of the labeled samples, all of target classes.
        unlabeled: Sorted indices of the unlabeled samples.
        is_target_unlabeled: Of each unlabeled sample, whether it is of a target class.

    Example:
        >>> split = mismatch_split([0, 0, 1, 1, 2, 2], target_classes=[0, 1], num_labeled=2, mismatch=0.5, seed=0)
        >>> int(split.is_target_unlabeled.sum()), len(split.unlabeled)
        (2, 4)
    """

    labeled: np.ndarray
    unlabeled: np.ndarray
    is_target_unlabeled: np.ndarray


def mismatch_split(
    labels: Any,
    *,
    target_classes: Sequence[int],
    num_labeled: int,
    mismatch: float,
    seed: int,
    balanced: bool = False,
) -> MismatchSplit:
    """Split labeled data into few labeled samples of the target classes and an unlabeled pool with unknown classes.

    Labeled are `num_labeled` random samples of the target classes, one of each at least; unlabeled are all other
    samples of the target classes, T of them, and `ceil(mismatch * T / (1 - mismatch))` random samples of all other
    classes, so that a share of `mismatch` of the pool is unknown (step 5 of the method). The global random state is
    left alone.

    Args:
        labels: `(N,)` integers: array, tensor or list.
        target_classes: At least two different labels, all present.
        num_labeled: At least as many as target classes, at most as many as their samples.
        mismatch: Share of unknown samples in the pool, in [0, 1).
        seed: Of the draw.
        balanced: Draw equally many labeled samples of each class: `num_labeled` is a multiple of their number.

    Raises:
        TypeError: labels, classes or numbers of the wrong kind.
        ValueError: out of range, a class that is absent, too few samples or too few unknown ones.

    Example:
        >>> labels = np.repeat([0, 1, 2, 3], 50)
        >>> split = mismatch_split(labels, target_classes=[3, 1], num_labeled=20, mismatch=0.2, seed=0)
        >>> len(split.labeled), len(split.unlabeled), float(split.is_target_unlabeled.mean())
        (20, 100, 0.8)
    """
    values = _label_array(labels)
    targets = _class_array(target_classes)
    if absent := sorted(set(targets.tolist()) - set(np.unique(values).tolist())):
        raise ValueError(f"target_classes must be present in labels, got {absent[0]}, which is not")
    num_labeled = check_number(num_labeled, "num_labeled", low=len(targets), integer=True)
    mismatch = check_number(mismatch, "mismatch", low=0, high=1, open_high=True)
    seed = check_number(seed, "seed", low=0, integer=True)
    balanced = check_bool(balanced, "balanced")

    is_target = np.isin(values, targets)
    target, unknown = np.flatnonzero(is_target), np.flatnonzero(~is_target)
    if num_labeled > len(target):
        raise ValueError(f"num_labeled must be at most {len(target)}, the samples of target classes, got {num_labeled}")
    generator = np.random.default_rng(seed)
    if balanced:
        per_class, rest = divmod(num_labeled, len(targets))
        if rest:
            raise ValueError(f"num_labeled must be a multiple of {len(targets)} when balanced, got {num_labeled}")
        smallest = min(int((values == label).sum()) for label in targets)
        if per_class > smallest:
            raise ValueError(f"num_labeled must leave {per_class} a class when balanced, a class has {smallest}")
        labeled = class_subset(values, dict.fromkeys(targets.tolist(), per_class), seed=seed)
    else:
        order = generator.permutation(target)
        _, first = np.unique(values[order], return_index=True)  # one of each class, then the others in their order
        labeled = np.sort(np.concatenate([order[first], np.delete(order, first)])[:num_labeled])
    remaining = np.setdiff1d(target, labeled)
    # Rounded first: 0.8 * T / (1 - 0.8) is a hair above 4 T in floating point.
    wanted = math.ceil(round(mismatch * len(remaining) / (1 - mismatch), 9))
    if wanted > len(unknown):
        raise ValueError(
            f"mismatch={mismatch:g} asks for {wanted} samples of unknown classes beside {len(remaining)} of target"
            f" classes, labels has {len(unknown)}"
        )
    unlabeled = np.sort(np.concatenate([remaining, generator.permutation(unknown)[:wanted]]))
    return MismatchSplit(labeled, unlabeled, is_target[unlabeled])


def rectify_labels(labels: Any, target_classes: Sequence[int]) -> Any:
    """Labels as positions in `target_classes`, in the order given (step 6 of the method).

    Args:
        labels: Integers of any shape: array, tensor or list.
        target_classes: At least two different labels.

    Returns:
        int64: a tensor on the same device for a tensor, else an array.

    Raises:
        TypeError: labels or classes that are not integers.
        ValueError: a label that is not a target class, classes that repeat.

    Example:
        >>> rectify_labels([7, 3, 7], [3, 7])
        array([1, 0, 1])
    """
    values = _label_array(labels, ndim=None)
    targets = _class_array(target_classes)
    order = np.argsort(targets)
    place = np.searchsorted(targets[order], values).clip(max=len(targets) - 1)
    positions = order[place]
    if (other := targets[positions] != values).any():
        raise ValueError(
            f"labels must be among target_classes {targets.tolist()}, got {values[other].flat[0]}"
            f" ({int(other.sum())} of {values.size})"
        )
    return torch.from_numpy(positions).to(labels.device) if isinstance(labels, Tensor) else positions


def _label_array(labels: Any, ndim: int | None = 1) -> np.ndarray:
    if np.ma.is_masked(labels):
        raise ValueError("labels must not have masked entries")
    if labels is None or isinstance(labels, (str, bytes, dict, set)) or hasattr(labels, "toarray"):
        raise TypeError(f"labels must be an array of integers, got {type(labels).__name__}")
    try:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise TypeError(f"labels must be an array of integers: {error}") from error
    if values.dtype.kind not in "iu":
        raise TypeError(f"labels must have an integer type, got {values.dtype}")
    if values.size == 0 or (ndim is not None and values.ndim != ndim):
        wanted = "not be empty" if ndim is None else f"have {ndim} dimension and not be empty"
        raise ValueError(f"labels must {wanted}, got shape {values.shape}")
    if values.dtype.kind == "u" and int(values.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"labels must fit into int64, got {values.max()}")
    return values.astype(np.int64)


def _class_array(target_classes: Any) -> np.ndarray:
    if isinstance(target_classes, Tensor):
        target_classes = target_classes.tolist()
    if isinstance(target_classes, (str, bytes, dict, set)) or not hasattr(target_classes, "__len__"):
        raise TypeError(f"target_classes must be a sequence of integers, got {type(target_classes).__name__}")
    classes = [
        check_number(label, "target_classes", low=-(2**63), high=2**63 - 1, integer=True) for label in target_classes
    ]
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"target_classes must be at least two different labels, got {classes}")
    return np.array(classes, dtype=np.int64)
