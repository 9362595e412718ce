"""The implicit constant gamma for many (n, k, ridge) at once: one scalar equation, its root, its derivatives.

With z = sum lambda / (lambda + gamma), both implicit equations are one: (n - z)(k - z) = k ridge / gamma. Its root with
z < min(n, k) is that of z + w = min(n, k), where w = min(n, k) - z is known from gamma without a difference of nearly
equal numbers: w (w + |n - k|) = k ridge / gamma.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from offprints.shared.validation import should_check

CHUNK = 2**17  # entries (points x modes) worked on at a time: they stay in the cache
BINS = 512  # of the compressed spectrum that gives the first approximation
LONG = 1024  # spectra beyond this length are compressed first
FLOOR = 1e-150  # an eigenvalue that is smaller, relative to the largest, is 0: squares of inverses are finite
TOLERANCE = 1e-5  # of the last step in log gamma: what is left after it is of the order of its cube
STEPS = 400  # never reached: bisection alone would need fewer


def row_chunks(count: int, modes: int) -> list[slice]:
    """Slices of the points."""
    size = max(1, CHUNK // max(modes, 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def margins(z: Tensor, gamma: Tensor, n: Tensor, k: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """n - z and k - z (infinite with k) without cancellation; `z` counts where gamma is 0. No derivatives."""
    smaller = torch.minimum(n, k)
    w = _gap(gamma, n, k, ridge)
    w = torch.where(gamma > 0, w, (smaller - z).clamp(min=0))
    return w + (n - smaller), w + (k - smaller)


def _gap(gamma: Tensor, n: Tensor, k: Tensor, ridge: Tensor) -> Tensor:
    """w = min(n, k) - z at a root gamma > 0."""
    infinite = k.isinf()
    drive = ridge / torch.where(gamma > 0, gamma, 1.0)
    product = torch.where(infinite, 1.0, k) * drive
    apart = torch.where(infinite, 0.0, (n - k).abs())
    below = apart + torch.hypot(apart, 2 * product.sqrt())
    return torch.where(infinite, drive, 2 * product / torch.where(below > 0, below, 1.0))


def inverses(eigvals: Tensor, gamma: Tensor, *, guarded: bool) -> tuple[Tensor, Tensor | None]:
    """1 / (lambda + gamma) ``[P, M]``, and where both are 0 (which is 0 there) if `guarded`."""
    below = eigvals + gamma[:, None]
    if not guarded:
        return below.reciprocal(), None
    dead = below <= FLOOR * eigvals.detach().max()
    return torch.where(dead, 0.0, torch.where(dead, 1.0, below).reciprocal()), dead


def needs_guard(eigvals: Tensor, gamma: Tensor) -> bool:
    """Whether a zero eigenvalue meets a gamma of 0; where no values can be looked at, yes."""
    if not should_check(eigvals, gamma):
        return True
    floor = FLOOR * eigvals.detach().max()
    return bool((gamma <= floor).any()) and bool((eigvals <= floor).any())


def shares(z: Tensor, gamma: Tensor, n: Tensor, k: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u = n - z, v = k - z (1 for an infinite k), v / (u + v) and 1 / (u + v), whose limits are 1 and 0 there.

    The values are those of `margins`, the derivatives those of the differences. Where u = v = 0 the share is 1/2.
    """
    infinite = k.isinf()
    exact_u, exact_v = margins(z.detach(), gamma.detach(), n.detach(), k.detach(), ridge.detach())
    u = exact_u.detach() + ((n - z) - (n - z).detach())
    finite_k = torch.where(infinite, 1.0, k)
    v = torch.where(infinite, 1.0, exact_v).detach() + ((finite_k - z) - (finite_k - z).detach())
    total = u + v
    tie = total == 0
    total = torch.where(tie, 1.0, total)
    share = torch.where(infinite, 1.0, torch.where(tie, 0.5, v / total))
    return u, v, share, torch.where(infinite, 0.0, torch.where(tie, math.inf, 1 / total))


def implicit_gamma(eigvals: Tensor, n: Tensor, k: Tensor, ridge: Tensor) -> Tensor:
    """gamma of every point ``[P]``, with derivatives of every order in all four arguments.

    Raises:
        RuntimeError: forward mode inside forward mode, in which torch drops the inner derivative's own derivative.
    """
    levels = [level.key() for level in get_interpreter_stack() or ()]
    if levels.count(TransformType.Jvp) > 1:
        raise RuntimeError("forward mode inside forward mode is not supported: use torch.func.hessian or jacrev")
    return _Gamma.apply(eigvals, n, k, ridge)


class _Gamma(torch.autograd.Function):
    """The root and, by the theorem of implicit functions, its derivatives.

    With a = v / (u + v), D = gamma / (lambda + gamma) and R = a u + sum D (1 - D):
    R dgamma = k / (u + v) dridge - gamma a dn - gamma (1 - a) z / k dk + sum D^2 dlambda.
    """

    @staticmethod
    def forward(eigvals: Tensor, n: Tensor, k: Tensor, ridge: Tensor) -> Tensor:
        return solve(eigvals, n, k, ridge)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        eigvals, n, k, ridge, gamma = ctx.saved_tensors
        guarded = needs_guard(eigvals, gamma)
        of_eigvals: Tensor | None = None
        parts = []
        for rows in row_chunks(len(gamma), len(eigvals)):
            points = n[rows], k[rows], ridge[rows]
            g, (by_n, by_k, by_ridge, factor, squares) = gradient[rows], _slopes(eigvals, *points, gamma[rows], guarded)
            # A slope that is infinite (n = k without a ridge) and of no interest is not 0 times infinity.
            by_ridge = torch.where(g == 0, 0.0, by_ridge)
            parts.append(torch.stack([g * by_n, g * by_k, g * by_ridge]))
            if ctx.needs_input_grad[0]:
                part = (g * factor) @ squares
                of_eigvals = part if of_eigvals is None else of_eigvals + part
        of_n, of_k, of_ridge = torch.cat(parts, 1)
        return of_eigvals, of_n, of_k, of_ridge

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        eigvals, n, k, ridge, gamma = ctx.saved_tensors
        guarded = needs_guard(eigvals, gamma)
        by_n, by_k, by_ridge, factor, squares = _slopes(eigvals, n, k, ridge, gamma, guarded)
        moved = torch.zeros_like(gamma)
        if tangents[0] is not None:
            moved = moved + factor * (squares @ tangents[0])
        for slope, tangent in zip((by_n, by_k, by_ridge), tangents[1:], strict=True):
            if tangent is not None:
                moved = moved + torch.where(tangent == 0, 0.0, slope * tangent)
        return moved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        moved = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(inputs, in_dims, strict=True)]
        spread = [x.expand(size, *x.shape) if dim is None else x for x, dim in zip(moved, in_dims, strict=True)]
        if in_dims[0] is not None:  # spectra differ: they are solved one by one
            return torch.stack([implicit_gamma(*of_one) for of_one in zip(*spread, strict=True)]), 0
        gamma = implicit_gamma(inputs[0], *(x.reshape(-1) for x in spread[1:]))
        return gamma.reshape(size, -1), 0


def _slopes(
    eigvals: Tensor, n: Tensor, k: Tensor, ridge: Tensor, gamma: Tensor, guarded: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of gamma by n, k, ridge ``[P]``; by the eigenvalues: ``[P]`` times 1 / (lambda + gamma)^2 ``[P, M]``.

    They are given as 0 where there are none, at the points at which the risk is infinite or the constant stays 0.
    """
    inverse_sums, _ = inverses(eigvals, gamma, guarded=guarded)
    squares = inverse_sums.square()
    z, spread = inverse_sums @ eigvals, gamma * (squares @ eigvals)
    u, _, share, inverse = shares(z, gamma, n, k, ridge)
    below = share * u + spread
    factor = torch.where(below > 0, 1 / torch.where(below > 0, below, 1.0), 0.0)
    infinite = k.isinf()
    finite_k = torch.where(infinite, 1.0, k)
    by_ridge = torch.where(infinite, 1.0, finite_k * inverse)
    by_k = torch.where(infinite, 0.0, -gamma * (1 - share) * z / finite_k)
    by_ridge = torch.where(below > 0, by_ridge * factor, 0.0)
    return -gamma * share * factor, by_k * factor, by_ridge, factor * gamma.square(), squares


@torch.no_grad()
def solve(eigvals: Tensor, n: Tensor, k: Tensor, ridge: Tensor) -> Tensor:
    """The root of every point by Halley's method in log gamma between bounds; 0 where there is no positive one."""
    positive = eigvals[(eigvals > 0) & (eigvals > FLOOR * eigvals.max())]
    scale = positive.max() if len(positive) else eigvals.new_ones(())
    spectrum = (positive / scale).sort(descending=True).values
    rows = ((ridge > 0) | (torch.minimum(n, k) < len(spectrum))).nonzero().squeeze(1)
    gamma = torch.zeros_like(n)
    if len(rows) == 0:
        return gamma
    points = n[rows], k[rows], ridge[rows] / scale
    low, high = _bounds(spectrum, *points)
    start = (low + high) / 2
    if len(spectrum) > LONG:
        means, counts = _compressed(spectrum)
        start = _halley(means, counts, *points, low, high, start, tolerance=1e-3)
    ones = torch.ones_like(spectrum)
    gamma[rows] = _halley(spectrum, ones, *points, low, high, start, tolerance=TOLERANCE).exp() * scale
    return gamma


def _bounds(spectrum: Tensor, n: Tensor, k: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of log gamma: z + w is at least min(n, k) at the lower one, at most that at the upper one."""
    smaller, modes = torch.minimum(n, k), len(spectrum)
    low, high = ridge / n, 2 * ridge / smaller
    high = torch.where(k.isinf(), high, 2 * ridge / smaller * (k / (smaller / 2 + (n - k).abs())))
    if modes:
        tails = spectrum.flip(0).cumsum(0).flip(0)
        for more in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, math.inf):  # z >= j lambda_j / (lambda_j + gamma)
            j = (smaller * (1 + more)).floor().add(1).clamp(1, modes).long()
            low = torch.maximum(low, spectrum[j - 1] * ((j - smaller) / smaller))
        bound = torch.full_like(high, math.inf)
        for part in (
            0.0,
            0.125,
            0.25,
            0.375,
        ):  # z <= j + (sum of the eigenvalues after j) / gamma
            j = (smaller * part).floor().clamp(0, modes).long()
            tail = torch.where(j < modes, tails[j.clamp(max=modes - 1)], 0.0)
            bound = torch.minimum(bound, tail / (smaller / 2 - j))
        high = torch.maximum(high, bound)
    tiny = torch.finfo(low.dtype).tiny
    low, high = low.clamp(min=tiny).log(), high.clamp(min=tiny).log()
    return low - 1e-6, torch.maximum(high, low) + 1e-6  # rounding


def _compressed(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Means and numbers of the eigenvalues in equal steps of their logarithms."""
    logs = spectrum.log()
    span = (logs[0] - logs[-1]).clamp(min=1e-12)
    place = ((logs[0] - logs) / span * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(BINS, dtype=spectrum.dtype, device=spectrum.device).index_add_(
        0, place, torch.ones_like(spectrum)
    )
    sums = torch.zeros_like(counts).index_add_(0, place, spectrum)
    kept = counts > 0
    return sums[kept] / counts[kept], counts[kept]


def _halley(
    spectrum: Tensor,
    counts: Tensor,
    n: Tensor,
    k: Tensor,
    ridge: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    *,
    tolerance: float,
) -> Tensor:
    """Solve log((z + w) / min(n, k)) = 0 for log gamma, in which it is nearly a straight line for power laws."""
    found = start.clone()
    state = torch.stack([n, k, ridge, low, high, start])
    rows = torch.arange(len(n), device=n.device)
    noise = 4 * torch.finfo(n.dtype).eps
    for _ in range(STEPS):
        n, k, ridge, low, high, t = state
        value, slope, curvature, size = _height(spectrum, counts, n, k, ridge, t)
        low, high = torch.where(value > 0, t, low), torch.where(value > 0, high, t)
        step = value / slope
        new = t - step / (1 - step * curvature / (2 * slope)).clamp(min=0.5)  # Halley's, which is of third order
        inside = (new >= low) & (new <= high)
        new = torch.where(inside, new, (low + high) / 2)
        new = torch.where(value.abs() <= noise * (size + (t * slope).abs()), t, new)
        found[rows] = new
        # A short step tells that the root is near only where it is Halley's; bisection goes on to the last digit.
        limit = torch.where(inside, tolerance, noise * (1 + t.abs()))
        active = ((new - t).abs() > limit).nonzero().squeeze(1)
        if len(active) == 0:
            break
        rows = rows[active]
        state = torch.stack([n, k, ridge, low, high, new])[:, active]
    return found


def _height(
    spectrum: Tensor, counts: Tensor, n: Tensor, k: Tensor, ridge: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The equation's left side at log gamma = t, its slope and its curvature, and the size of what it is a sum of."""
    gamma = t.exp()
    weights = counts * spectrum
    sums = torch.empty(4, len(t), dtype=t.dtype, device=t.device)
    smaller, modes = torch.minimum(n, k), counts.sum()
    most = 2 * smaller > modes
    any_most = bool(most.any())
    chunks = row_chunks(len(t), len(spectrum))
    buffers = t.new_empty(2, chunks[0].stop, len(spectrum))  # once: memory that is new every time costs more than sums
    for rows in chunks:
        inverse, power = buffers[:, : rows.stop - rows.start]
        torch.add(spectrum, gamma[rows, None], out=inverse).reciprocal_()
        torch.mv(inverse, weights, out=sums[0, rows])
        torch.mul(inverse, inverse, out=power)
        torch.mv(power, weights, out=sums[1, rows])
        torch.mv(power.mul_(inverse), weights, out=sums[2, rows])
        if any_most:
            torch.mv(inverse, counts, out=sums[3, rows])
    z, spread = sums[0], sums[1] * gamma
    w = _gap(gamma, n, k, ridge)
    apart = torch.where(k.isinf(), 0.0, (n - k).abs())
    double = torch.where(w + apart > 0, 2 * w + apart, 1.0)
    falling = torch.where(k.isinf(), w, w * ((w + apart) / double))
    bending = torch.where(k.isinf(), w, (w * (w + apart) - 2 * falling.square()) / double)
    whole = z + w
    slope = -(spread + falling) / whole
    curvature = (2 * gamma.square() * sums[2] - spread + bending) / whole - slope.square()
    height, size = z - smaller + w, torch.ones_like(z)
    if any_most:  # z is modes - missing: near as many modes as min(n, k), both missing and w may be far below rounding
        missing = gamma * sums[3]
        height = torch.where(most, (modes - smaller) - missing + w, height)
        size = torch.where(most, ((modes - smaller).abs() + missing + w) / smaller, size)
    return (height / smaller).log1p(), slope, curvature, size
