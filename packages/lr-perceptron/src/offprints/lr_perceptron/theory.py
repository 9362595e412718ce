"""What the paper's theorems speak of: the margin, the radius, and how many updates suffice."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.lr_perceptron._inputs import check_samples, check_signs
from offprints.lr_perceptron.rules import METHODS
from offprints.shared.validation import check_choice, check_number

GAP = 1e-10  # relative distance between the two bounds on the margin at which it is known


def _signed_samples(X: Tensor, y: Tensor) -> np.ndarray:
    """``y_i x_i`` in float64 on the CPU."""
    samples = check_samples(X)
    signs = check_signs(y, "y", samples)
    return (samples.cpu().double() * signs.cpu().double().unsqueeze(1)).numpy()


def radius(X: Float[Tensor, "n d"]) -> float:
    """R, the largest Euclidean norm of a sample.

    Raises:
        TypeError: X is not a floating tensor.
        ValueError: X not 2-D, empty or not finite.

    Example:
        >>> radius(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        5.0
    """
    samples = check_samples(X)
    largest = float(samples.abs().amax())
    if largest == 0:
        return 0.0
    # In units of the largest entry, so that no square overflows.
    return largest * float(torch.linalg.vector_norm(samples.cpu().double() / largest, dim=1).amax())


def margin(X: Float[Tensor, "n d"], y: Float[Tensor, " n"] | Int[Tensor, " n"]) -> float:
    """The margin ``mu``, the largest ``min_i y_i x_i . theta`` over unit vectors theta.

    It is the distance between 0 and the convex hull of the signed samples, found by Wolfe's algorithm in float64: a
    finite number of steps, each a product with all samples and a small system of equations. What is returned is the
    margin of a unit vector that was found, within a relative 1e-10 of the largest, or within the rounding errors of a
    product with the longest sample. Data that only a margin below about 1e-12 of the samples' norms separates count as
    not separable.

    Raises:
        TypeError: X is not a floating tensor, y not a tensor of numbers.
        ValueError: X not 2-D, empty or not finite; y of another length, with other values, or not separable.

    Example:
        >>> from offprints.lr_perceptron import worst_case_dataset
        >>> round(margin(*worst_case_dataset(10)), 6)
        0.5
    """
    signed = _signed_samples(X, y)
    unit = float(np.abs(signed).max())
    found = _nearest_point(signed / unit) if unit > 0 else None
    length = 0.0 if found is None else float(np.linalg.norm(found))
    attained = 0.0 if found is None or length == 0 else float((signed / unit @ (found / length)).min())
    if not attained > 0:
        raise ValueError(
            "X and y must be separable, by a margin beyond rounding errors: no theta was found with"
            " y_i (x_i . theta) > 0 for all samples"
        )
    return unit * attained


def _nearest_point(points: np.ndarray) -> np.ndarray | None:
    """The point of the convex hull that is nearest to 0 (Wolfe 1976), or None where 0 is in the hull."""
    norms = np.linalg.norm(points, axis=1)
    if norms.min() == 0:
        return None
    members = [int(norms.argmin())]
    shares = np.ones(1)
    nearest = points[members[0]]
    best, attained, stalled = nearest, -math.inf, False
    for _ in range(50 * (len(points) + points.shape[1])):
        heights = points @ nearest
        squared = float(nearest @ nearest)
        if squared <= 1e-24 * float(shares @ norms[members]) ** 2:  # what is left of a sum that has canceled
            return None
        lowest = float(heights.min()) / math.sqrt(squared)
        if lowest > attained:
            best, attained = nearest, lowest
        elif stalled:  # what is left is rounding
            return best
        # In units of the points' own lengths, in which all heights have the same rounding errors.
        missing = (heights - squared * (1 - GAP)) / norms
        entering = int(missing.argmin())
        if missing[entering] >= 0 or entering in members:
            return best
        members.append(entering)
        shares = np.append(shares, 0.0)
        while True:
            target = _affine_minimum(points[members])
            if (target > 0).all():
                shares = target
                break
            # Walk towards the minimum of the affine hull until a share is used up; that point leaves.
            falling = target <= 0
            ratio = np.min(shares[falling] / np.maximum(shares[falling] - target[falling], 1e-300))
            shares = shares + min(1.0, ratio) * (target - shares)
            moved = shares * norms[members]
            staying = moved > 1e-14 * moved.max()
            staying[-1] |= not staying.any()
            if staying.all():
                staying[np.where(falling)[0][shares[falling].argmin()]] = False
            members = [member for member, stays in zip(members, staying, strict=True) if stays]
            shares = shares[staying] / shares[staying].sum()
        nearest = shares @ points[members]
        stalled = float(nearest @ nearest) >= squared
    return best


def _affine_minimum(points: np.ndarray) -> np.ndarray:
    """Shares, summing to 1, of the point of the affine hull that is nearest to 0."""
    k = len(points)
    norms = np.linalg.norm(points, axis=1)
    inverse = norms.min() / norms
    directions = points / norms[:, None]
    # The equations for shares times norms: well scaled, however far apart the points' lengths are.
    system = np.zeros((k + 1, k + 1))
    system[:k, :k] = directions @ directions.T
    system[k, :k] = system[:k, k] = inverse
    right = np.zeros(k + 1)
    right[k] = 1
    try:
        found = np.linalg.solve(system, right)[:k]
    except np.linalg.LinAlgError:  # the points depend on each other
        found = np.linalg.lstsq(system, right, rcond=None)[0][:k]
    shares: np.ndarray = found * inverse
    return shares


def is_separable(X: Float[Tensor, "n d"], y: Float[Tensor, " n"] | Int[Tensor, " n"]) -> bool:
    """Whether a vector theta has ``y_i (x_i . theta) > 0`` for all samples, by a linear program (HiGHS).

    The program says yes only with a theta that was checked in float64; data that only a margin below about 1e-9 of the
    samples' norms separates count as not separable. There is no intercept: append a column of ones for one.

    Raises:
        TypeError: X is not a floating tensor, y not a tensor of numbers.
        ValueError: X not 2-D, empty or not finite; y of another length or with other values.

    Example:
        >>> X = torch.tensor([[1.0], [2.0], [3.0]])
        >>> is_separable(X, torch.tensor([1, 1, 1])), is_separable(X, torch.tensor([1, -1, 1]))
        (True, False)
    """
    signed = _signed_samples(X, y)
    largest = np.abs(signed).max(1, keepdims=True)
    if not bool((largest > 0).all()):
        return False  # a sample of zeros is on no side
    signed = signed / largest
    signed /= np.linalg.norm(signed, axis=1, keepdims=True)  # separation does not depend on lengths
    from scipy.optimize import linprog

    n, d = signed.shape
    # The largest height t <= 1 such that all signed samples are at least t high, in a box of directions.
    constraints = np.concatenate([-signed, np.ones((n, 1))], 1)
    objective = np.zeros(d + 1)
    objective[d] = -1
    bounds = [(-1, 1)] * d + [(None, 1)]
    found = linprog(objective, A_ub=constraints, b_ub=np.zeros(n), bounds=bounds, method="highs")
    return found.x is not None and bool((signed @ found.x[:d]).min() > 1e-9 * np.linalg.norm(found.x[:d]))


def iteration_bound(method: str, *, n: int, radius: float, margin: float, step_size: float = math.inf) -> float:
    """How many updates from 0 suffice by the paper's theorems.

    - ``"perceptron"``, ``"normalized_batch_perceptron"``: ``R^2 / mu^2`` (Theorems 5.2 and 5.3);
    - ``"batch_perceptron"``: ``n R^2 / mu^2`` (Theorem 3.3); so ``"lr_gd"`` in the limit of large step sizes;
    - ``"normalized_lr_gd"``: ``R^2 / mu^2 + 2 log(2 n - 1) / (gamma mu^2)`` (Theorem 6.1).

    Args:
        method: One of `METHODS`.
        n: Number of samples.
        radius: R, of `radius`.
        margin: mu, of `margin`.
        step_size: gamma, infinite for the limit; the perceptrons have none.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an unknown method, ``n`` < 1, ``radius``, ``margin`` or ``step_size`` not positive, a margin above
            the radius, or so small that the bound is beyond every float; a finite ``step_size`` for ``"lr_gd"``, for
            which the paper has no bound.

    Example:
        >>> round(iteration_bound("normalized_lr_gd", n=1000, radius=1.25**0.5, margin=0.5, step_size=0.1))
        613
    """
    check_choice(method, "method", METHODS)
    n = check_number(n, "n", low=1, integer=True)
    margin = check_number(margin, "margin", low=0, open_low=True)
    radius = check_number(radius, "radius", low=0, open_low=True)
    if radius < margin * (1 - 1e-6):
        raise ValueError(f"radius must be at least the margin, {margin}, got {radius}")
    step_size = check_number(step_size, "step_size", low=0, open_low=True, high=math.inf)
    ratio = radius / margin
    squared = ratio * ratio
    if method == "lr_gd" and step_size != math.inf:
        raise ValueError(f"step_size must be infinite for 'lr_gd', which has no bound otherwise, got {step_size}")
    bound = squared
    if method in ("lr_gd", "batch_perceptron"):
        bound = n * squared
    if method == "normalized_lr_gd":
        bound = squared + 2 * math.log(2 * n - 1) / step_size / margin / margin
    if not math.isfinite(bound):
        raise ValueError(f"margin must be large enough for a finite bound, got {margin}")
    return bound
