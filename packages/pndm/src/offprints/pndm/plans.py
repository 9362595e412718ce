"""A method and a grid of times as a list of model calls, each with the few numbers that lead to the next sample.

Everything a solver does to its tensors is linear with coefficients that are known before the run: they are computed
here once, in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from offprints.pndm.transfers import coefficients
from offprints.shared.validation import check_choice, check_number

Method = Literal["ddim", "s-pndm", "f-pndm", "plms", "fon", "f-pndm-sigma"]
Prediction = Literal["epsilon", "v_prediction", "sample"]

METHODS: tuple[Method, ...] = ("ddim", "s-pndm", "f-pndm", "plms", "fon", "f-pndm-sigma")
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
ORDERS: dict[Method, int] = {"ddim": 1, "s-pndm": 2, "f-pndm": 4, "plms": 4, "fon": 4, "f-pndm-sigma": 4}
RUNGE_KUTTA: tuple[Method, ...] = ("f-pndm", "fon", "f-pndm-sigma")  # the methods that begin with three such steps
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def adams_bashforth(order: Literal[1, 2, 3, 4]) -> tuple[float, ...]:
    """Weights of the explicit Adams method of this order (Adams-Bashforth), newest gradient first.

    Raises:
        TypeError, ValueError: `order` is not one of 1, 2, 3, 4.

    Example:
        >>> adams_bashforth(2)
        (1.5, -0.5)
    """
    return ADAMS_BASHFORTH[check_number(order, "order", low=1, high=4, integer=True) - 1]


def num_model_calls(num_steps: int, method: Method = "f-pndm") -> int:
    """How often `method` evaluates the model in `num_steps` steps.

    n for ddim, n + 1 for s-pndm and plms, n + 3 min(3, n) for f-pndm, fon and f-pndm-sigma.

    Raises:
        TypeError, ValueError: `num_steps` is not an integer of at least 1, an unknown method.

    Example:
        >>> num_model_calls(50, "f-pndm"), num_model_calls(50, "plms")
        (59, 51)
    """
    check_choice(method, "method", METHODS)
    num_steps = check_number(num_steps, "num_steps", low=1, integer=True)
    if method in RUNGE_KUTTA:
        return num_steps + 3 * min(3, num_steps)
    return num_steps + (method in ("s-pndm", "plms"))


class Node(NamedTuple):
    """A time and the level alpha-bar there."""

    time: float
    level: float


class Step(NamedTuple):
    """One step of the grid. Only a diffusers scheduler tells more than start, half and end apart."""

    start: Node
    end: Node  # where a one-call step leads
    listed: Node  # where the second try of the Euler step and the Runge-Kutta step lead, asking the model there
    restart: Node  # whence the second try of the Euler step leads
    halves: tuple[Node, Node]  # where the first two stages of a Runge-Kutta step lead
    asked_half: Node  # where the model is asked in the middle
    unit: float  # level one unit of time after the start, for fon


def plain_step(start: Node, half: Node, end: Node, unit: float = 1.0) -> Step:
    """A step whose parts agree."""
    return Step(start, end, end, start, (half, half), half, unit)


class Call(NamedTuple):
    """One model call. `sample` is what the model was given, `base` the sample at the start of the step.

    The gradient ``of_output * output + of_sample * sample + of_base * base`` goes in front of those kept, and the next
    sample is ``scale * base + sum_j weights[j] * gradient[j]``.
    """

    node: Node  # where the model is asked
    begins: bool  # whether the sample is a new base
    holds: bool  # whether the base is wanted after this call
    scale: float
    weights: tuple[float, ...]
    drop: int  # of the newest gradients afterwards
    keep: int  # of the others
    of_output: float = 1.0
    of_sample: float = 0.0
    of_base: float = 0.0
    keeps_base: bool = False  # whether the base then becomes the newest gradient


def make_plan(steps: Sequence[Step], method: Method, prediction: Prediction, begin: int = 0) -> list[Call]:
    """The calls of a run that begins with call `begin` of the whole list, with an empty history.

    Where that is inside a step of several calls, its remaining calls only lead to where the next one is asked.

    Raises:
        ValueError: a sample-predicting model would be asked at alpha-bar 1.
    """
    planner = _Planner(method, prediction)
    first = 0  # call with which the step begins
    for number, step in enumerate(steps):
        asked = _asked(step, method, number)
        skipped = begin - first
        if skipped <= 0:
            planner.step(step, len(asked))
        else:
            for at, call in enumerate(asked[skipped:], start=skipped):
                after = asked[at + 1] if at + 1 < len(asked) else step.listed
                planner.lone(call, after)
        first += len(asked)
    return planner.calls


def asked_nodes(steps: Sequence[Step], method: Method) -> list[Node]:
    """Where the model is asked, call by call."""
    return [node for number, step in enumerate(steps) for node in _asked(step, method, number)]


def _asked(step: Step, method: Method, number: int) -> list[Node]:
    if method in RUNGE_KUTTA and number < 3:
        return [step.start, step.asked_half, step.asked_half, step.listed]
    if method in ("s-pndm", "plms") and number == 0:
        return [step.start, step.listed]
    return [step.start]


class _Planner:
    """Makes the calls step by step."""

    def __init__(self, method: Method, prediction: Prediction) -> None:
        self.method, self.prediction = method, prediction
        self.keep = ORDERS[method] - 1
        self.calls: list[Call] = []
        self.sigmas: list[float] = []  # of the gradients kept, newest first

    def step(self, step: Step, num_calls: int) -> None:
        start, end, listed = step.start, step.end, step.listed
        zero = start.level == 0
        if zero and self.method in ("fon", "f-pndm-sigma"):
            raise ValueError(f"method {self.method!r} cannot leave alpha_bar 0 (zero terminal SNR); take another one")
        if num_calls == 4:
            # Pseudo Runge-Kutta: k1 .. k4, each from the start of the step.
            first, second = step.halves
            self._call(start, step, start, first, (1.0,), begins=True, holds=True, keep=self.keep + 1)
            self._call(step.asked_half, step, start, second, (1.0,), holds=True, keep=self.keep + 2)
            self._call(step.asked_half, step, start, listed, (1.0,), holds=True, keep=self.keep + 3)
            drop = 4 if zero else 3
            self._call(listed, step, start, listed, (1 / 6, 1 / 3, 1 / 3, 1 / 6), drop=drop, keeps_base=zero)
        elif num_calls == 2:
            # Pseudo improved Euler: a first try, then the mean of both ends.
            restart = start if zero else step.restart
            self._call(start, step, start, end, (1.0,), begins=True, holds=True)
            self._call(listed, step, restart, listed, (0.5, 0.5), drop=2 if zero else 1, keeps_base=zero)
        else:
            self._call(start, step, start, end, self._weights(start, end), begins=True)
        self.sigmas = [_sigma(start.level), *self.sigmas][: self.keep]

    def lone(self, asked: Node, after: Node) -> None:
        """A call that only leads to the next one."""
        step = plain_step(asked, after, after)
        self._call(asked, step, asked, after, (1.0,), begins=True, drop=1, exact=True)

    def _weights(self, start: Node, end: Node) -> tuple[float, ...]:
        order = len(self.sigmas) + 1
        if self.method != "f-pndm-sigma":
            return ADAMS_BASHFORTH[order - 1]
        now, width = _sigma(start.level), _sigma(end.level) - _sigma(start.level)
        if width == 0:
            return (1.0,)
        # Weights that integrate every polynomial in sigma up to this order over the step: powers of u in [0, 1].
        u = (np.array([now, *self.sigmas]) - now) / width
        powers = np.arange(order)
        return tuple(np.linalg.solve(u[None, :] ** powers[:, None], 1 / (powers + 1.0)).tolist())

    def _call(
        self,
        asked: Node,
        step: Step,
        start: Node,
        end: Node,
        weights: tuple[float, ...],
        *,
        begins: bool = False,
        holds: bool = False,
        drop: int = 0,
        keep: int | None = None,
        exact: bool = False,
        keeps_base: bool = False,
    ) -> None:
        of_base = 0.0
        if start.level == 0:
            # phi has no noise prediction to move along here (the sample is all noise): it turns the sample by v.
            of_output, of_sample = _as_velocity(self.prediction, asked)
            scale, of_gradient = (1 - end.level) ** 0.5, -(end.level**0.5)
        else:
            of_output, of_sample = _as_epsilon(self.prediction, asked)
            scale, of_gradient = coefficients(start.level, end.level)
        if self.method == "fon" and not exact:
            # The gradient is phi's move over one unit of time, always from the step's start.
            scale_unit, eps_unit = coefficients(start.level, step.unit)
            of_base, of_output, of_sample = scale_unit - 1, eps_unit * of_output, eps_unit * of_sample
            scale, of_gradient = 1.0, start.time - end.time
        self.calls.append(
            Call(
                node=asked,
                begins=begins,
                holds=holds,
                scale=scale,
                weights=tuple(of_gradient * weight for weight in weights),
                drop=drop,
                keep=self.keep if keep is None else keep,
                of_output=of_output,
                of_sample=of_sample,
                of_base=of_base,
                keeps_base=keeps_base,
            )
        )


def _as_epsilon(prediction: Prediction, asked: Node) -> tuple[float, float]:
    """Factors of the output and of the sample in the noise prediction."""
    signal, noise = asked.level**0.5, (1 - asked.level) ** 0.5
    if prediction == "epsilon":
        return 1.0, 0.0
    if prediction == "v_prediction":
        return signal, noise
    if noise == 0:
        raise ValueError(
            f"prediction_type 'sample' has no noise prediction at alpha_bar 1, where time {asked.time:g} asks for one;"
            " take more steps, a schedule with final='first', or another method"
        )
    return -signal / noise, 1 / noise


def _as_velocity(prediction: Prediction, asked: Node) -> tuple[float, float]:
    """Factors of the output and of the sample in v, the noise times sqrt(a) less the data times sqrt(1 - a)."""
    signal, noise = asked.level**0.5, (1 - asked.level) ** 0.5
    if prediction == "v_prediction":
        return 1.0, 0.0
    if prediction == "epsilon":
        raise ValueError(
            "prediction_type 'epsilon' cannot leave alpha_bar 0 (zero terminal SNR), where the noise tells nothing of"
            " the data; take a model of v or of the sample, or begin later"
        )
    if noise == 0:
        raise ValueError("prediction_type 'sample' has no v at alpha_bar 1; take more steps")
    return -1 / noise, signal / noise


def _sigma(level: float) -> float:
    """The noise-to-signal ratio in which phi is Euler's step."""
    return ((1 - level) / level) ** 0.5 if level > 0 else float("inf")
