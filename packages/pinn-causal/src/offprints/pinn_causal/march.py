"""The march through the windows, and all that a resumed or continued one needs."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from offprints.pinn_causal.batches import Data
from offprints.pinn_causal.equation import trainable
from offprints.pinn_causal.exact import in_window
from offprints.pinn_causal.handover import Start, begin, covered, exact_state, hand_over
from offprints.pinn_causal.window import WindowSettings, WindowTrainer
from offprints.shared.device import evaluating, local_seed

if TYPE_CHECKING:
    from offprints.pinn_causal.estimator import CausalPINN


class Store(Protocol):
    """What `CausalPINN.fit` asks of a run, or of a part of one, of `offprints.shared.experiment`."""

    def log(self, step: int, **scalars: float) -> None:
        """Write down numbers."""

    def checkpoint(self, step: int, state: Any) -> None:
        """Store a state."""

    def restore(self) -> tuple[int, Any] | None:
        """Return the newest step and state."""


class March:
    """All windows, one after the other."""

    def __init__(
        self,
        estimator: CausalPINN,
        settings: WindowSettings,
        start: Start,
        *,
        order: int,
        user_state: bool,
        data: Data | None,
        run: Store | None,
        seed: int,
    ) -> None:
        self.estimator, self.settings, self.run, self.seed = estimator, settings, run, seed
        self.problem = estimator.problem
        self.order, self.user_state, self.data = order, user_state, data
        self.starts = [start]  # of each window so far
        self.pending: list[tuple[float, int]] = []  # lengths of the windows to come, times halved
        self.nets: list[nn.Module] = []
        self.edges: list[float] = [start.time]
        self.converged: list[bool] = []
        self.history: list[dict[str, Any]] = []
        self.weights: list[Tensor] = []
        self.steps = 0
        self.elapsed = 0.0
        self.stopped = False
        self.trainer: WindowTrainer | None = None

    def _make_net(self, start: Start) -> tuple[nn.Module, int]:
        """Return a network at the beginning of a window, and what of its initial state holds by construction."""
        make = self.estimator.make_net
        wants_state = required_arguments(make) > 0
        with local_seed(self.seed):
            net = make(exact_state(self.problem, start)) if wants_state else make()  # type: ignore[call-arg]
        if not isinstance(net, nn.Module):
            raise TypeError(f"make_net must return a torch.nn.Module, got {type(net).__name__}")
        like = start.x
        net = net.to(like)
        if not wants_state:
            begin(net, self.problem, start, user_state=self.user_state)
        net = in_window(net, start.time).to(like)
        self._check_outputs(net, start)
        return net, covered(net, self.problem, start, wants_state)

    def _check_outputs(self, net: nn.Module, start: Start) -> None:
        d, wanted = len(self.problem.domain), self.problem.n_outputs
        points = start.x.new_tensor([start.time, *(low for low, _ in self.problem.domain)]).expand(2, 1 + d)
        with evaluating(net):
            found = net(points)
        if not isinstance(found, Tensor) or found.shape != (2, wanted):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"make_net must return a network from (2, {1 + d}) to (2, {wanted}), got {got}")

    def _make_trainer(self) -> WindowTrainer:
        start = self.starts[-1]
        net, held = self._make_net(start)
        return WindowTrainer(
            self.problem, net, start, self.pending[0][0], self.settings, held=held, order=self.order,
            boundary=self.estimator._boundary(), data=self.data,
        )  # fmt: skip

    def train(self) -> None:
        """Train what is pending.

        Raises:
            FloatingPointError: the loss is NaN or infinite; finished windows stay.
        """
        started = time.monotonic() - self.elapsed
        self.stopped = False
        while self.pending and not self.stopped:
            if self.trainer is None:
                self.trainer = self._make_trainer()
            trainer, window = self.trainer, len(self.nets)
            numbers, weights = self._until_check(trainer)
            self.elapsed = time.monotonic() - started
            record = {"step": self.steps, "window": window} | numbers | {"seconds": self.elapsed}
            unknown = [float(v) for p in trainable(self.problem) for v in p.detach().flatten()[:16]]
            self.history.append(record | ({"parameters": unknown} if unknown else {}))
            self.weights.append(weights.cpu())
            if trainer.done:
                self._finish_window(trainer)
            self.show()
            if self.run is not None:
                self.run.log(self.steps, window=window, **numbers)
                self.run.checkpoint(self.steps, self.state_dict())
            if self.estimator.callback is not None:
                self.stopped = self.estimator.callback(self.estimator) is True
        self.show()

    def _until_check(self, trainer: WindowTrainer) -> tuple[dict[str, float], Tensor]:
        eps = trainer.eps
        try:
            # What a network draws by itself, such as dropout, is a matter of the seed and the step.
            with local_seed((self.seed + self.steps) % 2**32):
                while True:
                    self.steps += 1
                    trainer.step()
                    if trainer.due:
                        return trainer.check()
        except FloatingPointError:
            self.trainer = None
            self.show()
            raise FloatingPointError(
                f"the loss is NaN or infinite in window {len(self.nets)} at eps={eps:g}, step {self.steps}; "
                f"{len(self.nets)} finished windows are kept"
            ) from None

    def _finish_window(self, trainer: WindowTrainer) -> None:
        """Hand the end state over; or, where the window failed and may be halved, begin it again as two."""
        self.trainer = None
        length, halved = self.pending.pop(0)
        if not trainer.converged and trainer.schedule is not None and halved < self.estimator.max_halvings:
            self.pending[:0] = [(length / 2, halved + 1)] * 2
            return
        end = self.edges[-1] + length
        with evaluating(trainer.net):
            start = hand_over(self.problem, trainer.net, end, self.starts[-1].x, self.order)
        self.nets.append(trainer.net)
        self.edges.append(end)
        self.converged.append(trainer.converged)
        self.starts.append(start)

    def show(self) -> None:
        """Let the estimator be looked at, the current window included."""
        estimator, trainer = self.estimator, self.trainer
        current = [] if trainer is None else [trainer]
        nets = [*self.nets, *(t.net for t in current)]
        if not nets:
            return
        estimator.nets_ = nets
        estimator.edges_ = [*self.edges, *(self.edges[-1] + t.length for t in current)]
        estimator.converged_ = [*self.converged, *(False for _ in current)]
        estimator.history_ = self.history
        estimator.weights_ = torch.stack(self.weights)
        estimator.n_iter_ = self.steps
        estimator.parameters_ = [p.detach().clone() for p in trainable(self.problem)]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "seed": self.seed,
            "pending": self.pending,
            "states": [start.state for start in self.starts],
            "nets": [net.state_dict() for net in self.nets],
            "edges": self.edges,
            "converged": self.converged,
            "history": self.history,
            "weights": self.weights,
            "steps": self.steps,
            "elapsed": self.elapsed,
            "trainer": None if self.trainer is None else self.trainer.state_dict(),
            "unknown": [p.detach().clone() for p in trainable(self.problem)],
            "settings": self.estimator._fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; the windows' beginnings are what the restored networks hand over."""
        for name in ("edges", "converged", "history", "weights", "steps", "elapsed"):
            setattr(self, name, state[name])
        self.pending = [tuple(item) for item in state["pending"]]
        # Lists of their own: what the state belongs to may go on.
        for name in ("edges", "converged", "history", "weights"):
            setattr(self, name, list(getattr(self, name)))
        with torch.no_grad():
            for parameter, value in zip(trainable(self.problem), state["unknown"], strict=True):
                parameter.copy_(value)
        for k, values in enumerate(state["nets"]):
            net, _ = self._make_net(self.starts[-1])
            net.load_state_dict(values)
            self.nets.append(net)
            with evaluating(net):
                start = hand_over(self.problem, net, self.edges[k + 1], self.starts[-1].x, self.order)
            start.state = state["states"][k + 1].to(start.state)
            self.starts.append(start)
        if state["trainer"] is not None:
            self.trainer = self._make_trainer()
            self.trainer.load_state_dict(state["trainer"])


def required_arguments(function: Any) -> int:
    """Return the number of positional arguments a callable cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)
