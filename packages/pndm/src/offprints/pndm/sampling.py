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

from offprints.pndm.history import History
from offprints.pndm.plans import METHODS, PREDICTIONS, Call, Method, Node, Prediction, make_plan, plain_step
from offprints.pndm.schedules import AlphaSchedule, as_float64, inference_times, values_of
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_choice, check_monotone, check_number, check_tensor


def pndm_sample(
    model: Callable[..., Any],
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
    differentiable: bool = False,
) -> Float[Tensor, "..."]:
    """Solve the reverse process of a trained diffusion model from `noise` at ``times[0]`` to ``times[-1]``.

    Every step combines noise predictions as a classical method does (the gradient part) and then moves with
    `transfer` (the transfer part): the paper's algorithms S-PNDM and F-PNDM.

    Args:
        model: ``model(x [B, ...], t [B], **model_kwargs)`` returns ``[B, ...]``, or an object with it as `sample` (as
            the networks of diffusers do). `x` is the model's own: it may change it in place. `t` has the type of `x`,
            float32 for half types (bfloat16 has no 981); between two listed times f-pndm and fon ask at a half step,
            which need not be whole. Outputs are kept by reference for up to three steps.
        noise: ``[B, ...]``, floating: where to start, standard normal for a model trained in the usual way. It is not
            changed.
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
        differentiable: Record the run for autograd: gradients flow to `noise` and to what the model depends on. Memory
            then grows with the number of evaluations.

    Returns:
        ``[B, ...]`` in the type of `noise`, or ``[n + 1, B, ...]`` with the noise first.

    Raises:
        TypeError: integer noise, a model that is not callable or returns no floating tensor, a switch that is not a
            boolean.
        ValueError: an unknown option; noise that is empty, has fewer than two axes or is not finite; `times` not
            strictly decreasing, fewer than two, beyond the table, or missing for a continuous schedule; `num_steps` not
            in 1..num_train_timesteps; a model that returns another shape, or changes an output in place that it
            returned before; a sample-predicting model asked at alpha-bar 1; ``"fon"`` with a continuous schedule,
            ``"f-pndm-sigma"`` with ``interpolation="floor"``; a start at alpha-bar 0 with either, or with a
            noise-predicting model.

    Warns:
        UserWarning: a multistep method other than ``"f-pndm-sigma"`` on `times` whose spacing differs by more than 1 %
            before the last step: its weights are those of equal steps.

    Example:
        >>> schedule = AlphaSchedule.linear()
        >>> noise = torch.randn(4, 3, 8, 8)
        >>> samples = pndm_sample(lambda x, t: 0.1 * x, noise, schedule=schedule, num_steps=10)
        >>> samples.shape
        torch.Size([4, 3, 8, 8])
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    check_choice(method, "method", METHODS)
    check_choice(prediction_type, "prediction_type", PREDICTIONS)
    if not isinstance(schedule, AlphaSchedule):
        raise TypeError(f"schedule must be an AlphaSchedule, got {type(schedule).__name__}")
    if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
        raise TypeError(f"model_kwargs must be a mapping, got {type(model_kwargs).__name__}")
    validate = check_bool(validate, "validate")
    return_trajectory = check_bool(return_trajectory, "return_trajectory")
    differentiable = check_bool(differentiable, "differentiable")
    check_tensor(noise, "noise", finite=validate, validate=validate)
    if noise.ndim < 2:
        raise ValueError(f"noise must have a batch axis and at least one more, got shape {tuple(noise.shape)}")
    grid = _times(times, num_steps, schedule, method)
    plan = _plan(_levels(schedule, grid, method), method, prediction_type)
    kwargs = dict(model_kwargs or {})
    if differentiable:
        return _run(model, noise.clone(), plan, kwargs, return_trajectory)
    with torch.no_grad():
        return _run(model, noise.detach().clone(), plan, kwargs, return_trajectory)


def _run(
    model: Callable[..., Any], x: Tensor, plan: Sequence[Call], kwargs: dict[str, Any], return_trajectory: bool
) -> Tensor:
    """The calls of the plan one by one. `x` is handed to the model, which may change it."""
    asked = torch.tensor([call.node.time for call in plan], dtype=torch.float64).to(working_dtype(x))
    rows = asked.to(x.device).unsqueeze(1).repeat(1, len(x)).unbind()
    shape, dtype = x.shape, x.dtype
    history, trajectory = History(), [x.clone()] if return_trajectory else []
    for i, (call, t) in enumerate(zip(plan, rows, strict=True)):
        history.before(call, x)
        output = model(x, t, **kwargs)
        if not isinstance(output, Tensor) and isinstance(getattr(output, "sample", None), Tensor):
            output = output.sample
        check_output(output, shape, "the output of the model")
        x = history.after(call, output, dtype)
        if return_trajectory and (i + 1 == len(plan) or plan[i + 1].begins):
            trajectory.append(x.clone())
    return torch.stack(trajectory) if return_trajectory else x


def check_output(output: Any, shape: torch.Size, name: str) -> None:
    """Refuse what is no prediction for a sample of this shape: no floating tensor (TypeError), another shape."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"{name} must be a floating tensor, got {got}")
    if output.shape != shape:
        learned = output.ndim == len(shape) > 1 and output.shape[1] == 2 * shape[1]
        advice = "; with a learned variance, pass on only the first half of the channels" if learned else ""
        raise ValueError(f"{name} must have the shape of its input, {tuple(shape)}, got {tuple(output.shape)}{advice}")


def _times(
    times: Tensor | np.ndarray | Sequence[float] | None, num_steps: int, schedule: AlphaSchedule, method: Method
) -> Tensor:
    if times is None:
        if schedule.num_train_timesteps == 0:
            raise ValueError("times must be given: a continuous schedule has no default")
        num_steps = check_number(num_steps, "num_steps", low=1, high=schedule.num_train_timesteps, integer=True)
        grid = inference_times(num_steps, schedule.num_train_timesteps)
    else:
        grid = as_float64(times, "times")
        if len(grid) < 2:
            raise ValueError(f"times must hold at least two times, got {grid.tolist()}")
        check_monotone(grid, "times", increasing=False)
        warn_if_uneven(np.array(values_of(grid[:-1])), method, stacklevel=4)
    end = 1 if schedule.num_train_timesteps == 0 else schedule.num_train_timesteps - 1 - schedule.offset
    if grid[0] > end:
        raise ValueError(f"times must not lie beyond the last one of the schedule, {end}, got {grid[0].item():g}")
    return grid


def warn_if_uneven(times: np.ndarray, method: Method, *, stacklevel: int) -> None:
    """Warn where the Adams weights assume steps that are not there; the last step of all is left out."""
    widths = -np.diff(times)
    if (
        len(widths) > 1
        and widths.max() - widths.min() > 0.01 * widths.mean()
        and method not in ("ddim", "f-pndm-sigma")
    ):
        warnings.warn(
            f"times are not equally spaced, as the weights of {method!r} assume; method 'f-pndm-sigma' of pndm_sample"
            " adapts its own",
            UserWarning,
            stacklevel=stacklevel,
        )


# A plan is a function of these numbers alone: times, levels, times and levels of the half steps, levels a unit on.
Levels = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _levels(schedule: AlphaSchedule, times: Tensor, method: Method) -> Levels:
    if method == "fon" and schedule.num_train_timesteps == 0:
        raise ValueError("method 'fon' takes differences over one training step; a continuous schedule has none")
    if method == "f-pndm-sigma" and schedule.interpolation == "floor":
        raise ValueError("method 'f-pndm-sigma' needs a schedule with interpolation='log' or a continuous one")
    halves = (times[1:] + times[:-1]) / 2
    read = schedule.alpha_bar(torch.cat([times, halves, times - 1 if method == "fon" else times]))
    levels, half_levels, units = read.split([len(times), len(halves), len(times)])
    if method == "f-pndm-sigma":
        sigmas = ((1 - levels) / levels).sqrt()
        half_levels = 1 / (1 + ((sigmas[1:] + sigmas[:-1]) / 2) ** 2)
        halves = schedule._time_of(half_levels)
    return tuple(tuple(values_of(part)) for part in (times, levels, halves, half_levels, units))  # type: ignore[return-value]


@lru_cache(maxsize=32)
def _plan(levels: Levels, method: Method, prediction: Prediction) -> tuple[Call, ...]:
    times, at_times, halves, at_halves, units = levels
    nodes = [Node(*pair) for pair in zip(times, at_times, strict=True)]
    middle = [Node(*pair) for pair in zip(halves, at_halves, strict=True)]
    steps = [
        plain_step(start, half, end, unit)
        for start, half, end, unit in zip(nodes[:-1], middle, nodes[1:], units[:-1], strict=True)
    ]
    return tuple(make_plan(steps, method, prediction))
