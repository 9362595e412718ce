"""Verification: accuracy of thresholds over folds, TAR at FAR, and the pooling of templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor
from offprints.unpg._geometry import directions

Values = np.ndarray[Any, np.dtype[np.float64]]
FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class VerificationResult(NamedTuple):
    """Accuracy of telling same pairs from different ones by a threshold.

    Attributes:
        accuracy: The mean over folds.
        std: The standard deviation over folds (of a population, ddof = 0).
        per_fold: The accuracy of each fold.
        thresholds: The threshold that each fold was judged by.

    Example:
        >>> VerificationResult(0.5, 0.0, np.array([0.5]), np.array([0.1])).accuracy
        0.5
    """

    accuracy: float
    std: float
    per_fold: Values
    thresholds: Values


def verification_accuracy(
    similarities: ArrayLike | Tensor,
    same: ArrayLike | Tensor,
    *,
    folds: int = 10,
    method: Literal["folds", "best_threshold"] = "folds",
) -> VerificationResult:
    """Compute the accuracy of `similarity >= threshold`.

    With "folds", each of contiguous parts of the pairs (`numpy.array_split`) is judged by the threshold that is best on
    all others: the smallest distinct similarity of all pairs that has the highest accuracy there. With
    "best_threshold", the highest accuracy of any threshold over all pairs, which is optimistic: the threshold has seen
    what it is judged on. The official code has the latter, the field's protocol is the former.

    Args:
        similarities: `(P,)`, floating.
        same: `(P,)`, boolean or 0 and 1: whether a pair is of one identity.
        folds: Number of parts, from 2 to P; not used by "best_threshold".
        method: "folds" or "best_threshold".

    Returns:
        For "best_threshold" with one fold and a standard deviation of 0.

    Raises:
        TypeError: `similarities` not floating, `same` neither boolean nor integer.
        ValueError: not 1-D, of unequal lengths, empty, not finite, pairs of one kind alone, a bad `folds` or `method`.

    Example:
        >>> scores, same = np.array([0.9, 0.1, 0.8, 0.3]), np.array([1, 0, 1, 0])
        >>> verification_accuracy(scores, same, folds=2).per_fold
        array([1. , 0.5])
        >>> verification_accuracy(scores, same, method="best_threshold").thresholds
        array([0.8])
    """
    scores, positive = _checked(similarities, same)
    check_choice(method, "method", ("folds", "best_threshold"))
    folds = check_number(folds, "folds", low=2, integer=True)
    thresholds, place = np.unique(scores, return_inverse=True)
    whole = _correct(place, positive, len(thresholds))
    if method == "best_threshold":
        best = int(whole.argmax())
        accuracy = whole[best] / len(scores)
        return VerificationResult(float(accuracy), 0.0, np.array([accuracy]), thresholds[[best]])
    if folds > len(scores):
        raise ValueError(f"folds must be at most the number of pairs, {len(scores)}, got {folds}")
    per_fold, chosen = np.empty(folds), np.empty(folds)
    start = 0
    for fold, size in enumerate(len(part) for part in np.array_split(scores, folds)):
        part = slice(start, start + size)
        start += size
        here = _correct(place[part], positive[part], len(thresholds))
        best = int((whole - here).argmax())  # the first, hence the smallest
        per_fold[fold], chosen[fold] = here[best] / size, thresholds[best]
    return VerificationResult(float(per_fold.mean()), float(per_fold.std()), per_fold, chosen)


def _correct(place: np.ndarray[Any, Any], positive: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """How many pairs are right by each threshold: those of the same identity from it on, the others below it."""
    of_same = np.bincount(place[positive], minlength=count)
    of_others = np.bincount(place[~positive], minlength=count)
    correct: np.ndarray[Any, Any] = of_same[::-1].cumsum()[::-1] + of_others.cumsum() - of_others
    return correct


def tar_at_far(
    similarities: ArrayLike | Tensor,
    same: ArrayLike | Tensor,
    *,
    far: float | Sequence[float] = FARS,
    method: Literal["nearest", "at_most"] = "nearest",
) -> Values:
    """Compute the true accept rate at false accept rates.

    With "nearest", as the official evaluation has it, the largest TAR at the FAR that is nearest to the target on
    scikit-learn's ROC curve, whose collinear points are dropped; of two equally near the larger. That FAR may lie above
    the target. With "at_most", the largest TAR of all thresholds whose FAR is not above the target.

    Args:
        similarities: `(P,)`, floating.
        same: `(P,)`, boolean or 0 and 1: whether a pair is of one identity.
        far: Targets in (0, 1).
        method: "nearest" or "at_most".

    Returns:
        One rate for each target.

    Raises:
        TypeError: `similarities` not floating, `same` neither boolean nor integer, `far` no numbers.
        ValueError: not 1-D, of unequal lengths, empty, not finite, pairs of one kind alone, a bad `far` or `method`.

    Example:
        >>> scores, same = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 0])
        >>> tar_at_far(scores, same, far=[0.2, 0.4], method="at_most")
        array([0.5, 1. ])
    """
    scores, positive = _checked(similarities, same)
    check_choice(method, "method", ("nearest", "at_most"))
    targets = _targets(far)
    order = np.argsort(-scores, kind="stable")
    accepted_true, accepted_false = positive[order].cumsum(), (~positive[order]).cumsum()
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of equal similarities, all or none
    tps, fps = accepted_true[last], accepted_false[last]
    if method == "nearest" and len(tps) > 2:
        corner = np.concatenate([[True], (np.diff(fps, 2) != 0) | (np.diff(tps, 2) != 0), [True]])
        tps, fps = tps[corner], fps[corner]
    true_rate = np.concatenate([[0], tps]) / positive.sum()
    false_rate = np.concatenate([[0], fps]) / (~positive).sum()
    if method == "at_most":
        rates: Values = true_rate[np.searchsorted(false_rate, targets, side="right") - 1]
        return rates
    # From the end: of equal distances the first is then the largest FAR with its largest TAR.
    nearest = [int(np.abs(false_rate[::-1] - target).argmin()) for target in targets]
    return np.asarray(true_rate[::-1][nearest], dtype=np.float64)


def _targets(far: Any) -> Values:
    """The false accept rates as an array, each checked."""
    try:
        values = np.atleast_1d(np.asarray(far))
    except ValueError:  # of unequal depths
        values = np.empty(0, dtype=object)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"far must be a number or a sequence of numbers, got {far!r}")
    checked = [
        check_number(value, "far", low=0, high=1, open_low=True, open_high=True)
        for value in (values if values.dtype == object else values.tolist())
    ]
    return np.array(checked, dtype=np.float64)


def _array(values: Any, name: str) -> np.ndarray[Any, Any]:
    """A 1-D array of what may be a tensor."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} must be one-dimensional, got rows of unequal lengths") from None
    if np.ma.is_masked(values):
        raise ValueError(f"{name} must have no masked entries, got {int(np.ma.getmaskarray(values).sum())}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {array.shape}")
    return array


def _checked(similarities: Any, same: Any) -> tuple[Values, np.ndarray[Any, np.dtype[np.bool_]]]:
    scores, positive = _array(similarities, "similarities"), _array(same, "same")
    if scores.dtype.kind != "f":
        raise TypeError(f"similarities must have a floating type, got {scores.dtype}")
    if positive.dtype.kind == "f":
        raise TypeError(f"same must be boolean or 0 and 1, got {positive.dtype}")
    if len(scores) != len(positive):
        raise ValueError(f"similarities and same must have the same length, got {len(scores)} and {len(positive)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"similarities must be finite, got {scores[~np.isfinite(scores)][0]}")
    if not ((positive == 0) | (positive == 1)).all():
        raise ValueError(f"same must be 0 or 1, got {positive[(positive != 0) & (positive != 1)][0]}")
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        raise ValueError(f"same must have pairs of both kinds, got {int(positive.sum())} of {len(positive)} the same")
    return scores.astype(np.float64), positive


def template_features(
    features: Float[Tensor, "rows dim"], templates: Int[Tensor, " rows"], media: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, "templates dim"], Int[Tensor, " templates"]]:
    """Pool features into templates, as IJB-B and IJB-C do: `media` are still images and videos.

    The features of one medium of a template (frames of one video) are averaged, the averages of a template summed, and
    the sum is divided by its length. Similarities of templates are then inner products. Half types give float32.

    Args:
        features: `(N, d)`.
        templates: `(N,)`, the template of each row, any integers.
        media: `(N,)`, its medium; a number counts within its template.

    Returns:
        `(T, d)` rows of length 1 (a sum of zero stays zero), and the T template numbers, sorted.

    Raises:
        TypeError: `features` is no floating tensor, `templates` or `media` no integer one.
        ValueError: shapes that do not fit, no rows, values that are not finite.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
        >>> template_features(features, torch.tensor([7, 7, 7]), torch.tensor([0, 0, 1]))
        (tensor([[0.7071, 0.7071]]), tensor([7]))
    """
    check_tensor(features, "features", ndim=2)
    groups = []
    for name, values in (("templates", templates), ("media", media)):
        values = check_labels(values, name, length=len(features))
        if values.ndim != 1:
            raise ValueError(f"{name} must have shape ({len(features)},), got {tuple(values.shape)}")
        groups.append(values.to(features.device))
    names, template = groups[0].unique(return_inverse=True)
    medium = groups[1].unique(return_inverse=True)[1]
    # One number for each pair that occurs, in the order of the templates.
    found, group = (template * (medium.max() + 1) + medium).unique(return_inverse=True)
    of_group = torch.div(found, medium.max() + 1, rounding_mode="floor")
    x = features.to(working_dtype(features))
    # The scale of a template does not matter: its largest entry becomes 1, so that no sum overflows.
    largest = x.new_zeros(len(names)).scatter_reduce(0, template, x.detach().abs().amax(1), "amax")
    x = x / torch.where(largest > 0, largest, 1)[template, None]
    means = x.new_zeros(len(found), x.shape[1]).index_add(0, group, x)
    means = means / torch.bincount(group, minlength=len(found)).to(x)[:, None]
    sums = x.new_zeros(len(names), x.shape[1]).index_add(0, of_group, means)
    return directions(sums), names
