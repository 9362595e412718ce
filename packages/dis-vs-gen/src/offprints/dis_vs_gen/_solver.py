"""L2-regularized logistic regressions, a batch of them at once, by L-BFGS with an analytic gradient.

Each problem minimizes ``mean log-loss + ||W||^2 / (2 C m)`` over the weights and a free intercept. Three things make it
cheap: the logits are linear along a direction, so that a line search needs no product with the data; features are
centered without a copy, which only renames the intercept; and the metric to start from is the diagonal of the Hessian
at zero. Products run in the type of the data, sums in float64; where float32 stalls short of the tolerance, the last
steps run in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from offprints.shared.device import float32_region

HISTORY = 10
TRIALS = 25
DECREASE = 0.01  # of the objective, relative, in units of the tolerance
VARIANCE_ROWS = 2000


@dataclass
class Solution:
    """Weights ``[B, rows, d]`` and intercepts ``[B, rows]`` in float64 (one row for two classes); per problem the
    number of steps, whether the gradient came below the tolerance, and its largest entry."""

    weight: Tensor
    intercept: Tensor
    n_iter: Tensor
    converged: Tensor
    gradient: Tensor


class SparseRows:
    """One problem's rows in a CSR matrix ``[m, d]`` behind the three products that the solver needs of X."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.shape = (1, *matrix.shape)
        self.device = torch.device("cpu")
        self.dtype = torch.from_numpy(matrix.data[:0]).dtype

    def to(self, dtype: torch.dtype) -> SparseRows:
        """The same in another type."""
        return self if dtype == self.dtype else SparseRows(self.matrix.astype(str(dtype).removeprefix("torch.")))

    def times(self, weight: Tensor) -> Tensor:
        """``[1, m, rows]``, of weights ``[1, rows, d]``."""
        return torch.from_numpy(self.matrix @ weight[0].T.contiguous().numpy()).unsqueeze(0)

    def pulled(self, residual: Tensor) -> Tensor:
        """``[1, rows, d]``, of residuals ``[1, rows, m]``."""
        return torch.from_numpy(self.matrix.T @ residual[0].T.contiguous().numpy()).T.unsqueeze(0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[1, d]`` of the features, float64."""
        wide = self.matrix.astype("float64")
        mean = torch.as_tensor(wide.mean(0)).view(1, -1)
        square = torch.as_tensor(wide.multiply(wide).mean(0)).view(1, -1)
        return mean, (square - mean.square()).clamp_(min=0)


def _times(X: Tensor | SparseRows, weight: Tensor) -> Tensor:
    # Few columns on the right are multiplied faster than few rows on the left.
    return torch.bmm(X, weight.mT) if isinstance(X, Tensor) else X.times(weight)


def _pulled(X: Tensor | SparseRows, residual: Tensor) -> Tensor:
    return residual @ X if isinstance(X, Tensor) else X.pulled(residual)


@dataclass
class _Problems:
    """Data of the problems: X ``[B, m, d]``, y ``[B, m]``, the features' mean, the metric, the regularization."""

    X: Tensor | SparseRows
    y: Tensor
    weights: Tensor | None  # [B, m], of mean 1
    mean: Tensor  # [B, d], zero without intercept
    metric: Tensor  # [B, 1, d + 1]
    strength: Tensor  # [B, 1, 1], 1 / (C m)
    rows: int
    intercept: bool

    def select(self, index: Tensor) -> _Problems:
        """Some of the problems."""
        parts = {name: getattr(self, name)[index] for name in ("y", "mean", "metric", "strength")}
        weights = None if self.weights is None else self.weights[index]
        X = self.X
        if isinstance(X, Tensor):  # problems of the same data share its memory
            X = X[:1].expand(len(index), -1, -1) if X.stride(0) == 0 else X[index]
        return replace(self, X=X, weights=weights, **parts)

    def weighed(self, values: Tensor) -> Tensor:
        """Values ``[B, m]`` or ``[B, rows, m]`` by the samples' weights."""
        if self.weights is None:
            return values
        return values * (self.weights if values.ndim == 2 else self.weights.unsqueeze(1)).to(values.dtype)

    def logits(self, theta: Tensor) -> Tensor:
        """``[B, rows, m]``: samples last, so that sums over few classes run along contiguous memory."""
        weight = theta[..., :-1]
        offset = theta[..., -1] - (weight @ self.mean.unsqueeze(-1)).squeeze(-1)
        product = _times(self.X, weight.to(self.X.dtype))
        return product.mT.contiguous().add_(offset.unsqueeze(-1).to(self.X.dtype))

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mean log-loss ``[B]`` and probabilities ``[B, rows, m]``; with one row that of the second class."""
        own = logits.squeeze(1) * self.y if self.rows == 1 else logits.gather(1, self.y.unsqueeze(1)).squeeze(1)
        if self.rows == 1:
            total = torch.nn.functional.softplus(logits).squeeze(1)
            probability = logits.sigmoid()
        else:
            top = logits.amax(1, keepdim=True)
            exponential = (logits - top).exp_()
            normalizer = exponential.sum(1, keepdim=True)
            probability = exponential.div_(normalizer)
            total = (normalizer.log_() + top).squeeze(1)
        return self.weighed(total - own).mean(1, dtype=torch.float64), probability

    def along(self, probability: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative ``[B]`` of the mean log-loss along a direction of the logits."""
        weighted = probability * direction
        mean = weighted.sum(1)
        if self.rows == 1:
            own = direction.squeeze(1) * self.y
            second = (weighted * direction).squeeze(1) - mean.square()
        else:
            own = direction.gather(1, self.y.unsqueeze(1)).squeeze(1)
            second = weighted.mul_(direction).sum(1) - mean.square()
        first = self.weighed(mean - own).mean(1, dtype=torch.float64)
        return first, self.weighed(second).mean(1, dtype=torch.float64)

    def gradient(self, theta: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``[B, rows, d + 1]`` in the centered parameters, and its largest entry ``[B]`` in the user's."""
        if self.rows == 1:
            residual = probability - self.y.unsqueeze(1)
        else:
            ones = probability.new_full((), -1.0).expand(self.y.unsqueeze(1).shape)
            residual = probability.scatter_add(1, self.y.unsqueeze(1), ones)
        m = self.y.shape[1]
        residual = self.weighed(residual)
        plain = _pulled(self.X, residual).double() / m + self.strength * theta[..., :-1]
        total = residual.mean(-1, keepdim=True, dtype=torch.float64) * float(self.intercept)
        largest = torch.maximum(plain.abs().amax((1, 2)), total.abs().amax((1, 2)))
        if self.rows > 1:  # a common intercept changes nothing: rounding must not carry it away
            total = total - total.mean(1, keepdim=True)
        return torch.cat([plain - total * self.mean.unsqueeze(1), total], -1), largest


def solve(
    X: Tensor | SparseRows,
    y: Tensor,
    C: Tensor,
    *,
    n_classes: int,
    fit_intercept: bool,
    max_iter: int,
    tol: float,
    weights: Tensor | None = None,
) -> Solution:
    """Fit problems X ``[B, m, d]`` (float32 or float64), labels y ``[B, m]`` in [0, n_classes), C ``[B]``.

    With weights ``[B, m]`` the mean log-loss is the weighted mean, and m in the penalty the sum of the weights. An
    infinite C leaves the penalty out.
    """
    with float32_region(X.device):
        return _solve(X, y, C, n_classes, fit_intercept, max_iter, tol, weights)


def _solve(
    X: Tensor | SparseRows,
    y: Tensor,
    C: Tensor,
    n_classes: int,
    fit_intercept: bool,
    max_iter: int,
    tol: float,
    weights: Tensor | None,
) -> Solution:
    batch, m, d = X.shape
    rows = 1 if n_classes == 2 else n_classes
    mean, variance = (value.expand(batch, -1) for value in _moments(X))
    curvature = (1 / n_classes) * (1 - 1 / n_classes)
    total = torch.full((batch,), float(m), dtype=torch.float64, device=X.device)
    if weights is not None:
        total = weights.sum(1)
        weights = weights * (m / total).unsqueeze(1)
    strength = (1 / (C.to(X.device, torch.float64) * total)).view(-1, 1, 1)
    if not fit_intercept:
        mean, variance = torch.zeros_like(mean), variance + mean.square()
    metric = curvature * torch.nn.functional.pad(variance, (0, 1), value=1.0).unsqueeze(1)
    metric[..., :-1] += strength
    # A feature that never varies has no curvature where nothing is penalized: it stays at 0.
    metric = torch.where(metric > 0, metric, 1)
    problems = _Problems(X, y, weights, mean, metric, strength, rows, fit_intercept)
    theta = torch.zeros(batch, rows, d + 1, dtype=torch.float64, device=X.device)
    solution = Solution(
        weight=theta[..., :-1],
        intercept=theta[..., -1],
        n_iter=torch.zeros(batch, dtype=torch.int64, device=X.device),
        converged=torch.zeros(batch, dtype=torch.bool, device=X.device),
        gradient=torch.full((batch,), torch.inf, dtype=torch.float64, device=X.device),
    )
    left = torch.arange(batch, device=X.device)
    for dtype in dict.fromkeys((X.dtype, torch.float64)):
        part = problems if len(left) == batch else problems.select(left)
        _descend(replace(part, X=part.X.to(dtype)), theta, left, solution, max_iter, tol)
        left = ((~solution.converged) & (solution.n_iter < max_iter)).nonzero().squeeze(1)
        if len(left) == 0:
            break
    solution.weight = theta[..., :-1]
    solution.intercept = (theta[..., -1] - (solution.weight @ mean.unsqueeze(-1)).squeeze(-1)) * float(fit_intercept)
    return solution


def _moments(X: Tensor | SparseRows) -> tuple[Tensor, Tensor]:
    """Mean ``[B, d]`` of the features, and their variance, of at most some thousand rows: it only sets the metric."""
    if isinstance(X, SparseRows):
        return X.moments()
    m = X.shape[1]
    if X.stride(0) == 0:  # the same data for every problem
        X = X[:1]
    mean = (X.new_full((len(X), 1, m), 1 / m) @ X).squeeze(1).double()
    if m > VARIANCE_ROWS:
        some = torch.randint(m, (VARIANCE_ROWS,), generator=torch.Generator().manual_seed(0), device="cpu")
        X = X[:, some.to(X.device)]
    # The squares of large float32 values need float64.
    return mean, (X.double() - mean.unsqueeze(1)).square_().mean(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).view(-1, 1, 1)


class _Memory:
    """The last steps and changes of the gradient, and the two-loop recursion."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change, 1 / (step . change) or 0
        self.scale: Tensor | None = None

    def add(self, step: Tensor, change: Tensor, metric: Tensor) -> None:
        product = _dot(step, change)
        good = product > 1e-12 * _dot(step, step * metric)
        inverse = torch.where(good, 1 / product, 0)
        scale = torch.where(good, product / _dot(change, change / metric), 1.0)
        self.scale = scale if self.scale is None else torch.where(good, scale, self.scale)
        self.pairs = [*self.pairs[1 - HISTORY :], (step, change, inverse)]

    def select(self, index: Tensor) -> None:
        self.pairs = [(s[index], c[index], i[index]) for s, c, i in self.pairs]
        self.scale = None if self.scale is None else self.scale[index]

    def direction(self, gradient: Tensor, metric: Tensor) -> Tensor:
        vector, weights = -gradient, []
        for step, change, inverse in reversed(self.pairs):
            weights.append(inverse * _dot(step, vector))
            vector.addcmul_(weights[-1], change, value=-1)
        vector.div_(metric)
        if self.scale is not None:
            vector.mul_(self.scale)
        for (step, change, inverse), weight in zip(self.pairs, reversed(weights), strict=True):
            vector.addcmul_(weight - inverse * _dot(change, vector), step)
        return vector


def _descend(
    problems: _Problems, thetas: Tensor, indices: Tensor, solution: Solution, max_iter: int, tol: float
) -> None:
    """Minimize until every problem is at its tolerance, stalls, or has made ``max_iter`` steps."""
    theta, memory = thetas[indices], _Memory()
    logits = problems.logits(theta)
    loss, probability = problems.terms(logits)
    gradient, largest = problems.gradient(theta, probability)
    stalled = torch.zeros_like(largest, dtype=torch.bool)
    while True:
        close = _close(problems, memory, gradient, largest, loss, tol)
        if bool(close.any()):  # logits were updated step by step: believe fresh ones only
            logits = problems.logits(theta)
            loss, probability = problems.terms(logits)
            gradient, largest = problems.gradient(theta, probability)
            close = _close(problems, memory, gradient, largest, loss, tol)
        done = close | stalled | (solution.n_iter[indices] >= max_iter)
        thetas[indices] = theta
        solution.gradient[indices], solution.converged[indices] = largest, largest <= tol
        if bool(done.all()):
            return
        if int(done.sum()) * 2 >= len(done) > 1:  # the others go on without them
            keep = (~done).nonzero().squeeze(1)
            problems, indices, done, stalled = problems.select(keep), indices[keep], done[keep], stalled[keep]
            theta, logits, loss, gradient, largest = (value[keep] for value in (theta, logits, loss, gradient, largest))
            memory.select(keep)
        direction = memory.direction(gradient, problems.metric)
        downhill = _dot(direction, gradient) < 0
        direction = torch.where(downhill, direction, -gradient / problems.metric)
        direction = direction * ~done.view(-1, 1, 1)
        slope = _dot(direction, gradient).view(-1)
        size, loss, logits, probability, found = _search(problems, theta, direction, slope, loss, logits)
        step = size.view(-1, 1, 1) * direction
        theta = theta + step
        before = gradient
        gradient, largest = problems.gradient(theta, probability)
        memory.add(step, gradient - before, problems.metric)
        stalled = stalled | (~found & ~done)
        solution.n_iter[indices] += ~done


def _close(problems: _Problems, memory: _Memory, gradient: Tensor, largest: Tensor, loss: Tensor, tol: float) -> Tensor:
    """Which problems are solved: a gradient of at most ``tol``, and nothing to be gained by the next step.

    The gradient alone does not tell: in many rows or weak directions it is small where the objective is not yet.
    """
    small = largest <= tol
    if not bool(small.any()):
        return small
    gain = -_dot(memory.direction(gradient, problems.metric), gradient).view(-1) / 2
    return small & (gain <= DECREASE * tol * loss.clamp(min=1e-3))


def _search(
    problems: _Problems, theta: Tensor, direction: Tensor, slope: Tensor, loss: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Step sizes ``[B]`` with a sufficient decrease and a slope much smaller than at the start, by Newton's method in
    a bracket; then loss, logits and probabilities there, and whether one was found (otherwise the size is 0)."""
    weight, along_weight = theta[..., :-1], direction[..., :-1]
    # Along the direction the penalty is a parabola.
    bend = (problems.strength * along_weight.square()).sum((1, 2))
    tilt = (problems.strength * weight * along_weight).sum((1, 2))
    change = problems.logits(direction)
    # The loss is a difference of logits: it is as exact as these are.
    noise = 8 * torch.finfo(logits.dtype).eps * (loss.abs() + logits.abs().mean((1, 2)))
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    size, found = torch.ones_like(slope), slope >= 0
    best = torch.zeros_like(slope)
    for _ in range(TRIALS):
        there = torch.addcmul(logits, size.to(logits.dtype).view(-1, 1, 1), change)
        value, probability = problems.terms(there)
        first, second = problems.along(probability, change)
        first, second = first + tilt + size * bend, second + bend
        rise = value - loss + size * tilt + size.square() * bend / 2
        good = (rise <= 1e-4 * size * slope + noise) & (first.abs() <= 0.5 * slope.abs())
        best = torch.where(good & ~found, size, best)
        found = found | good
        if bool(found.all()):
            break
        beyond = (first > 0) | (rise > noise)
        low, high = torch.where(beyond, low, size), torch.where(beyond, size, high)
        newton = size - first / second
        middle = torch.where(high.isinf(), 4 * size, (low + high) / 2)
        size = torch.where(found, best, torch.where((newton > low) & (newton < high), newton, middle))
    if not torch.equal(size, best):
        there = torch.addcmul(logits, best.to(logits.dtype).view(-1, 1, 1), change)
        value, probability = problems.terms(there)
    return best, value, there, probability, found & (slope < 0)
