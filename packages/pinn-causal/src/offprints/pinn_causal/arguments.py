"""Checks of arguments that hold several things."""

from __future__ import annotations

from collections.abc import Iterable


def check_sequence(value: object, name: str, what: str) -> None:
    """Refuse what cannot be gone through, and text."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence of {what}, got {value!r}")
