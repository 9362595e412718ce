"""The installed papers, from package metadata alone: neither torch nor any paper is imported here."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from offprints.shared.usage import UsageError

GROUP = "offprints.papers"


NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Paper:
    """One installed paper: its entry point and what its distribution's metadata say."""

    name: str
    entry_point: EntryPoint
    distribution: Distribution
    metadata: Any  # an email.message.Message; typeshed's protocol lacks its methods

    @property
    def title(self) -> str:
        """The distribution's summary."""
        return str(self.metadata.get("Summary") or "")

    @property
    def version(self) -> str:
        """The distribution's version."""
        return str(self.metadata["Version"])

    @property
    def owner(self) -> str:
        """The distribution's name."""
        return _canonical(self.metadata["Name"])

    @property
    def url(self) -> str:
        """The project URL labeled "Paper", or nothing."""
        for entry in self.metadata.get_all("Project-URL") or ():
            label, _, url = entry.partition(",")
            if label.strip().lower() == "paper":
                return str(url.strip())
        return ""

    @property
    def arxiv(self) -> str:
        """The arXiv identifier in `url`, or nothing."""
        match = re.search(r"arxiv\.org/(?:abs|pdf)/(.+?)(?:\.pdf)?/?$", self.url)
        return match[1] if match else ""

    @property
    def package(self) -> str:
        """The importable package, ``offprints.<import_name>``."""
        return self.entry_point.module.rpartition(".")[0]

    def section(self, heading: str) -> str:
        """The text under ``## heading`` of the README (the long description), or nothing."""
        inside, fence, lines = False, False, []
        for line in str(self.metadata.get_payload() or self.metadata.get("Description") or "").splitlines():
            fence ^= line.lstrip().startswith("```")
            if not fence and re.match(r"##? ", line):
                inside = re.match(rf"##\s+{heading}\b", line, re.IGNORECASE) is not None
            elif inside and (
                fence or not re.fullmatch(r"<!-- /?\w+( [\w-]+)* -->", line.strip())
            ):  # marks of what is generated
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


@dataclass(frozen=True)
class Survey:
    """The installed papers by name, in alphabetical order, and what is wrong with others, each in a line."""

    papers: dict[str, Paper]
    problems: list[str]


def survey() -> Survey:
    """The installed papers, and what is wrong with other distributions.

    A name belongs to the distribution ``offprints-NAME``; where several others take it, none has it.
    """
    return _survey(tuple(sys.path))


@functools.cache
def _survey(path: tuple[str, ...]) -> Survey:
    """Look at all distributions; one that is malformed leaves the others as they are."""
    offered: dict[str, dict[str, Paper]] = {}
    problems = []
    for distribution in distributions(path=list(path)):
        try:
            entries = distribution.read_text("entry_points.txt")
            if not entries or GROUP not in entries:
                continue
            metadata = distribution.metadata
            owner = _canonical(metadata["Name"])
            for entry in distribution.entry_points.select(group=GROUP):
                if not NAME.fullmatch(entry.name):
                    raise ValueError(f"its paper {entry.name!r} is not named by lower-case words joined by hyphens")
                if not entry.module.rpartition(".")[0]:
                    raise ValueError(f"its paper {entry.name!r} is in no package")
                # The first on the path wins, as for imports.
                offered.setdefault(entry.name, {}).setdefault(owner, Paper(entry.name, entry, distribution, metadata))
        except Exception as error:  # whatever a file that anybody may have written brings about
            place = getattr(distribution, "_path", None)
            problems.append(f"a distribution is left out, its metadata are malformed: {place}: {error}")
    papers = {}
    for name, by_owner in sorted(offered.items()):
        rightful = f"offprints-{name}"
        if len(by_owner) == 1:
            (papers[name],) = by_owner.values()
        elif rightful in by_owner:
            papers[name] = by_owner[rightful]
            others = " and ".join(owner for owner in by_owner if owner != rightful)
            problems.append(f"{others} takes the name of the paper {name} too; that of {rightful} is used")
        else:
            problems.append(f"{' and '.join(by_owner)} both have a paper {name}; uninstall one of them")
    return Survey(papers, problems)


def papers() -> dict[str, Paper]:
    """The installed papers by name, in alphabetical order."""
    return survey().papers


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


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
