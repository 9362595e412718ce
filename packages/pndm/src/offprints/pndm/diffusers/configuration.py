"""Settings that are read from, and by, the schedulers of diffusers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import logging

from offprints.pndm.diffusers.grids import SPACINGS, Spacing
from offprints.pndm.plans import METHODS as ALL_METHODS
from offprints.pndm.plans import PREDICTIONS, Method
from offprints.pndm.schedules import LONGEST
from offprints.shared.validation import check_bool, check_choice, check_number

logger = logging.get_logger(__name__)

METHODS = tuple(method for method in ALL_METHODS if method != "f-pndm-sigma")  # its half steps are at no integer times
PEERS = ("f-pndm", "plms")  # the methods that diffusers' own scheduler has


class SchedulerSettings(NamedTuple):
    """What a list of times depends on."""

    total: int
    method: Method
    spacing: Spacing
    offset: int
    by_ratio: bool


def read_settings(config: Mapping[str, Any]) -> SchedulerSettings:
    """The settings as they are now, checked: pipelines change them.

    Raises:
        TypeError, ValueError: a setting of the wrong kind, an unknown option.
    """
    total = check_number(config["num_train_timesteps"], "num_train_timesteps", low=1, high=LONGEST, integer=True)
    check_choice(config["method"], "method", METHODS)
    check_choice(config["timestep_spacing"], "timestep_spacing", SPACINGS)
    check_choice(config["prediction_type"], "prediction_type", PREDICTIONS)
    check_choice(config["step_to"], "step_to", ("ratio", "listed"))
    offset = check_number(config["steps_offset"], "steps_offset", low=0, high=total - 1, integer=True)
    return SchedulerSettings(total, config["method"], config["timestep_spacing"], offset, config["step_to"] == "ratio")


class Configured(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler whose configuration other schedulers read, and which reads theirs."""

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012
    _internal_dict: Any

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
