"""`CausalPINN`: a physics-informed network trained window by window with causal weights."""

from __future__ import annotations

import math
import secrets
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from offprints.pinn_causal.jets import derivatives
from offprints.pinn_causal.problems import Problem, state_at, state_grid
from offprints.pinn_causal.references import relative_l2
from offprints.pinn_causal.schedule import EpsilonSchedule
from offprints.pinn_causal.window import WindowSettings, WindowTrainer, start_from
from offprints.shared.device import local_seed, resolve_device
from offprints.shared.distributed import world_size
from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.validation import check_choice, check_number

Self = TypeVar("Self", bound="CausalPINN")
_PREDICT_POINTS = 1 << 14


class Store(Protocol):
    """What `CausalPINN.fit` asks of a run of `offprints.shared.experiment`."""

    def log(self, step: int, **scalars: float) -> None:
        """Write down numbers."""

    def checkpoint(self, step: int, state: Any) -> None:
        """Store a state."""

    def restore(self) -> tuple[int, Any] | None:
        """Return the newest step and state."""


class CausalPINN(BaseEstimator):
    """Solve an evolution equation by a network that respects causality.

    Every window of time has a network of its own, trained by Adam on the causal loss; its end state starts the next.

    Args:
        problem: the equation, such as `AllenCahn()` or an object of the protocol `Problem`.
        make_net: makes a network from (t, x...) to the outputs; called once per window, under the same seed. An
            `ExactInitialCondition` gets the state of each window and needs no initial loss.
        eps: increasing causality parameters, or one number; 0 is the plain PINN, which spends all its steps.
        threshold: go to the next eps, or end the window, when every weight exceeds it.
        n_t, n_x: times and points of a batch, their tensor product; ODEs have no points.
        sampling: "random": fresh sorted times and points at every step; "grid": a fixed uniform grid.
        window_length, n_windows: time is ``[0, n_windows window_length]``.
        extend: the batch goes past the end of the window by this fraction, so that its end state is inside.
        initial_weight: of the initial loss; None: the problem's.
        weight_by_initial: put the initial loss into the exponents of the weights too.
        lr, decay_rate, decay_steps: ``lr decay_rate^(step / decay_steps)``.
        max_steps: per eps and window.
        check_every: steps between checks of the threshold, on the batch just used and on a fixed grid.
        random_state: seed of networks and batches, the same for every window; None draws one at `fit`.
        device: None or "auto": CUDA, MPS or the CPU.
        dtype: of networks and batches.
        compile: run the losses through ``torch.compile``.
        callback: called with the estimator after every check; it can `predict` up to the end of the current window.
        max_halvings: train a window that did not converge again as two of half the length, so many times.

    Attributes:
        nets_: one network per window, in local time ``[0, length]``.
        edges_: the times at which windows begin, and the end of the last.
        history_: one dict per check: step, window, eps, loss, initial, residual, w_min, seconds.
        weights_: weights on a fixed uniform grid of times at every check, ``(checks, n_t)``.
        converged_: per window, whether its last eps met the threshold; never for the plain PINN.
        n_iter_: number of optimizer steps.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        problem: Problem,
        make_net: Callable[[], nn.Module],
        *,
        eps: Sequence[float] | float = (1e-2, 1e-1, 1.0, 10.0, 100.0),
        threshold: float = 0.99,
        n_t: int = 32,
        n_x: int = 64,
        sampling: Literal["random", "grid"] = "random",
        window_length: float = 1.0,
        n_windows: int = 1,
        extend: float = 0.01,
        initial_weight: float | None = None,
        weight_by_initial: bool = True,
        lr: float = 1e-3,
        decay_rate: float = 0.9,
        decay_steps: int = 5000,
        max_steps: int = 200_000,
        check_every: int = 1000,
        random_state: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        callback: Callable[[CausalPINN], object] | None = None,
        max_halvings: int = 0,
    ) -> None:
        self.problem = problem
        self.make_net = make_net
        self.eps = eps
        self.threshold = threshold
        self.n_t = n_t
        self.n_x = n_x
        self.sampling = sampling
        self.window_length = window_length
        self.n_windows = n_windows
        self.extend = extend
        self.initial_weight = initial_weight
        self.weight_by_initial = weight_by_initial
        self.lr = lr
        self.decay_rate = decay_rate
        self.decay_steps = decay_steps
        self.max_steps = max_steps
        self.check_every = check_every
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.compile = compile
        self.callback = callback
        self.max_halvings = max_halvings
        self._settings(0)

    def _settings(self, seed: int) -> WindowSettings:
        """Check the hyperparameters and return those of a window."""
        if not isinstance(self.problem, Problem):
            raise TypeError(f"problem must have the members of Problem, got {type(self.problem).__name__}")
        for name in ("make_net", "callback"):
            value = getattr(self, name)
            if not callable(value) and not (name == "callback" and value is None):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating torch.dtype, got {self.dtype!r}")
        check_choice(self.sampling, "sampling", ("random", "grid"))
        if isinstance(self.eps, int | float):
            check_number(self.eps, "eps", low=0)
            eps: tuple[float, ...] = (self.eps,)
        else:
            eps = tuple(self.eps)
        try:
            EpsilonSchedule(eps if any(eps) or not eps else (1.0,), threshold=self.threshold)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("values", "eps", 1)) from None
        for name, low in (("n_t", 2), ("n_x", 1), ("n_windows", 1), ("decay_steps", 1), ("max_steps", 1)):
            check_number(getattr(self, name), name, low=low, integer=True)
        check_number(self.check_every, "check_every", low=1, integer=True)
        check_number(self.max_halvings, "max_halvings", low=0, integer=True)
        check_number(self.extend, "extend", low=0)
        for name in ("window_length", "lr", "decay_rate"):
            check_number(getattr(self, name), name, low=0, open_low=True)
        if self.initial_weight is not None:
            check_number(self.initial_weight, "initial_weight", low=0)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**32 - 1, integer=True)
        if len(self.problem.domain) > 2:
            raise ValueError(f"problem must have at most 2 space axes, got {len(self.problem.domain)}")
        if self.sampling == "grid" and len(self.problem.domain) == 2 and math.isqrt(self.n_x) ** 2 != self.n_x:
            raise ValueError(f"n_x must be a square for a grid in two dimensions, got {self.n_x}")
        if self.problem.domain and self.n_x < world_size():
            raise ValueError(f"n_x must be at least the number of processes ({world_size()}), got {self.n_x}")
        weight = self.problem.initial_weight if self.initial_weight is None else self.initial_weight
        names = (
            *("threshold", "n_t", "n_x", "sampling", "extend", "weight_by_initial", "lr", "decay_rate", "decay_steps"),
            *("max_steps", "check_every", "compile"),
        )
        return WindowSettings(
            eps=eps, initial_weight=weight, seed=seed, **{name: getattr(self, name) for name in names}
        )

    # Fitting

    def fit(self: Self, initial: Tensor | ArrayLike | None = None, *, run: Store | None = None) -> Self:
        """Train all windows, one after the other.

        Args:
            initial: state at time 0 on a uniform grid of ``problem.domain``, left end included and right end not:
                ``(n,)``, or ``(q, n)`` for several fields, ``(3, n, n)`` (u, v, w) [:, iy, ix] for `NavierStokes2d`,
                ``(q,)`` for ODEs. Default: ``problem.initial`` on 512 points, 64 x 64 in two dimensions.
            run: a run of `offprints.shared.experiment` to store checkpoints in, at every check; a fit that was
                interrupted continues from the newest one and gives the same result.

        Raises:
            TypeError, ValueError: a hyperparameter or ``initial`` is not acceptable.
            FloatingPointError: the loss is NaN or infinite; window, eps and step are named.

        Warns:
            ConvergenceWarning: windows that did not meet the threshold.
        """
        seed = self.random_state
        restored = None if run is None else run.restore()
        if restored is not None:
            seed = restored[1]["seed"]
        elif seed is None:
            seed = secrets.randbits(32)
        settings = self._settings(seed)
        like = torch.empty(0, dtype=self.dtype, device=resolve_device(self.device))
        state = None if initial is None else self._check_state(initial).to(like)
        grid = state_grid(self.problem, state, like)
        if state is None:
            state = self.problem.initial(grid).to(like)

        for name in ("nets_", "edges_", "history_", "weights_", "converged_", "n_iter_"):
            self.__dict__.pop(name, None)
        progress = _Progress(self, settings, grid, run, seed)
        if restored is None:
            progress.begin([(self.window_length, 0)] * self.n_windows, state)
        else:
            progress.load_state_dict(restored[1], like)
        try:
            progress.train()
        except FloatingPointError:
            for name in ("nets_", "edges_"):
                self.__dict__.pop(name, None)
            raise
        if any(settings.eps) and not all(self.converged_):
            failed = [i for i, converged in enumerate(self.converged_) if not converged]
            warnings.warn(
                f"{len(failed)} of {len(self.converged_)} windows did not reach min w > {self.threshold} within "
                f"max_steps={self.max_steps} per eps: {failed}; later windows inherit their error",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _check_state(self, initial: Tensor | ArrayLike) -> Tensor:
        axes = len(self.problem.domain)
        ndim = max(1, axes) if axes <= 1 and self.problem.n_outputs == 1 else max(1, axes + 1)
        state = as_features(initial, "initial", ndim=ndim if axes else 1)
        if axes == 0 and len(state) != self.problem.n_outputs:
            raise ValueError(f"initial must have shape ({self.problem.n_outputs},), got {tuple(state.shape)}")
        if axes and (state.shape[-1] < 4 or len(set(state.shape[-axes:])) != 1):
            raise ValueError(f"initial must have at least 4 points, equal along each axis, got {tuple(state.shape)}")
        expected = self.problem.initial(state_grid(self.problem, state, torch.zeros(0, dtype=torch.float64))).shape
        if state.shape != expected:
            raise ValueError(f"initial must have shape {tuple(expected)}, got {tuple(state.shape)}")
        return state

    # Prediction

    def predict(self, t: Tensor | ArrayLike, x: Tensor | ArrayLike | None = None) -> Float[Tensor, " n_t *n_x_q"]:
        """Return the solution at the product of times and points.

        Args:
            t: times ``(n_t,)`` in ``[0, n_windows window_length]``.
            x: points ``(n_x,)`` or ``(n_x, d)``; None for ODEs.

        Returns ``(n_t, n_x)``, or ``(n_t, n_x, q)`` where the network has several outputs; ``(n_t, q)`` for ODEs: a
        tensor for a tensor ``t``, else a NumPy array.

        Raises:
            NotFittedError: before `fit`.
            TypeError: ``t`` or ``x`` is not floating.
            ValueError: a time is outside; ``x`` is missing, not wanted or of a wrong shape.
        """
        check_fitted(self, "nets_")
        edges: list[float] = self.edges_
        times = as_features(t, "t", dtype=torch.float64, device="cpu", ndim=1)
        slack = 1e-6 * edges[-1]  # rounding of float32 times
        if bool((times < -slack).any()) or bool((times > edges[-1] + slack).any()):
            raise ValueError(f"t must be in [0, {edges[-1]:g}], got {float(times.min()):g} to {float(times.max()):g}")
        axes = len(self.problem.domain)
        where = next(self.nets_[0].parameters())
        if axes == 0:
            if x is not None:
                raise ValueError("x must be None: the system has no space axis")
            points = where.new_zeros(1, 0)
        else:
            if x is None:
                raise ValueError(f"x must be given: the equation has {axes} space axes")
            raw = x if isinstance(x, Tensor) else np.asarray(x)
            points = as_features(raw, "x", dtype=where.dtype, device=where.device, ndim=1 if raw.ndim < 2 else 2)
            points = points[:, None] if points.ndim == 1 else points
            if points.shape[1] != axes:
                raise ValueError(f"x must have {axes} coordinates per point, got shape {tuple(raw.shape)}")
        window = (
            torch.searchsorted(torch.tensor(edges[1:-1], dtype=torch.float64), times.contiguous(), right=True)
        ).tolist()
        local = torch.stack([times[i] - edges[k] for i, k in enumerate(window)]).to(where)
        rows: list[Tensor] = [torch.empty(0)] * len(times)
        per_chunk = max(1, _PREDICT_POINTS // len(points))
        with torch.no_grad():
            for k, net in enumerate(self.nets_):
                mine = [i for i, w in enumerate(window) if w == k]
                for first in range(0, len(mine), per_chunk):
                    chosen = mine[first : first + per_chunk]
                    # By coordinates: what depends on the time or the point alone is computed once for each.
                    coordinates = [local[chosen][:, None], *points.T[:, None]]
                    (values,) = derivatives(net, coordinates, [(0,) * len(coordinates)])
                    for i, value in zip(chosen, values.expand(-1, len(points), -1), strict=True):
                        rows[i] = value
        result = torch.stack(rows)
        if axes == 0:
            result = result[:, 0]
        elif result.shape[-1] == 1:
            result = result[..., 0]
        answer: Tensor = like_input(result, t)
        return answer

    def score(self, t: Tensor | ArrayLike, x: Tensor | ArrayLike | None, reference: Tensor | ArrayLike) -> float:
        """Return minus the relative L2 error over all times and points: the higher the better.

        Raises:
            NotFittedError, TypeError, ValueError: as `predict`; or ``reference`` has another shape.
        """
        return -relative_l2(self.predict(t, x), reference)


class _Progress:
    """The march through the windows, and all that a resumed one needs."""

    def __init__(
        self, estimator: CausalPINN, settings: WindowSettings, grid: Tensor, run: Store | None, seed: int
    ) -> None:
        self.estimator, self.settings, self.grid, self.run, self.seed = estimator, settings, grid, run, seed
        self.pending: list[tuple[float, int]] = []  # lengths of the windows to come, times halved
        self.states: list[Tensor] = []  # at the beginning of each window so far
        self.nets: list[nn.Module] = []
        self.edges: list[float] = [0.0]
        self.converged: list[bool] = []
        self.history: list[dict[str, Any]] = []
        self.weights: list[Tensor] = []
        self.steps = 0
        self.elapsed = 0.0
        self.trainer: WindowTrainer | None = None

    def begin(self, pending: list[tuple[float, int]], state: Tensor) -> None:
        self.pending, self.states = pending, [state]

    def _make_net(self, state: Tensor) -> nn.Module:
        with local_seed(self.seed):
            net = self.estimator.make_net()
        if not isinstance(net, nn.Module):
            raise TypeError(f"make_net must return a torch.nn.Module, got {type(net).__name__}")
        net = net.to(self.grid)
        start_from(net, self.estimator.problem, state)
        return net.to(self.grid)

    def _make_trainer(self) -> WindowTrainer:
        net = self._make_net(self.states[-1])
        return WindowTrainer(self.estimator.problem, net, self.states[-1], self.grid, self.pending[0][0], self.settings)

    def train(self) -> None:
        started = time.monotonic() - self.elapsed
        while self.pending:
            if self.trainer is None:
                self.trainer = self._make_trainer()
            trainer, window = self.trainer, len(self.nets)
            numbers, weights = self._until_check(trainer)
            self.elapsed = time.monotonic() - started
            self.history.append({"step": self.steps, "window": window} | numbers | {"seconds": self.elapsed})
            self.weights.append(weights.cpu())
            if trainer.done:
                self._finish_window(trainer)
            self._show()
            if self.run is not None:
                self.run.log(self.steps, window=window, **numbers)
                self.run.checkpoint(self.steps, self.state_dict())
            if self.estimator.callback is not None:
                self.estimator.callback(self.estimator)
        self._show()

    def _until_check(self, trainer: WindowTrainer) -> tuple[dict[str, float], Tensor]:
        eps = trainer.eps
        try:
            while True:
                self.steps += 1
                trainer.step()
                if trainer.due:
                    return trainer.check()
        except FloatingPointError:
            raise FloatingPointError(
                f"the loss is NaN or infinite in window {len(self.nets)} at eps={eps:g}, step {self.steps}"
            ) from None

    def _finish_window(self, trainer: WindowTrainer) -> None:
        """Hand the end state over; or, where the window failed and may be halved, begin it again as two."""
        self.trainer = None
        length, halved = self.pending.pop(0)
        if not trainer.converged and trainer.schedule is not None and halved < self.estimator.max_halvings:
            self.pending[:0] = [(length / 2, halved + 1)] * 2
            return
        with torch.no_grad():
            end = state_at(self.estimator.problem, trainer.net, self.grid.new_tensor(length), self.grid)
        self.nets.append(trainer.net)
        self.edges.append(self.edges[-1] + length)
        self.converged.append(trainer.converged)
        self.states.append(end)

    def _show(self) -> None:
        """Let the estimator be looked at, the current window included."""
        estimator, trainer = self.estimator, self.trainer
        current = [] if trainer is None else [trainer]
        estimator.nets_ = [*self.nets, *(t.net for t in current)]
        estimator.edges_ = [*self.edges, *(self.edges[-1] + t.length for t in current)]
        estimator.converged_ = [*self.converged, *(False for _ in current)]
        estimator.history_ = self.history
        estimator.weights_ = torch.stack(self.weights)
        estimator.n_iter_ = self.steps

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "pending": self.pending,
            "states": self.states,
            "nets": [net.state_dict() for net in self.nets],
            "edges": self.edges,
            "converged": self.converged,
            "history": self.history,
            "weights": self.weights,
            "steps": self.steps,
            "elapsed": self.elapsed,
            "trainer": None if self.trainer is None else self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        for name in ("pending", "edges", "converged", "history", "weights", "steps", "elapsed"):
            setattr(self, name, state[name])
        self.states = [s.to(like) for s in state["states"]]
        for start, values in zip(self.states, state["nets"], strict=False):
            net = self._make_net(start)
            net.load_state_dict(values)
            self.nets.append(net)
        if state["trainer"] is not None:
            self.trainer = self._make_trainer()
            self.trainer.load_state_dict(state["trainer"])
