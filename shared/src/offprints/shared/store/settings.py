"""What a run was started with: config.json."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offprints.shared.store.configs import decode
from offprints.shared.store.files import digest, read, to_json, write
from offprints.shared.usage import UsageError

# More threads than a machine has time for end the process inside OpenMP, where no error can be raised.
_HIGHEST = {"threads": 1024, "world_size": 2**20}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The content of ``config.json``; ``config`` as `offprints.shared.store.configs.encode` has it."""

    paper: str
    version: str
    preset: str
    seed: int
    device: str
    precision: str
    threads: int
    world_size: int
    config: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Marks what belongs to this configuration: all that results depend on but the machine."""
        machine = ("device", "threads", "world_size")
        return digest({key: value for key, value in dataclasses.asdict(self).items() if key not in machine})

    def save(self, folder: Path) -> None:
        """Write ``config.json``."""
        write(folder / "config.json", to_json(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> Settings:
        """Read ``config.json``.

        Raises:
            UsageError: the folder or the file is not there or is not what a run has written.
        """
        path = folder / "config.json"
        if not folder.is_dir():
            raise UsageError(f"--resume: there is no folder {folder}")
        try:
            content = json.loads(read(path))
            kinds = {"config": dict[str, object], "seed": int, "threads": int, "world_size": int}
            names = [field.name for field in dataclasses.fields(Settings)]
            if not isinstance(content, dict) or set(content) != set(names) or not isinstance(content["config"], dict):
                raise ValueError("it does not have a run's fields")
            settings = Settings(
                **{
                    name: content[name] if name == "config" else decode(kinds.get(name, str), content[name], name)
                    for name in names
                }
            )
            for name, highest in _HIGHEST.items():
                if not 1 <= getattr(settings, name) <= highest:
                    raise ValueError(f"{name} must be in 1..{highest}, got {getattr(settings, name)}")
            return settings
        except FileNotFoundError:
            raise UsageError(f"--resume: {folder} is not a run directory: it has no config.json") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"--resume: {path} is malformed: {error}") from None
