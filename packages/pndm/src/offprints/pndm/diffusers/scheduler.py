"""The scheduler: a state machine that takes the model's outputs one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from jaxtyping import Float, Shaped
from torch import Tensor

from offprints.pndm.diffusers.configuration import METHODS, Configured, read_settings
from offprints.pndm.diffusers.grids import spaced
from offprints.pndm.diffusers.levels import Levels
from offprints.pndm.diffusers.runs import Grid, Runs
from offprints.pndm.diffusers.turns import Turns
from offprints.pndm.diffusers.watch import SampleWatch
from offprints.pndm.history import History
from offprints.pndm.plans import RUNGE_KUTTA, Call, asked_nodes
from offprints.pndm.sampling import check_output, warn_if_uneven
from offprints.pndm.schedules import Values, as_float64, values_of
from offprints.shared.device import resolve_device
from offprints.shared.validation import check_bool, check_choice, check_number, check_tensor


class PNDMScheduler(Configured):
    """Drop-in for the PNDMScheduler of diffusers: its times and its results, with more methods and less work a step.

    `pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)` takes over a pipeline's settings:
    `skip_prk_steps` of diffusers' own scheduler is `method="plms"`, and so is every scheduler that does not know that
    setting, since pipelines that begin in the middle (image-to-image) count entries of `timesteps` as steps. The
    configuration is read by diffusers' own scheduler too, files included; where it has no such method, it warns.
    Pipelines that convert any scheduler to diffusers' own (DDIMPipeline) do not use this one.

    A step leads to the time minus `num_train_timesteps // num_inference_steps`, as in diffusers, although with the
    spacings ``"linspace"`` and ``"trailing"`` the next time in the list may be another one; `step_to="listed"` leads to
    that next time, as `pndm_sample` does. Half steps are at integer times. The outputs of the model are kept by
    reference for up to three steps.

    Args:
        num_train_timesteps: Length of the training table.
        beta_start: First beta.
        beta_end: Last beta.
        beta_schedule: ``"linear"``, ``"scaled_linear"`` or ``"squaredcos_cap_v2"``.
        trained_betas: The betas themselves, ``[num_train_timesteps]``, instead.
        method: ``"f-pndm"``, ``"plms"``, ``"s-pndm"``, ``"ddim"`` or ``"fon"``; see `pndm_sample`.
        prediction_type: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``, converted at every call. (diffusers converts
            the combination of several predictions instead, so that its results differ for ``"v_prediction"``.)
        set_alpha_to_one: End at clean data instead of at the first entry of the table.
        timestep_spacing: ``"leading"``, ``"linspace"`` or ``"trailing"``.
        steps_offset: Added to the times with the leading spacing; 1 for Stable Diffusion.
        skip_prk_steps: diffusers' spelling: `True` for `method="plms"`, `False` for `method="f-pndm"`.
        rescale_betas_zero_snr: End the table at zero terminal SNR; see `AlphaSchedule`.
        step_to: Where a step leads: ``"ratio"`` as in diffusers, ``"listed"`` to the next listed time.

    Attributes:
        timesteps: int64 ``[calls]``, one for each call of the model, repeated where it is called twice.
        num_inference_steps: Steps, fewer than calls.
        init_noise_sigma: Standard deviation of the noise to start from, 1.
        alphas_cumprod: ``[num_train_timesteps]``, the table in use. One that is assigned is used from the next step on.
        final_alpha_cumprod: Level below time 0, likewise. Assigning `alphas_cumprod` leaves it, as in diffusers.
        betas, alphas: float32 ``[num_train_timesteps]``, for pipelines that read them.

    Raises:
        TypeError: arguments of the wrong kind.
        ValueError: an unknown option, betas outside (0, 1), sizes out of range, `skip_prk_steps` against `method`.

    Example:
        >>> scheduler = PNDMScheduler(method="plms")
        >>> scheduler.set_timesteps(5)
        >>> scheduler.timesteps.tolist()
        [800, 600, 600, 400, 200, 0]
    """

    __module__ = "offprints.pndm.diffusers"  # what a saved pipeline names
    order = 1
    init_noise_sigma = 1.0
    pndm_order = 4

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
        *,
        skip_prk_steps: bool | None = None,
        rescale_betas_zero_snr: bool = False,
        step_to: Literal["ratio", "listed"] = "ratio",
    ) -> None:
        check_choice(method, "method", METHODS)
        if skip_prk_steps is not None:
            spelled = "plms" if check_bool(skip_prk_steps, "skip_prk_steps") else "f-pndm"
            if method not in ("f-pndm", spelled):
                raise ValueError(f"skip_prk_steps={skip_prk_steps} means method {spelled!r}, got method {method!r}")
            method = spelled  # type: ignore[assignment]
        plain = None if trained_betas is None else values_of(as_float64(trained_betas, "trained_betas"))
        # What another scheduler must not take for a default of its own, in a form that a file can hold.
        told = {"method", "skip_prk_steps", "trained_betas"}
        defaults = [name for name in dict(self._internal_dict).get("_use_default_values", ()) if name not in told]
        self.register_to_config(
            method=method,
            skip_prk_steps=method not in RUNGE_KUTTA,
            trained_betas=plain,
            _use_default_values=defaults,
        )
        self._runs = Runs()
        self._remake_table()
        read_settings(self._internal_dict)
        self.num_inference_steps: int | None = None
        self._grid = Grid((), None, method)
        self._begin(np.arange(num_train_timesteps - 1, -1, -1).tolist(), None)
        self._ready = False

    def _remake_table(self) -> None:
        self._levels = Levels(self._internal_dict)
        self.alphas_cumprod, self.final_alpha_cumprod = self._levels.alphas_cumprod, self._levels.final_alpha_cumprod
        self.alphas, self.betas = self._levels.alphas, self._levels.betas
        self._runs.forget()

    def _read_table(self) -> Levels:
        if self._levels.use(self.alphas_cumprod, self.final_alpha_cumprod):
            self._runs.forget()
        return self._levels

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these times; sets `timesteps`, on `device`.

        Args:
            num_inference_steps: Steps, spaced by `timestep_spacing`.
            device: Where to put `timesteps`.
            timesteps: ``[num_inference_steps]`` whole times, strictly decreasing, instead. Steps lead from each to the
                next and from the last to below 0.

        Raises:
            TypeError, ValueError: not an integer in 1..num_train_timesteps, times beyond the table or not strictly
                decreasing, both or neither of the two, a device that is not there.

        Warns:
            UserWarning: `timesteps` of uneven spacing, as in `pndm_sample`.
        """
        settings = read_settings(self._internal_dict)
        place = None if device is None else resolve_device(device)
        if not self._levels.made_of(self._internal_dict):
            self._remake_table()
        total, method = settings.total, settings.method
        if timesteps is None:
            n = check_number(num_inference_steps, "num_inference_steps", low=1, high=total, integer=True)
            times = spaced(n, total, settings.spacing, settings.offset)
            ratio = total // n if settings.by_ratio else None
        else:
            if num_inference_steps is not None:
                raise ValueError("num_inference_steps and timesteps cannot both be given")
            given = np.array(values_of(as_float64(timesteps, "timesteps")))
            times, ratio = given.astype(np.int64), None
            if (times != given).any() or (np.diff(times) >= 0).any() or times[0] >= total or times[-1] < 0:
                raise ValueError(
                    f"timesteps must be whole numbers in 0..{total - 1}, strictly decreasing, got {given.tolist()}"
                )
            warn_if_uneven(given, method, stacklevel=3)
        self._grid = Grid(tuple(times.tolist()), ratio, method)
        steps = self._runs.steps(self._grid, self._read_table().table)
        listed = [max(0, int(node.time)) for node in asked_nodes(steps, method)]
        self.num_inference_steps = len(times)
        self._begin(listed, place)
        self._ready = True

    def _begin(self, listed: list[int], device: torch.device | None) -> None:
        self._turns = Turns(listed, device)
        self.timesteps = self._turns.tensor
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._begun = 0
        self._history = History()
        self._watch = SampleWatch()

    def _calls(self, begin: int) -> list[Call]:
        """The calls from this one of the list on."""
        return self._runs.calls(self._grid, self._read_table().table, self._internal_dict["prediction_type"], begin)

    @property
    def begin_index(self) -> int | None:
        """Where in `timesteps` the run begins, if it was told."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """Where in `timesteps` the next step is; None before the first one."""
        return self._step_index

    @property
    def counter(self) -> int:
        """Steps taken in this run."""
        return 0 if self._step_index is None else self._step_index - self._begun

    @property
    def ets(self) -> list[Tensor]:
        """The noise predictions kept for the next step, the newest last."""
        counter, stages = self.counter, 0
        plan = self._calls(self._begun) if counter else []
        while counter - stages > 0 and counter < len(plan) and not plan[counter - stages].begins:
            stages += 1  # inside a step of several calls those after its first one
        return self._history.gradients[max(0, stages - 1) :][::-1]

    @property
    def cur_sample(self) -> Tensor | None:
        """The sample at the start of a step of several calls, inside one."""
        return self._history.base

    @property
    def prk_timesteps(self) -> np.ndarray:
        """The entries of `timesteps` that belong to Runge-Kutta steps."""
        return np.array(self._turns.times[: self._num_prk()], dtype=np.int64)

    @property
    def plms_timesteps(self) -> np.ndarray:
        """The other entries of `timesteps`."""
        return np.array(self._turns.times[self._num_prk() :], dtype=np.int64)

    def _num_prk(self) -> int:
        return 4 * min(3, len(self._grid.times)) if self._grid.method in RUNGE_KUTTA else 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin in the middle of `timesteps`, as image-to-image pipelines do; the history begins there too.

        Raises:
            TypeError, ValueError: not an index into `timesteps`, or the run has begun.
        """
        index = check_number(begin_index, "begin_index", low=0, high=max(len(self._turns.times) - 1, 0), integer=True)
        if self._step_index is not None:
            raise ValueError("begin_index cannot be set during a run; call set_timesteps first")
        self._begin_index = index

    def scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The sample as it is, for the model: this scheduler scales nothing.

        A model that then changes it in place is noticed by `step`; give such a model a copy.
        """
        self._watch.shown(sample)
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
            timestep: The next entry of `timesteps`, told by its value. The first one of a run may be any of them, but
                for the last one, which could be the index of a loop: `set_begin_index` begins there. Of two equal
                ones the second is taken, where it is no element of `timesteps` itself.
            sample: ``[B, ...]``, as returned by the last step, or edited since; not changed.
            return_dict: Return an object with `prev_sample` instead of a tuple.
            **kwargs: What pipelines pass to other schedulers (`generator`, `eta`); ignored.

        Raises:
            TypeError: tensors that are not floating, a `timestep` that is not a number.
            ValueError: `set_timesteps` was not called, or not again after a run; `timestep` is not the next one;
                shapes that differ; an output of an earlier call, or by the model the sample, changed in place.

        Warns:
            UserWarning: the sample was changed in place since the last step, and `scale_model_input`, which tells an
                edit from a model that works in place, was not called in between.
        """
        if not self._ready:
            raise ValueError("set_timesteps must be called before step")
        check_tensor(sample, "sample", finite=False)
        check_output(model_output, sample.shape, "model_output, the output of the model,")
        return_dict = check_bool(return_dict, "return_dict")
        value, place = self._turns.read(timestep)
        index = self._step_index
        if index is None:
            index = self._turns.first(value, place) if self._begin_index is None else self._begin_index
        self._turns.check(value, place, index)
        self._history.check()
        self._watch.check(model_output, sample, stacklevel=2)
        begun = index if self._step_index is None else self._begun
        call = self._calls(begun)[index - begun]
        self._history.before(call, sample)
        moved = self._history.after(call, model_output, sample.dtype)
        self._begun, self._step_index = begun, index + 1
        if self._step_index == len(self._turns.times):
            self._history = History()
            self._watch.forget()
        else:
            self._watch.returned(moved)
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def add_noise(
        self,
        original_samples: Float[Tensor, "batch *shape"],
        noise: Float[Tensor, "batch *shape"],
        timesteps: Shaped[Tensor, " batch"],
    ) -> Float[Tensor, "batch *shape"]:
        """Samples with the noise that they have at `timesteps`, one time for each or one for all.

        Raises:
            TypeError: samples or noise that are not floating, times that are not numbers.
            ValueError: shapes that differ, times that are not whole or outside the table.
        """
        return self._read_table().add_noise(original_samples, noise, timesteps)
