"""`check_optimizer`: what users of ``torch.optim`` expect.

::

    check_optimizer(torch.optim.AdamW, skip={"arguments": "torch takes NaN for a learning rate"})
    check_optimizer(lambda params, foreach=None: OrthoGrad(torch.optim.SGD(params, lr=0.1), foreach=foreach))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offprints.shared.testing._properties import (
    Skip,
    assert_equal,
    assert_near,
    describe,
    expect_error,
    generator,
    parts_of,
    random_state_untouched,
    run_properties,
    saved_and_loaded,
    seed_globally,
)
from offprints.shared.testing.arguments import check_arguments

# What is not a list of parameters; the messages may be those of `torch.optim`.
BAD_PARAMETERS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a number": lambda: 3,
    "a string": lambda: "weights",
    "empty": list,
    "a tensor": lambda: torch.zeros(3, requires_grad=True),
    "a string inside": lambda: ["weight"],
    "None inside": lambda: [None],
    "a result inside": lambda: [torch.zeros(3, requires_grad=True) * 2],
}


def check_optimizer(factory: Callable[..., torch.optim.Optimizer], *, skip: Skip | None = None) -> None:
    """Check an optimizer on a small regression.

    Properties, in order: *step* (the loss falls; what has no gradient stays; values stay finite), *determinism* (and
    the global random state is left alone), *zero_grad*, *state_dict* (through ``torch.load(weights_only=True)`` into a
    new optimizer, continues bit for bit), *closure* (evaluated with gradients on, its loss returned, the same step as
    without), *groups* (learning rates per group; ``add_param_group``), *foreach* (equal to the loop; only where
    `factory` takes ``foreach``), *scheduler* (``LambdaLR`` sets the learning rate, and zero stops), *step hooks* (once
    per step), *dtype* (float64 and bfloat16 parameters keep theirs), *arguments* (`check_arguments` of all options that
    `factory` has, by one step with them, which has to be finite; parameters that are not any are a TypeError or
    ValueError; a part is "arguments: lr: inf" or "arguments: params: empty").

    Args:
        factory: ``factory(params)`` makes the optimizer, of parameters or groups; ``factory(params, foreach=...)``
            where it has both implementations.
        skip: Property, or "arguments" and part, to reason.
    """
    case = _Case(factory)
    properties: dict[str, Callable[[], None]] = {
        "step": case.check_step,
        "determinism": case.check_determinism,
        "zero_grad": case.check_zero_grad,
        "state_dict": case.check_state_dict,
        "closure": case.check_closure,
        "groups": case.check_groups,
        "foreach": case.check_foreach,
        "scheduler": case.check_scheduler,
        "step hooks": case.check_step_hooks,
        "dtype": case.check_dtype,
        "arguments": lambda: case.check_arguments(parts_of(skip, "arguments")),
    }
    run_properties("check_optimizer", factory, properties, skip, parts=("arguments",))


class _Problem:
    """Least squares through two layers, with one parameter that the loss does not reach."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        draws = generator(seed)
        shapes = {"first": (8, 5), "bias": (8,), "second": (1, 8), "unused": (3,)}
        self.params = {
            name: nn.Parameter((0.4 * torch.randn(shape, generator=draws)).to(dtype)) for name, shape in shapes.items()
        }
        self.x = torch.randn(16, 5, generator=draws).to(dtype)
        self.y = self.x.sum(1, keepdim=True)

    def loss(self) -> Tensor:
        hidden = torch.tanh(self.x @ self.params["first"].T + self.params["bias"])
        return ((hidden @ self.params["second"].T - self.y) ** 2).mean()

    def backward(self) -> Tensor:
        for parameter in self.params.values():
            parameter.grad = None
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def steps(self, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            self.backward()
            optimizer.step()

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.params.values()]


class _Case:
    def __init__(self, factory: Callable[..., torch.optim.Optimizer]) -> None:
        self.factory = factory

    def new(self, problem: _Problem, **options: Any) -> torch.optim.Optimizer:
        return self.factory(list(problem.params.values()), **options)

    def check_step(self) -> None:
        problem = _Problem()
        optimizer, before, start = self.new(problem), problem.values(), float(problem.loss().detach())
        problem.steps(optimizer, 20)
        end = float(problem.loss().detach())
        if not end < start:
            raise AssertionError(f"20 steps bring the loss from {start:.6g} to {end:.6g}")
        if not all(value.isfinite().all() for value in problem.values()):
            raise AssertionError("a parameter is not finite after 20 steps")
        assert_equal(problem.params["unused"], before[-1], "a parameter without a gradient moved")

    def check_determinism(self) -> None:
        results = []
        for seed in (1, 2):
            seed_globally(seed)
            problem = _Problem()
            with random_state_untouched():
                problem.steps(self.new(problem), 3)
            results.append(problem.values())
        assert_equal(results[1], results[0], "the same steps give other values under another global seed")

    def check_zero_grad(self) -> None:
        problem = _Problem()
        optimizer = self.new(problem)
        problem.backward()
        optimizer.zero_grad()
        if any(p.grad is not None for p in problem.params.values()):
            raise AssertionError("gradients are not None after zero_grad()")

    def check_state_dict(self) -> None:
        problem, other = _Problem(), _Problem()
        optimizer = self.new(problem)
        problem.steps(optimizer, 3)
        state = saved_and_loaded(optimizer.state_dict())
        with torch.no_grad():
            for mine, its in zip(other.params.values(), problem.params.values(), strict=True):
                mine.copy_(its)
        problem.steps(optimizer, 3)
        resumed = self.new(other)
        resumed.load_state_dict(state)
        other.steps(resumed, 3)
        assert_equal(other.values(), problem.values(), "the continued run ends elsewhere")

    def check_closure(self) -> None:
        problem, other = _Problem(), _Problem()
        plain, closed = self.new(problem), self.new(other)
        for _ in range(2):
            expected = float(problem.backward())
            plain.step()
            returned: Any = closed.step(lambda: float(other.backward()))
            if returned is None:
                raise AssertionError("step(closure) does not return the loss")
            assert_near(returned, expected, "step(closure) returns another loss", rtol=1e-6, atol=0.0)
        assert_near(other.values(), problem.values(), "step(closure) against step()", rtol=1e-6, atol=1e-7)

    def check_groups(self) -> None:
        problem = _Problem()
        params = problem.params
        optimizer = self.factory([{"params": [params["first"], params["bias"]]}, {"params": [params["second"]]}])
        optimizer.add_param_group({"params": [params["unused"]]})
        if len(optimizer.param_groups) != 3:
            raise AssertionError(f"{len(optimizer.param_groups)} groups after two and add_param_group")
        optimizer.param_groups[1]["lr"] = 0.0
        before = problem.values()
        problem.steps(optimizer, 3)
        after = problem.values()
        assert_equal(after[2], before[2], "a group whose learning rate is 0 moved")
        if torch.equal(after[0], before[0]):
            raise AssertionError("a group with the default learning rate did not move")

    def check_foreach(self) -> None:
        taken = inspect.signature(self.factory).parameters
        if "foreach" not in taken:
            return
        results = []
        for foreach in (False, True):
            problem = _Problem(torch.float64)
            problem.steps(self.new(problem, foreach=foreach), 3)
            results.append(problem.values())
        assert_near(results[1], results[0], "foreach=True against foreach=False", rtol=1e-9, atol=1e-12)

    def check_scheduler(self) -> None:
        problem = _Problem()
        optimizer = self.new(problem)
        initial = [group["lr"] for group in optimizer.param_groups]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1.0, 0.5)[step] if step < 2 else 0.0)
        for factor in (1.0, 0.5):
            rates = [group["lr"] for group in optimizer.param_groups]
            assert_near(rates, [factor * lr for lr in initial], "the scheduled learning rate", rtol=1e-6, atol=0.0)
            problem.steps(optimizer, 1)
            scheduler.step()
        before = problem.values()
        problem.steps(optimizer, 1)
        assert_equal(problem.values(), before, "parameters move although the schedule has set the learning rate to 0")

    def check_step_hooks(self) -> None:
        problem, calls = _Problem(), []
        optimizer = self.new(problem)
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *_: calls.append("post"))
        problem.steps(optimizer, 2)
        if calls != ["pre", "post"] * 2:
            raise AssertionError(f"two steps call the hooks {calls}")

    def check_dtype(self) -> None:
        for dtype in (torch.float64, torch.bfloat16):
            problem = _Problem(dtype)
            before = problem.values()
            problem.steps(self.new(problem), 3)
            after = problem.values()
            if after[0].dtype != dtype or torch.equal(after[0], before[0]) or not after[0].isfinite().all():
                raise AssertionError(
                    f"{dtype} parameters are {after[0].dtype} after 3 steps, or not moved, or not finite"
                )

    def check_arguments(self, skip: Mapping[str, str]) -> None:
        signature = inspect.signature(self.factory)
        first, *options = signature.parameters.values()
        known = [option.name for option in options if option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)]
        rest = dict(skip)
        failures = []
        for name, make in BAD_PARAMETERS.items():
            if rest.pop(f"{first.name}: {name}", None) is None:
                try:
                    expect_error((TypeError, ValueError), f"{first.name}: {name}", self.factory, make())
                except AssertionError as error:
                    failures.append(str(error))

        def first_step(**chosen: Any) -> list[Tensor]:
            problem = _Problem()
            problem.steps(self.new(problem, **chosen), 1)
            return problem.values()

        first_step.__qualname__ = describe(self.factory)
        tried = [option for option in options if option.name in known]
        first_step.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in tried]
        )
        try:
            check_arguments(first_step, lambda g: {}, skip=rest)
        except AssertionError as error:
            failures.append(str(error))
        if failures:
            raise AssertionError("\n".join(failures))
