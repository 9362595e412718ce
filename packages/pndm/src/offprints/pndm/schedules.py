"""Noise schedules: alpha-bar at any real time, by the three conventions in use for reading a training table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, cast

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from offprints.shared.validation import check_bool, check_choice, check_monotone, check_number, should_check

Values = Tensor | np.ndarray | Sequence[float]
Final = Literal["one", "first"]
Interpolation = Literal["log", "floor"]
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # as diffusers names those of this package
LONGEST = 10**7  # training steps; more is a slip
SMALLEST = 2.0**-52  # beta: a smaller one leaves alpha-bar as it is


class Options(TypedDict, total=False):
    """Keyword arguments of `AlphaSchedule`."""

    offset: int
    final: Final
    interpolation: Interpolation
    rescale_zero_snr: bool


def as_float64(values: Values, name: str, *, ndim: int = 1) -> Tensor:
    """A tensor, an array or numbers as a new, finite float64 tensor on the CPU, without passing through float32.

    Raises:
        TypeError: something else.
        ValueError: another number of axes, empty, NaN or infinite.
    """
    if isinstance(values, Tensor):
        if values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"{name} must hold real numbers, got {values.dtype}")
        tensor = values.detach().to("cpu", torch.float64, copy=True)
    else:
        try:
            array = np.asarray(values)
            numeric = array.dtype.kind in "fiu" and not np.ma.is_masked(values)
        except ValueError:  # rows of different lengths
            numeric = False
        if not numeric:
            raise TypeError(f"{name} must be a tensor, an array or numbers, got {values!r}")
        tensor = torch.from_numpy(array.astype(np.float64))
    if tensor.ndim != ndim or tensor.numel() == 0:
        raise ValueError(f"{name} must have {ndim} dimensions and not be empty, got shape {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got {tensor[~tensor.isfinite()][0].item()}")
    return tensor


class AlphaSchedule:
    """alpha-bar, the share of the signal's variance, as a function of time: the cumulative product of 1 - beta.

    Three conventions turn a time into an entry of a training table:

    - ours, the default (`offset=0, final="one", interpolation="log"`): entry t as in training; the last step ends at
      clean data.
    - the official code's (`offset=1, interpolation="floor"`): entry t + 1, so that the last time, -1, is entry 0.
    - that of diffusers (`offset=0, interpolation="floor"`): entry t; `final` is its `set_alpha_to_one`.

    Args:
        alphas_cumprod: ``[num_train_timesteps]``, in (0, 1], strictly decreasing.
        offset: Added to the time to get the index of the entry.
        final: Level where time plus `offset` is below 0: ``"one"`` for clean data, ``"first"`` for entry 0.
        interpolation: Between entries: ``"log"`` for log-linear, ``"floor"`` for the entry of the time truncated
            toward zero.
        rescale_zero_snr: Shift and scale the square roots of the table so that its last entry is 0 and its first one
            stays (zero terminal signal-to-noise ratio, for models trained with it). A table that ends at 0 already is
            left as it is, and refused without this. Only a model of v or of the sample can leave level 0.

    Attributes:
        num_train_timesteps: Length of the table; 0 for a continuous schedule.

    Raises:
        TypeError: `alphas_cumprod` is not numeric, `offset` not an integer, `rescale_zero_snr` not a boolean.
        ValueError: values that are not strictly decreasing in (0, 1], unknown `final` or `interpolation`,
            `offset` negative.

    Example:
        >>> schedule = AlphaSchedule([0.9, 0.5, 0.1])
        >>> schedule.alpha_bar(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([1.0000, 0.9000, 0.1000], dtype=torch.float64)
    """

    num_train_timesteps: int

    def __init__(
        self,
        alphas_cumprod: Values,
        *,
        offset: int = 0,
        final: Final = "one",
        interpolation: Interpolation = "log",
        rescale_zero_snr: bool = False,
    ) -> None:
        offset = check_number(offset, "offset", low=0, integer=True)
        check_choice(final, "final", ("one", "first"))
        check_choice(interpolation, "interpolation", ("log", "floor"))
        table = as_float64(alphas_cumprod, "alphas_cumprod")
        zero = check_bool(rescale_zero_snr, "rescale_zero_snr") and len(table) > 1
        if table.min() < 0 or (table.min() == 0 and not zero) or table.max() > 1:
            advice = "; a table of zero terminal SNR needs rescale_zero_snr=True" if table.min() == 0 else ""
            raise ValueError(
                f"alphas_cumprod must lie in (0, 1], got {table.min().item()} to {table.max().item()}{advice}"
            )
        check_monotone(table, "alphas_cumprod", increasing=False)
        if zero and table[-1] > 0:
            roots = table.sqrt()
            table = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))).square()
        self.num_train_timesteps = len(table)
        self.offset, self.final, self.interpolation = offset, final, interpolation
        self._table = table
        self._log = table.log()

    @classmethod
    def from_betas(cls, betas: Values, **options: Unpack[Options]) -> AlphaSchedule:
        """From the variances of the noise added at each training step, ``[num_train_timesteps]`` in (0, 1).

        With `rescale_zero_snr` the last one may be 1.

        Raises:
            ValueError: a beta outside (0, 1), or what the class refuses.
        """
        return cls._from_betas(betas, "betas", options)

    @classmethod
    def _from_betas(cls, betas: Values, name: str, options: Options) -> AlphaSchedule:
        variances = as_float64(betas, name)
        inner = variances[:-1] if options.get("rescale_zero_snr") is True and variances[-1] == 1 else variances
        if len(inner) and (inner.min() < SMALLEST or inner.max() >= 1):
            raise ValueError(
                f"{name} must lie in (0, 1) and not be below {SMALLEST:.1e},"
                f" got {variances.min().item()} to {variances.max().item()}"
            )
        return cls((1 - variances).cumprod(0), **options)

    @classmethod
    def linear(
        cls,
        num_train_timesteps: int = 1000,
        *,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        **options: Unpack[Options],
    ) -> AlphaSchedule:
        """Betas equally spaced (DDPM's; `"linear"` in diffusers)."""
        return cls.from_betas(_linspace(num_train_timesteps, beta_start, beta_end), **options)

    @classmethod
    def quadratic(
        cls,
        num_train_timesteps: int = 1000,
        *,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        **options: Unpack[Options],
    ) -> AlphaSchedule:
        """Square roots of the betas equally spaced (`"quad"` in the official code, `"scaled_linear"` in diffusers)."""
        _check_betas(beta_start, beta_end)
        roots = _linspace(num_train_timesteps, math.sqrt(beta_start), math.sqrt(beta_end))
        return cls.from_betas(roots**2, **options)

    @classmethod
    def cosine(
        cls, num_train_timesteps: int = 1000, *, max_beta: float = 0.999, **options: Unpack[Options]
    ) -> AlphaSchedule:
        """alpha-bar a squared cosine of time, betas cut at `max_beta` (`"squaredcos_cap_v2"` in diffusers)."""
        num_train_timesteps = check_number(
            num_train_timesteps, "num_train_timesteps", low=1, high=LONGEST, integer=True
        )
        check_number(max_beta, "max_beta", low=SMALLEST, high=1, open_high=True)
        time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls.from_betas((1 - signal[1:] / signal[:-1]).clamp(max=max_beta), **options)

    @classmethod
    def continuous_linear(cls, *, beta_0: float = 0.1, beta_1: float = 20.0) -> AlphaSchedule:
        r"""The variance-preserving SDE with a linear rate, t in [0, 1].

        alpha-bar(t) = exp(-t² (beta_1 - beta_0) / 2 - t beta_0), exact at any time; below 0 it is 1. There are no
        default times: pass `times` to `pndm_sample`.

        Raises:
            ValueError: a rate that is not positive.
        """
        start = check_number(beta_0, "beta_0", low=0, open_low=True)
        end = check_number(beta_1, "beta_1", low=0, open_low=True)
        return _Continuous(float(start), float(end))

    @classmethod
    def from_diffusers(cls, config: Any, **options: Unpack[Options]) -> AlphaSchedule:
        """The schedule of a scheduler of diffusers, from its configuration: `scheduler.config`, a `dict`, or itself.

        Read are `num_train_timesteps`, `trained_betas`, `beta_start`, `beta_end`, `beta_schedule`, `set_alpha_to_one`
        (`True` where it is missing) and `rescale_betas_zero_snr`; times are read as diffusers does
        (`interpolation="floor"`). `options` take precedence. The library itself is not needed.

        Raises:
            TypeError: `config` is neither a mapping nor a scheduler.
            ValueError: a `beta_schedule` other than ``"linear"``, ``"scaled_linear"``, ``"squaredcos_cap_v2"``, or what
                the class refuses.

        Example:
            >>> config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
            >>> AlphaSchedule.from_diffusers(config).num_train_timesteps
            1000
        """
        config = getattr(config, "config", config)
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be a mapping or a scheduler, got {type(config).__name__}")
        final: Final = "one" if check_bool(config.get("set_alpha_to_one", True), "set_alpha_to_one") else "first"
        rescale = check_bool(config.get("rescale_betas_zero_snr", False), "rescale_betas_zero_snr")
        given: Options = {"final": final, "interpolation": "floor", "rescale_zero_snr": rescale, **options}
        if config.get("trained_betas") is not None:
            return cls._from_betas(config["trained_betas"], "trained_betas", given)
        name, total = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
        check_choice(name, "beta_schedule", BETA_SCHEDULES)
        if name == "squaredcos_cap_v2":
            return cls.cosine(total, **given)
        make = cls.linear if name == "linear" else cls.quadratic
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        return make(total, beta_start=start, beta_end=end, **given)

    def alpha_bar(self, t: Tensor | float) -> Float64[Tensor, "*times"]:
        """Level at `t`, in float64 and in the shape of `t`; t below 0 (after `offset`) gives the final level.

        Raises:
            TypeError: `t` is neither a number nor a tensor of numbers.
            ValueError: NaN, or a time beyond the table.

        Example:
            >>> round(AlphaSchedule.linear().alpha_bar(499.5).item(), 4)
            0.0782
        """
        time = _as_time(t)
        index = time + self.offset
        last = self.num_train_timesteps - 1
        self._check_end(time, index <= last)
        if self.interpolation == "floor":
            entry = (time.trunc() + self.offset).clamp(0, last).long()
            level = self._table.to(time.device)[entry]
        else:
            table, log = self._table.to(time.device), self._log.to(time.device)
            left = index.clamp(0, last).long()
            right = (left + 1).clamp(max=last)
            share = (index - left).clamp(0, 1)
            level = table[left] * torch.exp(share * (log[right] - log[left]))
            if self._table[-1] == 0:  # there is no logarithm at the end: the square root falls linearly to it
                towards_zero = table[left] * (1 - share).square()
                level = torch.where(table[right] == 0, towards_zero, level)
        return torch.where(index < 0, 1.0 if self.final == "one" else float(self._table[0]), level)

    def _time_of(self, alpha_bar: Tensor) -> Tensor:
        """The times at which levels are reached; the time of the first entry for levels above it."""
        entries = np.arange(self.num_train_timesteps, dtype=np.float64) - self.offset
        return torch.as_tensor(np.interp(-_numbers(alpha_bar.log()), -_numbers(self._log), entries))

    def _check_end(self, time: Tensor, within: Tensor) -> None:
        if should_check(time) and not bool(within.all()):
            worst = time[~within].flatten()[0].item()
            raise ValueError(
                f"t must not lie beyond the {self.num_train_timesteps} entries of the table (offset {self.offset}),"
                f" got {worst}"
            )


class _Continuous(AlphaSchedule):
    def __init__(self, beta_0: float, beta_1: float) -> None:
        self.num_train_timesteps = 0
        self.offset, self.final, self.interpolation = 0, "one", "log"
        self._rates = (beta_0, beta_1)

    def alpha_bar(self, t: Tensor | float) -> Float64[Tensor, "*times"]:
        time = _as_time(t)
        self._check_end(time, time <= 1)
        start, end = self._rates
        clamped = time.clamp(min=0)
        return torch.exp(-clamped * ((end - start) / 2 * clamped + start))

    def _time_of(self, alpha_bar: Tensor) -> Tensor:
        start, end = self._rates
        log = -alpha_bar.log()
        return 2 * log / (start + torch.sqrt(start**2 + 2 * (end - start) * log))

    def _check_end(self, time: Tensor, within: Tensor) -> None:
        if should_check(time) and not bool(within.all()):
            raise ValueError(f"t must not lie beyond 1, the end, got {time[~within].flatten()[0].item()}")


def inference_times(num_steps: int, num_train_timesteps: int = 1000) -> Float64[Tensor, " num_steps+1"]:
    """The official code's times ``[num_steps + 1]``: (n-1) r, ..., 2 r, r, 0, then -1 for the end, with r = N // n.

    Always exactly `num_steps` steps. (The official loop takes ceil(N / r), 31 for n = 30.)

    Raises:
        TypeError, ValueError: not integers, or `num_steps` not in 1..`num_train_timesteps`.

    Example:
        >>> inference_times(4).tolist()
        [750.0, 500.0, 250.0, 0.0, -1.0]
    """
    num_train_timesteps = check_number(num_train_timesteps, "num_train_timesteps", low=1, high=LONGEST, integer=True)
    num_steps = check_number(num_steps, "num_steps", low=1, high=num_train_timesteps, integer=True)
    ratio = num_train_timesteps // num_steps
    listed = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64) * ratio
    return torch.cat([listed, listed.new_tensor([-1.0])])


def _as_time(t: Any) -> Tensor:
    if isinstance(t, Tensor):
        if t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"t must hold real numbers, got {t.dtype}")
        # Apple's GPUs have no float64.
        time = t.detach().to("cpu" if t.device.type == "mps" else t.device, torch.float64)
    else:
        time = torch.tensor(float(check_number(t, "t", low=-math.inf)), dtype=torch.float64)
    if should_check(time) and bool(time.isnan().any()):
        raise ValueError("t must not be NaN")
    return time


def _numbers(tensor: Tensor) -> np.ndarray:
    # Not `tensor.numpy()`: inside of a transform of torch.func a tensor has no memory to share.
    return np.array(values_of(tensor))


def values_of(tensor: Tensor) -> list[float]:
    """The numbers of a tensor with one axis, also inside of a transform of torch.func."""
    try:
        return cast(list[float], tensor.tolist())
    except RuntimeError:  # torch 2.7, which reads single numbers there
        return [number.item() for number in tensor]


def _check_betas(beta_start: float, beta_end: float) -> None:
    check_number(beta_start, "beta_start", low=SMALLEST, high=1, open_high=True)
    check_number(beta_end, "beta_end", low=SMALLEST, high=1, open_high=True)


def _linspace(num_train_timesteps: int, start: float, end: float) -> Tensor:
    num_train_timesteps = check_number(num_train_timesteps, "num_train_timesteps", low=1, high=LONGEST, integer=True)
    _check_betas(start, end)
    return torch.linspace(start, end, num_train_timesteps, dtype=torch.float64)
