"""The public objects of a package in the order of its ``__all__``, as directives of autodoc.

Names are taken with ``getattr``, so that those that a package exports lazily appear as well.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One public object and the module that documents it."""

    module: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        """The dotted name under which a user imports it."""
        return f"{self.module}.{self.name}"

    @property
    def kind(self) -> str:
        """The directive of autodoc that documents it."""
        if inspect.isclass(self.value):
            return "exception" if issubclass(self.value, BaseException) else "class"
        return "function" if callable(self.value) and hasattr(self.value, "__code__") else "data"

    @property
    def summary(self) -> str:
        """The first sentence of its docstring, where it has one of its own."""
        if self.kind == "data":
            return ""
        first = (inspect.getdoc(self.value) or "").split("\n\n", 1)[0]
        return " ".join(first.split())


def exported(module: ModuleType) -> list[Entry]:
    """What a module's ``__all__`` names, in its order."""
    return [Entry(module.__name__, name, getattr(module, name)) for name in getattr(module, "__all__", [])]


def defined(module: ModuleType) -> list[Entry]:
    """The public names of a module: its ``__all__``, or the functions and classes that it defines, as in the file."""
    if hasattr(module, "__all__"):
        return exported(module)
    return [
        Entry(module.__name__, name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or inspect.isfunction(value))
    ]


def public_modules(package: ModuleType, *, without: Iterable[str] = ()) -> list[ModuleType]:
    """The modules under a package that no underscore makes private, each imported."""
    found = []
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        last = info.name.rsplit(".", 1)[-1]
        if last.startswith("_") or last in without:
            continue
        module = import_module(info.name)
        found.append(module)
        if info.ispkg:
            found.extend(public_modules(module))
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two entries are one object under two names; equal strings and numbers are not."""
    return one is other and (inspect.isclass(one) or callable(one))


def directive(entry: Entry) -> str:
    """The lines that document an entry."""
    options = ["   :members:", "   :show-inheritance:"] if entry.kind in ("class", "exception") else []
    if entry.kind == "class" and hasattr(entry.value, "_fields"):
        options[0] = "   :members:\n   :exclude-members: " + ", ".join(entry.value._fields)
    return "\n".join([f".. auto{entry.kind}:: {entry.path}", *options, ""])
