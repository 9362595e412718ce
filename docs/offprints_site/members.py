"""The members of the workspace, read from their own files alone."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Member:
    """One distribution of the workspace: a paper, or the shared core."""

    name: str
    folder: Path
    project: dict[str, Any]

    @property
    def module(self) -> str:
        """The import name, ``offprints.betti_matching`` for ``betti-matching``."""
        return f"offprints.{self.name.replace('-', '_')}"

    @property
    def title(self) -> str:
        """The paper's title, as the metadata has it."""
        return str(self.project["description"])

    @property
    def paper_url(self) -> str:
        """Where the paper is, or an empty string."""
        return str(self.project.get("urls", {}).get("Paper", ""))

    @property
    def arxiv(self) -> str:
        """The identifier at the end of the paper's address, or an empty string."""
        return self.paper_url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def readme(self) -> str:
        """The text of the member's README."""
        return (self.folder / "README.md").read_text(encoding="utf-8")

    @property
    def heading(self) -> str:
        """The first heading of the README without the prefix of the distribution."""
        match = re.search(r"^# (.+)$", self.readme, flags=re.MULTILINE)
        return (match[1] if match else self.name).removeprefix("offprints-").strip()

    @property
    def summary(self) -> str:
        """The first paragraph of the README."""
        paragraphs = re.split(r"\n\s*\n", self.readme.strip())
        prose = (text for text in paragraphs if not text.startswith(("#", "<!--", "|", "```", ">")))
        return " ".join(next(prose, "").split())

    @property
    def examples(self) -> list[Path]:
        """The worked examples, in alphabetical order."""
        return sorted((self.folder / "examples").glob("plot_*.py"))

    @property
    def keywords(self) -> list[str]:
        """What the metadata says the package is for."""
        return [str(word) for word in self.project.get("keywords", [])]


def read_member(folder: Path, name: str) -> Member:
    """The member in a folder."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return Member(name, folder, project)


def read_papers(root: Path) -> list[Member]:
    """Every paper of the workspace by name."""
    return [read_member(path.parent, path.parent.name) for path in sorted(root.glob("packages/*/pyproject.toml"))]


def by_keyword(papers: list[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Each keyword with the papers that have it; those that more than half of the papers share say nothing."""
    found: dict[str, list[Member]] = {}
    for paper in papers:
        for word in paper.keywords:
            found.setdefault(word, []).append(paper)
    for word in sorted(found, key=str.lower):
        if 2 * len(found[word]) <= max(len(papers), 2):
            yield word, found[word]
