"""What an experiment is: a config dataclass, presets, a function."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offprints.shared.experiment.run import Run
from offprints.shared.store.configs import decode, encode

RESERVED = ("preset", "seed", "device", "precision", "out", "resume")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A paper's experiment.

    Args:
        name: as in ``offprints run NAME``.
        title: the paper's title.
        arxiv: the paper's arXiv identifier.
        config: a dataclass type; every field is a flag of the command line. Numbers, strings, paths, enums, literals,
            and tuples, lists, mappings and dataclasses of these.
        presets: instances of ``config`` by name.
        function: ``function(config, run)`` measures and records the claims through ``run``.

    Raises:
        TypeError: ``config`` is not a dataclass type, a preset is not an instance of it or has a field of another kind.
        ValueError: no presets, a bad name, or a config field with a name that belongs to the command line.
    """

    name: str
    title: str
    arxiv: str
    config: type[Any]
    presets: Mapping[str, Any]
    function: Callable[[Any, Run], None]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"name must be lower-case words joined by hyphens, got {self.name!r}")
        if not (isinstance(self.config, type) and dataclasses.is_dataclass(self.config)):
            raise TypeError(f"config of {self.name} must be a dataclass type, got {self.config!r}")
        taken = [field.name for field in dataclasses.fields(self.config) if field.name in RESERVED]
        if taken:
            raise ValueError(
                f"config of {self.name} has the field {taken[0]!r}; {', '.join(RESERVED)} belong to the command line"
                " and are read from run"
            )
        if not self.presets:
            raise ValueError(f"presets of {self.name} are empty")
        for preset, config in self.presets.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", preset):
                raise ValueError(f"a preset of {self.name} must be named by one word, got {preset!r}")
            if type(config) is not self.config:
                raise TypeError(f"preset {preset!r} of {self.name} must be a {self.config.__name__}, got {config!r}")
            try:
                same = decode(self.config, encode(config)) == config
            except (TypeError, ValueError) as error:
                raise TypeError(f"preset {preset!r} of {self.name} cannot be written as JSON: {error}") from error
            if not same:
                raise TypeError(f"preset {preset!r} of {self.name} does not survive being written as JSON")
