"""`CausalPINN`: a physics-informed network trained window by window with causal weights."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from offprints.pinn_causal.arguments import check_sequence
from offprints.pinn_causal.boundary import Boundary
from offprints.pinn_causal.equation import Problem, as_tuple, check_problem
from offprints.pinn_causal.inputs import beginning, observations, order_of_windows
from offprints.pinn_causal.jets import partials
from offprints.pinn_causal.march import March, Store
from offprints.pinn_causal.references import relative_l2
from offprints.pinn_causal.schedule import EpsilonSchedule
from offprints.pinn_causal.window import WindowSettings
from offprints.shared.device import evaluating, resolve_device
from offprints.shared.distributed import world_size
from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.validation import check_bool, check_choice, check_number

Self = TypeVar("Self", bound="CausalPINN")
_PREDICT_POINTS = 1 << 14


class CausalPINN(BaseEstimator):
    """Solve an evolution equation by a network that respects causality.

    Every window of time has a network of its own, trained by Adam on the causal loss; its end state starts the next.

    Args:
        problem: the equation: `AllenCahn()`, one of your own that derives from `Equation`, or any object of the
            protocol `Problem`. Time is absolute in its residual. Parameters (`torch.nn.Parameter`) on it are unknowns
            that are trained in place.
        make_net: makes a network from (t, x...) to the outputs; called once per window, under the same seed. Networks
            of this package are centered on their window, a module of your own gets absolute time. An
            `ExactInitialCondition` gets the time and state of each window and needs no initial loss. A ``make_net``
            with one argument gets the state: a tensor for ODEs, else a function of the space coordinates ``(..., d)``.
        eps: increasing causality parameters, or one number; 0 is the plain PINN, which spends all its steps.
        threshold: go to the next eps, or end the window, when every weight exceeds it.
        n_t, n_x: times and points of a batch, their tensor product; ODEs have no points. ``n_x`` may be numbers per
            axis.
        sampling: "random": fresh sorted times and points at every step; "grid": a fixed uniform grid.
        window_length, n_windows: time is ``[t0, t0 + n_windows window_length]``.
        extend: the batch goes past the end of the window by this fraction, so that its end state is inside.
        initial_weight: of the initial loss; None: the problem's.
        weight_by_initial: put the initial loss into the exponents of the weights too.
        lr, decay_rate, decay_steps: ``lr decay_rate^(step / decay_steps)``.
        max_steps: per eps and window.
        check_every: steps between checks of the threshold, on the batch just used and on a fixed grid.
        random_state: seed of networks and batches, the same for every window; None draws one at `fit`.
        device: None or "auto": CUDA, MPS or the CPU.
        dtype: of networks and batches.
        compile: run the losses through ``torch.compile``; for networks that Taylor mode goes through.
        callback: called with the estimator after every check; it can `predict` up to the end of the current window.
            Training stops where it returns True.
        max_halvings: train a window that did not converge again as two of half the length, so many times.
        t0: the time at which the problem begins.
        boundary: conditions such as `Dirichlet` and `Neumann`, beside those of the problem.
        relative_tolerance: a window is solved where the root mean squares of its residual and its initial error are at
            most this fraction of their own scales.
        data_weight: of the mean squared error of the data given to `fit`.
        parameter_lr: learning rate of the problem's parameters, in units of ``lr``.
        warm_start: let `fit` continue: a window that was stopped, or, after ``n_windows`` was raised, with new ones.

    Attributes:
        nets_: one network per window, of absolute time.
        edges_: the times at which windows begin, and the end of the last.
        history_: one dict per check: step, window, eps, loss, initial, residual, w_min, seconds, and parameters where
            the problem has some.
        weights_: weights on a fixed uniform grid of times at every check, ``(checks, n_t)``.
        converged_: per window, whether its last eps met the threshold and it is solved by ``relative_tolerance``,
            whatever the units of the solution; never for the plain PINN.
        n_iter_: number of optimizer steps.
        parameters_: the problem's parameters at the end.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> make_net = lambda: ExactInitialCondition(MLP(1, (16,), 3), torch.zeros(3))
        >>> model = CausalPINN(Lorenz(), make_net, eps=0, n_t=8, max_steps=10, random_state=0, device="cpu").fit()
        >>> model.predict(torch.tensor([0.0]))
        tensor([[1., 1., 1.]])
    """

    def __init__(
        self,
        problem: Problem,
        make_net: Callable[[], nn.Module],
        *,
        eps: Sequence[float] | float = (1e-2, 1e-1, 1.0, 10.0, 100.0),
        threshold: float = 0.99,
        n_t: int = 32,
        n_x: int | Sequence[int] = 64,
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
        t0: float = 0.0,
        boundary: Sequence[Boundary] = (),
        relative_tolerance: float = 0.1,
        data_weight: float = 1.0,
        parameter_lr: float = 1.0,
        warm_start: bool = False,
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
        self.t0 = t0
        self.boundary = boundary
        self.relative_tolerance = relative_tolerance
        self.data_weight = data_weight
        self.parameter_lr = parameter_lr
        self.warm_start = warm_start
        self._settings(0)

    def _settings(self, seed: int) -> WindowSettings:
        """Check the hyperparameters and return those of a window."""
        check_problem(self.problem)
        for name in ("make_net", "callback"):
            value = getattr(self, name)
            if not callable(value) and not (name == "callback" and value is None):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        if isinstance(self.make_net, nn.Module):
            kind = type(self.make_net).__name__
            raise TypeError(f"make_net must be a function that makes a network for each window, got a {kind}")
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating torch.dtype, got {self.dtype!r}")
        check_choice(self.sampling, "sampling", ("random", "grid"))
        given: Any = self.eps
        several = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
        eps: tuple[float, ...] = tuple(given) if several else (check_number(given, "eps", low=0),)
        try:
            EpsilonSchedule(eps if any(eps) or not eps else (1.0,), threshold=self.threshold)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("values", "eps", 1)) from None
        for name, low in (("n_t", 2), ("n_windows", 1), ("decay_steps", 1), ("max_steps", 1), ("check_every", 1)):
            check_number(getattr(self, name), name, low=low, integer=True)
        check_number(self.max_halvings, "max_halvings", low=0, integer=True)
        for name in ("extend", "data_weight"):
            check_number(getattr(self, name), name, low=0)
        for name in ("window_length", "lr", "decay_rate", "relative_tolerance", "parameter_lr"):
            check_number(getattr(self, name), name, low=0, open_low=True)
        check_number(self.t0, "t0")
        for name in ("weight_by_initial", "compile", "warm_start"):
            check_bool(getattr(self, name), name)
        if self.initial_weight is not None:
            check_number(self.initial_weight, "initial_weight", low=0)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**32 - 1, integer=True)
        for condition in self._boundary():
            if not isinstance(condition, Boundary):
                raise TypeError(f"boundary must hold conditions such as Dirichlet(), got {type(condition).__name__}")
            if condition.axis >= len(self.problem.domain):
                axes = len(self.problem.domain)
                raise ValueError(f"boundary must be on one of the {axes} space axes, got axis {condition.axis}")
        weight = self.problem.initial_weight if self.initial_weight is None else self.initial_weight
        names = (
            *("threshold", "n_t", "sampling", "extend", "weight_by_initial", "lr", "decay_rate", "decay_steps"),
            *("max_steps", "check_every", "compile", "relative_tolerance", "data_weight", "parameter_lr"),
        )
        return WindowSettings(
            eps=tuple(map(float, eps)), n_x=self._points(), initial_weight=float(weight), seed=int(seed),
            **{name: _number(getattr(self, name)) for name in names},
        )  # fmt: skip

    def _points(self) -> int | tuple[int, ...]:
        """Check the domain and ``n_x``."""
        axes = len(self.problem.domain)
        if axes > 3:
            raise ValueError(f"problem must have at most 3 space axes, got {axes}")
        given: Any = self.n_x
        points: int | tuple[int, ...]
        if isinstance(given, Sequence) and not isinstance(given, str):
            per_axis = tuple(check_number(n, "n_x", low=1, integer=True) for n in given)
            if len(per_axis) != axes:
                raise ValueError(f"n_x must have one number for each of the {axes} space axes, got {per_axis}")
            total, points = math.prod(per_axis), per_axis
        else:
            total = check_number(given, "n_x", low=1, integer=True)
            points = total
            if self.sampling == "grid" and axes > 1 and round(total ** (1 / axes)) ** axes != total:
                power = "square" if axes == 2 else "cube"
                raise ValueError(f"n_x must be a {power} or numbers per axis for a grid on {axes} axes, got {total}")
        if axes and total < world_size():
            raise ValueError(f"n_x must be at least the number of processes ({world_size()}), got {total}")
        return points

    def _boundary(self) -> list[Boundary]:
        if isinstance(self.boundary, Boundary) or not isinstance(self.boundary, Sequence):
            raise TypeError(f"boundary must be a sequence of conditions, got {type(self.boundary).__name__}")
        return [*getattr(self.problem, "boundary", ()), *self.boundary]

    def _fingerprint(self) -> dict[str, Any]:
        """Return, as plain values, the settings that a resumed fit must share with the one that was interrupted."""
        skipped = ("problem", "make_net", "callback", "device", "random_state", "n_windows", "compile", "warm_start")
        found = {k: _plain(v) for k, v in self.get_params(deep=False).items() if k not in skipped}
        kept = {k: _plain(v) for k, v in vars(self.problem).items() if isinstance(v, int | float | str | tuple | list)}
        return found | {"problem": [type(self.problem).__name__, repr(sorted(kept.items()))]}

    # Fitting

    def fit(
        self: Self,
        initial: Tensor | ArrayLike | Callable[[Tensor], Tensor] | None = None,
        *,
        data: tuple[Any, ...] | None = None,
        run: Store | None = None,
    ) -> Self:
        """Train all windows, one after the other.

        Args:
            initial: state at the beginning, on a uniform grid of ``problem.domain``, left end included and right end
                not: ``(n,)``, or ``(q, n)`` for several fields, ``(ny, nx)`` and ``(q, ny, nx)`` in the plane,
                ``(3, n, n)`` (u, v, w) [:, iy, ix] for `NavierStokes2d`, ``(q,)`` for ODEs; for PDEs also a function of
                the space coordinates, from ``(..., d)`` to ``(..., q)``. Default: ``problem.initial`` on 512 points,
                64 x 64 in the plane, 16 x 16 x 16 in space.
            data: observations ``(t, x, values)``, ``(t, values)`` for ODEs: n times ``(n,)``, points ``(n,)`` or
                ``(n, d)``, values ``(n,)`` or ``(n, q)`` with NaN where an output was not observed. Together with
                parameters on the problem they make an inverse problem.
            run: a run of `offprints.shared.experiment`, or a part of one, to store checkpoints in, at every check; a
                fit that was interrupted continues from the newest one and gives the same result.

        Raises:
            TypeError, ValueError: a hyperparameter, ``initial`` or ``data`` is not acceptable; the problem's or the
                network's methods return what they must not; ``run`` has a checkpoint of other settings.
            FloatingPointError: the loss is NaN or infinite; window, eps and step are named. Finished windows are kept.

        Warns:
            ConvergenceWarning: windows that did not meet the threshold.
        """
        check_bool(self.warm_start, "warm_start")
        restored = None if run is None else run.restore()
        state = restored[1] if restored is not None else None
        if state is None and self.warm_start and (kept := getattr(self, "state_", None)) is not None:
            state = kept
        elif state is not None:
            self._refuse_other_settings(state)
        seed = self.random_state
        if seed is not None:
            check_number(seed, "random_state", low=0, high=2**32 - 1, integer=True)
        if state is not None:
            seed = state["seed"]
        elif seed is None:
            seed = secrets.randbits(32)
        seed = int(seed)
        settings = self._settings(seed)
        like = torch.empty(0, dtype=self.dtype, device=resolve_device(self.device))
        end = self.t0 + self.n_windows * self.window_length
        observed = None if data is None else observations(self.problem, data, like, self.t0, end)
        start = beginning(self.problem, initial, like, self.t0)
        if state is not None and not torch.equal(state["states"][0].to(start.state), start.state):
            raise ValueError("initial must be the state that the interrupted fit began with, got another one")

        order = order_of_windows(
            self.problem, start, self.make_net, self.n_t, seed=seed, observed=observed is not None,
            several=self.n_windows > 1 or self.max_halvings > 0 or self.warm_start,
        )  # fmt: skip
        march = March(
            self, settings, start, order=order, user_state=initial is not None, data=observed,
            run=run, seed=seed,
        )  # fmt: skip
        for name in ("nets_", "edges_", "history_", "weights_", "converged_", "n_iter_", "parameters_", "state_"):
            self.__dict__.pop(name, None)
        windows = [(self.window_length, 0)] * self.n_windows
        if state is None:
            march.pending = windows
        else:
            march.load_state_dict(state)
            # Windows that the state does not know of yet: `n_windows` was raised.
            planned = march.edges[-1] + sum(length for length, _ in march.pending)
            march.pending += windows[: max(0, round((end - planned) / self.window_length))]
        march.train()
        if self.warm_start or march.stopped:
            self.state_ = march.state_dict()
        if any(settings.eps) and not all(self.converged_):
            failed = [i for i, converged in enumerate(self.converged_) if not converged]
            bars = f"min w > {self.threshold} and a relative residual of {self.relative_tolerance}"
            warnings.warn(
                f"{len(failed)} of {len(self.converged_)} windows did not reach {bars} within "
                f"max_steps={self.max_steps} per eps: {failed}; later windows inherit their error",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _refuse_other_settings(self, state: dict[str, Any]) -> None:
        stored, now = state.get("settings", {}), self._fingerprint()
        for name, value in now.items():
            if name not in stored or repr(stored[name]) != repr(value):
                raise ValueError(f"{name} must be that of the checkpoint in run, {stored.get(name)}, got {value}")
        if self.random_state is not None and self.random_state != state["seed"]:
            raise ValueError(
                f"random_state must be that of the checkpoint in run, {state['seed']}, got {self.random_state}"
            )
        planned = len(state["nets"]) + len(state["pending"])
        if not self.max_halvings and self.n_windows != planned:
            raise ValueError(f"n_windows must be that of the checkpoint in run, {planned}, got {self.n_windows}")

    # Prediction

    def predict(
        self,
        t: Tensor | ArrayLike,
        x: Tensor | ArrayLike | None = None,
        *,
        derivative: Sequence[int] | None = None,
    ) -> Float[Tensor, " n_t *n_x_q"]:
        """Return the solution, or a partial derivative of it, at the product of times and points.

        Args:
            t: times ``(n_t,)`` between ``edges_[0]`` and ``edges_[-1]``.
            x: points ``(n_x,)`` or ``(n_x, d)``; None for ODEs.
            derivative: exponents of (t, x...), such as ``(0, 1)`` for du/dx; None: the solution.

        Returns ``(n_t, n_x)``, or ``(n_t, n_x, q)`` where the network has several outputs; ``(n_t, q)`` for ODEs: a
        tensor for a tensor ``t``, else a NumPy array.

        Raises:
            NotFittedError: before `fit`.
            TypeError: ``t`` or ``x`` is not floating.
            ValueError: a time is outside; ``x`` is missing, not wanted or of a wrong shape; ``derivative`` does not
                have an exponent for each coordinate.
        """
        times, points = self._where(t, x)
        axes = len(self.problem.domain)
        index = (0,) * (1 + axes)
        if derivative is not None:
            check_sequence(derivative, "derivative", "exponents of (t, x...)")
            index = tuple(check_number(n, "derivative", low=0, integer=True) for n in derivative)
            if len(index) != 1 + axes:
                raise ValueError(f"derivative must have {1 + axes} exponents, of (t, x...), got {index}")

        def values(net: nn.Module, chosen: Tensor) -> Tensor:
            # By coordinates: what depends on the time or the point alone is computed once for each.
            coordinates = [chosen[:, None], *points.T[:, None]]
            (found,) = partials(net, coordinates, [index])
            return found.expand(len(chosen), len(points), -1)

        result = self._by_window(times, len(points), values)
        if axes == 0:
            result = result[:, 0]
        elif result.shape[-1] == 1:
            result = result[..., 0]
        answer: Tensor = like_input(result, t)
        return answer

    def residual(self, t: Tensor | ArrayLike, x: Tensor | ArrayLike | None = None) -> tuple[Tensor, ...]:
        """Return the residuals of the equation at the product of times and points: how well it is solved, and where.

        Arguments and errors as for `predict`; one ``(n_t, n_x)`` per equation, ``(n_t,)`` for ODEs.
        """
        times, points = self._where(t, x)
        d = len(self.problem.domain)
        place = None if not d else points[:, 0] if d == 1 else points

        def values(net: nn.Module, chosen: Tensor) -> Tensor:
            order = chosen.argsort()  # residuals want sorted times
            with torch.enable_grad():
                parts = as_tuple(self.problem.residual(net, chosen[order], place))
            stacked = torch.stack([r.detach().reshape(len(chosen), -1) for r in parts], dim=-1)
            return stacked[order.argsort()]

        result = self._by_window(times, len(points), values)
        return tuple(like_input(r[:, 0] if not d else r, t) for r in result.unbind(-1))

    def _where(self, t: Tensor | ArrayLike, x: Tensor | ArrayLike | None) -> tuple[Tensor, Tensor]:
        """Return checked times, in float64 on the CPU, and points ``(n_x, d)``; one empty point for ODEs."""
        check_fitted(self, "nets_")
        edges: list[float] = self.edges_
        times = as_features(t, "t", dtype=torch.float64, device="cpu", ndim=1)
        slack = 1e-6 * max(abs(edges[0]), abs(edges[-1]))  # rounding of float32 times
        if bool((times < edges[0] - slack).any()) or bool((times > edges[-1] + slack).any()):
            found = f"{float(times.min()):g} to {float(times.max()):g}"
            raise ValueError(f"t must be in [{edges[0]:g}, {edges[-1]:g}], got {found}")
        axes = len(self.problem.domain)
        where = next(self.nets_[0].parameters())
        if axes == 0:
            if x is not None:
                raise ValueError("x must be None: the system has no space axis")
            return times, where.new_zeros(1, 0)
        if x is None:
            raise ValueError(f"x must be given: the equation has {axes} space axes")
        raw = x if isinstance(x, Tensor) else np.asarray(x)
        points = as_features(raw, "x", dtype=where.dtype, device=where.device, ndim=1 if raw.ndim < 2 else 2)
        points = points[:, None] if points.ndim == 1 else points
        if points.shape[1] != axes:
            raise ValueError(f"x must have {axes} coordinates per point, got shape {tuple(raw.shape)}")
        return times, points

    def _by_window(self, times: Tensor, n: int, values: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Return ``values(net, times)`` of every time by the network of its window, in chunks."""
        where = next(self.nets_[0].parameters())
        inner = torch.tensor(self.edges_[1:-1], dtype=torch.float64)
        window = torch.searchsorted(inner, times.contiguous(), right=True).tolist()
        rows: list[Tensor] = [torch.empty(0)] * len(times)
        per_chunk = max(1, _PREDICT_POINTS // n)
        with evaluating(*self.nets_):
            for k, net in enumerate(self.nets_):
                mine = [i for i, w in enumerate(window) if w == k]
                for first in range(0, len(mine), per_chunk):
                    chosen = mine[first : first + per_chunk]
                    for i, value in zip(chosen, values(net, times[chosen].to(where)), strict=True):
                        rows[i] = value
        return torch.stack(rows)

    def score(self, t: Tensor | ArrayLike, x: Tensor | ArrayLike | None, reference: Tensor | ArrayLike) -> float:
        """Return minus the relative L2 error over all times and points: the higher the better.

        Raises:
            NotFittedError, TypeError, ValueError: as `predict`; or ``reference`` has another shape.
        """
        return -relative_l2(self.predict(t, x), reference)


def _number(value: Any) -> Any:
    """Return a number of NumPy as one of Python: lists and slices tell them apart."""
    return value.item() if isinstance(value, np.generic) else value


def _plain(value: Any) -> Any:
    """Return a setting as something that text keeps."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float | np.number):
        return float(value)
    if isinstance(value, Sequence | np.ndarray):
        return [_plain(v) for v in value]
    return repr(value) if isinstance(value, torch.dtype) else type(value).__name__
