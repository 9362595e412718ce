"""The statistics that the paper's theory assumes to be bounded (section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.dis_vs_gen._rule import make_rule
from offprints.shared.distributed import GroupMoments
from offprints.shared.labels import training_classes
from offprints.shared.tables import as_table
from offprints.shared.validation import check_number


@dataclass(frozen=True)
class AssumptionStatistics:
    """Entry [k, k1, k2] is about D = log p(x | k1) - log p(x | k2) over the samples of class k.

    Attributes:
        alpha: Variance of D over d ``[K, K, K]``; the theory needs it bounded.
        beta: Absolute mean of D over d ``[K, K, K]``; the theory needs it bounded away from 0 where k1 differs from k2.
        variance: Shared variance of the features ``[d]``.

    Example:
        >>> X, y = gaussian_mixture(8, 2, 400)
        >>> assumption_statistics(X, y).variance.shape
        torch.Size([8])
    """

    alpha: Tensor
    beta: Tensor
    variance: Tensor


def assumption_statistics(
    X: Float[Any, "n d"], y: Int[Any, " n"], *, var_smoothing: float = 1e-9
) -> AssumptionStatistics:
    """Statistics under naive Bayes with shared variance fitted to X, which is taken as given: scale it before.

    Float64, on the device of X. Groups are the labels, so that classes may be of any size.

    Raises:
        TypeError, ValueError: as ``GaussianNaiveBayes.fit``.

    Example:
        >>> X, y = gaussian_mixture(8, 2, 400)
        >>> found = assumption_statistics(MinMaxScaler().fit_transform(X), y)
        >>> found.alpha.shape, bool(found.beta[0, 0, 1] > 0)
        (torch.Size([2, 2, 2]), True)
    """
    check_number(var_smoothing, "var_smoothing", low=0)
    features = as_table(X)
    classes, index = training_classes(y, len(features))
    index = index.to(features.device)
    moments = GroupMoments(len(classes), features.shape[1:])
    moments.update(features, index)
    rule = make_rule(moments.count, moments.mean, moments.m2, priors=None, var_smoothing=var_smoothing, shared=True)
    # What the classes have in common drops out of every difference: the linear part is enough.
    centered = (moments.mean - rule.center) @ rule.weight.T + rule.bias
    order = index.argsort(stable=True).to(moments.mean.device)
    covariances = []
    for rows, mean in zip(order.split(moments.count.long().tolist()), moments.mean, strict=True):
        scores = (features[rows].to(mean.device).double() - mean) @ rule.weight.T
        covariances.append(scores.T @ scores / len(rows))
    covariance = torch.stack(covariances)
    own = covariance.diagonal(dim1=1, dim2=2)
    spread = own.unsqueeze(2) + own.unsqueeze(1) - 2 * covariance
    width = features.shape[1]
    return AssumptionStatistics(
        alpha=spread.clamp(min=0) / width,
        beta=(centered.unsqueeze(2) - centered.unsqueeze(1)).abs() / width,
        variance=rule.variance,
    )
