"""`pndm_sample`: from noise to samples with one of the pseudo numerical methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offprints.pndm.plans import METHODS, PREDICTIONS, Call, History, Method, Node, Prediction, Step, make_plan
from offprints.pndm.plans import plain_step as plain
from offprints.pndm.schedules import AlphaSchedule, as_float64, inference_times
from offprints.pndm.transfers import HALF
from offprints.shared.validation import check_choice, check_monotone, check_number, check_tensor


@torch.no_grad()
def pndm_sample(
    model: Callable[..., Tensor],
    noise: Float[Tensor, "batch *shape"],
    *,
    schedule: AlphaSchedule,
    times: Tensor | np.ndarray | Sequence[float] | None = None,
    num_steps: int = 50,
    method: Method = "f-pndm",
    prediction_type: Prediction = "epsilon",
    model_kwargs: Mapping[str, Any] | None = None,
    return_trajectory: bool = False,
    validate: bool = True,
) -> Float[Tensor, "..."]:
    """Solve the reverse process of a trained diffusion model from `noise` at ``times[0]`` to ``times[-1]``.

    Every step combines noise predictions as a classical method does (the gradient part) and then moves with
    :func:`transfer` (the transfer part). The outputs of the model are kept by reference for up to three steps.

    Args:
        model: ``model(x [B, ...], t [B], **model_kwargs)`` returns ``[B, ...]``. `t` has the type of `x`, float32 for
            half types (bfloat16 has no 981).
        noise: ``[B, ...]``, floating: where to start, standard normal for a model trained in the usual way.
        schedule: The levels that the model was trained with.
        times: ``[n + 1]``, strictly decreasing, any real numbers that the schedule covers. Default:
            ``inference_times(num_steps)``.
        num_steps: Where `times` is not given.
        method: ``"ddim"`` (order 1); ``"s-pndm"`` and ``"f-pndm"``, the paper's second- and fourth-order methods;
            ``"plms"``, fourth order without Runge-Kutta steps; ``"fon"``, the paper's classical fourth-order baseline,
            which leaves the manifold; ``"f-pndm-sigma"``, ours: Adams weights for the given times in the
            noise-to-signal ratio, of fourth order on any grid.
        prediction_type: What the model predicts; other than ``"epsilon"`` it is converted at every evaluation.
        model_kwargs: Passed on to the model.
        return_trajectory: Return the samples at all times.
        validate: Refuse noise that is NaN or infinite, which on an accelerator waits for it.

    Returns:
        ``[B, ...]`` in the type of `noise`, or ``[n + 1, B, ...]`` with the noise first.

    Raises:
        TypeError: integer noise, a model that is not callable or returns no floating tensor.
        ValueError: an unknown option; noise that is empty, has fewer than two axes or is not finite; `times` not
            strictly decreasing, fewer than two, beyond the table, or missing for a continuous schedule; `num_steps` not
            in 1..num_train_timesteps; a model that returns another shape; a sample-predicting model asked at alpha-bar
            1; ``"fon"`` with a continuous schedule, ``"f-pndm-sigma"`` with ``interpolation="floor"``.

    Warns:
        UserWarning: a multistep method other than ``"f-pndm-sigma"`` on `times` whose spacing differs by more than 1 %
            before the last step: its weights are those of equal steps.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    check_choice(method, "method", METHODS)
    check_choice(prediction_type, "prediction_type", PREDICTIONS)
    if not isinstance(schedule, AlphaSchedule):
        raise TypeError(f"schedule must be an AlphaSchedule, got {type(schedule).__name__}")
    check_tensor(noise, "noise", finite=validate, validate=validate)
    if noise.ndim < 2:
        raise ValueError(f"noise must have a batch axis and at least one more, got shape {tuple(noise.shape)}")
    grid = _times(times, num_steps, schedule, method)
    plan = _plan(schedule, tuple(grid.tolist()), method, prediction_type)

    clock = torch.float32 if noise.dtype in HALF else noise.dtype
    asked = torch.tensor([call.node.time for call in plan], dtype=torch.float64).to(clock)
    rows = asked.to(noise.device).unsqueeze(1).repeat(1, len(noise)).unbind()
    kwargs = dict(model_kwargs or {})
    history, x, trajectory = History(), noise.detach(), [noise.detach()]
    for i, (call, t) in enumerate(zip(plan, rows, strict=True)):
        output = model(x, t, **kwargs)
        check_output(output, x, "model")
        x = history.advance(call, x, output)
        if return_trajectory and _ends(plan, i):
            trajectory.append(x)
    return torch.stack(trajectory) if return_trajectory else x


def check_output(output: Tensor, x: Tensor, name: str) -> None:
    """Refuse what is no noise prediction for `x`: no floating tensor (TypeError), another shape (ValueError)."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"the output of the {name} must be a floating tensor, got {got}")
    if output.shape != x.shape:
        learned = output.ndim == x.ndim > 1 and output.shape[1] == 2 * x.shape[1]
        advice = "; with a learned variance, pass on only the first half of the channels" if learned else ""
        raise ValueError(
            f"the output of the {name} must have the shape of its input, {tuple(x.shape)},"
            f" got {tuple(output.shape)}{advice}"
        )


def _ends(plan: list[Call], i: int) -> bool:
    return i + 1 == len(plan) or plan[i + 1].begins


def _times(
    times: Tensor | np.ndarray | Sequence[float] | None, num_steps: int, schedule: AlphaSchedule, method: Method
) -> Tensor:
    if times is None:
        if schedule.num_train_timesteps == 0:
            raise ValueError("times must be given: a continuous schedule has no default")
        check_number(num_steps, "num_steps", low=1, high=schedule.num_train_timesteps, integer=True)
        grid = inference_times(num_steps, schedule.num_train_timesteps)
    else:
        grid = as_float64(times, "times")
        if len(grid) < 2:
            raise ValueError(f"times must hold at least two times, got {grid.tolist()}")
        check_monotone(grid, "times", increasing=False)
        widths = -grid.diff()[:-1]
        uneven = len(widths) > 1 and float(widths.max() - widths.min()) > 0.01 * float(widths.mean())
        if uneven and method not in ("ddim", "f-pndm-sigma"):
            warnings.warn(
                f"times are not equally spaced, as the weights of {method!r} assume; 'f-pndm-sigma' adapts its own",
                UserWarning,
                stacklevel=4,
            )
    end = 1 if schedule.num_train_timesteps == 0 else schedule.num_train_timesteps - 1 - schedule.offset
    if grid[0] > end:
        raise ValueError(f"times must not lie beyond the last one of the schedule, {end}, got {grid[0].item():g}")
    return grid


@lru_cache(maxsize=32)
def _plan(schedule: AlphaSchedule, times: tuple[float, ...], method: Method, prediction: Prediction) -> list[Call]:
    return make_plan(_steps(schedule, torch.tensor(times, dtype=torch.float64), method), method, prediction)


def _steps(schedule: AlphaSchedule, times: Tensor, method: Method) -> list[Step]:
    levels = schedule.alpha_bar(times)
    if method == "f-pndm-sigma":
        if schedule.interpolation == "floor":
            raise ValueError("method 'f-pndm-sigma' needs a schedule with interpolation='log' or a continuous one")
        sigmas = ((1 - levels) / levels).sqrt()
        half_levels = 1 / (1 + ((sigmas[1:] + sigmas[:-1]) / 2) ** 2)
        halves = schedule._time_of(half_levels)
    else:
        halves = (times[1:] + times[:-1]) / 2
        half_levels = schedule.alpha_bar(halves)
    units = levels
    if method == "fon":
        if schedule.num_train_timesteps == 0:
            raise ValueError("method 'fon' takes differences over one training step; a continuous schedule has none")
        units = schedule.alpha_bar(times - 1)
    nodes = [Node(*pair) for pair in zip(times.tolist(), levels.tolist(), strict=True)]
    middle = [Node(*pair) for pair in zip(halves.tolist(), half_levels.tolist(), strict=True)]
    return [
        plain(start, half, end, unit)
        for start, half, end, unit in zip(nodes[:-1], middle, nodes[1:], units[:-1].tolist(), strict=True)
    ]
