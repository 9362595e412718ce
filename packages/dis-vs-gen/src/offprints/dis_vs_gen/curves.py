"""Learning curves on random training subsets, and where two of them cross (section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.labels import as_labels, training_classes
from offprints.shared.tables import as_table
from offprints.shared.validation import check_bool, check_number


@dataclass(frozen=True)
class LearningCurve:
    """Test errors by size of the training subset.

    Attributes:
        sizes: Numbers of training samples m.
        errors: Test errors in [0, 1], float64 ``[repeats, len(sizes)]``.

    Example:
        >>> curve = LearningCurve(sizes=[10, 100], errors=torch.tensor([[0.2, 0.1], [0.4, 0.1]]))
        >>> curve.errors.mean(0)
        tensor([0.3000, 0.1000])
    """

    sizes: list[int]
    errors: Float[Tensor, "repeats sizes"]


def learning_curve(
    make_estimator: Callable[[], Any],
    X: Float[Any, "n d"],
    y: Int[Any, " n"],
    X_test: Float[Any, "n_test d"],
    y_test: Int[Any, " n_test"],
    sizes: Sequence[int] | Tensor,
    *,
    repeats: int = 5,
    scale: bool = True,
    seed: int = 0,
) -> LearningCurve:
    """Test error of estimators trained on random subsets of each size, ``repeats`` subsets a size.

    A subset is drawn uniformly without replacement, again until it holds every class of ``y``; after 100 draws it is
    one random sample of each class and a uniform rest. It depends on ``seed``, size and repeat alone: curves of
    different estimators are of the same subsets. Scaling is min-max, fitted on the subset and applied to the test
    data. Test data choose nothing.

    ``GaussianNaiveBayes`` with shared variance and ``LogisticRegression`` of this package are trained all repeats at
    once, with the results of single fits. Any other estimator with fit and predict is made anew for every subset and
    given data of the kind (array or tensor) of ``X``.

    Args:
        make_estimator: Makes one.
        X, y: What the subsets are drawn from.
        X_test, y_test: Test data.
        sizes: Sizes m, from the number of classes to all.
        repeats: Subsets a size.
        scale: Whether to scale.
        seed: Of the subsets.

    Raises:
        TypeError: features not floating, labels not integers.
        ValueError: shapes, NaN, fewer than two classes as in the estimators; no size, or one below the number of
            classes or above ``len(y)``; ``repeats`` < 1; a negative ``seed``.

    Example:
        >>> X, y = gaussian_mixture(8, 2, 400)
        >>> curve = learning_curve(GaussianNaiveBayes, X[:200], y[:200], X[200:], y[200:], sizes=[4, 50], repeats=3)
        >>> curve.errors.shape
        torch.Size([3, 2])
    """
    from offprints.dis_vs_gen._harness import subset_errors  # with scikit-learn, which takes long to import

    features = as_table(X)
    classes, index = training_classes(y, len(features))
    test = as_table(X_test, "X_test", device=features.device)
    if test.shape[1] != features.shape[1]:
        raise ValueError(f"X_test must have the {features.shape[1]} features of X, got {test.shape[1]}")
    numbers, known = classes.find(as_labels(y_test, "y_test", len(test)))
    labels = torch.from_numpy(np.where(known, numbers, -1)).to(features.device)
    index = index.to(features.device)
    check_bool(scale, "scale")
    if scale and not bool((features.amax(0) - features.amin(0)).isfinite().all()):
        features, test = features / 2, test / 2  # a range that the type cannot hold; scaling sees no factor
    if not callable(make_estimator):
        raise TypeError(f"make_estimator must be callable, got {type(make_estimator).__name__}")
    if not isinstance(sizes, Iterable):
        raise TypeError(f"sizes must be a sequence of integers, got {type(sizes).__name__}")
    wanted = sizes.tolist() if isinstance(sizes, Tensor) else list(sizes)
    if not wanted:
        raise ValueError("sizes must not be empty")
    for m in wanted:
        check_number(m, "sizes", low=len(classes), high=len(index), integer=True)
    check_number(repeats, "repeats", low=1, integer=True)
    check_number(seed, "seed", low=0, integer=True)
    columns = [
        subset_errors(
            [make_estimator], features, index, test, labels, int(m), classes=classes.values, repeats=repeats,
            scale=scale, seed=seed, arrays=not isinstance(X, Tensor),
        )[0]
        for m in wanted
    ]  # fmt: skip
    return LearningCurve(sizes=[int(m) for m in wanted], errors=torch.stack(columns, 1))


def crossover(a: LearningCurve, b: LearningCurve) -> int | None:
    """The smallest size from which on ``b`` has the lower mean error; None if ``a`` is as good at the largest size.

    Raises:
        TypeError: not two learning curves.
        ValueError: of different sizes.

    Example:
        >>> few = LearningCurve(sizes=[10, 100, 1000], errors=torch.tensor([[0.1, 0.1, 0.1]]))
        >>> many = LearningCurve(sizes=[10, 100, 1000], errors=torch.tensor([[0.3, 0.08, 0.02]]))
        >>> crossover(few, many)
        100
    """
    for name, curve in (("a", a), ("b", b)):
        if not isinstance(curve, LearningCurve):
            raise TypeError(f"{name} must be a LearningCurve, got {type(curve).__name__}")
    if a.sizes != b.sizes:
        raise ValueError(f"a and b must have the same sizes, got {a.sizes} and {b.sizes}")
    better = (b.errors.mean(0) < a.errors.mean(0)).tolist()
    first = None
    for size, is_better in sorted(zip(a.sizes, better, strict=True)):
        first = (size if first is None else first) if is_better else None
    return first
