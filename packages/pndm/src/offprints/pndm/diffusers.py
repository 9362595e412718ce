"""A scheduler for pipelines of the diffusers library; needs the extra `offprints-pndm[diffusers]`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offprints.pndm.grids import SPACINGS, Table, spaced, steps_by_list, steps_by_ratio
from offprints.pndm.plans import METHODS as ALL_METHODS
from offprints.pndm.plans import PREDICTIONS, RUNGE_KUTTA, Call, History, Step, asked_nodes, make_plan
from offprints.pndm.sampling import check_output, warn_if_uneven
from offprints.pndm.schedules import BETA_SCHEDULES, LONGEST, AlphaSchedule, Values, as_float64
from offprints.shared.device import resolve_device
from offprints.shared.extras import require
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_number,
    check_same_shape,
    check_tensor,
    should_check,
)

require("diffusers", package="pndm", extra="diffusers")

from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import (  # noqa: E402
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)
from diffusers.utils import logging  # noqa: E402

__all__ = ["PNDMScheduler"]

logger = logging.get_logger(__name__)

METHODS = tuple(method for method in ALL_METHODS if method != "f-pndm-sigma")  # its half steps are at no integer times
PEERS = ("f-pndm", "plms")  # the methods that diffusers' own scheduler has
# What the table of levels is made of.
TABLE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
)


class PNDMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
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

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012
    order = 1
    init_noise_sigma = 1.0
    pndm_order = 4
    _internal_dict: Any

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
        plain = None if trained_betas is None else as_float64(trained_betas, "trained_betas").tolist()
        # What another scheduler must not take for a default of its own, in a form that a file can hold.
        told = {"method", "skip_prk_steps", "trained_betas"}
        defaults = [name for name in dict(self._internal_dict).get("_use_default_values", ()) if name not in told]
        self.register_to_config(
            method=method,
            skip_prk_steps=method not in RUNGE_KUTTA,
            trained_betas=plain,
            _use_default_values=defaults,
        )
        self._cache: dict[Any, Any] = {}
        self._remake_table()
        self._settings()
        self.num_inference_steps: int | None = None
        self._times = np.arange(0)
        self._ratio: int | None = None
        self._method: Any = method
        self._begin(np.arange(num_train_timesteps - 1, -1, -1).tolist(), None)
        self._ready = False

    # ---- configuration -----------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler with the settings of another one, of diffusers too.

        A configuration without `method` gives ``"plms"``, unless its `skip_prk_steps` is `False`: then ``"f-pndm"``.
        Keywords take precedence: `method`, then `skip_prk_steps`, then the configuration.
        """
        if isinstance(config, Mapping):
            settings = dict(config)
            own = settings.pop("method", None)
            skip = settings.pop("skip_prk_steps", None)
            if own is None:
                own = "f-pndm" if skip is False else "plms"
            if kwargs.get("skip_prk_steps") is not None:
                skip = check_bool(kwargs.pop("skip_prk_steps"), "skip_prk_steps")
                own = "plms" if skip else "f-pndm"
            kwargs.setdefault("method", own)
            config = settings
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def register_to_config(self, **kwargs: Any) -> None:
        """Change settings. They are honored by the next `set_timesteps`, `prediction_type` by the next run."""
        super().register_to_config(**kwargs)  # type: ignore[no-untyped-call]
        self._internal_dict = _Config(self._internal_dict)  # type: ignore[no-untyped-call]

    def to_json_string(self) -> str:
        """The configuration as it is written to files."""
        mine, self._internal_dict = self._internal_dict, FrozenDict(self._internal_dict)  # type: ignore[no-untyped-call]
        try:
            return str(super().to_json_string())
        finally:
            self._internal_dict = mine

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the configuration to a folder; logs a warning where diffusers' own scheduler has no such method."""
        if message := _other_method(self._internal_dict):
            logger.warning(message)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _settings(self) -> dict[str, Any]:
        """The settings as they are now, checked: pipelines change them."""
        config = self._internal_dict
        total = check_number(config["num_train_timesteps"], "num_train_timesteps", low=1, high=LONGEST, integer=True)
        check_choice(config["method"], "method", METHODS)
        check_choice(config["timestep_spacing"], "timestep_spacing", SPACINGS)
        check_choice(config["prediction_type"], "prediction_type", PREDICTIONS)
        check_choice(config["step_to"], "step_to", ("ratio", "listed"))
        offset = check_number(config["steps_offset"], "steps_offset", low=0, high=total - 1, integer=True)
        return {
            "total": total,
            "method": config["method"],
            "spacing": config["timestep_spacing"],
            "offset": offset,
            "step_to": config["step_to"],
        }

    # ---- the table ---------------------------------------------------------------------------------------------------

    def _remake_table(self) -> None:
        config = self._internal_dict
        total = check_number(config["num_train_timesteps"], "num_train_timesteps", low=1, high=LONGEST, integer=True)
        betas = config["trained_betas"]
        if betas is not None and len(as_float64(betas, "trained_betas")) != total:
            raise ValueError(f"trained_betas must have num_train_timesteps={total} entries, got {len(betas)}")
        check_choice(config["beta_schedule"], "beta_schedule", BETA_SCHEDULES)
        schedule = AlphaSchedule.from_diffusers({name: config[name] for name in TABLE})
        levels = schedule.alpha_bar(torch.arange(total))
        self._made_of = [config[name] for name in TABLE]
        self._exact = levels, float(schedule.alpha_bar(-1.0))
        self.alphas_cumprod = levels.float()
        one = check_bool(config["set_alpha_to_one"], "set_alpha_to_one")
        # A view of the first entry, as in diffusers.
        self.final_alpha_cumprod = torch.tensor(1.0) if one else self.alphas_cumprod[0]
        self.alphas = (levels / torch.cat([levels.new_ones(1), levels[:-1]])).float()
        self.betas = (1 - levels / torch.cat([levels.new_ones(1), levels[:-1]])).float()
        self._seen: Any = None
        self._table()

    def _table(self) -> Table:
        """The levels as they are now: assigned or changed in place, they count; else exact, not rounded to float32."""
        alphas, final = self.alphas_cumprod, self.final_alpha_cumprod
        seen = self._seen
        if seen is None or seen[0] is not alphas or seen[1] is not final or seen[2:4] != _versions(alphas, final):
            exact, exact_final = self._exact
            table = as_float64(alphas, "alphas_cumprod")
            if torch.equal(table.float(), exact.float()) and alphas.dtype == torch.float32:
                table = exact
            elif len(table) != len(exact):
                raise ValueError(f"alphas_cumprod must have {len(exact)} entries, got {len(table)}")
            else:
                table = AlphaSchedule(table, rescale_zero_snr=bool(table[-1] == 0))._table
            level = float(final)
            if torch.tensor(level).item() == torch.tensor(exact_final).item():
                level = exact_final
            check_number(level, "final_alpha_cumprod", low=0, high=1, open_low=True)
            self._cache.clear()
            self._seen = (alphas, final, *_versions(alphas, final), Table(table.numpy(), level))
        return self._seen[-1]

    # ---- a run -------------------------------------------------------------------------------------------------------

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
        settings = self._settings()
        place = None if device is None else resolve_device(device)
        if [self._internal_dict[name] for name in TABLE] != self._made_of:
            self._remake_table()
        total, method = settings["total"], settings["method"]
        if timesteps is None:
            n = check_number(num_inference_steps, "num_inference_steps", low=1, high=total, integer=True)
            times = spaced(n, total, settings["spacing"], settings["offset"])
            ratio = total // n if settings["step_to"] == "ratio" else None
        else:
            if num_inference_steps is not None:
                raise ValueError("num_inference_steps and timesteps cannot both be given")
            given = as_float64(timesteps, "timesteps").numpy()
            times, ratio = given.astype(np.int64), None
            if (times != given).any() or (np.diff(times) >= 0).any() or times[0] >= total or times[-1] < 0:
                raise ValueError(
                    f"timesteps must be whole numbers in 0..{total - 1}, strictly decreasing, got {given.tolist()}"
                )
            warn_if_uneven(given, method, stacklevel=3)
        self._times, self._ratio, self._method = times, ratio, method
        listed = [max(0, int(node.time)) for node in asked_nodes(self._steps(), method)]
        self.num_inference_steps = len(times)
        self._begin(listed, place)
        self._ready = True

    def _begin(self, listed: list[int], device: torch.device | None) -> None:
        self._listed = listed
        self._own = torch.tensor(listed, dtype=torch.int64).to(device)
        self._own_version = _version(self._own)
        self.timesteps = self._own
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._begun = 0
        self._history = History()

    def _steps(self) -> list[Step]:
        table = self._table()
        key = (self._times.tobytes(), self._ratio, self._method)
        if key not in self._cache:
            if len(self._cache) > 32:
                self._cache.clear()
            if self._ratio is None:
                self._cache[key] = steps_by_list(self._times, table)
            else:
                self._cache[key] = steps_by_ratio(self._times, self._ratio, table, to_minus_one=self._method == "fon")
        return self._cache[key]

    def _plan(self, begin: int) -> list[Call]:
        """The calls from this one of the list on; everything that they depend on is in the key or clears the cache."""
        self._table()
        prediction = self._internal_dict["prediction_type"]
        key = (self._times.tobytes(), self._ratio, self._method, prediction, begin)
        if key not in self._cache:
            check_choice(prediction, "prediction_type", PREDICTIONS)
            self._cache[key] = make_plan(self._steps(), self._method, prediction, begin)
        return self._cache[key]

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
        plan = self._plan(self._begun) if counter else []
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
        return np.array(self._listed[: self._num_prk()], dtype=np.int64)

    @property
    def plms_timesteps(self) -> np.ndarray:
        """The other entries of `timesteps`."""
        return np.array(self._listed[self._num_prk() :], dtype=np.int64)

    def _num_prk(self) -> int:
        return 4 * min(3, len(self._times)) if self._method in RUNGE_KUTTA else 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin in the middle of `timesteps`, as image-to-image pipelines do; the history begins there too.

        Raises:
            TypeError, ValueError: not an index into `timesteps`, or the run has begun.
        """
        index = check_number(begin_index, "begin_index", low=0, high=max(len(self._listed) - 1, 0), integer=True)
        if self._step_index is not None:
            raise ValueError("begin_index cannot be set during a run; call set_timesteps first")
        self._begin_index = index

    def scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
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
            timestep: The next entry of `timesteps`, told by its value. The first one of a run may be any of them, but
                for the last one, which could be the index of a loop: `set_begin_index` begins there. Of two equal
                ones the second is taken, where it is no element of `timesteps` itself.
            sample: ``[B, ...]``, as returned by the last step; not changed.
            return_dict: Return an object with `prev_sample` instead of a tuple.
            **kwargs: What pipelines pass to other schedulers (`generator`, `eta`); ignored.

        Raises:
            TypeError: tensors that are not floating, a `timestep` that is not a number.
            ValueError: `set_timesteps` was not called, or not again after a run; `timestep` is not the next one;
                shapes that differ; an output of an earlier call that was changed in place since.
        """
        if not self._ready:
            raise ValueError("set_timesteps must be called before step")
        check_tensor(sample, "sample", finite=False)
        check_output(model_output, sample.shape, "model_output, the output of the model,")
        return_dict = check_bool(return_dict, "return_dict")
        value, place = self._read(timestep)
        index = self._first_index(value, place, timestep) if self._step_index is None else self._step_index
        self._check_next(value, place, index)
        begun = index if self._step_index is None else self._begun
        call = self._plan(begun)[index - begun]
        self._history.before(call, sample)
        moved = self._history.after(call, model_output, sample.dtype)
        self._begun, self._step_index = begun, index + 1
        if self._step_index == len(self._listed):
            self._history = History()
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def _read(self, timestep: Tensor | float) -> tuple[float, int | None]:
        """The value, and the place in the list where it is an element of the tensor `timesteps`."""
        if not isinstance(timestep, Tensor):
            return check_number(timestep, "timestep", low=-float("inf")), None
        if timestep.numel() != 1 or timestep.is_complex() or timestep.dtype == torch.bool:
            raise TypeError(f"timestep must be one number, got {timestep.dtype} of shape {tuple(timestep.shape)}")
        if timestep._is_view() and timestep._base is self._own and timestep.dtype == torch.int64:
            place = int(timestep.storage_offset())
            if self._own_version == _version(self._own) >= 0 and 0 <= place < len(self._listed):
                return self._listed[place], place  # without waiting for a device
            return timestep.item(), place
        return timestep.item(), None

    def _first_index(self, value: float, place: int | None, timestep: Tensor | float) -> int:
        if self._begin_index is not None:
            return self._begin_index
        if value not in self._listed:
            raise ValueError(
                f"timestep must be one of the times that set_timesteps gave, {self._listed[0]} to {self._listed[-1]},"
                f" got {value}"
            )
        if place is not None:
            return place
        if value == self._listed[0]:
            return 0
        if value == self._listed[-1]:
            raise ValueError(
                f"timestep must be the next of the timesteps, got {value}, the last of them, which could be the index"
                f" of a loop; to begin there call set_begin_index({len(self._listed) - 1})"
            )
        return len(self._listed) - 1 - self._listed[::-1].index(int(value))

    def _check_next(self, value: float, place: int | None, index: int) -> None:
        again = "call set_timesteps before another run"
        if index >= len(self._listed):
            raise ValueError(f"the run of {len(self._listed)} calls is over; {again}")
        if value != self._listed[index] or (place is not None and place != index):
            which = "" if place is None else f", entry {place} of timesteps"
            raise ValueError(
                f"timestep must be {self._listed[index]} in call {index}, got {value}{which}; {again}, or"
                " set_timesteps(timesteps=...) for other times, or set_begin_index to begin at another call"
            )

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
        check_tensor(original_samples, "original_samples", finite=False)
        check_tensor(noise, "noise", finite=False)
        check_same_shape(original_samples, noise, ("original_samples", "noise"))
        levels = self._table().levels
        given = timesteps if isinstance(timesteps, Tensor) else as_float64(np.atleast_1d(timesteps), "timesteps")
        if given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"timesteps must hold whole numbers, got {given.dtype}")
        given = given.flatten()
        if len(given) not in (1, len(original_samples)):
            raise ValueError(f"timesteps must be one for each of {len(original_samples)} samples, got {len(given)}")
        if should_check(given):
            whole = given.double()
            if not bool(((whole >= 0) & (whole < len(levels)) & (whole == whole.floor())).all()):
                raise ValueError(f"timesteps must be whole numbers in 0..{len(levels) - 1}, got {given.tolist()}")
        times, table = given.long(), torch.from_numpy(levels)
        shape = (-1,) + (1,) * (original_samples.ndim - 1)
        signal, noisy = (
            part.float().to(times.device)[times].to(original_samples.device, original_samples.dtype).view(shape)
            for part in (table.sqrt(), (1 - table).sqrt())
        )
        return signal * original_samples + noisy * noise

    def __len__(self) -> int:
        return int(self._internal_dict["num_train_timesteps"])


class _Config(FrozenDict):
    """A configuration that warns when a scheduler of diffusers reads it that has no such method."""

    def get(self, key: Any, default: Any = None) -> Any:
        # `from_config` of the library asks for this first of all; this package reads a plain copy.
        if key == "_use_default_values" and (message := _other_method(self)):
            warnings.warn(message, UserWarning, stacklevel=4)
        return super().get(key, default)


def _other_method(config: Mapping[str, Any]) -> str:
    """What to say of a method that diffusers' own scheduler lacks; empty for the others."""
    if config["method"] in PEERS:
        return ""
    nearest = "plms" if config["skip_prk_steps"] else "f-pndm"
    return (
        f"diffusers' own PNDMScheduler has no method {config['method']!r} and takes this configuration for"
        f" {nearest!r}; to read it as it is, use offprints.pndm.diffusers.PNDMScheduler"
    )


def _version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; -1 where that is not counted."""
    return -1 if tensor.is_inference() else tensor._version


def _versions(*tensors: Any) -> tuple[int, ...]:
    return tuple(_version(tensor) if isinstance(tensor, Tensor) else -1 for tensor in tensors)
