"""Training on one time window: causal gradients in one sweep over time, checks, annealing, state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offprints.pinn_causal.batches import Batch, Batches, Data
from offprints.pinn_causal.boundary import Boundary
from offprints.pinn_causal.equation import Problem, trainable
from offprints.pinn_causal.exact import TimeShift
from offprints.pinn_causal.handover import Start, initial_mismatch
from offprints.pinn_causal.jets import implements, takes_series
from offprints.pinn_causal.schedule import EpsilonSchedule
from offprints.pinn_causal.verdict import Verdict
from offprints.pinn_causal.weights import weights_after
from offprints.shared.device import compile as compile_function
from offprints.shared.device import evaluating, working_dtype
from offprints.shared.distributed import all_reduce_, world_size

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
    n_x: int | tuple[int, ...]
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
    relative_tolerance: float
    data_weight: float
    parameter_lr: float


class WindowTrainer:
    """The optimization of one network on one window, in absolute time.

    Attributes:
        done: the last eps met its threshold or spent its steps.
        converged: whether the window is solved, see `Verdict`.
    """

    def __init__(
        self,
        problem: Problem,
        net: nn.Module,
        start: Start,
        length: float,
        settings: WindowSettings,
        *,
        held: int = 0,
        order: int = 1,
        boundary: Sequence[Boundary] = (),
        data: Data | None = None,
    ) -> None:
        self.problem, self.net, self.start, self.length, self.settings = problem, net, start, length, settings
        self.held, self.order, self.boundary = held, order, tuple(boundary)
        # Initial losses speak of local time, whose 0 is the beginning of the window.
        self.local = TimeShift(net, -start.time) if start.time else net
        end = start.time + length
        self.data = None if data is None else data.within(start.time, end)
        self.schedule: EpsilonSchedule | None = None
        if any(settings.eps):
            self.schedule = EpsilonSchedule(settings.eps, threshold=settings.threshold)
        unknown = trainable(problem)
        of_net = [p for p in net.parameters() if p.requires_grad and not any(p is u for u in unknown)]
        self.parameters = [*of_net, *unknown]
        if not self.parameters:
            raise ValueError("make_net must return a network with parameters to train, got none")
        groups = [{"params": p, "scale": scale} for p, scale in ((of_net, 1.0), (unknown, settings.parameter_lr)) if p]
        like = start.x
        fused = like.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(groups, lr=settings.lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)
        self.batches = Batches(
            problem.domain, (start.time, end), n_t=settings.n_t, n_x=settings.n_x, sampling=settings.sampling,
            extend=settings.extend, seed=settings.seed, like=like,
        )  # fmt: skip
        self.step_count = 0
        self.steps_of_eps = 0
        self.done = False
        self.converged = False
        self.verdict = Verdict(problem, net, length, settings.relative_tolerance)
        if settings.compile and not (takes_series(net) or implements(net, "forward_jet")):
            raise ValueError(
                f"compile must be False for {type(net).__name__}: it is differentiated by nested reverse mode, which "
                "torch.compile cannot differentiate"
            )
        self.losses: Callable[..., Tensor] = compile_function(self._temporal_losses, enabled=settings.compile)
        points, numbers = CHUNK_CPU if like.device.type == "cpu" else CHUNK_ACCELERATOR
        width = max((p.shape[0] for p in self.parameters if p.ndim == 2), default=1)
        per_time = -(-self.batches.points // world_size())
        chunks = -(-settings.n_t * per_time // max(1, min(points, numbers // width)))
        self.chunk = -(-settings.n_t // min(chunks, settings.n_t))
        # On an accelerator looking at the weights means waiting, and there a chunk is large anyway.
        self.looks_ahead = like.device.type == "cpu"
        self.reach = settings.n_t
        self.batch: Batch = self.batches.grid

    def _temporal_losses(self, t: Tensor, x: Tensor | None) -> Tensor:
        losses = self.problem.temporal_losses(self.net, t, x)
        for condition in self.boundary:
            assert x is not None
            losses = losses + condition.losses(self.net, t, x, self.problem.domain)
        return losses

    def _checked_losses(self, t: Tensor, x: Tensor | None) -> Tensor:
        """Return this rank's share of the temporal losses; refuse what a user's own method may get wrong."""
        losses = self.losses(t, x)
        if not isinstance(losses, Tensor):
            raise TypeError(f"problem.temporal_losses must return a torch.Tensor, got {type(losses).__name__}")
        if losses.shape != t.shape:
            raise ValueError(f"problem.temporal_losses must have shape {tuple(t.shape)}, got {tuple(losses.shape)}")
        if self.looks_ahead and bool((losses.detach() < 0).any()):
            raise ValueError(
                f"problem.temporal_losses must not be negative, got {float(losses.detach().min()):g}: is a square "
                "forgotten?"
            )
        if torch.is_grad_enabled() and not losses.requires_grad and self.looks_ahead and bool((losses != 0).any()):
            raise ValueError(
                "problem.temporal_losses must depend on the parameters of the network by operations of torch, got "
                "losses without a gradient: is there a detach, or is a derivative of the network constant?"
            )
        return self.batches.share_of_mean(x) * losses

    @property
    def eps(self) -> float:
        """The current causality parameter; 0 for the plain PINN."""
        return 0.0 if self.schedule is None else self.schedule.eps

    # One step

    def _mismatch(self) -> Tensor | None:
        return initial_mismatch(self.problem, self.local, self.start, self.held, self.order)

    def _initial_loss(self) -> Tensor | None:
        found = self._mismatch()
        return None if found is None else self.settings.initial_weight * found

    def _data_loss(self) -> Tensor | None:
        if self.data is None:
            return None
        found = self.net(self.data.points)
        if found.shape != self.data.values.shape:
            raise ValueError(
                f"data values must be {tuple(found.shape)} as the outputs of the network, got "
                f"{tuple(self.data.values.shape)}"
            )
        seen = ~self.data.values.isnan()
        return self.settings.data_weight * (found - self.data.values)[seen].square().mean()

    def step(self) -> None:
        """Make one step of Adam on a batch.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        if self.settings.sampling == "random":
            self.batch = self.batches.draw()
        rate = self.settings.lr * self.settings.decay_rate ** (self.step_count / self.settings.decay_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
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
        self.optimizer.zero_grad(set_to_none=True)
        before = t.new_zeros(1, dtype=working_dtype(t))
        total = t.new_zeros((), dtype=before.dtype)
        counted = 0
        if (initial := self._initial_loss()) is not None:
            (initial / world_size()).backward()
            total = total + initial.detach()
            if self.settings.weight_by_initial:
                before = initial.detach().reshape(1).to(before)
        if (data := self._data_loss()) is not None:
            (data / world_size()).backward()
            total = total + data.detach()
        for i, times in enumerate(t.split(self._chunk_sizes())):
            if i and float(torch.exp(-self.eps * before)) == 0:
                break
            losses = self._checked_losses(times, x)
            known = losses.detach().clone()
            all_reduce_(known)
            weights = weights_after(before, known, self.eps)
            counted += int((weights > 0).sum()) if self.looks_ahead else len(times)
            part = (weights * losses).sum() / len(t)
            if part.requires_grad:
                part.backward()
            total = total + (weights * known).to(before).sum() / len(t)
            before = before + known.to(before).sum()
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
        with evaluating(self.net):
            with torch.enable_grad():  # a loss may take gradients of its own
                initial, data = (None if v is None else v.detach() for v in (self._initial_loss(), self._data_loss()))
            start = self.batch[0].new_zeros(1)
            if initial is not None and s.weight_by_initial:
                start = initial.reshape(1)
            losses = self._all_losses(self.batch)
            weights = weights_after(start, losses, eps)
            fixed_losses, fixed_weights = losses, weights
            if self.batches.grid is not self.batch:
                fixed_losses = self._all_losses(self.batches.grid)
                fixed_weights = weights_after(start, fixed_losses, eps)
            first = losses.new_zeros(()) if initial is None else initial
            loss = (weights * losses).mean() + first + (0.0 if data is None else data)
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
        spent = self.steps_of_eps >= s.max_steps
        if self.schedule is None:
            self.done = spent
        else:
            met = float(both.min()) > s.threshold
            last = self.schedule.index == len(self.schedule.values) - 1
            solved = False
            if last and (met or spent):
                with evaluating(self.net):
                    with torch.enable_grad():
                        mismatch = self._mismatch()
                    scale = self.verdict.scale(self._all_losses, self.batches)
                    of_state = self.verdict.state_scale(self.start)
                solved = self.verdict.solved(fixed_losses, mismatch, scale, of_state)
                solved = solved and (met or self.verdict.met(fixed_losses, scale, eps, s.threshold))
            if met and (solved or not last):
                self.schedule.step(both)
                self.steps_of_eps = 0
            elif spent:
                self.schedule.advance()
                self.steps_of_eps = 0
            self.done = self.schedule.done
            self.converged = self.done and solved
        return record, fixed_weights

    def _all_losses(self, batch: Batch, losses: Callable[..., Tensor] | None = None) -> Tensor:
        """Return the temporal losses of all ranks, without a graph; a residual may take gradients of its own."""
        t, x = batch
        found = []
        for times in t.split(self.chunk):
            with torch.enable_grad():
                if losses is None:
                    part = self._checked_losses(times, x)
                else:
                    part = self.batches.share_of_mean(x) * losses(times, x)
            found.append(part.detach())
        total = torch.cat(found)
        all_reduce_(total)
        return total

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "net": self.net.state_dict(),
            "unknown": [p.detach().clone() for p in trainable(self.problem)],
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generator": self.batches.generator.get_state(),
            "step_count": self.step_count,
            "steps_of_eps": self.steps_of_eps,
            "reach": self.reach,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.net.load_state_dict(state["net"])
        with torch.no_grad():
            for parameter, value in zip(trainable(self.problem), state["unknown"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.batches.generator.set_state(state["generator"].cpu())
        self.step_count, self.steps_of_eps = state["step_count"], state["steps_of_eps"]
        self.reach = state["reach"]
