"""The installed papers, from package metadata alone: neither torch nor any paper is imported here."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

from offprints.shared.usage import UsageError

GROUP = "offprints.papers"


@dataclass(frozen=True)
class Paper:
    """One installed paper: its entry point and what its distribution's metadata say."""

    name: str
    entry_point: EntryPoint
    distribution: Distribution

    @property
    def title(self) -> str:
        """The distribution's summary."""
        return str(self._metadata.get("Summary") or "")

    @property
    def version(self) -> str:
        """The distribution's version."""
        return self.distribution.version

    @property
    def url(self) -> str:
        """The project URL labeled "Paper", or nothing."""
        for entry in self._metadata.get_all("Project-URL") or ():
            label, _, url = entry.partition(",")
            if label.strip().lower() == "paper":
                return str(url.strip())
        return ""

    @property
    def arxiv(self) -> str:
        """The arXiv identifier in :attr:`url`, or nothing."""
        match = re.search(r"arxiv\.org/(?:abs|pdf)/(.+?)(?:\.pdf)?/?$", self.url)
        return match[1] if match else ""

    @property
    def package(self) -> str:
        """The importable package, ``offprints.<import_name>``."""
        return self.entry_point.module.rpartition(".")[0]

    def section(self, heading: str) -> str:
        """The text under ``## heading`` of the README (the long description), or nothing."""
        inside, fence, lines = False, False, []
        for line in str(self._metadata.get_payload() or self._metadata.get("Description") or "").splitlines():
            fence ^= line.lstrip().startswith("```")
            if not fence and re.match(r"##? ", line):
                inside = re.match(rf"##\s+{heading}\b", line, re.IGNORECASE) is not None
            elif inside:
                lines.append(line)
        return "\n".join(lines).strip()

    def api(self) -> list[str]:
        """The names in ``__all__`` of the package, read from its source without importing it."""
        spec = importlib.util.find_spec(self.package)  # imports only the parent: the empty namespace
        if spec is None or spec.origin is None:
            return []
        with open(spec.origin, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        names: list[str] = []
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if value is not None and any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                constants = (item.value for item in ast.walk(value) if isinstance(item, ast.Constant))
                names += [constant for constant in constants if isinstance(constant, str)]
        return names

    @property
    def _metadata(self) -> Any:  # an email.message.Message; typeshed's protocol lacks its methods
        return self.distribution.metadata


def papers() -> dict[str, Paper]:
    """The installed papers by name, in alphabetical order."""
    found = {
        entry.name: Paper(entry.name, entry, entry.dist)
        for entry in reversed(tuple(entry_points(group=GROUP)))  # the first on the path wins, as for imports
        if entry.dist is not None
    }
    return dict(sorted(found.items()))


def find(name: str) -> Paper:
    """The installed paper of that name.

    Raises:
        UsageError: none is; the nearest name is suggested.
    """
    installed = papers()
    if name in installed:
        return installed[name]
    if not installed:
        raise UsageError(f"unknown paper {name!r}: none is installed; try pip install offprints-{name}")
    near = difflib.get_close_matches(name.lower().replace("_", "-"), installed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"unknown paper {name!r}{hint} (offprints list shows those installed)")
