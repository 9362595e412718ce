"""Outlier scores of a model's logits, and how well scores tell samples from outliers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from offprints.protogcd._inputs import as_scores
from offprints.protogcd.pseudo_labels import OFFSET, check_logits, check_temperature, tempered
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_number

Kind = Literal["msp", "mls", "energy", "margin", "proto", "xent"]
KINDS = ("msp", "mls", "energy", "margin", "proto", "xent")


def ood_score(
    logits: Float[Tensor, "rows K"], *, kind: Kind = "msp", temperature: float = 0.1
) -> Float[Tensor, " rows"]:
    """How much a sample looks like an outlier: a sample of none of the classes, old or new.

    With `p = softmax(logits / temperature)` and its largest entries `p_1 >= p_2`:

    - `"msp"`: `-p_1`, the one to begin with.
    - `"mls"`: `-max logit`.
    - `"energy"`: `-logsumexp(logits)`, without the temperature, as in the paper's code: nearly one for all cosines.
      Divide the logits by the temperature before the call for a sharper one.
    - `"margin"`: `-(p_1 - p_2)`.
    - `"proto"`: `-p_1 / (p_2 + 1e-6)`, the confidence of the pseudo-labels.
    - `"xent"`: `mean(logits) / temperature - logsumexp(logits / temperature)`, the cross-entropy of the uniform
      distribution, up to its sign.

    Args:
        logits: `(N, K)`.
        kind: Which score.
        temperature: Of the predictions.

    Returns:
        `(N,)`, higher for outliers; float32 for half types.

    Raises:
        TypeError: `logits` are not floating, or the temperature is no number.
        ValueError: `logits` are not `(N, K)` with K >= 2, empty or not finite; an unknown kind; the temperature is not
            positive.

    Example:
        >>> ood_score(torch.tensor([[0.9, 0.1], [0.3, 0.3]]))
        tensor([-0.9997, -0.5000])
    """
    check_logits(logits)
    check_choice(kind, "kind", KINDS)
    temperature = check_temperature(temperature)
    wide = logits.to(working_dtype(logits))
    if kind == "mls":
        return -wide.amax(1)
    if kind == "energy":
        return -wide.logsumexp(1)
    below = tempered(logits, temperature)
    if kind == "xent":
        return below.mean(1) - below.logsumexp(1)
    first, second = below.softmax(1).topk(2, 1)[0].unbind(1)
    if kind == "msp":
        return -first
    return second - first if kind == "margin" else -first / (second + OFFSET)


def ood_measures(scores_in: Any, scores_out: Any, *, recall: float = 0.95) -> dict[str, float]:
    """How well outlier scores tell outliers from the samples of known classes.

    The false-positive rate is the share of outliers taken for samples at the threshold, one of the distinct scores, up
    to the first that takes in all samples, whose recall of samples is closest to `recall`: the higher of two equally
    close ones, and of thresholds with that recall the one that lets in most outliers, as in the paper's code.

    Args:
        scores_in: `(n,)` scores of samples; tensor, array or list.
        scores_out: `(m,)` scores of outliers, which should be higher.
        recall: Share of the samples to take in, in (0, 1].

    Returns:
        Fractions: `auroc`; `aupr_in`, average precision with the samples as positives; `aupr_out`, with the outliers;
        `fpr95`, at `recall`, whatever its value.

    Raises:
        TypeError: Not numbers.
        ValueError: Empty, not of one axis, NaN or infinite; `recall` out of range.

    Example:
        >>> round(ood_measures([0.1, 0.2, 0.3], [0.25, 0.9])["auroc"], 4)
        0.8333
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    inside, outside = as_scores(scores_in, "scores_in"), as_scores(scores_out, "scores_out")
    recall = check_number(recall, "recall", low=0, high=1, open_low=True)
    scores = np.concatenate([inside, outside])
    is_out = np.repeat([0, 1], [len(inside), len(outside)])
    thresholds = np.unique(scores)  # a sample is taken in where its score is at most the threshold
    taken = np.searchsorted(np.sort(inside), thresholds, "right")
    let_in = np.searchsorted(np.sort(outside), thresholds, "right")
    complete = int(np.searchsorted(taken, len(inside))) + 1
    # In samples and not in shares, which rounding would make unequal where they are equally close.
    distance = np.round(np.abs(taken[:complete] - recall * len(inside)), 9)
    last = complete - 1 - int(distance[::-1].argmin())
    return {
        "auroc": float(roc_auc_score(is_out, scores)),
        "aupr_in": float(average_precision_score(1 - is_out, -scores)),
        "aupr_out": float(average_precision_score(is_out, scores)),
        "fpr95": float(let_in[last] / len(outside)),
    }
