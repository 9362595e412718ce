"""The tensors inside nested lists, tuples and dicts, by number and name, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor


class Leaves:
    """The places of the tensors in the positional arguments of a call.

    Attributes:
        names: "0" for the first argument, "1[0]" for the first tensor in the second, and so on.
    """

    def __init__(self, arguments: Sequence[Any]) -> None:
        self.names = [name for i, value in enumerate(arguments) for name, _ in _walk(value, str(i))]

    @staticmethod
    def of(arguments: Sequence[Any]) -> list[Tensor]:
        """Return the tensors of arguments of this structure."""
        return [leaf for i, value in enumerate(arguments) for _, leaf in _walk(value, str(i))]

    @staticmethod
    def put(arguments: Sequence[Any], leaves: Sequence[Tensor]) -> list[Any]:
        """Return the arguments with other tensors in the places of theirs."""
        given = iter(leaves)
        return [_rebuild(value, given) for value in arguments]

    @classmethod
    def replace(cls, arguments: Sequence[Any], index: int, leaf: Any) -> list[Any]:
        """Return the arguments with one tensor replaced, by anything."""
        leaves: list[Any] = cls.of(arguments)
        leaves[index] = leaf
        return cls.put(arguments, leaves)


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _walk(item, f"{name}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{name}[{key!r}]")


def _rebuild(value: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(value, Tensor):
        return next(leaves)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rebuild(item, leaves) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_rebuild(item, leaves) for item in value)
    if isinstance(value, dict):
        return {key: _rebuild(item, leaves) for key, item in value.items()}
    return value
