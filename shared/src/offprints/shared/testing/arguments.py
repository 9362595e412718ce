"""`check_arguments`: every argument of a callable, wrong, odd and extreme, one at a time.

::

    check_arguments(comp_sum_loss, lambda g: (torch.randn(7, 4, generator=g), torch.randint(4, (7,), generator=g)))
    check_arguments(CompSumLoss, lambda g: {"tau": 2.0})                              # the arguments of a constructor
    check_arguments(pndm_sample, inputs, skip={"schedule: *": "any object with alphas", "model: NaN": "the user's"})
"""

from __future__ import annotations

import copy
import inspect
import re
import signal
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.testing._fuzz import Oddity, oddities
from offprints.shared.testing._properties import (
    Skip,
    assert_equal,
    clone,
    describe,
    generator,
    preserved_random_state,
    shorten,
    tensors,
)

# What torch says of its own arguments: the error comes from inside, and the name in it is torch's.
_FOREIGN = re.compile(r"argument '\w+' \(position \d+\)|invalid combination of arguments|\bmust be Tensor, not\b")
_PATIENCE = 20  # by the clock: a busy machine is not a call that hangs
_TOO_MUCH = re.compile("memory|storage size|too large|overflow", re.IGNORECASE)


def check_arguments(
    fn: Callable[..., Any],
    make_inputs: Callable[[torch.Generator], Sequence[Any] | Mapping[str, Any]],
    *,
    kwargs: Mapping[str, Any] | None = None,
    nan: Literal["raise", "propagate"] = "raise",
    only: Sequence[str] | None = None,
    seconds: float = 5.0,
    skip: Skip | None = None,
) -> None:
    """Put wrong, odd and extreme values in the place of every argument, one at a time; report all failures together.

    Right is a TypeError or ValueError whose message has the argument's name in it (where lengths or shapes no longer
    fit: the name of any argument), or a finite result. What cannot mean anything (a string for a tensor, a number or a
    boolean; an unknown choice; NaN or True for a number) has to be refused. Wrong is every other error, a call that
    does not end, an input that was changed, and for a module a state that a refused call has changed.

    Tensors and arrays become: None, a string, a number, an array, a list, complex, non-contiguous, one more axis, one
    axis fewer, empty, longer, shorter, no classes, one class fewer; floating ones NaN, inf, -inf, integer, bool,
    float16, bfloat16, float64, huge (times 1e30), tiny, zeros; integer ones floating, bool, int32, -1, huge. Numbers
    become: None, a string, True, NaN, inf, -inf, -1, 0, a list, huge, tiny (integers: a fraction, a NumPy integer).
    Choices, booleans and other objects become what they are not. Of lists, tuples and dicts the first item is replaced
    too ("NaN inside"). What is huge may overflow to infinity below float64, and a huge integer may take longer than the
    limit or more memory than there is: that is what was asked for.

    Args:
        fn: A function, a class (its constructor), a bound method or an ``nn.Module`` instance (copied for every call).
        make_inputs: ``make_inputs(generator)`` draws the arguments: positional ones, or a mapping of keywords. What
            they leave out is tried from its default.
        kwargs: Further keyword arguments of every call; they are tried too.
        nan: With "propagate", NaN, infinite and huge tensors may give any result.
        only: The arguments to try; default: all that have a name.
        seconds: Limit of one call, in processor time, twenty times as much by the clock (where the system has alarms,
            and in the main thread).
        skip: ``{"argument: case": "reason"}``, both with wildcards. One that fits no case is a ValueError.

    Raises:
        AssertionError: Calls went wrong; the message lists argument, case and what happened, for all of them.
        ValueError: `skip` or `only` names what is not there, or a reason is missing.
    """
    with preserved_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is looked at is what comes out
        failures, count = _Trial(fn, make_inputs, dict(kwargs or {}), nan, seconds).run(only, dict(skip or {}))
    if failures:
        lines = "\n".join(f"  {failure}" for failure in failures)
        raise AssertionError(f"check_arguments of {describe(fn)}: {len(failures)} of {count} cases fail:\n{lines}")


class _TimeOut(BaseException):
    """Not an Exception: what is tried must not catch it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    begun, before = time.monotonic(), time.process_time()

    def look(number: int, frame: object) -> None:
        busy, waited = time.process_time() - before, time.monotonic() - begun
        if busy >= seconds or waited >= _PATIENCE * seconds:
            raise _TimeOut
        signal.setitimer(signal.ITIMER_REAL, max(0.05, seconds - busy))

    handler = signal.signal(signal.SIGALRM, look)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, handler)


class _Trial:
    def __init__(
        self,
        fn: Callable[..., Any],
        make_inputs: Callable[[torch.Generator], Sequence[Any] | Mapping[str, Any]],
        kwargs: dict[str, Any],
        nan: str,
        seconds: float,
    ) -> None:
        self.fn, self.make_inputs, self.kwargs, self.nan, self.seconds = fn, make_inputs, kwargs, nan, seconds
        self.signature = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)

    def arguments(self) -> dict[str, Any]:
        """Draw the arguments that are given, by name; those of ``*args`` are ``args[0]`` and so on."""
        drawn = self.make_inputs(generator(0))
        keywords = {**self.kwargs, **drawn} if isinstance(drawn, Mapping) else dict(self.kwargs)
        bound = self.signature.bind(*(() if isinstance(drawn, Mapping) else drawn), **keywords)
        found: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                found |= {f"{name}[{i}]": item for i, item in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                found |= value
            else:
                found[name] = value
        return found

    def call(self, fn: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        bound = inspect.BoundArguments(self.signature, OrderedDict())
        rest = dict(arguments)
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                starred = [key for key in rest if key.startswith(f"{name}[")]
                bound.arguments[name] = tuple(rest.pop(key) for key in starred)
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = rest
            elif name in rest:
                bound.arguments[name] = rest.pop(name)
        return fn(*bound.args, **bound.kwargs)

    def cases(self) -> dict[str, tuple[str, Oddity, Any]]:
        """Return, by "argument: case", the argument, what takes its place, and the default where it is not given."""
        given, found = self.arguments(), {}
        values = {name: (value, inspect.Parameter.empty) for name, value in given.items()}
        for name, parameter in self.signature.parameters.items():
            if name in given:
                values[name] = (given[name], parameter.annotation)
            elif parameter.default is not inspect.Parameter.empty:
                values[name] = (parameter.default, parameter.annotation)
        for name, (value, annotation) in values.items():
            for case, odd in oddities(value, annotation).items():
                found[f"{name}: {case}"] = (name, odd, value)
        return found

    def run(self, only: Sequence[str] | None, skip: dict[str, str]) -> tuple[list[str], int]:
        cases = self.cases()
        names = {name for name, _, _ in cases.values()}
        if only is not None and (unknown := set(only) - names):
            raise ValueError(f"only names {sorted(unknown)}; the arguments are {', '.join(sorted(names))}")
        for pattern, reason in skip.items():
            if not any(fnmatchcase(key, pattern) for key in cases):
                raise ValueError(
                    f"skip names {pattern!r}, which is not a case of the arguments {', '.join(sorted(names))}"
                )
            if not reason:
                raise ValueError(f"skip[{pattern!r}] needs a reason")
        if trouble := self.attempt(self.arguments(), None, Oddity(lambda v: v)):
            return [f"ordinary arguments: {trouble}"], 1
        failures, count = [], 0
        for key, (name, odd, default) in cases.items():
            if (only is not None and name not in only) or any(fnmatchcase(key, pattern) for pattern in skip):
                continue
            count += 1
            arguments = self.arguments()
            arguments[name] = odd.value(arguments.get(name, default))
            if trouble := self.attempt(arguments, name, odd):
                failures.append(f"{key}: {trouble}")
        return failures, count

    def attempt(self, arguments: dict[str, Any], name: str | None, odd: Oddity) -> str | None:
        """Call once; say what is wrong with the outcome."""
        fn = copy.deepcopy(self.fn) if isinstance(self.fn, nn.Module) else self.fn
        before, state = _snapshot(arguments), _snapshot(fn)
        trouble: str | None
        try:
            with _time_limit(self.seconds):
                result = self.call(fn, arguments)
        except _TimeOut:
            asked = odd.large and isinstance(arguments.get(name or ""), int)
            trouble = None if asked else f"no answer after {self.seconds:g} s"
        except Exception as error:
            trouble = self.judge(error, arguments, name, odd)
            if trouble is None and not _equal(_snapshot(fn), state):
                trouble = f"refused, but the state has changed ({type(error).__name__}: {error})"
        else:
            trouble = self.judge_result(result, name, odd)
        if trouble is None and not _equal(_snapshot(arguments), before):
            trouble = "an input was changed"
        return trouble

    def judge(self, error: Exception, arguments: Mapping[str, Any], name: str | None, odd: Oddity) -> str | None:
        message = " ".join(str(error).split())
        told = f"{type(error).__name__}: {message[:300]}"
        asked = odd.large and isinstance(arguments.get(name or ""), int)
        if asked and isinstance(error, MemoryError | RuntimeError) and _TOO_MUCH.search(message or "memory"):
            return None
        if name is None or not isinstance(error, TypeError | ValueError) or _FOREIGN.search(message):
            return f"raised {told}"
        accepted = list(arguments) if odd.relative else [name]
        if not any(re.search(rf"(?<!\w){re.escape(n.split('[')[0])}(?!\w)", message) for n in accepted):
            return f"the message does not name {' or '.join(accepted)}: {told}"
        return None

    def judge_result(self, result: Any, name: str | None, odd: Oddity) -> str | None:
        if odd.refused:
            return f"accepted, with the result {shorten(result)}"
        if odd.extreme and self.nan == "propagate":
            return None
        for t in tensors(result):
            overflow = odd.large and t.dtype != torch.float64
            if t.is_floating_point() and not (~t.detach().isnan() if overflow else t.detach().isfinite()).all():
                return f"the result is not finite: {shorten(t.detach())}"
        return None


def _snapshot(value: Any) -> list[Tensor]:
    """Copy every tensor and array inside; those of a module are its state."""
    if isinstance(value, nn.Module):
        return [t.detach().clone() for t in (*value.parameters(), *value.buffers())]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in _snapshot(item)]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _snapshot(item)]
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
        return [clone(t.detach()) for t in tensors(value)]
    return []


def _equal(now: list[Tensor], before: list[Tensor]) -> bool:
    try:
        assert_equal(now, before, "")
    except AssertionError:
        return False
    return True
