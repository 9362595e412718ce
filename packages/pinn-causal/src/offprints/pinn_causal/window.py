"""Training on one time window: causal gradients in one sweep over time, checks, annealing, state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offprints.pinn_causal.interpolant import TrigonometricInterpolant
from offprints.pinn_causal.networks import ExactInitialCondition
from offprints.pinn_causal.problems import Problem
from offprints.pinn_causal.schedule import EpsilonSchedule
from offprints.pinn_causal.weights import weights_after
from offprints.shared.device import compile as compile_function
from offprints.shared.device import make_generator
from offprints.shared.distributed import all_reduce_, rank, world_size

# Points of one chunk of times, at most, and numbers of one coefficient of its widest layer: the processor's cache and
# the cost of fresh memory decide on a CPU, the size of the memory on an accelerator.
CHUNK_CPU = 2048, 1 << 18
CHUNK_ACCELERATOR = 1 << 16, 1 << 23


@dataclass(frozen=True)
class WindowSettings:
    """What all windows have in common; names as in `CausalPINN`."""

    eps: tuple[float, ...]
    threshold: float
    n_t: int
    n_x: int
    sampling: str
    extend: float
    initial_weight: float
    weight_by_initial: bool
    lr: float
    decay_rate: float
    decay_steps: int
    max_steps: int
    check_every: int
    seed: int
    compile: bool


class WindowTrainer:
    """The optimization of one network on one window ``[0, length]`` of local time.

    Attributes:
        done: the last eps met its threshold or spent its steps.
        converged: the smallest weight exceeded the threshold at the last eps, on the batch and on the fixed grid.
    """

    def __init__(
        self, problem: Problem, net: nn.Module, state: Tensor, grid: Tensor, length: float, settings: WindowSettings
    ) -> None:
        self.problem, self.net, self.state, self.grid = problem, net, state, grid
        self.length, self.settings = length, settings
        self.like = grid
        self.schedule: EpsilonSchedule | None = None
        if any(settings.eps):
            self.schedule = EpsilonSchedule(settings.eps, threshold=settings.threshold)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        fused = grid.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)
        self.generator = make_generator(settings.seed)
        self.step_count = 0
        self.steps_of_eps = 0
        self.done = False
        self.converged = False
        self.exact = isinstance(net, ExactInitialCondition)
        self.losses: Callable[..., Tensor] = compile_function(
            lambda t, x: problem.temporal_losses(net, t, x), enabled=settings.compile
        )
        points, numbers = CHUNK_CPU if grid.device.type == "cpu" else CHUNK_ACCELERATOR
        width = max((p.shape[0] for p in self.parameters if p.ndim == 2), default=1)
        per_time = -(-settings.n_x // world_size()) if problem.domain else 1
        chunks = -(-settings.n_t * per_time // max(1, min(points, numbers // width)))
        self.chunk = -(-settings.n_t // min(chunks, settings.n_t))
        # On an accelerator looking at the weights means waiting, and there a chunk is large anyway.
        self.looks_ahead = grid.device.type == "cpu"
        self.reach = settings.n_t
        self.fixed: tuple[Tensor, Tensor | None] = self._grid_batch(
            self.length * (1 + settings.extend if settings.sampling == "grid" else 1)
        )
        self.batch = self.fixed

    @property
    def eps(self) -> float:
        """The current causality parameter; 0 for the plain PINN."""
        return 0.0 if self.schedule is None else self.schedule.eps

    # Batches: drawn on the CPU, equal on every rank, which then keeps its own share of the points.

    def _grid_batch(self, end: float) -> tuple[Tensor, Tensor | None]:
        t = torch.linspace(0, end, self.settings.n_t, dtype=torch.float64)
        lines = []
        per_axis = round(self.settings.n_x ** (1 / max(1, len(self.problem.domain))))
        for low, high in self.problem.domain:
            lines.append(torch.linspace(low, high, per_axis, dtype=torch.float64))
        if not lines:
            return t.to(self.like), None
        x = lines[0] if len(lines) == 1 else torch.cartesian_prod(*lines)
        return t.to(self.like), self._share(x)

    def _random_batch(self) -> tuple[Tensor, Tensor | None]:
        s = self.settings
        dtype = self.like.dtype
        t = torch.rand(s.n_t, generator=self.generator, dtype=dtype).sort().values * (self.length * (1 + s.extend))
        if not self.problem.domain:
            return t.to(self.like), None
        x = torch.rand(s.n_x, len(self.problem.domain), generator=self.generator, dtype=dtype)
        for axis, (low, high) in enumerate(self.problem.domain):
            x[:, axis] = low + (high - low) * x[:, axis]
        return t.to(self.like), self._share(x[:, 0] if x.shape[1] == 1 else x)

    def _share(self, x: Tensor) -> Tensor:
        return x.tensor_split(world_size())[rank()].to(self.like)

    # One step

    def _share_of_mean(self, x: Tensor | None) -> float:
        """Weight of this rank's mean over its points in the mean over all."""
        if x is None:
            return 1.0 / world_size()
        return 1.0 if world_size() == 1 else len(x) / self.settings.n_x

    def _initial_loss(self) -> Tensor | None:
        if self.exact:
            return None
        return self.settings.initial_weight * self.problem.initial_loss(self.net, self.grid, self.state)

    def step(self) -> None:
        """Make one step of Adam on a batch.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        if self.settings.sampling == "random":
            self.batch = self._random_batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.settings.decay_rate ** (self.step_count / self.settings.decay_steps)
        self._refuse_nan(self.gradient())
        self.optimizer.step()
        self.step_count += 1
        self.steps_of_eps += 1

    def gradient(self) -> Tensor:
        """Put the gradient of the causal loss on the batch into the parameters; return the loss.

        The weight of a time needs only earlier losses, so one sweep in order of time can take gradients chunk by chunk,
        in the memory of one chunk; and once the weights have underflowed to 0, nothing later counts and the sweep ends.
        """
        t, x = self.batch
        share = self._share_of_mean(x)
        self.optimizer.zero_grad(set_to_none=True)
        before = t.new_zeros(1)
        total = t.new_zeros(())
        counted = 0
        if (initial := self._initial_loss()) is not None:
            (initial / world_size()).backward()
            total = total + initial.detach()
            if self.settings.weight_by_initial:
                before = initial.detach().reshape(1)
        for i, times in enumerate(t.split(self._chunk_sizes())):
            if i and float(torch.exp(-self.eps * before)) == 0:
                break
            losses = share * self.losses(times, x)
            known = losses.detach().clone()
            all_reduce_(known)
            weights = weights_after(before, known, self.eps)
            counted += int((weights > 0).sum()) if self.looks_ahead else len(times)
            part = (weights * losses).sum() / len(t)
            part.backward()
            total = total + (weights * known).sum() / len(t)
            before = before + known.sum()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if world_size() > 1:
            all_reduce_(*gradients)
        self.reach = max(1, counted)
        return total

    def _chunk_sizes(self) -> list[int]:
        """Return how many times go through the network at once: first those that counted in the step before."""
        sizes = []
        for part in (self.reach, self.settings.n_t - self.reach):
            sizes += [self.chunk] * (part // self.chunk) + [part % self.chunk] * (part % self.chunk > 0)
        return sizes

    def _refuse_nan(self, loss: Tensor) -> None:
        # On an accelerator, where looking means waiting, the checks look.
        if loss.device.type == "cpu" and not math.isfinite(float(loss)):
            raise FloatingPointError("loss")

    # Checks

    @property
    def due(self) -> bool:
        """Whether a check is due: every so many steps, and when the steps of this eps are spent."""
        s = self.settings
        return self.step_count % s.check_every == 0 or self.steps_of_eps >= s.max_steps

    def check(self) -> tuple[dict[str, float], Tensor]:
        """Return losses and smallest weight on the batch just used, and the weights on the fixed grid; advance eps.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        s = self.settings
        eps = self.eps
        with torch.no_grad():
            initial = self._initial_loss()
            start = self.batch[0].new_zeros(1)
            if initial is not None and s.weight_by_initial:
                start = initial.reshape(1)
            losses = self._all_losses(self.batch)
            weights = weights_after(start, losses, eps)
            fixed_weights = weights
            if self.fixed is not self.batch:
                fixed_weights = weights_after(start, self._all_losses(self.fixed), eps)
            first = losses.new_zeros(()) if initial is None else initial
            loss = (weights * losses).mean() + first
        both = torch.cat([weights, fixed_weights])
        if not (math.isfinite(float(loss)) and bool(both.isfinite().all())):
            raise FloatingPointError("loss")
        record = {
            "eps": eps,
            "loss": float(loss),
            "initial": float(first),
            "residual": float(losses.mean()),
            "w_min": float(both.min()),
        }
        if self.schedule is None:
            self.done = self.steps_of_eps >= s.max_steps
        else:
            if self.schedule.step(both):
                self.converged = self.schedule.done
                self.steps_of_eps = 0
            elif self.steps_of_eps >= s.max_steps:
                self.schedule.advance()
                self.steps_of_eps = 0
            self.done = self.schedule.done
        return record, fixed_weights

    def _all_losses(self, batch: tuple[Tensor, Tensor | None]) -> Tensor:
        t, x = batch
        share = self._share_of_mean(x)
        losses = torch.cat([share * self.losses(times, x) for times in t.split(self.chunk)])
        all_reduce_(losses)
        return losses

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "step_count": self.step_count,
            "steps_of_eps": self.steps_of_eps,
            "reach": self.reach,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"].cpu())
        self.step_count, self.steps_of_eps = state["step_count"], state["steps_of_eps"]
        self.reach = state["reach"]


def start_from(net: nn.Module, problem: Problem, state: Tensor) -> None:
    """Give an `ExactInitialCondition` the state of its window: a constant, or the interpolant of the fields."""
    if not isinstance(net, ExactInitialCondition):
        return
    if not problem.domain:
        net.set_initial(state)
        return
    fields = state.unsqueeze(0) if state.ndim == len(problem.domain) else state[: problem.n_outputs]
    net.set_initial(TrigonometricInterpolant(fields, problem.domain))
