"""The decision rule of Gaussian naive Bayes, from counts, means and sums of squared deviations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offprints.shared.device import float32_region


def pooled_variance(count: Tensor, variances: Tensor) -> Tensor:
    """Mean of the classes' variances ``[..., K, d]`` weighted by their counts ``[..., K]``; empty classes weigh 0."""
    return (count.unsqueeze(-1) * variances).sum(-2) / count.sum(-1, keepdim=True)


@dataclass
class Rule:
    """Everything in float64; means are taken from ``center``, so that little is lost where all are large."""

    log_prior: Tensor  # [K]
    theta: Tensor  # [K, d]
    variance: Tensor  # [d] or [K, d]
    center: Tensor  # [d]
    weight: Tensor  # [K, d], (theta - center) / variance
    bias: Tensor  # [K], -sum (theta - center)^2 / (2 variance)
    seen: Tensor  # [K], which classes have samples
    unscaled: int  # features that var_smoothing alone scales and whose class means differ

    def log_likelihood(self, X: Tensor) -> Tensor:
        """log p(x | k) ``[n, K]`` of float64 rows, the square expanded around the center."""
        z = X - self.center
        constant = (2 * math.pi * self.variance).log().sum(-1)  # [] or [K]
        if self.variance.ndim == 1:
            square = (z.square() @ (1 / self.variance)).unsqueeze(1)
        else:
            square = z.square() @ (1 / self.variance).T
        likelihood = torch.addmm(self.bias, z, self.weight.T) - (square + constant) / 2
        return likelihood.masked_fill_(~self.seen, -math.inf)


def make_rule(
    count: Tensor, theta: Tensor, m2: Tensor, *, priors: Tensor | None, var_smoothing: float, shared: bool
) -> Rule:
    """The rule of the statistics ``[K]``, ``[K, d]``, ``[K, d]``.

    Raises:
        ValueError: no class has samples and a positive prior; a variance of 0.
    """
    seen = count > 0
    share = count / count.sum()
    prior = share if priors is None else priors.to(count.device)
    if not bool((seen & (prior > 0)).any()):
        raise ValueError("priors must be positive for a class that has samples")
    variances = m2 / torch.where(seen, count, 1).unsqueeze(1)
    variance = (pooled_variance(count, variances) if shared else variances) + var_smoothing
    flat = (variance == var_smoothing) & (torch.ones_like(seen[:1]) if shared else seen.unsqueeze(1))
    if var_smoothing == 0 and bool(flat.any()):
        features = int(flat.view(-1, flat.shape[-1]).any(0).sum())
        raise ValueError(f"var_smoothing must be positive where a feature has no variance, as {features} have here")
    # Equal means have a center that is exactly equal to them: constant features then have weight 0.
    reference = theta[int(seen.int().argmax())]
    difference = torch.where(seen.unsqueeze(1), theta - reference, 0)
    center = reference + share @ difference
    differing = (difference != 0).any(0)
    offset = torch.where(seen.unsqueeze(1), theta - center, 0)
    weight = offset / variance
    return Rule(
        log_prior=prior.log(),
        theta=theta,
        variance=variance,
        center=center,
        weight=weight,
        bias=-(offset * weight).sum(1) / 2,
        seen=seen,
        unscaled=int((flat.view(-1, flat.shape[-1]).any(0) & differing).sum()),
    )


def empty_layer(n_features: int, n_classes: int, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """A linear layer for a rule, its entries not yet set.

    Raises:
        TypeError: ``dtype`` is not a floating type.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type of torch, got {dtype!r}")
    return nn.utils.skip_init(nn.Linear, n_features, n_classes, device=device, dtype=dtype)


def predict_linear(rule: Rule, X: Tensor) -> Tensor:
    """Index of the best class of rows that are not float64, shared variance.

    One float32 product; where the best two scores are closer than its rounding, the row is done again in float64.
    """
    center = rule.center.float()
    z = X.float() - center
    weight = rule.weight.float()
    bias = rule.log_prior + rule.bias + rule.weight @ (center.double() - rule.center)
    bias = torch.where(rule.seen, bias, -math.inf)
    with float32_region(z.device):
        scores = torch.addmm(bias.float(), z, weight.T)
    best, index = scores.max(1)
    second = scores.scatter(1, index.unsqueeze(1), -math.inf).amax(1)
    epsilon = torch.finfo(torch.float32).eps
    rounding = 4 * math.sqrt(X.shape[1]) * epsilon * weight.norm(dim=1).max() * torch.linalg.vector_norm(z, dim=1)
    rounding = rounding + 4 * epsilon * (best.abs() + bias[bias.isfinite()].abs().max().float())
    unsure = (~(best - second > 2 * rounding)).nonzero().squeeze(1)
    if len(unsure):
        exact = rule.log_likelihood(X.index_select(0, unsure).double()) + rule.log_prior
        index = index.index_copy(0, unsure, exact.argmax(1))
    return index
