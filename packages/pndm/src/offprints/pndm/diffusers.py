"""A scheduler for pipelines of the diffusers library; needs the extra ``offprints-pndm[diffusers]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.pndm.plans import ORDERS, Call, History, Node, Step, asked_nodes, make_plan
from offprints.pndm.sampling import check_output
from offprints.pndm.schedules import AlphaSchedule, Values, as_float64
from offprints.shared.extras import require
from offprints.shared.validation import check_choice, check_number, check_same_shape, check_tensor

require("diffusers", package="pndm", extra="diffusers")

from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import (  # noqa: E402
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)

__all__ = ["PNDMScheduler"]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
METHODS = tuple(method for method in ORDERS if method != "f-pndm-sigma")  # its half steps are not at integer times


class PNDMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Drop-in for diffusers' own ``PNDMScheduler``: its times and its results, with more methods and less work a step.

    ::

        pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)

    takes over a pipeline's settings; ``skip_prk_steps`` of diffusers' scheduler becomes ``method="plms"``. Pipelines
    that convert any scheduler to diffusers' own (DDIMPipeline) do not use this one.

    A step leads to the time minus ``num_train_timesteps // num_inference_steps``, as in diffusers, although with the
    spacings ``"linspace"`` and ``"trailing"`` the next time in the list may be another one; :func:`pndm_sample` goes to
    the next time itself. Half steps are at integer times. Outputs of the model are kept by reference for up to three
    steps.

    Args:
        num_train_timesteps: Length of the training table.
        beta_start: First beta.
        beta_end: Last beta.
        beta_schedule: ``"linear"``, ``"scaled_linear"`` or ``"squaredcos_cap_v2"``.
        trained_betas: The betas themselves, ``[num_train_timesteps]``, instead.
        method: ``"f-pndm"``, ``"plms"``, ``"s-pndm"``, ``"ddim"`` or ``"fon"``; see :func:`pndm_sample`.
        prediction_type: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``, converted at every call. (diffusers converts
            the combination of several predictions instead, so that its results differ for ``"v_prediction"``.)
        set_alpha_to_one: End at clean data instead of at the first entry of the table.
        timestep_spacing: ``"leading"``, ``"linspace"`` or ``"trailing"``.
        steps_offset: Added to the times with the leading spacing; 1 for Stable Diffusion.

    Attributes:
        timesteps: int64 ``[calls]``, one for each call of the model, repeated where it is called twice.
        num_inference_steps: Steps, fewer than calls.
        init_noise_sigma: Standard deviation of the noise to start from, 1.
        betas, alphas_cumprod: float32 ``[num_train_timesteps]``, for pipelines that read them.

    Raises:
        TypeError: arguments of the wrong kind.
        ValueError: an unknown option, betas outside (0, 1), sizes out of range.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear",
        trained_betas: Values | None = None,
        method: Literal["ddim", "s-pndm", "f-pndm", "plms", "fon"] = "f-pndm",
        prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
        set_alpha_to_one: bool = False,
        timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading",
        steps_offset: int = 0,
    ) -> None:
        check_number(num_train_timesteps, "num_train_timesteps", low=1, integer=True)
        check_choice(beta_schedule, "beta_schedule", BETA_SCHEDULES)
        check_choice(method, "method", METHODS)
        check_choice(prediction_type, "prediction_type", ("epsilon", "v_prediction", "sample"))
        check_choice(timestep_spacing, "timestep_spacing", ("leading", "linspace", "trailing"))
        check_number(steps_offset, "steps_offset", low=0, high=num_train_timesteps - 1, integer=True)
        options: Any = {"final": "one" if set_alpha_to_one else "first", "interpolation": "floor"}
        if trained_betas is not None:
            betas = as_float64(trained_betas, "trained_betas")
            if len(betas) != num_train_timesteps:
                raise ValueError(
                    f"trained_betas must have num_train_timesteps={num_train_timesteps} entries, got {len(betas)}"
                )
            plain = betas.tolist()  # what a JSON file can hold
            self.register_to_config(trained_betas=plain)  # type: ignore[no-untyped-call]
            self._schedule = AlphaSchedule.from_betas(betas, **options)
        elif beta_schedule == "squaredcos_cap_v2":
            self._schedule = AlphaSchedule.cosine(num_train_timesteps, **options)
        else:
            make = AlphaSchedule.linear if beta_schedule == "linear" else AlphaSchedule.quadratic
            self._schedule = make(num_train_timesteps, beta_start=beta_start, beta_end=beta_end, **options)
        levels = self._schedule.alpha_bar(torch.arange(num_train_timesteps))
        self._levels = levels
        self.alphas_cumprod = levels.float()
        self.betas = (1 - levels / torch.cat([levels.new_ones(1), levels[:-1]])).float()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._listed: list[int] = []
        self._steps: list[Step] = []
        self._grids: dict[int, tuple[list[Step], list[int]]] = {}  # by number of steps: pipelines repeat it
        self._plans: dict[tuple[int | None, int], list[Call]] = {}
        self._reset()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler with the settings of another one, diffusers' own too (its ``skip_prk_steps`` is understood)."""
        if isinstance(config, Mapping) and "method" not in config and "method" not in kwargs:
            kwargs["method"] = "plms" if config.get("skip_prk_steps", False) else "f-pndm"
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps; sets :attr:`timesteps`, on `device`.

        Raises:
            TypeError, ValueError: not an integer in 1..num_train_timesteps, or times beyond the table.
        """
        total = self.config["num_train_timesteps"]
        check_number(num_inference_steps, "num_inference_steps", low=1, high=total, integer=True)
        n = int(num_inference_steps)
        if n not in self._grids:
            self._grids[n] = self._grid(n)
        self._steps, self._listed = self._grids[n]
        self.timesteps = torch.tensor(self._listed, dtype=torch.int64).to(device)
        self.num_inference_steps = n
        self._reset()

    def _grid(self, num_inference_steps: int) -> tuple[list[Step], list[int]]:
        total = self.config["num_train_timesteps"]
        times, ratio = self._spaced(num_inference_steps), total // num_inference_steps
        if times[0] >= total:
            raise ValueError(
                f"num_inference_steps={num_inference_steps} with steps_offset={self.config['steps_offset']} begins at"
                f" {times[0]}, beyond the table of {total} entries"
            )
        # From each time t diffusers leads to t - r; Runge-Kutta and the second Euler try lead to the next in the list.
        ends = times - ratio
        listed = np.append(times[1:], ends[-1])
        asked = listed + ratio // 2
        if self.config["method"] == "fon":
            ends[-1] = listed[-1] = -1
        restarts = np.append(times[1:] + ratio, times[-1])
        grid = np.stack([times, ends, listed, restarts, times - ratio // 2, asked, asked, times - 1], 1)
        levels = self._schedule.alpha_bar(torch.from_numpy(np.minimum(grid, total - 1))).tolist()
        rows = [[Node(*pair) for pair in zip(*row, strict=True)] for row in zip(grid.tolist(), levels, strict=True)]
        steps = [
            Step(start, end, following, restart, (first, second), half, unit.level)
            for start, end, following, restart, first, second, half, unit in rows
        ]
        return steps, [max(0, int(node.time)) for node in asked_nodes(steps, self.config["method"])]

    def _spaced(self, n: int) -> np.ndarray:
        total = self.config["num_train_timesteps"]
        if self.config["timestep_spacing"] == "linspace":
            times = np.linspace(0, total - 1, n).round()[::-1]
        elif self.config["timestep_spacing"] == "leading":
            times = np.arange(n - 1, -1, -1) * (total // n) + self.config["steps_offset"]
        else:
            times = np.round(np.arange(total, 0, -total / n)) - 1
        return times.astype(np.int64)

    def _reset(self) -> None:
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._plan: list[Call] = []
        self._history = History()

    @property
    def begin_index(self) -> int | None:
        """Where in :attr:`timesteps` the run begins, if it was told."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """Where in :attr:`timesteps` the next step is; None before the first one."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin in the middle of :attr:`timesteps`, as image-to-image pipelines do; the history begins there too.

        Raises:
            TypeError, ValueError: not an index into :attr:`timesteps`, or the run has begun.
        """
        check_number(begin_index, "begin_index", low=0, high=max(len(self._listed) - 1, 0), integer=True)
        if self._step_index is not None:
            raise ValueError("begin_index cannot be set during a run; call set_timesteps first")
        self._begin_index = int(begin_index)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample as it is: this scheduler scales nothing."""
        return sample

    def step(
        self,
        model_output: Float[Tensor, "batch *shape"],
        timestep: Tensor | float,
        sample: Float[Tensor, "batch *shape"],
        return_dict: bool = True,
        **kwargs: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take the model's output at `timestep`; the result is the sample for which it is wanted at the next one.

        Args:
            model_output: ``[B, ...]``, the model's output for `sample`; not changed.
            timestep: The next entry of :attr:`timesteps`. The first one of a run may be any of them.
            sample: ``[B, ...]``, as returned by the last step.
            return_dict: Return an object with ``prev_sample`` instead of a tuple.
            **kwargs: What pipelines pass to other schedulers (``generator``, ``eta``); ignored.

        Raises:
            TypeError: tensors that are not floating.
            ValueError: ``set_timesteps`` was not called, or not again after a run; `timestep` is not the next one;
                shapes that differ.
        """
        if not self._steps:
            raise ValueError("set_timesteps must be called before step")
        check_tensor(sample, "sample", finite=False)
        check_output(model_output, sample, "model")
        if self._step_index is None:
            index = self._first_index(timestep)
            key = (self.num_inference_steps, index)
            if key not in self._plans:
                self._plans[key] = make_plan(self._steps, self.config["method"], self.config["prediction_type"], index)
            self._plan = self._plans[key]
            self._step_index = self._begun = index
        self._check_next(timestep, self._step_index)
        call = self._plan[self._step_index - self._begun]
        moved = self._history.advance(call, sample, model_output)
        self._step_index += 1
        if self._step_index == len(self._listed):
            self._history = History()
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def _first_index(self, timestep: Tensor | float) -> int:
        if self._begin_index is not None:
            return self._begin_index
        index = self._position(timestep)
        if index is not None:
            return index
        value = int(timestep)
        if value not in self._listed:
            raise ValueError(f"timestep must be one of timesteps, got {value}; were they set with set_timesteps?")
        return self._listed.index(value)

    def _check_next(self, timestep: Tensor | float, index: int) -> None:
        again = "call set_timesteps before another run"
        if index >= len(self._listed):
            raise ValueError(f"the run of {len(self._listed)} calls is over; {again}")
        position = self._position(timestep)
        if position is None and isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return  # its value is not worth waiting for the device
        wrong = int(timestep) != self._listed[index] if position is None else position != index
        if wrong:
            raise ValueError(f"timestep must be {self._listed[index]} in call {index}, got {int(timestep)}; {again}")

    def _position(self, timestep: Tensor | float) -> int | None:
        """Which entry of :attr:`timesteps` this tensor is, told by its place in memory."""
        if not isinstance(timestep, Tensor) or timestep.numel() != 1:
            return None
        if timestep.untyped_storage().data_ptr() != self.timesteps.untyped_storage().data_ptr():
            return None
        return int(timestep.storage_offset())

    def add_noise(
        self,
        original_samples: Float[Tensor, "batch *shape"],
        noise: Float[Tensor, "batch *shape"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch *shape"]:
        """Samples with the noise that they have at `timesteps`, one time for each or one for all.

        Raises:
            TypeError: samples or noise that are not floating.
            ValueError: shapes that differ, times outside the table.
        """
        check_tensor(original_samples, "original_samples", finite=False)
        check_tensor(noise, "noise", finite=False)
        check_same_shape(original_samples, noise, ("original_samples", "noise"))
        times = torch.as_tensor(timesteps).flatten()
        if len(times) not in (1, len(original_samples)):
            raise ValueError(f"timesteps must be one for each of {len(original_samples)} samples, got {len(times)}")
        if times.device.type == "cpu" and not bool(((times >= 0) & (times < len(self._levels))).all()):
            raise ValueError(f"timesteps must be in 0..{len(self._levels) - 1}, got {times.tolist()}")
        shape = (-1,) + (1,) * (original_samples.ndim - 1)
        signal, noisy = (
            table.to(times.device)[times].to(original_samples.device, original_samples.dtype).view(shape)
            for table in (self._levels.sqrt().float(), (1 - self._levels).sqrt().float())
        )
        return signal * original_samples + noisy * noise

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])
