"""What a plan costs and what no plan can go below: the primal and the dual value of partial transport."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.validation import check_same_device, check_tensor
from offprints.sp2ot._problem import as_batch, check_capacity, check_share, check_transport, relative_sizes, row_masses
from offprints.sp2ot.transport import TransportResult


class TransportValue(NamedTuple):
    """Values of a solution, ``(*,)`` in float64; ``*`` is the batch, if there is one.

    Attributes:
        linear: ``<Q, cost>``.
        sizes: ``gamma KL(Q^T 1, rho * prior)``; 0 where sizes are equalities or capacities.
        entropy: ``epsilon * sum Q (log Q - 1)`` over the clusters and the virtual one.
        primal: Sum of the three.
        dual: The largest lower bound that the column potentials prove; equal to ``primal`` at the solution.

    Example:
        >>> cost = torch.eye(2)
        >>> value = transport_value(cost, partial_ot(cost, rho=0.5), rho=0.5)
        >>> bool((value.primal - value.dual).abs() < 1e-9)
        True
    """

    linear: Float[Tensor, "*batch"]
    sizes: Float[Tensor, "*batch"]
    entropy: Float[Tensor, "*batch"]
    primal: Float[Tensor, "*batch"]
    dual: Float[Tensor, "*batch"]


def transport_value(
    cost: Float[Tensor, "*batch samples clusters"],
    result: TransportResult,
    *,
    rho: float | Float[Tensor, " batch"],
    epsilon: float = 0.1,
    gamma: float = 1.0,
    prior: Float[Tensor, " clusters"] | None = None,
    weights: Float[Tensor, "*batch samples"] | None = None,
    capacity: Float[Tensor, " clusters"] | None = None,
) -> TransportValue:
    """What :func:`partial_ot` minimizes, at its plan, and its dual at its column potentials.

    For any potentials, those of a solver that was stopped early too, ``dual`` is at most the smallest value of any
    plan: ``primal - dual`` of a plan that meets the constraints bounds what is left to gain.

    Args:
        cost, rho, epsilon, gamma, prior, weights, capacity: As they were given to :func:`partial_ot`.
        result: What it returned.

    Raises:
        TypeError, ValueError: as :func:`partial_ot`; a result of other shapes.

    Example:
        >>> cost = torch.tensor([[0.1, 5.0], [5.0, 0.1], [2.0, 2.0]])
        >>> value = transport_value(cost, partial_ot(cost, rho=0.6), rho=0.6)
        >>> round(float(value.linear), 4)
        0.06
    """
    check_tensor(cost, "cost", ndim=(2, 3))
    if isinstance(rho, Tensor):
        check_share(rho, cost)
    check_transport(1.0 if isinstance(rho, Tensor) else rho, epsilon, gamma, "newton", 0.0, 1)
    if not isinstance(result, TransportResult):
        raise TypeError(f"result must be a TransportResult, got {type(result).__name__}")
    clusters = cost.shape[-1]
    check_tensor(result.plan, "result.plan", shape=cost.shape)
    check_tensor(
        result.column_potential, "result.column_potential", shape=(*cost.shape[:-2], clusters + 1), finite=False
    )
    check_same_device(cost, result.plan, names=("cost", "result"))
    shares = relative_sizes(prior, clusters, cost)
    largest = float(rho.max()) if isinstance(rho, Tensor) else rho
    if capacity is not None:
        check_capacity(capacity, prior, largest, cost)
    plan, problems = as_batch(result.plan), as_batch(cost)
    g = as_batch(result.column_potential, axes=2)
    masses = problems.new_tensor([[1 / plan.shape[1]]]) if weights is None else row_masses(weights, cost)
    masses = masses.to(plan.device).expand(plan.shape[:2])
    share = torch.as_tensor(rho, dtype=torch.float64, device=plan.device).detach().expand(len(plan))[:, None]
    sizes = plan.new_full((clusters,), 1 / clusters) if shares is None else shares.to(plan)
    asked = share * sizes if capacity is None else as_batch(capacity, axes=1).expand(len(plan), -1)
    exact = math.isinf(gamma) or capacity is not None

    rest = (masses - plan.sum(-1)).clamp(min=0)
    linear = (plan * problems).sum((1, 2))
    entropy = epsilon * ((torch.xlogy(plan, plan) - plan).sum((1, 2)) + (torch.xlogy(rest, rest) - rest).sum(1))
    of_sizes = torch.zeros_like(linear)
    if not exact:
        mass, used = plan.sum(1), asked > 0
        ratio = torch.where(used, mass / torch.where(used, asked, 1.0), 1.0)
        of_sizes = gamma * (torch.xlogy(mass, ratio) - mass + asked).sum(1)

    targets = torch.cat([asked, 1 - share], 1)
    logits = g.unsqueeze(1) - F.pad(problems, (0, 1)) / epsilon
    rows = masses.log() - logits.logsumexp(-1) - 1
    used = targets > 0
    g = torch.where(used, g, 0.0)
    gain = targets * g
    if not exact:
        softness = epsilon / gamma
        gain[:, :-1] = -targets[:, :-1] * (-softness * g[:, :-1]).expm1() / softness
    elif capacity is not None:  # positive potentials prove nothing, but where all capacities are used up
        choice = asked.sum(1, keepdim=True) > share * (1 + 1e-12)
        gain[:, :-1] = torch.where(choice & (g[:, :-1] > 0), -math.inf, gain[:, :-1])
    dual = epsilon * (torch.where(masses > 0, masses * rows, 0.0).sum(-1) + gain.sum(-1))
    parts = (linear, of_sizes, entropy, linear + of_sizes + entropy, dual)
    return TransportValue(*((part if cost.ndim == 3 else part.squeeze(0)).to(cost.device) for part in parts))
