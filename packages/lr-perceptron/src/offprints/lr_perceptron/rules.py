"""The five update rules: how much each sample weighs in a step, as a function of the margins alone.

Every method of the paper moves by a weighted sum of the signed samples ``z_i = y_i a_i``::

    theta_{t+1} = theta_t + scale * sum_i weight_i z_i

and the weights depend on the margins ``m_i = z_i . theta_t``. Written so, logistic regression and the perceptrons are
one algorithm; a margin of exactly 0 counts as misclassified.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

METHODS: tuple[str, ...] = (
    "lr_gd",
    "normalized_lr_gd",
    "batch_perceptron",
    "normalized_batch_perceptron",
    "perceptron",
)
GRADIENT_METHODS = METHODS[:2]  # those with a step size, which go on after separation


def misclassified(margins: Float[Tensor, "*batch n"]) -> Bool[Tensor, "*batch n"]:
    """Which samples are not on the right side. NaN is on no side: it is misclassified too."""
    return ~(margins > 0)


def convex_weights(margins: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """The weights ``sigmoid(-m_i) / sum_j sigmoid(-m_j)`` of Normalized LR+GD; they sum to 1.

    The quotient as it stands is 0/0 as soon as all margins exceed 745 (104 in float32), which a large step reaches at
    once. In logarithms nothing underflows.
    """
    return F.logsigmoid(-margins).softmax(-1)


def sample_weights(method: str, margins: Float[Tensor, "problems n"], t: int) -> Float[Tensor, "problems n"]:
    """Weights of update ``t`` (0 for the first), for each of several problems.

    - ``lr_gd``: ``sigmoid(-m_i) / n``, so that the sum is minus the gradient of the mean logistic loss.
    - ``normalized_lr_gd``: `convex_weights`, that gradient divided by the mean of ``sigmoid(-m)``.
    - ``batch_perceptron``: 1/n for the misclassified; the first step takes all samples, with 1/(2n).
    - ``normalized_batch_perceptron``: the mean of the misclassified.
    - ``perceptron``: the first misclassified.

    Without a misclassified sample the perceptrons' weights are 0.
    """
    n = margins.shape[-1]
    if method == "lr_gd":
        return torch.sigmoid(-margins).div_(n)
    if method == "normalized_lr_gd":
        return convex_weights(margins)
    if method == "batch_perceptron" and t == 0:
        return torch.full_like(margins, 0.5 / n)
    wrong = misclassified(margins)
    if method == "batch_perceptron":
        return wrong.to(margins.dtype).div_(n)
    if method == "normalized_batch_perceptron":
        weights = wrong.to(margins.dtype)
        return weights.div_(weights.sum(-1, keepdim=True).clamp_(min=1))
    # argmax returns the first of several largest values.
    first = wrong.to(torch.uint8).argmax(-1, keepdim=True)
    return torch.zeros_like(margins).scatter_(-1, first, wrong.gather(-1, first).to(margins.dtype))
