"""The least loss that any scores can have, given the label's distribution, and the minimizability gap."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_number, check_probabilities, check_tensor, should_check


def conditional_risk_minimum(p: Float[Tensor, "*batch classes"], tau: float) -> Float[Tensor, "*batch"]:
    """Compute C*_tau(p), the least conditional risk of l_tau over all scores.

    For tau < 2 it is ((sum_y p_y^(1/(2-tau)))^(2-tau) - 1) / (1 - tau), for tau = 1 the entropy, and from tau = 2 on
    (1 - max p) / (tau - 1). It is exact for tau near 1 and near 2 too. What float32 probabilities lack to a sum of 1
    is divided out.

    Args:
        p: Conditional probabilities ``[..., C]`` of at least two classes.
        tau: The member of the family, at least 0.

    Returns:
        The minimum ``[...]`` in float64. It carries no gradient.

    Raises:
        TypeError: `p` is not a floating tensor, `tau` is not a number.
        ValueError: `p` is empty, negative, does not sum to 1 (1e-6 in float64, 1e-3 in float32), or has one class;
            `tau` is negative, NaN or infinite.

    Example:
        >>> p = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
        >>> conditional_risk_minimum(p, 1.0)  # entropies
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    check_probabilities(p, "p")
    if p.shape[-1] < 2:
        raise ValueError(f"p must have at least 2 classes, got shape {tuple(p.shape)}")
    tau = check_number(tau, "tau", low=0)
    q = p.detach().to(torch.float64)
    q = q / q.sum(-1, keepdim=True)
    if tau == 1:
        return torch.special.entr(q).sum(-1)
    if tau >= 2:
        return (1 - q.amax(-1)) / (tau - 1)
    e = (tau - 1) / (2 - tau)
    there = q > 0
    logs = torch.where(there, q, 1).log()
    if abs(e) <= 0.5:
        # The sum of p^(1+e) is 1 plus what e adds to each term: near tau = 1 the 1 would swallow it.
        log_sum = torch.log1p((q * torch.expm1(e * logs)).sum(-1))
    else:
        log_sum = torch.logsumexp(torch.where(there, (1 + e) * logs, -torch.inf), -1)
    return torch.expm1((2 - tau) * log_sum) / (1 - tau)


def minimizability_gap(
    best_risk: float,
    p: Float[Tensor, "samples classes"],
    tau: float,
    *,
    weights: Float[Tensor, " samples"] | None = None,
) -> float:
    """Compute M_tau(H) = R*_tau(H) - E_x[C*_tau(p(x))]: what a restricted class cannot reach pointwise.

    Args:
        best_risk: R*_tau(H), the least expected loss over the class, or an estimate of it.
        p: Conditional probabilities ``[N, C]`` of the labels, one row a sample.
        tau: The member of the family, at least 0.
        weights: Weights ``[N]`` of the samples, divided by their sum here; equal ones by default.

    Returns:
        The gap. It is not clipped: an estimate below 0 says that `best_risk` or `p` is off.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: `best_risk` is not finite, `weights` are negative, all 0 or of another length, or as
            `conditional_risk_minimum`.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> round(minimizability_gap(0.5, p, 2.0), 3)  # 0.5 - (0.1 + 0.2) / 2
        0.35
    """
    best_risk = check_number(best_risk, "best_risk")
    check_tensor(p, "p", ndim=2)
    least = conditional_risk_minimum(p, tau)
    if weights is None:
        return float(best_risk - least.mean())
    check_tensor(weights, "weights", ndim=1)
    if len(weights) != len(p):
        raise ValueError(f"weights must have length {len(p)}, got {len(weights)}")
    w = weights.detach().to(torch.float64)
    if should_check(w) and not (bool((w >= 0).all()) and bool(w.sum() > 0)):
        raise ValueError(f"weights must not be negative nor all 0, got {w.min():g} and a sum of {w.sum():g}")
    return float(best_risk - (w / w.amax() * least).sum() / (w / w.amax()).sum())
