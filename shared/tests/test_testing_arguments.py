"""check_arguments finds what a function does wrong with wrong arguments, all of it at once."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offprints.shared.testing import check_arguments, check_loss
from offprints.shared.validation import check_choice, check_labels, check_number, check_same_shape, check_tensor


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(5, 3, generator=generator), torch.randint(3, (5,), generator=generator)


def good(x: Tensor, labels: Tensor, *, scale: float = 1.0, steps: int = 2, mode: str = "sum") -> Tensor:
    check_tensor(x, "x", ndim=2)
    labels = check_labels(labels, "labels", length=len(x), num_classes=x.shape[1])
    check_number(scale, "scale", low=0.0, high=1e6)
    check_number(steps, "steps", low=1, high=1000, integer=True)
    check_choice(mode, "mode", ("sum", "mean"))
    picked = x.double().gather(1, labels[:, None]) * scale * steps
    return picked.sum() if mode == "sum" else picked.mean()


def failures(fn: Any, make_inputs: Any = draw, **options: Any) -> list[str]:
    with pytest.raises(AssertionError) as caught:
        check_arguments(fn, make_inputs, **options)
    first, *lines = str(caught.value).splitlines()
    assert re.fullmatch(rf"check_arguments of .*: {len(lines)} of \d+ cases fail:", first)
    return [line.strip() for line in lines]


def test_good_function_passes() -> None:
    check_arguments(good, draw)
    check_arguments(good, lambda g: dict(zip(("x", "labels"), draw(g), strict=True)), kwargs={"scale": 0.5})


def test_all_failures_are_told_together() -> None:
    def careless(x: Tensor, scale: float = 1.0, flag: bool = False) -> Tensor:
        return x.sum() * (scale if flag else 1.0) / len(x)

    found = failures(careless, lambda g: (torch.ones(4, 2), 2.0, True))
    assert "x: None: raised AttributeError: 'NoneType' object has no attribute 'sum'" in found
    assert "x: empty: raised ZeroDivisionError: division by zero" not in found  # a tensor divides by zero
    assert "x: empty: the result is not finite: tensor(nan)" in found
    assert "x: NaN: the result is not finite: tensor(nan)" in found
    assert "scale: NaN: accepted, with the result tensor(nan)" in found
    assert "scale: True: accepted, with the result tensor(2.)" in found
    assert "flag: a string: accepted, with the result tensor(4.)" in found
    assert any(
        line.startswith("scale: None: the message does not name scale: TypeError: unsupported") for line in found
    )


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("x: one axis fewer", "raised IndexError"),
        ("x: integer", "raised "),
        ("x: empty", "the message does not name x or labels"),
        ("labels: huge", "raised RuntimeError: index"),
        ("labels: None", "raised AttributeError"),
        ("labels: a list", "raised AttributeError"),
    ],
)
def test_what_comes_from_inside_is_caught(case: str, what: str) -> None:
    def careless(x: Tensor, labels: Tensor) -> Tensor:
        if not len(x):
            raise ValueError("nothing to do")
        return x.softmax(1).gather(1, labels.view(-1, 1)).mean()

    assert any(line.startswith(f"{case}: {what}") for line in failures(careless))


def test_a_changed_input_is_caught_even_when_refused() -> None:
    def hasty(x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.dtype == torch.float32:
            x.clamp_(max=0.5)
        check_tensor(x, "x", ndim=2)
        return x.sum()

    found = failures(hasty, lambda g: (draw(g)[0],))
    assert found == ["ordinary arguments: an input was changed"]

    def late(x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.is_floating_point() and x.isnan().any():
            x.nan_to_num_()
            raise ValueError("x holds NaN")
        return check_tensor(x, "x", ndim=2).sum()

    assert failures(late, lambda g: (draw(g)[0],)) == ["x: NaN: an input was changed"]


def test_a_state_changed_by_a_refused_call_is_caught() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return check_tensor(x, "x", ndim=2).sum() * 1.0

    found = failures(Counts(), lambda g: (draw(g)[0],))
    assert any(line.startswith("x: NaN: refused, but the state has changed (ValueError: x must be") for line in found)


def test_a_call_that_does_not_end_is_caught() -> None:
    def endless(x: Tensor, stop: float = 1.0, steps: int = 3) -> Tensor:
        check_tensor(x, "x", ndim=2)
        check_number(stop, "stop", high=10.0)
        check_number(steps, "steps", low=1, integer=True)
        done = 0.0
        while stop < 0 or done < stop:
            done += 0.5
        for _ in range(steps):
            x = x * 1.0
        return x.sum()

    assert failures(endless, lambda g: (draw(g)[0],), seconds=0.2) == ["stop: -1: no answer after 0.2 s"]


def test_a_thread_has_no_alarm_and_the_check_goes_on() -> None:
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            check_arguments(good, draw)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not outcome


def test_nan_may_propagate_through_tensors_alone() -> None:
    def through(x: Tensor, scale: float = 1.0) -> Tensor:
        check_tensor(x, "x", ndim=2, finite=False)
        check_number(scale, "scale", low=0.0, high=10.0)
        return x.sum() * scale

    check_arguments(through, lambda g: (draw(g)[0],), nan="propagate")
    assert [line.split(": ")[1] for line in failures(through, lambda g: (draw(g)[0],))] == ["NaN", "inf", "-inf"]

    def lost(x: Tensor) -> Tensor:
        return check_tensor(x, "x", ndim=2).sum() / (x.abs().max() > 1e-10)

    assert [line[:8] for line in failures(lost, lambda g: (draw(g)[0],), nan="propagate")] == ["x: tiny:", "x: zeros"]


def test_overflow_is_not_a_nan() -> None:
    def squares(x: Tensor) -> Tensor:
        return check_tensor(x, "x", ndim=2).square().sum()

    check_arguments(squares, lambda g: (draw(g)[0],))  # 1e60 is infinite in float32

    def variation(x: Tensor) -> Tensor:
        check_tensor(x, "x", ndim=2)
        return x.square().sum() / (1 + x.square().sum())

    found = failures(variation, lambda g: (draw(g)[0],))
    assert found == ["x: huge: the result is not finite: tensor(nan)"]


def test_lists_dicts_and_arrays_are_walked() -> None:
    def of_list(views: list[Tensor], options: dict[str, float], table: np.ndarray) -> Tensor:
        if not isinstance(views, list) or not views:
            raise TypeError(f"views must be a list, got {views!r}")
        if not isinstance(options, dict):
            raise TypeError(f"options must be a dict, got {options!r}")
        weight = options.get("weight", 1.0)
        check_tensor(torch.as_tensor(table), "table", ndim=2)
        return sum(view.double().mean() for view in views) * weight  # neither is looked at

    inputs = lambda g: ([torch.ones(3, 2), torch.ones(3, 2)], {"weight": 0.5}, np.ones((2, 2)))  # noqa: E731
    found = [line.rsplit(": ")[0] + ": " + line.split(": ")[1] for line in failures(of_list, inputs)]
    assert "views: NaN inside" in found
    assert "views: None inside" in found
    assert "options: NaN inside" in found
    assert "options: a string inside" in found
    assert not any(line.startswith(("views: empty:", "table: NaN", "options: empty")) for line in found)


def test_constructors_methods_and_starred_arguments() -> None:
    class Thing:
        def __init__(self, rate: float, *, name: str = "mean") -> None:
            check_number(rate, "rate", low=0.0)
            self.rate = rate

        def fit(self, x: Tensor, *rest: Tensor, **options: bool) -> Tensor:
            check_tensor(x, "x", ndim=2)
            return x.sum() + sum(torch.as_tensor(other).sum() for other in rest)

    found = failures(Thing, lambda g: {"rate": 1.0})
    assert [line.partition(": accepted")[0] for line in found] == [
        "name: an unknown choice",
        "name: a number",
        "name: a list",
    ]
    found = failures(Thing(1.0).fit, lambda g: (torch.ones(2, 2), torch.ones(2)), kwargs={"fast": True})
    assert "fast: a string: accepted, with the result tensor(6.)" in found
    assert any(line.startswith("rest[0]: None: ") for line in found)


def test_defaults_of_none_are_tried_by_their_annotation() -> None:
    def optional(x: Tensor, weight: Tensor | None = None, cap: float | None = None) -> Tensor:
        check_tensor(x, "x", ndim=2)
        return x.sum() if cap is None else x.sum().clamp(max=float(cap))

    found = failures(optional, lambda g: (draw(g)[0],))
    assert [line.split(": ")[:2] for line in found if line.startswith("weight")] == [["weight", "a string"]]
    assert ["cap", "NaN"] in [line.split(": ")[:2] for line in found]


def test_skip_and_only() -> None:
    def loose(x: Tensor, scale: float = 1.0) -> Tensor:
        return check_tensor(x, "x", ndim=2).sum() * scale

    inputs = lambda g: (draw(g)[0],)  # noqa: E731
    check_arguments(loose, inputs, skip={"scale: *": "the caller's"})
    check_arguments(loose, inputs, only=["x"])
    with pytest.raises(ValueError, match="skip names 'tau: NaN', which is not a case of the arguments scale, x"):
        check_arguments(loose, inputs, skip={"tau: NaN": "absent"})
    with pytest.raises(ValueError, match="needs a reason"):
        check_arguments(loose, inputs, skip={"scale: *": ""})
    with pytest.raises(ValueError, match=r"only names \['y'\]"):
        check_arguments(loose, inputs, only=["y"])


def test_the_other_checks_take_parts_of_it() -> None:
    def loose(x: Tensor, target: Tensor, *, scale: float = 1.0) -> Tensor:
        check_tensor(x, "x", ndim=2)
        check_tensor(target, "target", ndim=2)
        check_same_shape(x, target, ("x", "target"))
        return ((x - target) ** 2).mean() * scale

    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)

    skip = {"torch.compile": "not what is looked at"}
    with pytest.raises(AssertionError, match=r"check_loss of .*: arguments: .*\n *scale: None"):
        check_loss(loose, inputs, skip=skip)
    check_loss(loose, inputs, skip={**skip, "arguments: scale: *": "any number"})
