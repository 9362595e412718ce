"""Config dataclasses as JSON and back, by their type hints; nothing is executed when one is read."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import types
import typing
from pathlib import Path, PurePath
from typing import Any

from offprints.shared.store.files import plain


def encode(value: Any) -> Any:
    """``value`` as strict JSON has it: tuples as lists, paths as strings, enum members by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, collections.abc.Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return plain(value)
    raise TypeError(f"{type(value).__name__} is not a number, string, path, enum, sequence, mapping or dataclass")


def decode(hint: Any, value: Any, name: str = "config") -> Any:
    """What `encode` made ``value`` of, an instance of the type ``hint``.

    Raises:
        ValueError: ``value`` is not of that type; ``name`` and the path inside it say where.
        TypeError: ``hint`` is not a type that configs may have.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = ValueError(f"{name} must be {getattr(hint, '__name__', hint)}, got {value!r}")
    if origin is typing.Annotated:
        return decode(arguments[0], value, name)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                decoded = decode(argument, value, name)
            except ValueError:
                continue
            if type(encode(decoded)) is type(value):  # int | float: 1 stays an int, 1.0 a float
                return decoded
        raise wrong
    if origin is typing.Literal:
        for argument in arguments:
            if type(encode(argument)) is type(value) and encode(argument) == value:
                return argument
        raise wrong
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint, include_extras=True)
        fields = [field.name for field in dataclasses.fields(hint) if field.init]
        if not isinstance(value, dict) or set(value) != set(fields):
            if not isinstance(value, dict):
                raise wrong
            lacking = [f"lacks {field}" for field in fields if field not in value]
            unknown = [f"has the unknown field {field}" for field in value if field not in fields]
            raise ValueError(f"{name} {', '.join(lacking + unknown)}")
        return hint(**{field: decode(hints[field], value[field], f"{name}.{field}") for field in fields})
    if origin in (tuple, list, collections.abc.Sequence):
        if not isinstance(value, list):
            raise wrong
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            if len(arguments) != len(value):
                raise wrong
            kinds = list(arguments)
        else:
            kinds = [arguments[0]] * len(value)
        items = [decode(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))]
        return items if origin is list else tuple(items)
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            raise wrong
        return {
            _key(arguments[0], key, name): decode(arguments[1], item, f"{name}.{key}") for key, item in value.items()
        }
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in hint.__members__:
            raise wrong
        return hint[value]
    if isinstance(hint, type) and issubclass(hint, PurePath):
        if not isinstance(value, str):
            raise wrong
        return Path(value)
    if hint is float and (type(value) in (int, float) or value in ("nan", "inf", "-inf")):
        return float(value)
    if hint in (int, str, bool) or hint in (None, type(None)):
        if type(value) is not (type(None) if hint is None else hint):
            raise wrong
        return value
    if hint is float:
        raise wrong
    raise TypeError(f"{name} has the type {hint}, which a config cannot have")


def _key(hint: Any, key: str, name: str) -> Any:
    try:
        return int(key) if hint is int else decode(hint, key, name)
    except ValueError:
        raise ValueError(f"{name} must have {getattr(hint, '__name__', hint)} keys, got {key!r}") from None
