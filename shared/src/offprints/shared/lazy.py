"""Names of a package that are imported when they are asked for: what they stand on takes long to import."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package (PEP 562) some of whose names come with their first use.

    Under ``if TYPE_CHECKING:`` the package imports these names as usual, and ``__all__`` has them.

    Args:
        package: ``__name__`` of the package.
        homes: The module of each name.

    Example:
        >>> get, _ = attach("offprints.shared", {"Fraction": "fractions"})
        >>> get("Fraction")(1, 2)
        Fraction(1, 2)
        >>> get("Part")
        Traceback (most recent call last):
        AttributeError: module 'offprints.shared' has no attribute 'Part'
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return list(sys.modules[package].__all__)

    return get, names
