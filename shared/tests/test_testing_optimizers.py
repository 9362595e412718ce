"""Every property of check_optimizer and check_schedule catches an object that lacks it, and good ones pass."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import SGD

from offprints.shared.testing import check_optimizer, check_schedule
from offprints.shared.validation import check_bool, check_number


class Momentum(SGD):
    def __init__(self, params, lr=0.05, **options):
        super().__init__(params, lr=lr, momentum=0.9, **options)


class Uphill(Momentum):
    def __init__(self, params):
        super().__init__(params, maximize=True)


class MovesUnused(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[-1]["params"]:
            p.sub_(0.001)
        return super().step(closure)


class Noisy(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"][:2]:
            p.add_(torch.randn_like(p) * 1e-4)
        return loss


class KeepsGradients(Momentum):
    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=False)


class StateElsewhere(Momentum):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["momentum"] = min(0.9, self.steps / 10)
        return super().step(closure)


class NoLoss(Momentum):
    def step(self, closure=None):
        super().step(closure)


class ClosureWithoutGradients(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        super().step()
        return loss


class StepsOnceMore(Momentum):
    def step(self, closure=None):
        loss = super().step(closure)
        if closure:
            super().step()
        return loss


class OneRate(Momentum):
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        return super().step(closure)


class NotAnOptimizer:
    def __init__(self, params):
        self.inner = Momentum(params)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class DeafToHooks(Momentum):
    def register_step_post_hook(self, hook):
        return None


class AnyParameters(Momentum):
    def __init__(self, params):
        super().__init__(list(params) or [torch.zeros(1, requires_grad=True)])


class Checked(Momentum):
    def __init__(self, params, lr: float = 0.05, *, nesterov: bool = False):
        check_number(lr, "lr", low=0, high=1e3)
        check_bool(nesterov, "nesterov")
        super().__init__(params, lr=lr, nesterov=nesterov)


def single_precision(params):
    @torch.no_grad()
    def round_all(optimizer, args, kwargs):
        for p in optimizer.param_groups[0]["params"]:
            p.data = p.data.float()

    optimizer = Momentum(params)
    optimizer.register_step_post_hook(round_all)
    return optimizer


def other_foreach(params, *, foreach=None):
    return Momentum(params, lr=0.05 if foreach else 0.04, foreach=foreach)


BROKEN = [
    ("step", Uphill),
    ("step", MovesUnused),
    ("determinism", Noisy),
    ("zero_grad", KeepsGradients),
    ("state_dict", StateElsewhere),
    ("closure", NoLoss),
    ("closure", ClosureWithoutGradients),
    ("closure", StepsOnceMore),
    ("groups", OneRate),
    ("foreach", other_foreach),
    ("scheduler", NotAnOptimizer),
    ("step hooks", DeafToHooks),
    ("dtype", single_precision),
    ("arguments: params: empty", AnyParameters),
    (r"arguments: check_arguments of Momentum: \d+ of \d+ cases fail:(.|\n)*  lr: NaN: accepted", Momentum),
]


@pytest.mark.parametrize(("property_name", "factory"), BROKEN, ids=[factory.__name__ for _, factory in BROKEN])
def test_broken_optimizer_is_caught(property_name, factory) -> None:
    with pytest.raises(AssertionError, match=rf"^check_optimizer of {factory.__name__}: {property_name}"):
        check_optimizer(factory)


@pytest.mark.parametrize(
    "factory", [Momentum, torch.optim.AdamW, partial(torch.optim.AdamW, lr=1e-2, amsgrad=True), torch.optim.RMSprop]
)
def test_good_optimizer_passes(factory) -> None:
    check_optimizer(factory, skip={"arguments": "torch takes NaN and True for a learning rate"})


def test_arguments_of_a_good_optimizer() -> None:
    check_optimizer(Checked)
    with pytest.raises(AssertionError, match="skip names 'lr: red', which is not a case of the arguments lr, nesterov"):
        check_optimizer(Checked, skip={"arguments: lr: red": "no such case"})


# Schedules


def good(step, *, total=10):
    check_number(step, "step", low=0, integer=True)
    return min(float(step) / total, 1.0)


def counting():
    calls = []

    def schedule(step):
        calls.append(step)
        return good(step) + len(calls) * 1e-6

    return schedule


def pair(step):
    return good(step), 1


BROKEN_SCHEDULES = [
    ("plain numbers", lambda step: np.float64(good(step)), {}),
    ("plain numbers", lambda step: torch.tensor(good(step)), {}),
    ("plain numbers", lambda step: (good(step), "warm"), {}),
    ("finite", lambda step: math.inf if step == 3 else good(step), {}),
    ("determinism", counting(), {}),
    ("ends", good, {"start": 0.1}),
    ("ends", good, {"end": 0.9}),
    ("ends", pair, {"end": (1.0, 2)}),
    ("monotone", good, {"monotone": "decreasing"}),
    ("monotone", lambda step: good(step) * (step != 7), {"monotone": "increasing"}),
    ("NumPy steps", lambda step: good(step) + isinstance(step, np.integer), {}),
    ("bad steps", lambda step: good(abs(step)), {}),
    ("bad steps", lambda step: good(int(step)), {}),
    ("bad steps", lambda step: good(step) if step == step else 0.0, {}),
]


@pytest.mark.parametrize(("property_name", "fn", "ends"), BROKEN_SCHEDULES)
def test_broken_schedule_is_caught(property_name, fn, ends) -> None:
    with pytest.raises(AssertionError, match=rf"^check_schedule of .*: {property_name}: "):
        check_schedule(fn, 10, **ends)


def test_good_schedules_pass() -> None:
    check_schedule(good, 10, start=0.0, end=1.0, monotone="increasing")
    check_schedule(pair, 20, start=(0.0, 1), end=(1.0, 1), monotone="increasing")
    check_schedule(lambda step: 2 ** good_from_one(step), 5, first=1, start=2, end=32)
    with pytest.raises(ValueError, match="must exceed first=5"):
        check_schedule(good, 5, first=5)


def good_from_one(step):
    check_number(step, "step", low=1, integer=True)
    return int(step)
