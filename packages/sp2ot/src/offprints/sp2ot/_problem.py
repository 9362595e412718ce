"""The arguments of a transport problem: what is refused, and what they become."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_choice, check_number, check_same_device, check_tensor

METHODS = ("newton", "sinkhorn")
LARGEST_REACH = 1e12  # of costs, in units of the smoothing
SMALLEST_RHO = 1e-13  # below, 1 - rho has too few digits to tell


def check_transport(rho: float, epsilon: float, gamma: float, method: str, tol: float, max_iterations: int) -> None:
    """Refuse options of the transport problem that are out of range."""
    check_number(rho, "rho", low=SMALLEST_RHO, high=1)
    check_number(epsilon, "epsilon", low=0, open_low=True)
    check_number(gamma, "gamma", low=0, high=math.inf, open_low=True)
    check_choice(method, "method", METHODS)
    check_number(tol, "tol", low=0)
    check_number(max_iterations, "max_iterations", low=1, integer=True)


def check_reach(cost: Float[Tensor, "batch samples clusters"], epsilon: float) -> None:
    """Refuse a smoothing that float64 cannot tell from none: costs in its units have no digits left behind the point.

    Raises:
        ValueError: ``epsilon`` is too small for these costs, or the costs too large for float64.
    """
    reach = float(reach_of(cost).max())
    if not math.isfinite(reach):
        raise ValueError(f"cost must have a range that float64 holds, got {float(cost.amin())} to {float(cost.amax())}")
    if reach > LARGEST_REACH * epsilon:
        raise ValueError(
            f"epsilon must be at least {1 / LARGEST_REACH:g} of the range of the cost, {reach:g}, got {epsilon:g}"
        )


def reach_of(cost: Float[Tensor, "batch samples clusters"]) -> Float[Tensor, " batch"]:
    """Range of the costs of each problem, with the virtual cluster's 0."""
    lowest, highest = cost.flatten(1).aminmax(dim=1)
    return highest.double().clamp(min=0) - lowest.double().clamp(max=0)


def relative_sizes(prior: Tensor | None, clusters: int, like: Tensor | None = None) -> Tensor | None:
    """Shares of the clusters, float64 and 1 together, of relative sizes; ``like`` has the device they must be on.

    Raises:
        TypeError: a prior that is not a tensor of numbers.
        ValueError: another length, negative or not finite, all zero.
    """
    if prior is None:
        return None
    check_tensor(prior, "prior", shape=(clusters,), floating=False)
    _check_numbers(prior, "prior")
    if like is not None:
        check_same_device(like, prior, names=("cost", "prior"))
    sizes = as_batch(prior, axes=1)
    if bool((sizes < 0).any()) or not bool((sizes > 0).any()):
        raise ValueError(f"prior must not be negative and not all zero, got {sizes.tolist()}")
    sizes = sizes / sizes.max()
    return sizes / sizes.sum()


def _check_numbers(x: Tensor, name: str) -> None:
    if x.dtype == torch.bool or x.is_complex():
        raise TypeError(f"{name} must hold numbers, got {x.dtype}")


def check_share(rho: Tensor, cost: Tensor) -> None:
    """Refuse shares of each problem that are not ``(B,)`` or out of range."""
    check_tensor(rho, "rho")
    if cost.ndim != 3 or rho.shape != cost.shape[:1]:
        raise ValueError(
            f"rho must be a number, or one for each of the problems of a cost (B, N, K), got shape {tuple(rho.shape)}"
            f" and a cost of shape {tuple(cost.shape)}"
        )
    check_same_device(cost, rho, names=("cost", "rho"))
    if bool((rho < SMALLEST_RHO).any()) or bool((rho > 1).any()):
        raise ValueError(f"rho must be from {SMALLEST_RHO:g} to 1, got {rho.tolist()}")


def row_masses(weights: Tensor, cost: Tensor) -> Tensor:
    """Relative masses of the samples as shares of their sum, ``(B, N)`` in float64.

    Raises:
        TypeError: weights that are not a tensor of numbers.
        ValueError: another shape, negative or not finite, all zero.
    """
    samples = cost.shape[-2]
    check_tensor(weights, "weights", ndim=(1, 2) if cost.ndim == 3 else 1, floating=False)
    check_tensor(weights, "weights", shape=(samples,) if weights.ndim == 1 else cost.shape[:2], floating=False)
    _check_numbers(weights, "weights")
    check_same_device(cost, weights, names=("cost", "weights"))
    masses = as_batch(weights, axes=2)
    if bool((masses < 0).any()) or not bool((masses > 0).any(-1).all()):
        raise ValueError(f"weights must not be negative and not all zero, got {float(masses.min())} at least")
    masses = masses / masses.amax(-1, keepdim=True)
    return (masses / masses.sum(-1, keepdim=True)).expand(1 if cost.ndim == 2 else len(cost), -1)


def check_capacity(capacity: Tensor, prior: Tensor | None, rho: float, cost: Tensor) -> None:
    """Refuse capacities that are not ``(K,)``, negative, or too small together for the mass."""
    check_tensor(capacity, "capacity", shape=(cost.shape[-1],))
    check_same_device(cost, capacity, names=("cost", "capacity"))
    if prior is not None:
        raise ValueError("capacity takes the place of a prior: give one of them, got both")
    if bool((capacity < 0).any()):
        raise ValueError(f"capacity must not be negative, got {capacity.tolist()}")
    if float(capacity.double().sum()) < rho * (1 - 1e-6):
        raise ValueError(f"capacity must be at least rho={rho:g} together, got {float(capacity.double().sum()):g}")


def as_problems(cost: Tensor, differentiable: bool = False) -> Tensor:
    """A cost with a batch axis, of its own type (float32 for half types), on a device that has float64.

    With its graph only if asked.
    """
    cost = cost if differentiable else cost.detach()
    cost = cost.cpu() if cost.device.type == "mps" else cost
    cost = cost.float() if cost.itemsize < 4 else cost
    return cost if cost.ndim == 3 else cost.unsqueeze(0)


def as_batch(x: Tensor, axes: int = 3) -> Tensor:
    """Float64 with a batch axis, without a graph, on a device that has float64."""
    x = x.detach()
    x = (x.cpu() if x.device.type == "mps" else x).double()
    return x if x.ndim == axes else x.unsqueeze(0)
