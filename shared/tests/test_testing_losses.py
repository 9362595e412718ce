"""Every property of check_loss catches a loss that lacks it, and good losses pass."""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offprints.shared.testing import check_errors, check_loss
from offprints.shared.validation import check_number, check_same_shape, check_tensor, reduce


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3, generator=generator), torch.randn(7, 3, generator=generator)


def good(x: Tensor, target: Tensor, *, reduction: str = "mean", weight: float = 1.0) -> Tensor:
    check(x, target)
    check_number(weight, "weight")
    return distance(x, target, reduction, weight)


def check(x: Tensor, target: Tensor, *, finite: bool = True) -> None:
    check_tensor(x, "x", ndim=2, finite=finite)
    check_tensor(target, "target", finite=finite)
    check_same_shape(x, target, ("x", "target"))


def distance(x: Tensor, target: Tensor, reduction: str, weight: float = 1.0) -> Tensor:
    return reduce(weight * ((x - target) ** 2).sum(1), reduction)


class Good(nn.Module):
    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return good(x, target, reduction=self.reduction)


def no_gradient(x, target, *, reduction="mean"):
    return good(x.detach(), target, reduction=reduction)


def single_precision(x, target, *, reduction="mean"):
    return good(x.float(), target.float(), reduction=reduction)


def in_place(x, target, *, reduction="mean"):
    value = good(x, target.clone(), reduction=reduction)
    target.add_(1)
    return value


def noisy(x, target, *, reduction="mean"):
    return good(x, target, reduction=reduction) * torch.rand(())


def global_seed(x, target, *, reduction="mean"):
    torch.manual_seed(0)
    return good(x, target, reduction=reduction)


def sum_for_mean(x, target, *, reduction="mean"):
    return good(x, target, reduction={"mean": "sum"}.get(reduction, reduction))


def any_reduction(x, target, *, reduction="mean"):
    return good(x, target, reduction=reduction if reduction in ("mean", "sum") else "none")


def by_position(x, target, *, reduction="mean"):
    weight = torch.linspace(1, 2, len(x), dtype=x.dtype, device=x.device)[:, None] if len(x) else 1.0
    return good(x * weight, target, reduction=reduction)


def by_memory(x, target, *, reduction="mean"):
    return good(x.as_strided(x.shape, (x.shape[1], 1)), target, reduction=reduction)


def any_type(x, target, *, reduction="mean"):
    return good(torch.as_tensor(x).to(target.dtype), target, reduction=reduction)


def cut(x, target, *, reduction="mean"):
    check_tensor(x, "x")
    return good(x[: len(target)], target, reduction=reduction)


def empty_is_zero(x, target, *, reduction="mean"):
    check_tensor(x, "x", allow_empty=True)
    return good(x, target, reduction=reduction) if len(x) else x.sum()


def nan_is_zero(x, target, *, reduction="mean"):
    check(x, target, finite=False)
    return distance(x.nan_to_num(), target.nan_to_num(), reduction)


def half_inside(x, target, *, reduction="mean"):
    check(x, target)
    value = distance(x, target, reduction)
    return value.bfloat16().float() if x.dtype == torch.float32 else value


def on_the_cpu(x, target, *, reduction="mean"):
    check(x, target)
    return distance(x + torch.zeros(x.shape, dtype=x.dtype), target, reduction)


def result_on_the_cpu(x, target, *, reduction="mean"):
    return good(x, target, reduction=reduction).cpu()


def wrong_gradient(x, target, *, reduction="mean"):
    check(x, target)
    return distance(x + 0.5 * (x - x.detach()), target, reduction)


def otherwise_compiled(x, target, *, reduction="mean"):
    return good(x, target, reduction=reduction) * (2.0 if torch.compiler.is_compiling() else 1.0)


def through_numpy(x, target, *, reduction="mean"):
    """Takes its gradient where autograd does not see it: right once, zero the second time."""
    check(x, target)

    class Distance(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, target):
            ctx.save_for_backward(x - target)
            return ((x - target) ** 2).sum(1)

        @staticmethod
        def backward(ctx, gradient):
            (difference,) = ctx.saved_tensors
            return 2 * difference.detach() * gradient[:, None], None

    return reduce(Distance.apply(x, target), reduction)


def other_under_create_graph(x, target, *, reduction="mean"):
    check(x, target)

    class Distance(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, target):
            ctx.save_for_backward(x - target)
            return ((x - target) ** 2).sum(1)

        @staticmethod
        def backward(ctx, gradient):
            (difference,) = ctx.saved_tensors
            factor = 3 if torch.is_grad_enabled() else 2
            return factor * difference * gradient[:, None], None

    return reduce(Distance.apply(x, target), reduction)


def half_sums(x, target, *, reduction="mean"):
    """Adds up in half precision what it is given in half precision."""
    check(x, target)
    return reduce(((x - target) ** 2).sum(1) + 300 - 300, reduction)


def by_value(x, target, *, reduction="mean"):
    check(x, target)
    return distance(x, target, reduction) * (2.0 if x.detach().sum().item() > 1e9 else 1.0)


def raw_error(x, target, *, reduction="mean"):
    if not isinstance(x, Tensor):
        raise TypeError("x must be a tensor")
    if x.shape != target.shape:
        raise RuntimeError("sizes do not fit")
    return good(x, target, reduction=reduction)


BROKEN = [
    ("output", no_gradient),
    ("output", single_precision),
    ("inputs unchanged", in_place),
    ("determinism", noisy),
    ("determinism", global_seed),
    ("reductions", sum_for_mean),
    ("reductions", any_reduction),
    ("batch permutation", by_position),
    ("non-contiguous input", by_memory),
    ("types", any_type),
    ("shapes", cut),
    ("empty batch", empty_is_zero),
    ("NaN", nan_is_zero),
    ("precision", half_inside),
    ("device", on_the_cpu),
    ("device", result_on_the_cpu),
    ("gradcheck", wrong_gradient),
    ("torch.compile", otherwise_compiled),
    ("half types", half_sums),
    ("double backward", through_numpy),
    ("double backward", other_under_create_graph),
    ("torch.func", by_value),
    ("shapes", raw_error),
]


@pytest.mark.parametrize(("property_name", "loss"), BROKEN, ids=[loss.__name__ for _, loss in BROKEN])
def test_broken_loss_is_caught(property_name, loss) -> None:
    with pytest.raises(AssertionError, match=rf"^check_loss of {loss.__name__}: {property_name}: "):
        check_loss(loss, inputs)


@pytest.mark.parametrize("loss", [good, partial(good, weight=2.0), Good()], ids=["function", "partial", "module"])
def test_good_loss_passes(loss) -> None:
    check_loss(loss, inputs)


def ties(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.ones(7, 3), torch.ones(7, 3)


def norm(x, target, *, reduction="mean"):
    """Its derivative at a tie is 0/0."""
    check(x, target)
    return reduce(((x - target) ** 2).sum(1).sqrt(), reduction)


def steep(x, target, *, reduction="mean"):
    """At a tie the value is finite, the first derivative is zero and the second is not finite."""
    check(x, target)
    return reduce(((x - target).abs() ** 1.5).sum(1), reduction)


def compiled_at_ties(x, target, *, reduction="mean"):
    check(x, target)
    factor = torch.where((x == target).all(), 2.0 if torch.compiler.is_compiling() else 1.0, 1.0)
    return reduce(factor * (x - target + 1).square().sum(1), reduction)


def mapped_at_ties(x, target, *, reduction="mean"):
    check(x, target)
    mapped = torch._C._functorch.maybe_current_level() is not None
    factor = torch.where((x == target).all(), 2.0 if mapped else 1.0, 1.0)
    return reduce(factor * (x - target + 1).square().sum(1), reduction)


def strided_at_ties(x, target, *, reduction="mean"):
    check(x, target)
    return reduce((x - target + 1).square().sum(1) * (1.0 if x.is_contiguous() else 1.5), reduction)


def half_at_ties(x, target, *, reduction="mean"):
    """Subtracts one and a half from one."""
    check(x, target)
    offset = 1e-3 * (x == target).to(x)
    return reduce(((x + offset - target) ** 2).sum(1), reduction)


@pytest.mark.parametrize(
    ("property_name", "loss"),
    [
        ("special points", norm),
        ("double backward", steep),
        ("torch.compile", compiled_at_ties),
        ("torch.func", mapped_at_ties),
        ("non-contiguous input", strided_at_ties),
        ("half types", half_at_ties),
    ],
)
def test_special_points_go_through_every_path(property_name, loss) -> None:
    skip = {} if property_name == "torch.compile" else {"torch.compile": "checked below"}
    if property_name != "non-contiguous input":
        check_loss(loss, inputs, skip=skip)  # at ordinary points there is nothing to see
    with pytest.raises(AssertionError, match=rf"^check_loss of {loss.__name__}: {property_name}: (ties: )?"):
        check_loss(loss, inputs, special={"ties": ties})


def test_good_loss_passes_at_special_points() -> None:
    check_loss(good, inputs, special={"ties": ties})


def test_a_refused_second_derivative_passes() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, target):
            ctx.save_for_backward(x - target)
            return ((x - target) ** 2).sum()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient, None

    def once(x: Tensor, target: Tensor) -> Tensor:
        check(x, target)
        return Once.apply(x, target) ** 2

    skip = dict.fromkeys(("torch.compile", "torch.func", "half types"), "not what is looked at")
    check_loss(once, inputs, skip=skip)


def nested(generator: torch.Generator) -> tuple[dict[str, Tensor], list[Tensor]]:
    x, *targets = (torch.randn(7, 3, generator=generator) for _ in range(3))
    return {"x": x}, targets


def of_lists(outputs, targets, *, reduction="mean"):
    if not isinstance(outputs, dict) or "x" not in outputs:
        raise TypeError(f"outputs must be a dict with x, got {outputs!r}")
    if not isinstance(targets, list) or not targets:
        raise TypeError(f"targets must be a list of tensors, got {targets!r}")
    check_tensor(outputs["x"], "outputs['x']", ndim=2)
    for i, target in enumerate(targets):
        check_tensor(target, f"targets[{i}]", ndim=2)
        check_same_shape(outputs["x"], target, ("outputs['x']", f"targets[{i}]"))
    return reduce(torch.stack([((outputs["x"] - target) ** 2).sum(1) for target in targets]).mean(0), reduction)


def test_lists_and_dicts_are_walked() -> None:
    check_loss(of_lists, nested)

    def blind(outputs, targets, *, reduction="mean"):
        of_lists(outputs, targets[:1])
        return reduce(torch.stack([((outputs["x"] - t) ** 2).sum(1) for t in targets]).mean(0), reduction)

    with pytest.raises(AssertionError, match=r"shapes: argument 1\[1\] one row short: ValueError expected"):
        check_loss(blind, nested)


def with_network(generator: torch.Generator) -> tuple[Any, Tensor]:
    return torch.tanh, torch.randn(7, 3, generator=generator)


def by_network(model, x):
    check_tensor(x, "x", ndim=2)
    if not callable(model):
        raise TypeError(f"model must be callable, got {model!r}")
    result = model(x.clone())
    if not isinstance(result, Tensor) or result.shape != x.shape:
        raise ValueError(f"model must keep the shape of x, got {result!r}")
    return ((result.to(x.dtype) - x) ** 2).mean()


def test_hostile_networks_of_a_loss() -> None:
    skip = {"torch.compile": "not of interest"}
    check_loss(by_network, with_network, skip=skip)

    def lends(model, x):
        by_network(model, x)
        return ((model(x) - x) ** 2).mean()

    with pytest.raises(AssertionError, match=r"networks: 2 of 7 habits of model:\n  in place: (.|\n)*  another type: "):
        check_loss(lends, with_network, skip=skip)


def test_module_reduction_is_checked() -> None:
    class Deaf(Good):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return good(x, target)

    with pytest.raises(AssertionError, match="Deaf: reductions: 'none' has the shape"):
        check_loss(Deaf(), inputs)


def test_torch_cross_entropy_passes_but_for_its_errors() -> None:
    def classes(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(7, 4, generator=generator), torch.randint(4, (7,), generator=generator)

    skip = dict.fromkeys(("types", "empty batch", "arguments", "half types"), "torch's own")
    check_loss(nn.CrossEntropyLoss(), classes, nan="propagate", skip=skip)
    with pytest.raises(AssertionError, match="NaN in argument 0: ValueError expected, got the result"):
        check_loss(nn.CrossEntropyLoss(), classes, skip=skip)


def test_lost_nan_is_caught_when_it_should_propagate() -> None:
    with pytest.raises(AssertionError, match="NaN: NaN in argument 0 is lost"):
        check_loss(nan_is_zero, inputs, nan="propagate")


def test_loss_of_a_structured_result_and_keyword_arguments() -> None:
    Output = namedtuple("Output", "loss parts")

    def structured(x: Tensor, target: Tensor, *, epoch: int) -> Output:
        return Output(good(x, target), {"epoch": epoch})

    skip = {"torch.compile": "checked above", "arguments: epoch: *": "goes into the result as it is"}
    check_loss(structured, inputs, kwargs={"epoch": 3}, skip=skip)
    with pytest.raises(AssertionError, match="output: a floating tensor"):
        check_loss(lambda x, target: "loss", inputs)


def test_gradients_are_checked_where_they_are_required() -> None:
    def both(generator: torch.Generator) -> list[Tensor]:
        return [x.requires_grad_() for x in inputs(generator)]

    def one_sided(x: Tensor, target: Tensor) -> Tensor:
        check(x, target)
        return distance(x, target.detach(), "mean")

    check_loss(one_sided, inputs, skip={"torch.compile": "checked above"})
    with pytest.raises(AssertionError, match="output: no gradient reaches the input"):
        check_loss(one_sided, both)


def test_a_failure_shows_the_values() -> None:
    with pytest.raises(AssertionError, match=r"'mean' is not the mean of 7 terms: got \d+\.\d+, expected \d+\.\d+$"):
        check_loss(sum_for_mean, inputs)
    with pytest.raises(
        AssertionError, match=r"\d+ of 21 entries differ, most of all \[\d, \d\]: got -?\d.*, expected -?\d"
    ):
        check_loss(in_place, inputs)


def test_skip_needs_a_property_and_a_reason() -> None:
    with pytest.raises(ValueError, match="the properties of check_loss are output, inputs unchanged"):
        check_loss(good, inputs, skip={"speed": "slow"})
    with pytest.raises(ValueError, match="needs a reason"):
        check_loss(good, inputs, skip={"gradcheck": ""})


def test_inputs_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one floating tensor"):
        check_loss(good, lambda generator: (torch.arange(3),))
    with pytest.raises(TypeError, match="must return a tuple"):
        check_loss(good, lambda generator: torch.zeros(3))


def test_the_global_random_state_is_put_back() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(AssertionError):
        check_loss(noisy, inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_check_errors() -> None:
    def fail(error: Exception) -> None:
        raise error

    right = (lambda: fail(ValueError("tau must be positive")), ValueError, "tau")
    check_errors([right])
    with pytest.raises(
        AssertionError, match=r"case 1 \(ValueError with 'tau'\): ValueError expected, got the result 3"
    ) as caught:
        check_errors([right, (lambda: 3, ValueError, "tau"), (lambda: fail(KeyError("tau")), ValueError, "tau")])
    assert "case 2" in str(caught.value)
    assert "got KeyError" in str(caught.value)
    with pytest.raises(AssertionError, match="lacks the word: tau"):
        check_errors([(lambda: fail(ValueError("tau")), ValueError, "rho")])
    for nothing in ([], [(lambda: fail(ValueError("tau")), ValueError, "")]):
        with pytest.raises(ValueError, match="at least one case, each with a word"):
            check_errors(nothing)
