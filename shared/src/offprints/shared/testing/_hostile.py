"""Networks that do what networks of users do: work in place, return another type, NaN, another shape, nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from offprints.shared.testing._properties import assert_near, tensors


class Hostile(nn.Module):
    """A network with one habit.

    Args:
        network: The well-behaved one: what it gives for the same input is known.
        habit: A key of `HABITS`.
    """

    def __init__(self, network: Callable[..., Any], habit: str) -> None:
        super().__init__()
        self.network, self.habit, self.calls = network, habit, 0
        self.last: Any = None  # what it gave last, without its graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        kept = [x.detach().clone() if isinstance(x, Tensor) else x for x in args]
        if self.habit == "in place":
            result = self.network(*kept, **kwargs)
            for x in args:
                if isinstance(x, Tensor) and x.is_floating_point() and x.is_leaf and not x.requires_grad:
                    x.mul_(0.5)
            return result
        result = self.network(*args, **kwargs)
        result = HABITS[self.habit](result) if isinstance(result, Tensor) else result
        self.last = result.detach().clone() if isinstance(result, Tensor) else result
        return result


HABITS: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda y: y,
    "another type": lambda y: y.to(torch.float32 if y.dtype == torch.float64 else torch.float64),
    "NaN": lambda y: y * torch.nan,
    "a number": lambda y: y.mean(),
    "one row": lambda y: y[:1],
    "one column": lambda y: y[:, :1] if y.ndim > 1 else y[:, None],
    "nothing": lambda y: None,
}


def check_networks(
    call: Callable[[Callable[..., Any]], Any],
    network: Callable[..., Any],
    name: str,
    skip: dict[str, str],
    *,
    passes: bool = False,
) -> None:
    """Call with the network in each habit, and report all failures together.

    In place and another type: the result of the well-behaved network, in its type (for another type, a TypeError or
    ValueError that has `name` in it is right as well). NaN: such an error, or a NaN in the result. Another shape and
    nothing: such an error. A FloatingPointError of NaN needs no name. With `passes` it is also right to hand on what
    the network gave, as it is, or to leave it aside, and the type may be that of the network.
    """
    if unknown := skip.keys() - HABITS.keys():
        raise ValueError(f"skip names {sorted(unknown)}; the habits of networks are {', '.join(HABITS)}")
    expected, failures = call(network), []
    for habit in HABITS:
        if habit in skip:
            continue
        hostile = Hostile(network, habit)
        try:
            result = call(hostile)
        except (TypeError, ValueError) as error:
            if habit == "in place":
                failures.append(f"{habit}: raised {type(error).__name__}: {error}")
            elif not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)):
                failures.append(f"{habit}: the message does not name {name}: {type(error).__name__}: {error}")
        except FloatingPointError as error:
            if habit != "NaN":
                failures.append(f"{habit}: raised FloatingPointError: {error}")
        except Exception as error:
            failures.append(f"{habit}: raised {type(error).__name__}: {error}")
        else:
            if passes and hostile.calls and (_is(result, hostile.last) or _same(result, expected)):
                continue
            if hostile.calls and (trouble := _judge(habit, result, expected, dtype=not passes)):
                failures.append(f"{habit}: {trouble}")
    if failures:
        raise AssertionError("\n  ".join([f"{len(failures)} of {len(HABITS)} habits of {name}:", *failures]))


def _is(result: Any, given: Any) -> bool:
    if not isinstance(result, Tensor) or not isinstance(given, Tensor):
        return result is None and given is None
    same = result.dtype == given.dtype and result.shape == given.shape
    return same and bool(torch.isclose(result.detach(), given, rtol=0.0, atol=0.0, equal_nan=True).all())


def _same(result: Any, expected: Any) -> bool:
    try:
        assert_near(result, expected, "", rtol=0.0, atol=0.0)
    except AssertionError:
        return False
    return True


def _judge(habit: str, result: Any, expected: Any, *, dtype: bool = True) -> str | None:
    if habit in ("in place", "another type"):
        # Another type rounds otherwise, and a sampler repeats it tens of times.
        tolerance = 0.0 if habit == "in place" else 1e-3
        scale = max([float(t.detach().abs().max()) for t in tensors(expected) if t.numel()], default=1.0)
        try:
            assert_near(result, expected, "another result", rtol=tolerance, atol=tolerance * scale, dtype=dtype)
        except AssertionError as error:
            return str(error)
        return None
    if habit == "NaN":
        lost = not any(bool(t.detach().isnan().any()) for t in tensors(result) if t.is_floating_point())
        return "is lost in the result" if lost else None
    return "accepted"
