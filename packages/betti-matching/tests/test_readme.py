"""The README's example runs as it is printed."""

from collections.abc import Callable
from typing import Any


def test_readme(readme_example: Callable[[], dict[str, Any]]) -> None:
    assert readme_example()
