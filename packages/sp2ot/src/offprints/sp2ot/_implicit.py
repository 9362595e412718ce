"""The gradient of the solution in the cost, by the implicit function theorem at the optimum of the semi-dual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

RIDGE = 1e-14  # relative: columns that share no sample move freely against each other, which changes nothing either


class Implicit(torch.autograd.Function):
    """Pseudo-labels that are known already, with the gradient that their problem gives them.

    With ``p`` the rows' shares of all columns, ``w`` the rows' masses and ``s e`` the curvature of the sizes, a change
    of the costs ``A`` moves the potentials by ``M^-1 d(e - c)``, ``M = diag(c) - p^T diag(w) p + diag(s e)``, and the
    shares by the softmax of both. Columns held at a capacity's bound do not move.
    """

    @staticmethod
    def forward(
        cost: Tensor,
        labels: Tensor,
        shares: Tensor,
        weights: Tensor | None,
        curvature: Tensor,
        epsilon: float,
        used: Tensor,
        held: Tensor | None,
    ) -> Tensor:
        return labels.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        cost, _, shares, weights, curvature, epsilon, used, held = inputs
        ctx.save_for_backward(shares, weights, curvature, used, held)
        ctx.epsilon, ctx.dtype = epsilon, cost.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        p, weights, curvature, used, held = ctx.saved_tensors
        samples, real = p.shape[1], int(used.sum())
        w = p.new_full((1, samples, 1), 1 / samples) if weights is None else weights.unsqueeze(-1)
        upstream = F.pad(gradient[:, :, used], (0, p.shape[2] - real))
        moved = p * (upstream - (p * upstream).sum(-1, keepdim=True))
        joint = torch.bmm(p.mT, w * p)
        diagonal = joint.sum(-1) + curvature
        # A column that is held does not move, and one whose mass is below the smallest number moves nothing.
        fixed = diagonal <= 0 if held is None else held | (diagonal <= 0)
        # As diag(s e) u sums to 0 where no column is held, its square may be added. That keeps the matrix regular where
        # next to nothing stops the potentials from moving together, which changes nothing.
        weight = torch.where(fixed, 0.0, curvature)
        largest = weight.amax(-1, keepdim=True)
        weight = torch.where(largest > 0, weight / largest, (~fixed).double())
        weight = weight / weight.sum(-1, keepdim=True)
        if held is not None:
            weight = torch.where(held.any(-1, keepdim=True), 0.0, weight)
        together = weight.unsqueeze(1) * (weight * diagonal.sum(-1, keepdim=True)).unsqueeze(2)
        matrix = torch.diag_embed(diagonal * (1 + RIDGE)) - joint + together
        matrix = matrix.masked_fill(fixed.unsqueeze(1) | fixed.unsqueeze(2), 0.0) + torch.diag_embed(fixed.double())
        pull = moved.sum(1) * ~fixed
        u = torch.linalg.solve(matrix, pull).unsqueeze(1)
        change = w * p * (u - (p * u).sum(-1, keepdim=True)) - moved
        place = (used.cumsum(0) - 1).clamp(min=0)
        out = torch.where(used, change[:, :, place], 0.0) / ctx.epsilon
        return out.to(ctx.dtype), *(None,) * 7
