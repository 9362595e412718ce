"""`check_split`: a function that deals out the rows of a labeled data set.

::

    check_split(partial(split_labels, per_class=4), labels, disjoint=False, counts=[40, None])
    check_split(partial(dirichlet_partition, num_clients=5, alpha=0.5), labels)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.testing._properties import (
    Skip,
    assert_equal,
    expect_error,
    random_state_untouched,
    run_properties,
    seed_globally,
    shorten,
)


def check_split(
    fn: Callable[..., Any],
    labels: Any,
    *,
    disjoint: bool = True,
    cover: bool = True,
    counts: Sequence[int | Mapping[int, int] | None] | None = None,
    skip: Skip | None = None,
) -> None:
    """Check a split.

    Properties, in order: *indices* (1-D integers in range, none twice in a part), *disjoint*, *cover*, *counts*,
    *determinism* (by the seed, whatever the global ones, which are left alone), *seed* (another gives another split),
    *kinds* (NumPy, tensor and list of labels give the same), *labels unchanged*, *errors* (no labels, two axes,
    fractions).

    Args:
        fn: ``fn(labels, seed=...)`` returns one array of indices or a sequence (NamedTuple, list) of them; fields of
            another kind, masks for instance, are left out.
        labels: Integer labels ``[N]``.
        disjoint, cover: What the parts are: no row in two of them; every row in one of them.
        counts: Per part: its size, or the rows of each class, or None.
        skip: Property to reason.
    """
    labels = np.array(labels)

    def parts(seed: int = 0, of: Any = None) -> list[np.ndarray]:
        return _parts(fn(labels.copy() if of is None else of, seed=seed))

    def check_indices() -> None:
        for number, part in enumerate(parts()):
            if part.ndim != 1:
                raise AssertionError(f"part {number} has the shape {part.shape}")
            if part.size and not (part.min() >= 0 and part.max() < len(labels)):
                raise AssertionError(
                    f"part {number} has indices from {part.min()} to {part.max()} of {len(labels)} rows"
                )
            if len(np.unique(part)) != len(part):
                raise AssertionError(f"part {number} has an index twice: {shorten(part.tolist())}")

    def check_disjoint() -> None:
        if disjoint:
            index, times = np.unique(np.concatenate(parts()), return_counts=True)
            if (times > 1).any():
                raise AssertionError(f"rows in two parts: {shorten(index[times > 1].tolist())}")

    def check_cover() -> None:
        missing = np.setdiff1d(np.arange(len(labels)), np.concatenate(parts())) if cover else np.empty(0)
        if missing.size:
            raise AssertionError(f"rows in no part: {shorten(missing.tolist())}")

    def check_counts() -> None:
        if counts is None:
            return
        found = parts()
        if len(found) != len(counts):
            raise AssertionError(f"{len(found)} parts, {len(counts)} expected")
        for number, (part, expected) in enumerate(zip(found, counts, strict=True)):
            size = dict(Counter(labels[part].tolist())) if isinstance(expected, Mapping) else len(part)
            if expected is not None and size != expected:
                raise AssertionError(f"part {number} has {size} rows, {expected} expected")

    def check_determinism() -> None:
        results = []
        for seed in (1, 2):
            seed_globally(seed)
            with random_state_untouched():
                results.append(parts())
        assert_equal(results[1], results[0], "the same seed gives another split")

    def check_seed() -> None:
        one, others = parts(0), [parts(seed) for seed in (1, 2, 3)]
        if all(len(o) == len(one) and all(map(np.array_equal, o, one)) for o in others):
            raise AssertionError("the seeds 0, 1, 2 and 3 give the same split")

    def check_kinds() -> None:
        for kind, other in (("a tensor", torch.tensor(labels)), ("a list", labels.tolist())):
            assert_equal(parts(of=other), parts(), f"labels as {kind} give another split")

    def check_unchanged() -> None:
        given = labels.copy()
        parts(of=given)
        assert_equal(given, labels, "the labels were changed")

    def check_bad() -> None:
        for what, bad, error in (
            ("no labels", labels[:0], ValueError),
            ("labels with two axes", np.stack([labels, labels]), ValueError),
            ("fractions as labels", labels + 0.5, TypeError),
        ):
            expect_error(error, what, fn, bad, seed=0)

    properties: dict[str, Callable[[], None]] = {
        "indices": check_indices,
        "disjoint": check_disjoint,
        "cover": check_cover,
        "counts": check_counts,
        "determinism": check_determinism,
        "seed": check_seed,
        "kinds": check_kinds,
        "labels unchanged": check_unchanged,
        "errors": check_bad,
    }
    run_properties("check_split", fn, properties, skip)


def _parts(result: Any) -> list[np.ndarray]:
    parts = [result] if isinstance(result, np.ndarray | Tensor) else list(result)
    arrays = [np.asarray(part) for part in parts if isinstance(part, np.ndarray | Tensor)]
    indices = [array for array in arrays if array.dtype.kind in "iu"]
    if not indices:
        raise AssertionError(f"an integer array, or a sequence of them, expected; got {shorten(result)}")
    return indices
