"""Whether a window is solved: a judgment free of units, whatever the size of the solution and of its rates."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from offprints.pinn_causal.batches import Batches
from offprints.pinn_causal.equation import Problem
from offprints.pinn_causal.exact import WithoutRate
from offprints.pinn_causal.handover import Start
from offprints.pinn_causal.jets import partials
from offprints.pinn_causal.weights import weights_after
from offprints.shared.distributed import all_reduce_

TINY = 1e-37


class Verdict:
    """Judge the residual of a network by the size of what it balances, and its initial error by that of the state.

    The weights of causal training compare ``eps x accumulated residual`` with 1, in the units of the residual: a
    solution of size 1e-4 meets any threshold at once. So a window is solved only where, beside the weights, the root
    mean square of the residual is at most ``tolerance`` times its scale, and that of the initial error ``tolerance``
    times the state. The scale is the larger of two: the residual without its time derivative (what the equation says
    the rate should be) and the size of the solution by the length of the window.
    """

    def __init__(self, problem: Problem, net: nn.Module, length: float, tolerance: float) -> None:
        self.problem, self.net, self.length, self.tolerance = problem, net, length, tolerance
        self.size = 0.0

    def scale(self, all_losses: Callable[..., Tensor], batches: Batches) -> float:
        """Return the scale of the temporal losses on the fixed grid."""
        without_rate = WithoutRate(self.net)
        t, x = batches.grid
        space = [] if x is None else [x[None, :]] if x.ndim == 1 else [c[None, :] for c in x.unbind(-1)]
        time = t if x is None else t[:, None]
        (u,) = partials(self.net, [time, *space], [(0,) * (1 + len(space))])
        size = batches.share_of_mean(x) * u.detach().square().sum(-1).mean()
        all_reduce_(size)
        self.size = float(size)
        try:
            losses = all_losses(batches.grid, lambda t, x: self.problem.temporal_losses(without_rate, t, x))
            balanced = float(losses.mean())
        except Exception:  # a residual may ask more of its network than to be a function
            balanced = 0.0
        return max(balanced if balanced < float("inf") else 0.0, self.size / self.length**2, TINY)

    def state_scale(self, start: Start) -> float:
        """Return the scale of the initial loss."""
        given = sum(float(s.square().mean()) for s in (start.state, *start.rates))
        return max(given, self.size / max(1, self.problem.n_outputs), TINY)

    def solved(self, losses: Tensor, mismatch: Tensor | None, scale: float, of_state: float) -> bool:
        """Tell whether residual and initial error are small beside their scales."""
        bound = self.tolerance**2
        first = 0.0 if mismatch is None else float(mismatch.detach())
        return float(losses.mean()) <= bound * scale and first <= bound * of_state

    def met(self, losses: Tensor, scale: float, eps: float, threshold: float) -> bool:
        """Tell whether the weights meet the threshold in units of the scale: that of a large solution cannot else."""
        weights = weights_after(losses.new_zeros(1), losses / scale, eps)
        return scale > 1 and float(weights.min()) > threshold
