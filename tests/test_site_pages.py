"""The pages that the documentation generates, of a small workspace with two papers; no whole build."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
claims, members, pages = (importlib.import_module(f"offprints_site.{name}") for name in ("claims", "members", "pages"))

README = """# offprints-tiny-site

<!-- a comment -->

Fits lines, and
nothing else.

See [another](../other/README.md), [the core](../../shared/README.md#device), [its tests](tests/test_lines.py),
[the web](https://example.org/a), [below](#api) and ![a figure](figure.png).
"""
SOURCES = {
    "__init__.py": '''"""Lines through points, equation 1 of the paper."""

from offprints.shared.validation import check_number
from offprints.tiny_site.lines import SLOPE, FitError, Line, fit

__all__ = ["fit", "Line", "FitError", "SLOPE", "check_number", "later"]


def __getattr__(name):
    if name == "later":
        from offprints.tiny_site import lines

        return lines.later
    raise AttributeError(name)
''',
    "lines.py": '''"""What fits."""

from typing import NamedTuple

SLOPE = 2.0


class FitError(ValueError):
    """There is no line."""


class Line(NamedTuple):
    """A line | one of many <small>."""

    slope: float


def later():
    """Exported when asked for."""


def fit():
    """Fit a line
    to points.

    More text.
    """


def _private():
    """Nobody sees this."""
''',
    "extra.py": '"""More."""\n\n\ndef helper():\n    """Help."""\n',
    "_kernels.py": '"""Private."""\n',
    "reference.py": '"""The listing."""\n',
    "reproduce/__init__.py": 'raise ImportError("the documentation imports no experiment")\n',
}
RECORD: dict[str, Any] = {
    "paper": "tiny-site",
    "preset": "quick",
    "seeds": [0, 1, 2],
    "device": "cpu",
    "versions": {"torch": "2.9.0"},
    "date": "2026-01-31",
    "claims": [
        {
            "id": "slope",
            "statement": "error of the slope | with <noise>",
            "measured": [0.12345, 0.12345, 0.12345],
            "relation": "<=",
            "threshold": 1e-7,
            "holds": [True, True, True],
            "paper_value": 12345.6,
            "control": [3, 4, 5],
            "control_name": "no fit",
        },
        {"id": "b", "statement": "second", "measured": [1, 2, 3], "holds": [False, True, True]},
        {"id": "c", "statement": "third", "measured": [1, 1, 1], "holds": [False] * 3},
        {"id": "d", "kind": "check", "statement": "exact", "measured": [0, 0, 0], "holds": [True] * 3},
    ],
    "values": [{"id": "v", "statement": "shown", "value": [0.5, 0.5, 0.5], "paper_value": None}],
}

for claim in RECORD["claims"][1:]:
    claim.update({"relation": "==", "threshold": 0} if "kind" in claim else {"relation": ">", "threshold": 1})


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def small_workspace(root: Path) -> None:
    """One paper with everything, one with next to nothing."""
    write(root / "README.md", "# offprints\n\nStart [here](packages/tiny-site).\n\n## The papers\n\nA table.\n")
    write(root / "CONTRIBUTING.md", "# Contributing\n\nRead [this](STABILITY.md).\n")
    core = '[project]\nname = "offprints-shared"\nversion = "1"\ndescription = "Core"\n'
    write(root / "shared" / "pyproject.toml", core)
    write(root / "shared" / "README.md", "# offprints-shared\n\nThe core.\n")
    for name, words in (("tiny-site", '["lines", "papers"]'), ("other", '["curves", "papers"]')):
        project = (
            f'[project]\nname = "offprints-{name}"\nversion = "1"\ndescription = "On {name}"\nkeywords = {words}\n'
        )
        project += '[project.urls]\nPaper = "https://arxiv.org/abs/2211.15272"\n'
        write(root / "packages" / name / "pyproject.toml", project)
    write(root / "packages" / "other" / "README.md", "# offprints-other\n\nCurves.\n")
    write(root / "packages" / "other" / "src" / "offprints" / "other" / "__init__.py", '"""Curves."""\n')
    paper = root / "packages" / "tiny-site"
    write(paper / "README.md", README)
    write(paper / "claims" / "medium.json", json.dumps(RECORD | {"preset": "medium", "claims": RECORD["claims"][:1]}))
    write(paper / "claims" / "quick.json", json.dumps(RECORD))
    write(paper / "examples" / "plot_line.py", '"""\nA line\n======\n\nText.\n"""\n')
    for name, text in SOURCES.items():
        write(paper / "src" / "offprints" / "tiny_site" / name, text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the pages of the small workspace are written into."""
    root = tmp_path_factory.mktemp("workspace")
    small_workspace(root)
    added = [str(root / "packages" / name / "src") for name in ("tiny-site", "other")]
    sys.path[:0] = added
    try:
        pages.write_all(root, root / "docs")
        yield root / "docs"
    finally:
        for path in added:
            sys.path.remove(path)
        for name in [name for name in sys.modules if name.startswith(("offprints.tiny_site", "offprints.other"))]:
            del sys.modules[name]


def text_of(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def test_page_of_a_paper(site: Path) -> None:
    page = text_of(site, "papers/tiny-site/index.md")
    assert page.startswith("# tiny-site\n\n*On tiny-site*\n")
    assert "[another](/papers/other/index.md), [the core](/core/index.md), its tests," in page
    assert "[the web](https://example.org/a), [below](#api) and ![a figure](figure.png)." in page
    # In the order of `__all__`, those that are exported lazily too; a summary is the first sentence on one line.
    rows = re.findall(r"\| \{py:obj\}`(\w+) <(.*?)>` \| (.*) \|", page)
    assert [row[0] for row in rows] == ["fit", "Line", "FitError", "SLOPE", "check_number", "later"]
    assert rows[0] == ("fit", "offprints.tiny_site.fit", "Fit a line to points.")
    assert rows[1][2] == "A line \\| one of many &lt;small>."
    assert rows[3][2] == ""
    assert rows[5][2] == "Exported when asked for."
    assert ":img-top: /gallery/tiny-site/images/thumb/sphx_glr_plot_line_thumb.png" in page
    assert page.rstrip().endswith("api\nA line </gallery/tiny-site/plot_line>\n```")


def test_links_to_files_lead_to_the_repository_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REPOSITORY", "https://code.example/team/offprints")
    link = pages.relink("[its tests](tests/a.py#L3) and [up](../../LICENSE)", ROOT / "packages" / "x", ROOT)
    base = "https://code.example/team/offprints/blob/main"
    assert link == f"[its tests]({base}/packages/x/tests/a.py#L3) and [up]({base}/LICENSE)"


def test_api_of_a_paper(site: Path) -> None:
    page = text_of(site, "papers/tiny-site/api.rst")
    assert page.startswith("API of tiny-site\n================\n\n.. automodule:: offprints.tiny_site\n")
    found = re.findall(r"^\.\. (auto(?!module)\w+|rubric|literalinclude):: (.+)$", page, flags=re.MULTILINE)
    assert found == [
        ("autofunction", "offprints.tiny_site.fit"),
        ("autoclass", "offprints.tiny_site.Line"),
        ("autoexception", "offprints.tiny_site.FitError"),
        ("autodata", "offprints.tiny_site.SLOPE"),
        ("rubric", "check_number"),
        ("autofunction", "offprints.tiny_site.later"),
        ("literalinclude", "../../../packages/tiny-site/src/offprints/tiny_site/reference.py"),
        ("autofunction", "offprints.tiny_site.extra.helper"),
    ]
    assert "The same as :py:obj:`offprints.shared.validation.check_number`." in page
    assert "   :members:\n   :exclude-members: slope\n" in page  # the fields of a named tuple
    modules = re.findall(r"^\.\. automodule:: offprints\.tiny_site\.(\w+)$", page, flags=re.MULTILINE)
    assert modules == ["extra", "lines"]
    assert ":py:obj:`FitError <offprints.tiny_site.FitError>`" in page  # known already: a link, not a second entry


def test_index_of_claims(site: Path) -> None:
    page = text_of(site, "generated/claims.md")
    assert page.startswith("2 of 4 claims hold for every seed.\n")
    row = "| error of the slope \\| with &lt;noise> | 1.23e4 | 0.123 | <= 1e-7 | no fit: 3, 4, 5 | [yes]{.holds} |"
    assert page.count(row) == 2  # quick and medium
    assert "| second |  | 1, 2, 3 | > 1 |  | [2 of 3]{.fails} |" in page
    assert "| third |  | 1 | > 1 |  | [no]{.fails} |" in page
    assert "| exact |  | 0 | == 0 | [yes]{.holds} |" in page  # checks stand apart and do not count
    assert "| shown |  | 0.5 |" in page
    assert page.index("Preset `quick`, on cpu, torch 2.9.0, 2026-01-31.") < page.index("Preset `medium`")
    assert 'Not recorded yet: `nox -s "claims(other)" -- --record` writes `claims/quick.json`.' in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.000123456, "0.000123"), (-2e-12, "-2e-12"), (3, "3"), (float("inf"), "inf"), (None, ""), ("a|b", "a\\|b")],
)
def test_numbers_of_claims(value: Any, text: str) -> None:
    assert claims.number(value) == text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not a record of claims"),
        ("{}", "'claims'"),
        (json.dumps(RECORD | {"seeds": [0]}), "slope is not measured for every seed"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "quick.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        claims.read_record(path)
    assert word in str(raised.value)


def test_examples_and_start(site: Path) -> None:
    assert text_of(site, "examples/tiny-site/plot_line.py") == '"""\nA line\n======\n\nText.\n"""\n'
    header = text_of(site, "examples/tiny-site/GALLERY_HEADER.rst")
    assert header == "tiny-site\n=========\n\n:doc:`/papers/tiny-site/index`: On tiny-site\n"
    assert not (site / "examples" / "other").exists()
    assert text_of(site, "generated/start.md") == "\nStart [here](/papers/tiny-site/index.md).\n"
    assert text_of(site, "generated/contributing.md") == "\nRead this.\n"


def test_cards_and_tasks(site: Path) -> None:
    cards = text_of(site, "generated/cards.md")
    assert cards.count(":::{grid-item-card}") == 2
    assert cards.count(":img-top:") == 1
    assert "`offprints-tiny-site` · arXiv 2211.15272" in cards
    tasks = text_of(site, "generated/tasks.md")
    # A word that all papers share says nothing.
    rows = "| curves | [other](/papers/other/index.md) |\n| lines | [tiny-site](/papers/tiny-site/index.md) |"
    assert rows in tasks
    assert "| papers |" not in tasks
    assert ": Fits lines, and nothing else." in tasks


def test_pages_of_the_core(site: Path) -> None:
    index = text_of(site, "core/index.md")
    assert index.startswith("# The shared core\n\nThe core.\n")
    listed = re.findall(r"^(\w+) <\1>$", index, flags=re.MULTILINE)
    assert {"device", "distributed", "experiment", "testing", "validation"} <= set(listed)
    assert sorted(path.stem for path in (site / "core").glob("*.rst")) == sorted(listed)
    assert ".. autofunction:: offprints.shared.testing.check_estimator" in text_of(site, "core/testing.rst")


def test_pages_are_rewritten_only_where_they_differ_and_stale_ones_go(tmp_path: Path) -> None:
    write(tmp_path / "papers" / "gone" / "index.md", "old\n")
    write(tmp_path / "guides" / "mine.md", "kept\n")
    first = pages.Writer(tmp_path)
    first.page("papers/a.md", "text\n\n")
    first.tidy()
    assert not (tmp_path / "papers" / "gone").exists()
    assert (tmp_path / "guides" / "mine.md").exists()
    before = (tmp_path / "papers" / "a.md").stat().st_mtime_ns
    second = pages.Writer(tmp_path)
    second.page("papers/a.md", "text")
    second.tidy()
    assert (tmp_path / "papers" / "a.md").stat().st_mtime_ns == before
    second.page("papers/a.md", "other")
    assert (tmp_path / "papers" / "a.md").read_text() == "other\n"
