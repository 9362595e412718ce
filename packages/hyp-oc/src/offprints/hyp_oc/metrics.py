"""Metrics of presentation attack detection, in the names of ISO/IEC 30107-3."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from offprints.shared.validation import check_number, check_same_length


class SpoofMetrics(NamedTuple):
    """What `spoof_metrics` gives; rates in [0, 1].

    Attributes:
        eer: Equal error rate of these scores, whatever the threshold: the mean of the two rates where they differ
            least.
        threshold: Scores from here on are called spoof.
        hter: Half total error rate, the mean of `apcer` and `bpcer`.
        auc: Area under the ROC curve: how often a spoof scores higher than a live face, ties counted half.
        apcer: Share of attacks that are accepted as live.
        bpcer: Share of live (bona fide) faces that are rejected.
        acer: The same mean as `hter`: with one kind of attack the two are one.
        accuracy: Share of right decisions.

    Example:
        >>> spoof_metrics([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1], threshold=0.35)._asdict()["apcer"]
        0.5
    """

    eer: float
    threshold: float
    hter: float
    auc: float
    apcer: float
    bpcer: float
    acer: float
    accuracy: float


def spoof_metrics(scores: Any, labels: Any, *, threshold: float | None = None, grid: int | None = None) -> SpoofMetrics:
    """Error rates of spoof scores: decided at a threshold of the development set, or at these scores' own EER point.

    An honest HTER has a threshold from elsewhere: that of `spoof_metrics(development_scores, development_labels)`.
    At the set's own EER point, where the paper's code takes it, HTER is EER.

    Args:
        scores: High means spoof, `(n,)`; arrays, tensors or lists.
        labels: 1 for spoof, 0 for live, `(n,)`.
        threshold: Where to decide; None: where `apcer` and `bpcer` differ least, at the later of two such places.
        grid: None: every score is a possible threshold. A number N: the official grid, `0, 1 / N, ..., 1` and 1.1.

    Raises:
        TypeError: not numbers.
        ValueError: empty, of different length, not one axis, NaN or infinite; labels other than 0 and 1, or of one
            class; grid < 1.

    Example:
        >>> metrics = spoof_metrics([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
        >>> metrics.auc, metrics.eer
        (0.75, 0.5)
    """
    values, truth = _numbers(scores, "scores"), _numbers(labels, "labels")
    check_same_length(values, truth, ("scores", "labels"))
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"labels must be 0 (live) or 1 (spoof), got {truth[~np.isin(truth, (0, 1))][0]:g}")
    spoof, live = np.sort(values[truth == 1]), np.sort(values[truth == 0])
    if not len(spoof) or not len(live):
        raise ValueError(f"labels must hold both classes, got {truth[0]:g} alone")
    candidates = _candidates(values, grid, _type(scores))
    missed, rejected = _counts(spoof, live, candidates)
    gaps = np.abs(missed * len(live) - rejected * len(spoof))  # in whole numbers: rounding would break ties
    place = len(gaps) - 1 - int(gaps[::-1].argmin())
    eer = float(missed[place] / len(spoof) + rejected[place] / len(live)) / 2
    at = float(candidates[place]) if threshold is None else float(check_number(threshold, "threshold"))
    (accepted,), (refused,) = _counts(spoof, live, np.array([at]))
    apcer, bpcer = accepted / len(spoof), refused / len(live)
    mean = float(apcer + bpcer) / 2
    # Mann and Whitney's count, of all pairs.
    below = np.searchsorted(live, spoof, "left").sum() + np.searchsorted(live, spoof, "right").sum()
    return SpoofMetrics(
        eer=eer,
        threshold=at,
        hter=mean,
        auc=float(below / (2 * len(spoof) * len(live))),
        apcer=float(apcer),
        bpcer=float(bpcer),
        acer=mean,
        accuracy=float(1 - (accepted + refused) / len(values)),
    )


def _counts(spoof: np.ndarray, live: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attacks accepted and live faces rejected where scores from the threshold on are called spoof; both are sorted."""
    return np.searchsorted(spoof, thresholds, "left"), len(live) - np.searchsorted(live, thresholds, "left")


def _type(scores: Any) -> torch.dtype:
    kind = scores.dtype if isinstance(scores, Tensor) else getattr(torch, np.asarray(scores).dtype.name, None)
    return kind if kind in (torch.float32, torch.float16, torch.bfloat16) else torch.float64


def _candidates(scores: np.ndarray, grid: int | None, kind: torch.dtype) -> np.ndarray:
    if grid is None:
        found = np.unique(scores)
        # Above all scores in their own type: compared with them, what lies between two numbers of it would be rounded.
        largest, bound = torch.tensor([float(found[-1]), math.inf], dtype=kind, device="cpu")
        return np.append(found, float(torch.nextafter(largest, bound)))
    steps = check_number(grid, "grid", low=1, high=10**7, integer=True)
    return np.append(np.arange(steps + 1) / steps, 1.1)


def _numbers(values: Any, name: str) -> np.ndarray:
    """A vector of finite numbers in float64."""
    if isinstance(values, Tensor):
        if values.is_complex():
            raise TypeError(f"{name} must hold numbers, got {values.dtype}")
        array = values.detach().cpu().double().numpy()
    else:
        if values is None or isinstance(values, (str, bytes, dict, set)):
            raise TypeError(f"{name} must be an array or a tensor, got {type(values).__name__}")
        if np.ma.is_masked(values):
            raise ValueError(f"{name} must not have masked entries: leave them out first")
        try:
            array = np.asarray(values)
        except ValueError:
            raise ValueError(f"{name} must have 1 dimensions, got rows of different lengths") from None
        if array.dtype.kind == "O":
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError):
                raise TypeError(f"{name} must hold numbers, got {array.dtype}") from None
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold numbers, got {array.dtype}")
        array = array.astype(np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimensions, got shape {array.shape}")
    if not len(array):
        raise ValueError(f"{name} must not be empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array
