from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_readme(readme_example: Callable[[], dict[str, Any]]) -> None:
    names = readme_example()
    assert names["experiment"].name == "my-paper"
