"""The README's table from the paper to the code names what exists."""

import re
from pathlib import Path

import offprints.stablemax as package


def test_every_name_exists_and_every_public_name_is_there() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme.split("## The paper in the code")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][2:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(rows) >= 10
    assert named == set(package.__all__)
