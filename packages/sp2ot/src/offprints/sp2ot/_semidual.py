"""The semi-dual of partial transport: a smooth concave function of one number per column.

With the rows eliminated, the log-scalings ``g`` of the columns are the only unknowns. For costs ``A`` in units of the
smoothing ``epsilon``, row masses ``w`` (``1/N``) and column targets ``beta`` with softness ``s = epsilon / gamma``
(0: an equality),

    F(g) = -sum_i w_i logsumexp_k(g_k - A_ik) + sum_k beta_k (1 - exp(-s_k g_k)) / s_k
    dF/dg = e - c,   e_k = beta_k exp(-s_k g_k),   c_k = sum_i w_i softmax_k(g - A_i)

where ``c`` are the masses that the columns get and ``e`` those that they ask for. A column whose target is a capacity
has ``s = 0`` and the constraint ``g <= 0``: at 0 it may stay below its target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

# The kernel is computed anew when g leaves its anchor by this much: products of the two stay far from overflow.
ANCHOR_RANGE = 30.0
SWEEP_RANGE = 200.0  # the same within a few scaling steps
SMALLEST = 1e-200
# Shares below this are dropped from Newton's matrix, whose rounding is far larger: products of two would be subnormal
# float32 numbers, which some processors multiply a hundred times slower. The kernel's bound allows for ANCHOR_RANGE.
NEGLIGIBLE_SHARE, NEGLIGIBLE_KERNEL = 1e-18, 1e-31
SMALL = 20_000  # entries below which conversions to float32 cost more than they gain
MANY_COLUMNS = 1000  # from here on Newton's equations are solved with products alone: the matrix costs N K^2 and K^3
MOST_PRODUCTS = 200  # after so many the matrix is formed after all,
LARGEST_MATRIX = 4000  # if it has no more columns than this


@dataclass(frozen=True)
class Point:
    """What is known of the semi-dual at ``g``, for a batch of problems."""

    g: Float[Tensor, "batch columns"]
    value: Float[Tensor, " batch"]
    mass: Float[Tensor, "batch columns"]  # c
    wanted: Float[Tensor, "batch columns"]  # e
    gradient: Float[Tensor, "batch columns"]  # e - c, 0 for a column at its bound that gets less than its capacity
    residual: Float[Tensor, " batch"]  # ||gradient||_1, infinite where the value is not finite
    row_sums: Float[Tensor, "batch samples"]  # of the anchored kernel

    def where(self, chosen: Bool[Tensor, " batch"], other: Point) -> Point:
        """This point for the chosen problems, ``other`` for the rest."""
        if bool(chosen.all()):
            return self
        flat, tall = chosen, chosen.unsqueeze(-1)
        return Point(
            torch.where(tall, self.g, other.g),
            torch.where(flat, self.value, other.value),
            torch.where(tall, self.mass, other.mass),
            torch.where(tall, self.wanted, other.wanted),
            torch.where(tall, self.gradient, other.gradient),
            torch.where(flat, self.residual, other.residual),
            torch.where(tall, self.row_sums, other.row_sums),
        )


class SemiDual:
    """A batch of problems.

    The kernel ``exp(g - A)`` is kept relative to an anchor of ``g`` and to the largest entry of each row, so that a
    value and a gradient cost two matrix-vector products and no exponential of its size.

    Args:
        cost: In any floating type.
        target: ``beta``, positive, of each problem and column, or of each column.
        softness: ``s`` of each problem and column.
        epsilon: Smoothing: the unit of the costs, one for all problems or of each.
        virtual: Whether a column of zeros follows the costs.
        rows: ``w``; default: ``1/N``.
        capped: Columns whose target is a capacity.
    """

    def __init__(
        self,
        cost: Float[Tensor, "batch samples real"],
        target: Float[Tensor, "*batch columns"],
        softness: Float[Tensor, "batch columns"],
        *,
        epsilon: float | Float[Tensor, " batch"] = 1.0,
        virtual: bool = False,
        rows: Float[Tensor, "batch samples"] | None = None,
        capped: Bool[Tensor, " columns"] | None = None,
    ) -> None:
        self.cost, self.target, self.softness = cost, target.expand(len(cost), -1), softness
        self.virtual, self.rows, self.capped = virtual, rows, capped
        self.samples, self.real = cost.shape[1:]
        self.columns = self.real + virtual
        self.unit = epsilon[:, None, None] if isinstance(epsilon, Tensor) else epsilon
        hard = softness == 0
        self.all_hard = capped is None and bool(hard.all())
        # The gain of g is linear where the target is exact, and -gain_of expm1(-s g) where it is soft.
        self.linear = torch.where(hard, self.target, 0.0)
        self.gain_of = torch.where(hard, 0.0, self.target / softness)
        self.exponent = 1 / (1 + softness)
        # Where next to nothing is transported, 1 - rho minus the mass of the virtual column has no digits left.
        self.share = self.target[:, :-1].sum(-1)
        self.small_share = virtual and capped is None and bool((self.share < 0.5).all())
        self.least = float(self.share.min().clamp(1e-13, 1.0)) if self.small_share else 1.0
        self.kernel = torch.empty(0, dtype=torch.float64, device=cost.device)
        self.anchored = self.kernel  # where the kernel is computed; of no size before
        self.narrow: Tensor | None = None

    def anchor(self, g: Float[Tensor, "batch columns"]) -> None:
        """Compute the kernel at ``g``."""
        shape = (len(self.cost), self.samples, self.columns)
        kernel = self.kernel if self.kernel.shape == shape else self.kernel.new_empty(shape)
        real = kernel[:, :, : self.real]
        if self.cost.dtype == torch.float64:
            torch.div(self.cost, self.unit, out=real)
        else:
            real.copy_(self.cost)
            real.div_(self.unit)
        torch.sub(g[:, None, : self.real], real, out=real)
        if self.virtual:
            kernel[:, :, self.real] = g[:, self.real :]
        self.row_anchor = kernel.amax(-1, keepdim=True)
        self.kernel = kernel.sub_(self.row_anchor).exp_()
        if len(kernel) == 1:  # products of a matrix with a vector have the least overhead
            self.matrix, self.transposed = kernel[0], kernel[0].t()
        self.mean_anchor = self._weighted(self.row_anchor.squeeze(-1))
        self.narrow = None
        self.anchored = g

    def at(self, g: Float[Tensor, "batch columns"]) -> Point:
        """Value and gradient at ``g``, which must not be far from the anchor."""
        scale = (g - self.anchored).exp()
        sums = self._times(scale)
        mass = scale * self._times_transposed(self._inverse(sums))
        growth = (self.softness * -g).expm1()
        wanted = self.target + self.target * growth
        value = (self.linear * g - self.gain_of * growth).sum(-1) - self._weighted(sums.log()) - self.mean_anchor
        gradient = wanted - mass
        if self.small_share:
            gradient[:, -1] = mass[:, :-1].sum(-1) - self.share
        if self.capped is not None:
            gradient = torch.where(self.capped & (g >= 0), gradient.clamp(max=0), gradient)
        residual = torch.where(value.isfinite(), gradient.abs().sum(-1), math.inf)
        return Point(g, value, mass, wanted, gradient, residual, sums)

    def move(self, g: Float[Tensor, "batch columns"]) -> Point:
        """The same at any ``g``: anchors there if need be, which ends the use of earlier points."""
        if self.anchored.ndim < 2 or not bool((g - self.anchored).abs().amax() <= ANCHOR_RANGE):
            self.anchor(g)
        return self.at(g)

    def allowed(self, g: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch columns"]:
        """``g`` with the columns that have a capacity put back to their bound, and all moved until one is there.

        Moving all columns together changes no plan, and gains the capacity that is left over.
        """
        if self.capped is None:
            return g
        g = self._bounded(g)
        return g - torch.where(self.capped, g, -math.inf).amax(-1, keepdim=True)

    def _bounded(self, g: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch columns"]:
        return g if self.capped is None else torch.where(self.capped, g.clamp(max=0), g)

    def log_rows(self, point: Point) -> Float[Tensor, "batch samples"]:
        """The log-scaling of every row that makes its shares 1 together."""
        return -(point.row_sums.log() + self.row_anchor.squeeze(-1))

    def row_potential(self, log_rows: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
        """``F`` that gives every row its mass."""
        return log_rows - math.log(self.samples) if self.rows is None else log_rows + self.rows.log()

    def shares(self, point: Point, log_rows: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples columns"]:
        """``exp(F + g - A) / w``, in the kernel's place: the last thing to ask."""
        self.kernel *= (point.g - self.anchored).exp().unsqueeze(1)
        self.kernel *= (log_rows.unsqueeze(-1) + self.row_anchor).exp()
        return self.kernel

    def scale(self, point: Point) -> Float[Tensor, "batch columns"]:
        """One step of the scaling iteration, ``b <- (beta / (M^T a))^f`` with ``f = 1 / (1 + s)``."""
        mass = point.mass
        if bool((mass < SMALLEST).any()):  # a column that underflows: its sum in the log domain
            real = (self.cost.double() / self.unit).neg_()
            logits = F.pad(real, (0, 1)) if self.virtual else real
            log_mass = (logits + self.row_potential(self.log_rows(point)).unsqueeze(-1)).logsumexp(1)
        else:
            log_mass = mass.log() - point.g
        return self._bounded((self.target.log() - log_mass) * self.exponent)

    def sweep(
        self, g: Float[Tensor, "batch columns"], steps: int
    ) -> tuple[Float[Tensor, "batch columns"], Float[Tensor, "batch samples"]] | None:
        """So many steps of :meth:`scale` on the scalings themselves, and the row sums before the last.

        None where they leave the range in which that is safe.
        """
        scale: Any = (g - self.anchored).exp()
        sums: Any = scale
        factor: Any = None if self.all_hard else (self.anchored * (self.exponent - 1)).exp()
        highest: Any = None if self.capped is None else torch.where(self.capped, (-self.anchored).exp(), math.inf)
        target: Any = self.target
        exponent: Any = self.exponent
        rows: Any = (1 / self.samples) if self.rows is None else self.rows
        times: Any = self._times
        transposed: Any = self._times_transposed
        if len(g) == 1:
            times, transposed = self.matrix.mv, self.transposed.mv
            parts = (scale, target, exponent, factor, highest, rows)
            scale, target, exponent, factor, highest, rows = (
                part[0] if isinstance(part, Tensor) else part for part in parts
            )
        for _ in range(steps):
            sums = times(scale)
            scale = target / transposed(rows / sums)
            if factor is not None:
                scale = scale.pow_(exponent).mul_(factor)
            if highest is not None:
                scale = scale.minimum(highest)
        scale, sums = scale.view_as(g), sums.view(len(g), self.samples)
        away = scale.log()
        return (self.anchored + away, sums) if bool(away.abs().amax() <= SWEEP_RANGE) else None

    def newton_direction(self, point: Point) -> Float[Tensor, "batch columns"]:
        """``(-Hessian)^-1 gradient``, in the columns that are not held at their bound."""
        if self.capped is None:
            return self._direction(point, None)
        held = self.capped & (point.g >= 0) & (point.gradient >= 0)
        none = ~held.any(-1, keepdim=True)
        # Without one that is held, moving all together gains next to nothing: the highest column stands for the rest,
        # and all are moved so that none leaves its bound.
        highest = torch.where(self.capped, point.g, -math.inf).argmax(-1, keepdim=True)
        direction = self._direction(point, held | (none & torch.zeros_like(held).scatter(-1, highest, True)))
        ahead = torch.where(self.capped, point.g + direction, -math.inf).amax(-1, keepdim=True)
        return direction - torch.where(none, ahead, 0.0)

    def _direction(self, point: Point, held: Bool[Tensor, "batch columns"] | None) -> Float[Tensor, "batch columns"]:
        if self.columns >= MANY_COLUMNS:
            direction, solved = self._by_products(point, held)
            if solved or self.columns > LARGEST_MATRIX:
                return direction
        return self._by_matrix(point, held)

    def _by_matrix(self, point: Point, held: Bool[Tensor, "batch columns"] | None) -> Float[Tensor, "batch columns"]:
        """The Hessian is ``-(L + diag(s e))`` with the Laplacian ``L`` of the graph on the columns that has the weights
        ``W = Y^T diag(w) Y``, ``Y = softmax``. Taking its diagonal from the sums of ``W`` keeps it positive
        semidefinite under rounding, and exact up to the precision of ``W`` in every direction: float32 is enough.
        """
        weights = self._joint_mass(point)
        weights.diagonal(dim1=1, dim2=2).zero_()
        diagonal = weights.sum(-1) + self.softness * point.wanted
        # Masses are at most 1: only a huge softness goes beyond, of which a hard column must not see anything.
        floor = 1e-12 * self.least * diagonal.amax(-1, keepdim=True).clamp(max=1.0) + 1e-30
        matrix = torch.diag_embed(diagonal + floor) - weights
        if self.all_hard:  # F does not change along the constants: they get a curvature of their own
            matrix += (diagonal.mean(-1) / self.columns)[:, None, None]
        if held is not None:
            matrix = matrix.masked_fill(held.unsqueeze(1) | held.unsqueeze(2), 0.0) + torch.diag_embed(held.double())
        factor, info = torch.linalg.cholesky_ex(matrix)
        for power in range(-10, 1, 2):
            if not bool(info.any()):
                break
            lifted = matrix + torch.diag_embed((10.0**power * diagonal.amax(-1, keepdim=True)).expand_as(diagonal))
            again, failed = torch.linalg.cholesky_ex(lifted)
            bad = info != 0
            factor = torch.where(bad[:, None, None], again, factor)
            info = torch.where(bad, failed, info)
        return torch.cholesky_solve(point.gradient.unsqueeze(-1), factor).squeeze(-1)

    def _joint_mass(self, point: Point) -> Float[Tensor, "batch columns columns"]:
        """``Y^T diag(w) Y``."""
        scale = (point.g - self.anchored).exp()
        per_row = self._inverse(point.row_sums) / (point.row_sums if self.rows is not None else 1.0)
        per_row = per_row.sqrt() if self.rows is not None else per_row * self.samples**0.5
        if self.kernel.numel() <= SMALL:
            shares = self.kernel * scale.unsqueeze(1) * per_row.unsqueeze(-1)
            return torch.bmm(shares.mT, shares)
        if self.narrow is None:
            self.narrow = F.threshold(self.kernel.float(), NEGLIGIBLE_KERNEL, 0, inplace=True)
        single = self.narrow * scale.float().unsqueeze(1)
        single *= per_row.float().unsqueeze(-1)
        F.threshold(single, NEGLIGIBLE_SHARE, 0, inplace=True)
        return torch.bmm(single.mT, single).double()

    def _by_products(
        self, point: Point, held: Bool[Tensor, "batch columns"] | None
    ) -> tuple[Float[Tensor, "batch columns"], bool]:
        """Conjugate gradients, as far as the distance from the solution deserves, and whether they got there.

        The diagonal that they are scaled by makes all eigenvalues at most 1: the same that the scaling iteration
        converges by, of which conjugate gradients need the root.
        """
        scale = (point.g - self.anchored).exp()
        diagonal = point.mass + self.softness * point.wanted + 1e-30
        inverse = 1 / diagonal
        per_row = self._inverse(point.row_sums) / point.row_sums
        free = None if held is None else (~held).double()

        def times(v: Tensor) -> Tensor:
            across = self._times_transposed(self._times(scale * v) * per_row)
            out = diagonal * v - scale * across
            return out if free is None else out * free

        residual = point.gradient if free is None else point.gradient * free
        x = torch.zeros_like(residual)
        p = z = residual * inverse
        size = first = (residual * z).sum(-1, keepdim=True)
        enough = first * point.residual.unsqueeze(-1).clamp(max=0.1) ** 2
        for _ in range(MOST_PRODUCTS):
            if not bool((size > enough).any()):
                return x, True
            q = times(p)
            curvature = (p * q).sum(-1, keepdim=True)
            going = (size > enough) & (curvature > 0)
            step = torch.where(going, size / curvature, 0.0)
            x, residual = x + step * p, residual - step * q
            z = residual * inverse
            new = (residual * z).sum(-1, keepdim=True)
            p = z + torch.where(going, new / size, 0.0) * p
            size = torch.where(going, new, 0.0)
        return x, False

    def _times(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch samples"]:
        if len(x) == 1:
            return torch.mv(self.matrix, x[0]).unsqueeze(0)
        return torch.bmm(self.kernel, x.unsqueeze(-1)).squeeze(-1)

    def _times_transposed(self, x: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch columns"]:
        if len(x) == 1:
            return torch.mv(self.transposed, x[0]).unsqueeze(0)
        return torch.bmm(x.unsqueeze(1), self.kernel).squeeze(1)

    def _inverse(self, sums: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
        """``w / sums``."""
        return (1 / self.samples) / sums if self.rows is None else self.rows / sums

    def _weighted(self, x: Float[Tensor, "batch samples"]) -> Float[Tensor, " batch"]:
        """``sum_i w_i x_i``."""
        return x.mean(-1) if self.rows is None else (self.rows * x).sum(-1)
