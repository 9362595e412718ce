"""How the documentation reads docstrings and inventories, and what it makes of this workspace; no whole build."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
claims, docstrings, inventories, members, pages = (
    importlib.import_module(f"offprints_site.{name}")
    for name in ("claims", "docstrings", "inventories", "members", "pages")
)
REAL = members.read_papers(ROOT)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Ends in update_ and a*b, |x|, not `a_*`."], [r"Ends in update\_ and a\*b, \|x\|, not `a_*`."]),
        (["This is *one* and **two**."], ["This is *one* and **two**."]),
        (["```python", "f(*x)", "```"], ["", ".. code-block:: python", "", "   f(*x)", ""]),
        (["Example::", "", "    f(*x)_"], ["Example::", "", "    f(*x)_"]),
        (["Prose.", "", "    x * y_"], ["Prose.", "", "::", "", "    x * y_"]),
        ([">>> f(*x)"], [">>> f(*x)"]),
        (
            ["| a | b |", "| --- | --- |", "| 1 | x*y |"],
            [".. list-table::", "   :header-rows: 1", "", "   * - a", "     - b", "   * - 1", r"     - x\*y"],
        ),
        (
            ["=== ====", "a   b", "=== ====", "1   long", "    text", "=== ===="],
            [".. list-table::", "   :header-rows: 1", "", "   * - a", "     - b", "   * - 1", "     - long text"],
        ),
    ],
)
def test_docstrings(lines: list[str], expected: list[str]) -> None:
    assert docstrings.convert(lines) == expected


def test_docstrings_that_are_inherited_by_values_go() -> None:
    lines = (int.__doc__ or "").splitlines()
    docstrings.process(None, "data", "x", 3, None, lines)
    assert lines == []


def test_private_bases_and_made_methods_are_left_out() -> None:
    class _HiddenError(ValueError):
        pass

    bases = [_HiddenError, object]
    docstrings.bases(None, "x", None, None, bases)
    assert bases == [ValueError]
    assert docstrings.skip(None, "method", "set_fit_request", None, False, None) is True
    assert docstrings.skip(None, "method", "set_params", None, False, None) is None


class Inventories(BaseHTTPRequestHandler):
    """Answers for three projects: one has an inventory, one a page, one nothing."""

    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        body = {"/good/objects.inv": b"# Sphinx inventory version 2\n...", "/page/objects.inv": b"<html>"}.get(
            self.path
        )
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_inventories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFPRINTS_DOCS_OFFLINE", raising=False)
    Inventories.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Inventories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}/"
        projects = {name: f"{base}{name}/" for name in ("none", "page", "good")}
        try:
            found = inventories.inventories(tmp_path, projects)
            again = inventories.inventories(tmp_path, projects)
        finally:
            server.shutdown()
            thread.join()
    assert found == again == {"good": (f"{base}good/", str(tmp_path / "good.inv"))}
    assert Inventories.asked.count("/good/objects.inv") == 1  # kept for later builds
    # Nothing answers any more: what is kept is still there, and the first refusal ends the asking.
    assert inventories.inventories(tmp_path, projects) == found
    monkeypatch.setenv("OFFPRINTS_DOCS_OFFLINE", "1")
    assert inventories.inventories(tmp_path / "empty", projects) == {}


READMES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/README.md"))]


@pytest.mark.parametrize("path", [*READMES, *(paper.folder / "README.md" for paper in REAL)], ids=str)
def test_links_of_this_workspace_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lost = [target for _, target in pages.LINK.findall(text) if not (path.parent / target.partition("#")[0]).exists()]
    assert lost == []


def test_index_of_claims_of_this_workspace() -> None:
    page = claims.claims_page(REAL)
    total = 0
    for paper in REAL:
        for record in claims.read_records(paper):
            total += sum(claim.get("kind", "claim") == "claim" for claim in record["claims"])
            for claim in record["claims"]:
                assert claims.cell(claim["statement"]) in page
    assert re.match(rf"\d+ of {total} claims hold for every seed\." if total else "No claims are recorded yet", page)


def test_members_of_this_workspace() -> None:
    for paper in REAL:
        assert paper.heading == paper.name or " " in paper.heading or paper.heading[0].isupper()
        assert "arxiv.org" not in paper.paper_url or re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)
        assert paper.summary.endswith((".", ":"))
        for example in paper.examples:
            assert pages.example_title(example) not in ("", example.stem)
