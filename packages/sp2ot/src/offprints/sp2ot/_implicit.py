"""The gradient of the solution in the cost, by the implicit function theorem at the optimum of the semi-dual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Implicit(torch.autograd.Function):
    """Pseudo-labels that are known already, with the gradient that their problem gives them.

    With ``p`` the rows' shares of all columns, ``w`` the rows' masses and ``s e`` the curvature of the sizes, a change
    of the costs ``A`` moves the potentials by ``M^-1 d(e - c)``, ``M = diag(c) - p^T diag(w) p + diag(s e)``, and the
    shares by the softmax of both. Columns held at a capacity's bound do not move.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cost: Tensor,
        labels: Tensor,
        shares: Tensor,
        weights: Tensor | None,
        curvature: Tensor,
        epsilon: float,
        used: Tensor,
        held: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(shares, weights, curvature, used, held)
        ctx.epsilon, ctx.dtype = epsilon, cost.dtype
        return labels.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        p, weights, curvature, used, held = ctx.saved_tensors
        samples, columns, real = p.shape[1], p.shape[2], int(used.sum())
        w = p.new_full((1, samples, 1), 1 / samples) if weights is None else weights.unsqueeze(-1)
        upstream = torch.zeros_like(p)
        upstream[:, :, :real] = gradient[:, :, used]
        moved = p * (upstream - (p * upstream).sum(-1, keepdim=True))
        joint = torch.bmm(p.mT, w * p)
        matrix = torch.diag_embed(joint.sum(-1) + curvature) - joint
        pull = moved.sum(1)
        if held is None:
            # Where all columns are exact, potentials are free to move together, which changes nothing.
            free = (curvature == 0).all(-1)[:, None, None]
            matrix = matrix + torch.where(free, matrix.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] / columns, 0.0)
        else:
            fixed = held.double()
            matrix = matrix.masked_fill(held.unsqueeze(1) | held.unsqueeze(2), 0.0) + torch.diag_embed(fixed)
            pull = pull * (1 - fixed)
        u = torch.linalg.solve(matrix, pull).unsqueeze(1)
        change = w * p * (u - (p * u).sum(-1, keepdim=True)) - moved
        out = p.new_zeros(gradient.shape)
        out[:, :, used] = change[:, :, :real] / ctx.epsilon
        return out.to(ctx.dtype), *(None,) * 7
