"""The training table of a scheduler, which pipelines read and users assign, and noise at its levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.pndm.diffusers.grids import Table
from offprints.pndm.schedules import BETA_SCHEDULES, LONGEST, AlphaSchedule, as_float64, values_of
from offprints.shared.device import working_dtype
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_number,
    check_same_shape,
    check_tensor,
    should_check,
)

# The settings that the table is made of.
NAMES = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
)


class Levels:
    """The levels of a configuration in float64, and those in use where the user has assigned others.

    Attributes:
        alphas_cumprod: float32 ``[num_train_timesteps]``, what a scheduler shows.
        final_alpha_cumprod: The level below time 0 likewise; a view of the first entry, as in diffusers, or 1.
        alphas, betas: float32 ``[num_train_timesteps]``.
        table: The levels in use.
    """

    table: Table

    def __init__(self, config: Mapping[str, Any]) -> None:
        total = check_number(config["num_train_timesteps"], "num_train_timesteps", low=1, high=LONGEST, integer=True)
        betas = config["trained_betas"]
        if betas is not None and len(as_float64(betas, "trained_betas")) != total:
            raise ValueError(f"trained_betas must have num_train_timesteps={total} entries, got {len(betas)}")
        check_choice(config["beta_schedule"], "beta_schedule", BETA_SCHEDULES)
        self._settings = [config[name] for name in NAMES]
        schedule = AlphaSchedule.from_diffusers({name: config[name] for name in NAMES})
        self._exact = schedule.alpha_bar(torch.arange(total))
        self._exact_final = float(schedule.alpha_bar(-1.0))
        self.alphas_cumprod = self._exact.float()
        one = check_bool(config["set_alpha_to_one"], "set_alpha_to_one")
        self.final_alpha_cumprod = torch.tensor(1.0) if one else self.alphas_cumprod[0]
        before = torch.cat([self._exact.new_ones(1), self._exact[:-1]])
        self.alphas = (self._exact / before).float()
        self.betas = (1 - self._exact / before).float()
        self._read: tuple[Any, ...] | None = None
        self.use(self.alphas_cumprod, self.final_alpha_cumprod)

    def made_of(self, config: Mapping[str, Any]) -> bool:
        """Whether these are the levels of this configuration."""
        return [config[name] for name in NAMES] == self._settings

    def use(self, alphas: Any, final: Any) -> bool:
        """Read what the scheduler shows now: assigned or changed in place, it counts. Whether `table` has changed.

        A table that is equal to the configuration's in float32 is read as the exact one.
        """
        counts = _changes(alphas), _changes(final)
        read = self._read
        if read is not None and None not in counts and read == (id(alphas), id(final), *counts):
            return False
        table, level = as_float64(alphas, "alphas_cumprod"), float(final)
        if len(table) != len(self._exact):
            raise ValueError(f"alphas_cumprod must have {len(self._exact)} entries, got {len(table)}")
        if torch.equal(table.float(), self._exact.float()) and getattr(alphas, "dtype", None) == torch.float32:
            table = self._exact
        else:
            table = AlphaSchedule(table, rescale_zero_snr=bool(table[-1] == 0))._table
        if torch.tensor(level).item() == torch.tensor(self._exact_final).item():
            level = self._exact_final
        check_number(level, "final_alpha_cumprod", low=0, high=1, open_low=True)
        changed = read is None or level != self.table.final or values_of(table) != self.table.levels.tolist()
        # By way of numbers: inside of a transform of torch.func a tensor has no memory to share.
        self.table = Table(np.array(values_of(table)), level)
        self._kept = alphas, final  # so that no other object takes over their identity
        self._read = (id(alphas), id(final), *counts)
        return changed

    def add_noise(self, samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """The samples with the noise that they have at these times, one for each or one for all.

        Raises:
            TypeError: samples or noise that are not floating, times that are not numbers.
            ValueError: shapes that differ, times that are not whole or outside the table.
        """
        check_tensor(samples, "original_samples", finite=False)
        check_tensor(noise, "noise", finite=False)
        check_same_shape(samples, noise, ("original_samples", "noise"))
        levels = self.table.levels
        given = timesteps if isinstance(timesteps, Tensor) else as_float64(np.atleast_1d(timesteps), "timesteps")
        if given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"timesteps must hold whole numbers, got {given.dtype}")
        given = given.flatten()
        if len(given) not in (1, len(samples)):
            raise ValueError(f"timesteps must be one for each of {len(samples)} samples, got {len(given)}")
        if should_check(given):
            whole = given.double()
            if not bool(((whole >= 0) & (whole < len(levels)) & (whole == whole.floor())).all()):
                raise ValueError(f"timesteps must be whole numbers in 0..{len(levels) - 1}, got {given.tolist()}")
        times, table, working = given.long(), torch.from_numpy(levels), working_dtype(samples)
        shape = (-1,) + (1,) * (samples.ndim - 1)
        signal, noisy = (
            part.to(working).to(times.device)[times].to(samples.device).view(shape)
            for part in (table.sqrt(), (1 - table).sqrt())
        )
        return (signal * samples + noisy * noise).to(samples.dtype)


def _changes(value: Any) -> int | None:
    """How often it was changed in place; None where that is not counted."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    return 0 if isinstance(value, (int, float)) else None
