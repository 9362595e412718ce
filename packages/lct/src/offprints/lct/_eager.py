"""What the compiler leaves alone, without loading the compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(*, recursive: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """As `torch.compiler.disable`, which as a decorator loads the whole compiler (2 s) at import.

    Here it is asked only while something is being compiled.
    """

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        @wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return torch.compiler.disable(fn, recursive=recursive)(*args, **kwargs)  # type: ignore[no-any-return]
            return fn(*args, **kwargs)

        return call

    return decorate
