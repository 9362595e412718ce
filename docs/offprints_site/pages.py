"""The pages that are made of the workspace: a folder a paper, the core, the gallery's stage, the start page's cards.

Pages are rewritten only where they differ, so that a second build reads what has changed and nothing else.
"""

from __future__ import annotations

import os
import posixpath
import re
from importlib import import_module
from pathlib import Path

from offprints_site.api import Entry, defined, directive, exported, public_modules, same
from offprints_site.claims import claims_page
from offprints_site.members import Member, by_keyword, read_member, read_papers

GENERATED = ("papers", "core", "examples", "generated")
# Where the sources are read: told by the machine that builds the site. Without it, files are named and not linked.
_SERVER, _NAME = os.environ.get("GITHUB_SERVER_URL", ""), os.environ.get("GITHUB_REPOSITORY", "")
REPOSITORY = f"{_SERVER}/{_NAME}" if _SERVER and _NAME else ""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")


class Writer:
    """Writes pages below the source folder and removes those of an earlier build that were not written again."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.written: set[Path] = set()

    def page(self, name: str, text: str) -> None:
        """Write one page unless it stands there already."""
        path = self.source / name
        self.written.add(path)
        text = text.rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def copy(self, name: str, original: Path) -> None:
        """Write the text of a file of the workspace."""
        self.page(name, original.read_text(encoding="utf-8"))

    def tidy(self) -> None:
        """Remove what is stale."""
        for folder in GENERATED:
            for path in sorted((self.source / folder).rglob("*"), reverse=True):
                if path.is_file() and path not in self.written:
                    path.unlink()
                elif path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def write_all(root: Path, source: Path) -> None:
    """Write every generated page."""
    papers = read_papers(root)
    writer = Writer(source)
    for paper in papers:
        writer.page(f"papers/{paper.name}/index.md", paper_page(root, paper))
        writer.page(f"papers/{paper.name}/api.rst", api_page(paper, f"API of {paper.heading}"))
        for example in paper.examples:
            writer.copy(f"examples/{paper.name}/{example.name}", example)
        if paper.examples:
            title = "\n".join(heading(paper.heading, "="))
            header = f"{title}\n:doc:`/papers/{paper.name}/index`: {paper.title}\n"
            writer.page(f"examples/{paper.name}/GALLERY_HEADER.rst", header)
    writer.page("examples/GALLERY_HEADER.rst", GALLERY)
    writer.page("papers/index.md", papers_page(papers))
    writer.page("generated/cards.md", cards(papers))
    writer.page("generated/tasks.md", tasks(papers))
    writer.page("generated/claims.md", claims_page(papers))
    start = (root / "README.md").read_text(encoding="utf-8").split("\n", 1)[1].split("\n## The papers", 1)[0]
    writer.page("generated/start.md", relink(start, root, root))
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n", 1)[1]
    writer.page("generated/contributing.md", relink(contributing, root, root))
    core_pages(writer, root, read_member(root / "shared", "shared"))
    writer.tidy()


GALLERY = """Gallery
=======

One worked example for each paper, on data that needs no download. Every figure here was drawn when this site was built.
"""


def relink(text: str, folder: Path, root: Path) -> str:
    """Links to other READMEs become links to their pages, links to files become links to the repository."""

    def target(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        place = posixpath.normpath(posixpath.join(folder.relative_to(root).as_posix(), path))
        member = re.fullmatch(r"packages/([^/]+)(/README\.md)?", place)
        if member:
            return f"[{match[1]}](/papers/{member[1]}/index.md)"
        if place in ("shared", "shared/README.md"):
            return f"[{match[1]}](/core/index.md)"
        if not REPOSITORY:
            return match[1]
        return f"[{match[1]}]({REPOSITORY}/blob/main/{place}{'#' + anchor if anchor else ''})"

    return LINK.sub(target, text)


def paper_page(root: Path, paper: Member) -> str:
    """The README, then the examples and the names of the API."""
    first, rest = relink(paper.readme, paper.folder, root).split("\n", 1)
    title = re.sub(r"^# (offprints-)?", "# ", first)
    parts = [title, "", f"*{paper.title}*", rest]
    if paper.examples:
        parts += ["## Examples", "", gallery_cards([paper])]
    parts += ["## API", "", "In the order of the package; [with signatures and docstrings](api.rst).", ""]
    parts += [name_table(exported(import_module(paper.module))), ""]
    parts += ["```{toctree}", ":hidden:", "", "api", *example_pages(paper), "```"]
    return "\n".join(parts)


def example_pages(paper: Member) -> list[str]:
    """The gallery's pages of a paper's examples, by their titles."""
    return [f"{example_title(path)} </gallery/{paper.name}/{path.stem}>" for path in paper.examples]


def example_title(path: Path) -> str:
    """The first line of an example's docstring."""
    text = path.read_text(encoding="utf-8")
    match = re.match(r'\s*r?"""\s*(.+)', text)
    return match[1].strip() if match else path.stem


def name_table(entries: list[Entry]) -> str:
    """One row a name: a link to its documentation and its first sentence."""
    rows = ["| name | |", "| --- | --- |"]
    for entry in entries:
        summary = entry.summary.replace("|", "\\|").replace("<", "&lt;")
        if entry.kind in ("class", "exception") and "Args:" in summary:
            summary = summary.split("Args:", 1)[0]
        rows.append(f"| {{py:obj}}`{entry.name} <{entry.path}>` | {summary} |")
    return "\n".join(rows)


def api_page(member: Member, title: str) -> str:
    """The module's docstring, the objects of `__all__` in order, the reference algorithm, the other modules."""
    package = import_module(member.module)
    names = exported(package)
    parts = [title, "=" * len(title), "", f".. automodule:: {member.module}", ""]
    for entry in names:
        home = str(getattr(entry.value, "__module__", member.module))
        if home.startswith("offprints.") and not f"{home}.".startswith(f"{member.module}."):
            parts += [f".. rubric:: {entry.name}", "", f"The same as :py:obj:`{home}.{entry.name}`.", ""]
        else:
            parts.append(directive(entry))
    modules = public_modules(package, without=("reproduce", "reference"))
    reference = member.folder / "src" / Path(*member.module.split(".")) / "reference.py"
    if reference.exists():
        parts += heading("The algorithm as the paper writes it", "-")
        parts += ["Slow and plain, to be read first; the tests show that the fast code gives the same numbers.", ""]
        parts += [f".. literalinclude:: ../../../{reference.relative_to(member.folder.parent.parent).as_posix()}", ""]
    parts += heading("Modules", "-")
    for module in modules:
        parts += module_section(module.__name__, names)
    return "\n".join(parts)


def module_section(name: str, names: list[Entry]) -> list[str]:
    """A module's docstring and what it defines: links to what the package exports, all of it where it exports none."""
    module = import_module(name)
    parts = [*heading(name, "~"), f".. automodule:: {name}", ""]
    known = [(entry, next((one for one in names if same(one.value, entry.value)), None)) for entry in defined(module)]
    links = [f":py:obj:`{one.name} <{one.path}>`" for _, one in known if one]
    if links:
        return [*parts, ", ".join(links), ""]
    return parts + [directive(entry) for entry, _ in known]


def heading(text: str, line: str) -> list[str]:
    """A heading of reStructuredText."""
    return [text, line * len(text), ""]


def core_pages(writer: Writer, root: Path, core: Member) -> None:
    """The core: its README, and a page for each of its public modules."""
    package = import_module(core.module)
    modules = [m for m in public_modules(package) if m.__name__.count(".") == 2 and not m.__name__.endswith("__main__")]
    for module in modules:
        short = module.__name__.rsplit(".", 1)[1]
        names = defined(module)
        parts = [*heading(module.__name__, "="), f".. automodule:: {module.__name__}", ""]
        parts += [directive(entry) for entry in names]
        if hasattr(module, "__path__"):
            for inner in public_modules(module):
                fresh = [e for e in defined(inner) if not any(same(e.value, one.value) for one in names)]
                exports = any(same(e.value, one.value) for e in defined(inner) for one in names)
                if not exports and fresh:
                    parts += [*heading(inner.__name__, "-"), f".. automodule:: {inner.__name__}", ""]
                    parts += [directive(entry) for entry in fresh]
        writer.page(f"core/{short}.rst", "\n".join(parts))
    readme = relink(core.readme, core.folder, root).replace("# offprints-shared", "# The shared core", 1)
    names = [module.__name__.rsplit(".", 1)[1] for module in modules]
    toctree = ["", "```{toctree}", ":hidden:", "", *(f"{name} <{name}>" for name in names), "```"]
    writer.page("core/index.md", readme + "\n".join(toctree))


def papers_page(papers: list[Member]) -> str:
    """The table of contents of the papers."""
    lines = ["# Papers", "", cards(papers), "", "```{toctree}", ":hidden:", ""]
    lines += [f"{paper.heading} <{paper.name}/index>" for paper in papers]
    return "\n".join([*lines, "```"])


def cards(papers: list[Member]) -> str:
    """One card a paper: the figure of its first example, its title, its address."""
    lines = ["::::{grid} 1 2 3 3", ":gutter: 3", ""]
    for paper in papers:
        lines += [f":::{{grid-item-card}} {paper.heading}", f":link: /papers/{paper.name}/index", ":link-type: doc"]
        lines += [":class-card: paper-card", ":class-img-top: paper-figure"]
        if paper.examples:
            lines += [f":img-top: {thumbnail(paper)}", f":img-alt: Figure of {paper.heading}"]
        lines += ["", paper.title, ""]
        lines += ["```{card-footer}", f"`offprints-{paper.name}` · arXiv {paper.arxiv}", "```", ":::", ""]
    return "\n".join([*lines, "::::", ""])


def gallery_cards(papers: list[Member]) -> str:
    """One card an example."""
    lines = ["::::{grid} 1 2 2 2", ":gutter: 3", ""]
    for paper in papers:
        for number, example in enumerate(paper.examples):
            lines += [f":::{{grid-item-card}} {example_title(example)}", f":img-top: {thumbnail(paper, number)}"]
            lines += [f":link: /gallery/{paper.name}/{example.stem}", ":link-type: doc", ":class-img-top: paper-figure"]
            lines += [":::", ""]
    return "\n".join([*lines, "::::", ""])


def thumbnail(paper: Member, number: int = 0) -> str:
    """Where the gallery puts the small figure of an example."""
    stem = paper.examples[number].stem
    return f"/gallery/{paper.name}/images/thumb/sphx_glr_{stem}_thumb.png"


def tasks(papers: list[Member]) -> str:
    """The papers by the keywords of their metadata, then each in a paragraph."""
    rows = ["| task or subject | packages |", "| --- | --- |"]
    for word, found in by_keyword(papers):
        rows.append(f"| {word} | {', '.join(f'[{p.heading}](/papers/{p.name}/index.md)' for p in found)} |")
    lines = [*rows, "", "## Each in a paragraph", ""]
    for paper in papers:
        lines += [f"[**{paper.heading}**](/papers/{paper.name}/index.md)", f": {paper.summary}", ""]
    return "\n".join(lines)
