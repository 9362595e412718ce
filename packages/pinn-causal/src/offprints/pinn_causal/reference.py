"""Causal training of a PINN (the paper's causal training algorithm): weights, loss, annealing of eps, time marching.

Slow and plain, to be read first: derivatives by nested `torch.autograd.grad`, one pass for all times, full batches. The
fast code does the same: `causal_loss`, `derivatives` (Taylor mode) and `CausalPINN` (one sweep over time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Residual = Callable[[nn.Module, Tensor], Tensor]


def derivative(u: Tensor, z: Tensor, axis: int) -> Tensor:
    """du/dz_axis of every point, where point i of ``u`` depends on row i of ``z`` alone."""
    return torch.autograd.grad(u.sum(), z, create_graph=True)[0][..., axis]


def grid(t: Tensor, x: Tensor) -> Tensor:
    """The product of times and points, ``(n_t, n_x, 2)``."""
    return torch.stack(torch.broadcast_tensors(t[:, None], x[None, :]), dim=-1).requires_grad_()


def allen_cahn(net: nn.Module, z: Tensor) -> Tensor:
    """The residual ``u_t - 1e-4 u_xx + 5 u^3 - 5 u``."""
    u = net(z)[..., 0]
    u_xx = derivative(derivative(u, z, 1), z, 1)
    return derivative(u, z, 0) - 1e-4 * u_xx + 5 * u**3 - 5 * u


def weights(losses: Sequence[Tensor], eps: float, initial: Tensor) -> Tensor:
    """``w_i = exp(-eps (L_0 + sum_{k<i} L_k))``, constants to the gradient."""
    w = []
    for i in range(len(losses)):
        earlier = initial.detach() + sum(loss.detach() for loss in losses[:i])
        w.append(torch.exp(-eps * earlier))
    return torch.stack(w)


def loss(
    net: nn.Module, residual: Residual, t: Tensor, x: Tensor, x0: Tensor, state: Tensor, weight: float, eps: float
) -> tuple[Tensor, Tensor]:
    """The causal loss ``mean_i w_i L_i + L_0`` and the weights."""
    # 1. The residual at every time, squared and averaged over space.
    losses = list(residual(net, grid(t, x)).square().mean(dim=1))
    # 2. The initial loss, at the first time.
    start = torch.stack([torch.full_like(x0, float(t[0])), x0], dim=-1)
    initial = weight * (net(start)[..., 0] - state).square().mean()
    # 3. A time counts once what is earlier is solved.
    w = weights(losses, eps, initial)
    return (w * torch.stack(losses)).mean() + initial, w


def train_window(
    net: nn.Module, residual: Residual, t: Tensor, x: Tensor, x0: Tensor, state: Tensor, *, weight: float = 100.0,
    values: Sequence[float] = (1e-2, 1e-1, 1.0, 10.0, 100.0), delta: float = 0.99, max_steps: int = 100,
    lr: float = 1e-3,
) -> bool:  # fmt: skip
    """Train one window; return whether its last eps met the threshold."""
    # 4. One optimizer for all eps.
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    met = False
    for eps in values:
        for _ in range(max_steps):
            value, _ = loss(net, residual, t, x, x0, state, weight, eps)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            # 5. The next eps, when the smallest weight exceeds delta; or when the steps are spent.
            met = float(loss(net, residual, t, x, x0, state, weight, eps)[1].min()) > delta
            if met:
                break
    return met


def march(
    make_net: Callable[[], nn.Module], residual: Residual, windows: Sequence[Tensor], x: Tensor, x0: Tensor,
    state: Tensor, **options: float,
) -> list[nn.Module]:  # fmt: skip
    """Train one network per window of times; each begins with the state in which the one before it ended."""
    nets = []
    for t in windows:
        net = make_net()
        train_window(net, residual, t, x, x0, state, **options)  # type: ignore[arg-type]
        # 6. Hand the end state over.
        with torch.no_grad():
            state = net(torch.stack([torch.full_like(x0, float(t[-1])), x0], dim=-1))[..., 0]
        nets.append(net)
    return nets
