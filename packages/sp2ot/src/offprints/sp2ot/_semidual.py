"""The semi-dual of partial transport: a smooth concave function of one number per column.

With the rows eliminated, the log-scalings ``g`` of the columns are the only unknowns. For costs ``A`` in units of the
smoothing ``epsilon`` and column targets ``beta`` with softness ``s = epsilon / gamma`` (0: an equality),

    F(g) = -1/N sum_i logsumexp_k(g_k - A_ik) + sum_k beta_k (1 - exp(-s_k g_k)) / s_k
    dF/dg = e - c,   e_k = beta_k exp(-s_k g_k),   c_k = 1/N sum_i softmax_k(g - A_i)

where ``c`` are the masses that the columns get and ``e`` those that they ask for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

# The kernel is computed anew when g leaves its anchor by this much: products of the two stay far from overflow.
ANCHOR_RANGE = 30.0
SMALLEST = 1e-200
# Shares below this are dropped from Newton's matrix, whose rounding is far larger: products of two would be subnormal
# float32 numbers, which some processors multiply a hundred times slower. The kernel's bound allows for ANCHOR_RANGE.
NEGLIGIBLE_SHARE, NEGLIGIBLE_KERNEL = 1e-18, 1e-31


@dataclass(frozen=True)
class Point:
    """What is known of the semi-dual at ``g``, for a batch of problems."""

    g: Float[Tensor, "batch columns"]
    value: Float[Tensor, " batch"]
    mass: Float[Tensor, "batch columns"]  # c
    wanted: Float[Tensor, "batch columns"]  # e
    gradient: Float[Tensor, "batch columns"]  # e - c
    residual: Float[Tensor, " batch"]  # ||e - c||_1, infinite where the value is not finite
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
    """A batch of problems that share their targets.

    The kernel ``exp(g - A)`` is kept relative to an anchor of ``g`` and to the largest entry of each row, so that a
    value and a gradient cost two matrix-vector products and no exponential of its size.

    Args:
        scaled_cost: ``A``, float64.
        target: ``beta``, positive.
        softness: ``s`` of each problem and column.
    """

    def __init__(
        self,
        scaled_cost: Float[Tensor, "batch samples columns"],
        target: Float[Tensor, " columns"],
        softness: Float[Tensor, "batch columns"],
    ) -> None:
        self.scaled_cost, self.target, self.softness = scaled_cost, target, softness
        self.hard = softness == 0
        self.samples = scaled_cost.shape[1]

    def anchor(self, g: Float[Tensor, "batch columns"]) -> None:
        """Compute the kernel at ``g``."""
        logits = g.unsqueeze(1) - self.scaled_cost
        self.row_anchor = logits.amax(-1, keepdim=True)
        self.kernel = logits.sub_(self.row_anchor).exp_()
        self.single_kernel: Tensor | None = None
        self.anchored = g

    def at(self, g: Float[Tensor, "batch columns"]) -> Point:
        """Value and gradient at ``g``, which must not be far from the anchor."""
        scale = (g - self.anchored).exp()
        rows = torch.bmm(self.kernel, scale.unsqueeze(-1)).squeeze(-1)
        mass = scale * torch.bmm(rows.reciprocal().unsqueeze(1), self.kernel).squeeze(1) / self.samples
        fill = -(self.softness * g)
        wanted = self.target * fill.exp()
        gain = torch.where(self.hard, self.target * g, -self.target * fill.expm1() / self.softness)
        value = gain.sum(-1) - (rows.log() + self.row_anchor.squeeze(-1)).mean(-1)
        gradient = wanted - mass
        residual = torch.where(value.isfinite(), gradient.abs().sum(-1), math.inf)
        return Point(g, value, mass, wanted, gradient, residual, rows)

    def move(self, g: Float[Tensor, "batch columns"]) -> Point:
        """The same at any ``g``: anchors there if need be, which ends the use of earlier points."""
        if not bool((g - self.anchored).abs().amax() <= ANCHOR_RANGE):
            self.anchor(g)
        return self.at(g)

    def row_potential(self, point: Point) -> Float[Tensor, "batch samples"]:
        """``F`` that gives every row its mass ``1/N``."""
        return -(point.row_sums.log() + self.row_anchor.squeeze(-1)) - math.log(self.samples)

    def plan(self, point: Point) -> Float[Tensor, "batch samples columns"]:
        """``exp(F + g - A)``."""
        scale = (point.g - self.anchored).exp().unsqueeze(1)
        return self.kernel * scale / (point.row_sums * self.samples).unsqueeze(-1)

    def scale(self, point: Point) -> Float[Tensor, "batch columns"]:
        """One step of the scaling iteration, ``b <- (beta / (M^T a))^f`` with ``f = 1 / (1 + s)``."""
        mass = point.mass
        if bool((mass < SMALLEST).any()):  # a column that underflows: its sum in the log domain
            logits = point.g.unsqueeze(1) - self.scaled_cost + self.row_potential(point).unsqueeze(-1)
            log_mass = logits.logsumexp(1)
        else:
            log_mass = mass.log()
        return (self.target.log() - log_mass + point.g) / (1 + self.softness)

    def newton_direction(self, point: Point) -> Float[Tensor, "batch columns"]:
        """``(-Hessian)^-1 gradient``.

        The Hessian is ``-(L + diag(s e))`` with the Laplacian ``L`` of the graph on the columns that has the weights
        ``W = Y^T Y / N``, ``Y = softmax``. Taking its diagonal from the sums of ``W`` keeps it positive semidefinite
        under rounding, and exact up to the precision of ``W`` in every direction: float32 is enough.
        """
        if self.single_kernel is None:
            self.single_kernel = F.threshold(self.kernel, NEGLIGIBLE_KERNEL, 0).float()
        shares = self.single_kernel * (point.g - self.anchored).exp().float().unsqueeze(1)
        shares *= (point.row_sums.reciprocal() / self.samples**0.5).float().unsqueeze(-1)
        F.threshold(shares, NEGLIGIBLE_SHARE, 0, inplace=True)
        weights = torch.bmm(shares.mT, shares).double()
        weights.diagonal(dim1=1, dim2=2).zero_()
        diagonal = weights.sum(-1) + self.softness * point.wanted
        # Masses are at most 1: only a huge softness goes beyond, of which a hard column must not see anything.
        floor = 1e-12 * diagonal.amax(-1, keepdim=True).clamp(max=1.0) + 1e-30
        # Without a soft column F does not change along the constants: they get a curvature of their own.
        constants = torch.where(self.hard.all(-1, keepdim=True), diagonal.mean(-1, keepdim=True), 0.0)
        matrix = torch.diag_embed(diagonal + floor) - weights + (constants / diagonal.shape[-1]).unsqueeze(-1)
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
