"""One training step of the improved latent consistency training, and its sampler, as the paper and its code write them.

Slow and plain, to be read first. `network(x, t)` is F, x a batch of normalized latents, sd = 0.5. The fast code,
`LatentConsistencyLoss` and `consistency_sample`, equals it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

S_MIN, S_MAX, RHO, SD, P_MEAN, P_STD = 0.002, 80.0, 7.0, 0.5, -1.1, 2.0
Network = Callable[[Tensor, Tensor], Tensor]


def column(s: Tensor, x: Tensor) -> Tensor:
    """One number a sample, beside the entries of the samples."""
    return s.view(-1, *[1] * (x.dim() - 1))


def model(network: Network, x: Tensor, sigma: Tensor) -> Tensor:
    """The preconditioned model f, with f(x, S_MIN) = x."""
    s = column(sigma, x)
    c_skip = SD**2 / ((s - S_MIN) ** 2 + SD**2)
    c_out = SD * (s - S_MIN) / (s**2 + SD**2) ** 0.5
    c_in = 1 / (s**2 + SD**2) ** 0.5
    return c_skip * x + c_out * network(c_in * x, 0.25 * sigma.log())


def levels(n: int) -> list[float]:
    """The grid of n levels, increasing."""
    low, high = S_MIN ** (1 / RHO), S_MAX ** (1 / RHO)
    return [(low + i / (n - 1) * (high - low)) ** RHO for i in range(n)]


def number_of_levels(k: int, total: int, s0: int = 10, s1: int = 640) -> int:
    """The doubling curriculum N(k)."""
    stage = math.floor(total / (math.log2(s1 // s0) + 1))
    return min(s0 * 2 ** (k // stage), s1) + 1


def index_law(sigmas: Sequence[float]) -> list[float]:
    """The probability of each interval: ln sigma is normal."""
    phi = [0.5 * (1 + math.erf((math.log(s) - P_MEAN) / (P_STD * math.sqrt(2)))) for s in sigmas]
    masses = [b - a for a, b in pairwise(phi)]
    return [mass / sum(masses) for mass in masses]


def scaling_c(n: int, dim: int, s0: int = 10) -> float:
    """Adaptive scaling-c."""
    return 0.00054 * math.sqrt(dim) if n <= s0 + 1 else math.exp(-1.15 * math.log(n - 1) - 0.85)


def couple(x: Tensor, z: Tensor) -> Tensor:
    """The optimal assignment of the batch's noise to its data, under the squared distance."""
    cost = torch.stack([(z - sample).square().flatten(1).sum(1) for sample in x])
    return z[torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1])]


def training_loss(network: Network, x: Tensor, z: Tensor, indices: Sequence[int], k: int, total: int) -> Tensor:
    """The loss of step k for the noise z and the intervals i of the grid (drawn from `index_law`)."""
    # 1. The grid of this step and its constant.
    n = number_of_levels(k, total)
    sigmas = torch.tensor(levels(n), dtype=x.dtype)
    c = scaling_c(n, x[0].numel())
    # 2. Noise that belongs to its sample.
    z = couple(x, z)
    # 3. Student at the upper end of the interval, teacher at the lower: the same weights, noise and dropout mask.
    lower, upper = sigmas[list(indices)], sigmas[[i + 1 for i in indices]]
    with torch.no_grad():
        teacher = model(network, x + column(lower, x) * z, lower)
    student = model(network, x + column(upper, x) * z, upper)
    # 4. The Cauchy loss of the mean square, weighted by the interval.
    m = (student - teacher).square().flatten(1).mean(1)
    consistency = ((torch.log(m / 2 + c**2) - 2 * math.log(c)) / (upper - lower)).mean()
    # 5. The diffusion loss of the early timesteps.
    early = [b for b, i in enumerate(indices) if n - 2 - i >= int(0.75 * n)]
    errors = (student - x)[early].square().flatten(1).mean(1)
    diffusion = ((1 / upper[early] ** 2 + 1 / SD**2) * errors).mean() if early else 0.0
    return consistency + 5 * diffusion


def sample(network: Network, z: Tensor, sigmas: Sequence[float], fresh: Sequence[Tensor]) -> Tensor:
    """One step from noise, and one more for each further level and its fresh noise."""
    x = model(network, sigmas[0] * z, z.new_full((len(z),), sigmas[0]))
    for sigma, noise in zip(sigmas[1:], fresh, strict=True):
        x = model(network, x + (sigma**2 - S_MIN**2) ** 0.5 * noise, z.new_full((len(z),), sigma))
    return x
