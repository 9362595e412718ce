"""Every public object has an example, and every example runs."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import pytest
import torch

import offprints.stablemax as package


@pytest.mark.parametrize("name", package.__all__)
def test_example(name: str) -> None:
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", getattr(package, name).__doc__, re.DOTALL)
    names: dict[str, Any] = {"torch": torch} | {public: getattr(package, public) for public in package.__all__}
    lines = dedent(code).strip().splitlines()
    assert 1 <= len(lines) <= 8
    exec("\n".join(lines), names)
    # The last line says in its comment what it gives, where that is a number.
    said = re.fullmatch(r"(.*\S)  # (-?\d+(?:\.\d+)?)", lines[-1])
    if said and "=" not in said[1]:
        assert eval(said[1], names) == pytest.approx(float(said[2]))
