"""The properties of `check_loss` at ordinary inputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offprints.shared.testing._hostile import check_networks
from offprints.shared.testing._leaves import Leaves
from offprints.shared.testing._properties import (
    assert_equal,
    assert_near,
    cast,
    clone,
    expect_error,
    generator,
    map_tensors,
    random_state_untouched,
    seed_globally,
    shorten,
    simulated_accelerator,
)

MakeInputs = Callable[[torch.Generator], Sequence[Any]]


class LossCase:
    """A loss and what draws its inputs."""

    def __init__(self, loss: Callable[..., Any], make_inputs: MakeInputs, kwargs: dict[str, Any]) -> None:
        self.loss, self.make_inputs, self.kwargs = loss, make_inputs, kwargs
        drawn = make_inputs(generator(0))
        if not isinstance(drawn, list | tuple):
            raise TypeError(f"make_inputs must return a tuple of arguments, got {type(drawn).__name__}")
        self.names, leaves = Leaves(drawn).names, Leaves.of(drawn)
        floating = [i for i, x in enumerate(leaves) if x.is_floating_point()]
        if not floating:
            raise ValueError("make_inputs must return at least one floating tensor")
        self.floating = floating
        self.differentiable = [i for i in floating if leaves[i].requires_grad] or floating[:1]
        shapes = [(i, x.shape) for i, x in enumerate(leaves) if x.ndim > 0]
        self.batch = shapes[0][1][0] if shapes else 0
        self.batched = [i for i, shape in shapes if shape[0] == self.batch]

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Any]:
        drawn = [cast(clone(x), dtype) for x in self.make_inputs(generator(seed))]
        leaves = Leaves.of(drawn)
        for i in self.floating:
            leaves[i] = leaves[i].detach().requires_grad_(i in self.differentiable)
        return Leaves.put(drawn, leaves)

    def has_reduction(self) -> bool:
        if isinstance(self.loss, nn.Module):
            return hasattr(self.loss, "reduction")
        return "reduction" in inspect.signature(self.loss).parameters

    def value(self, inputs: Sequence[Any], reduction: str | None = None) -> Tensor:
        loss, kwargs = self.loss, self.kwargs
        if reduction is not None and isinstance(loss, nn.Module):
            loss = copy.deepcopy(loss)
            loss.reduction = reduction  # type: ignore[assignment]
        elif reduction is not None:
            kwargs = {**kwargs, "reduction": reduction}
        return _loss_of(loss(*inputs, **kwargs))

    def value_and_gradients(self, inputs: Sequence[Any]) -> list[Tensor]:
        value = self.value(inputs)
        return [value, *gradients_of(value, self.variables(inputs))]

    def variables(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Return the tensors with respect to which gradients are looked at."""
        leaves = Leaves.of(inputs)
        return [leaves[i] for i in self.differentiable]

    def check_output(self) -> None:
        for dtype in (torch.float32, torch.float64):
            value, *gradients = self.value_and_gradients(self.inputs(dtype))
            if value.dtype != dtype:
                raise AssertionError(f"{dtype} inputs give a loss of {value.dtype}")
            if not value.isfinite().all():
                raise AssertionError(f"not finite: {shorten(value)}")
            for i, gradient in zip(self.differentiable, gradients, strict=True):
                if not gradient.isfinite().all():
                    raise AssertionError(f"the gradient of argument {self.names[i]} is not finite: {shorten(gradient)}")

    def check_inputs_unchanged(self) -> None:
        inputs = self.inputs()
        before = clone(inputs)
        self.value_and_gradients(inputs)
        for name, a, b in zip(self.names, Leaves.of(inputs), Leaves.of(before), strict=True):
            assert_equal(a, b, f"argument {name} was changed")

    def check_determinism(self) -> None:
        results = []
        for seed in (1, 2):
            seed_globally(seed)
            with random_state_untouched():
                results.append(self.value_and_gradients(self.inputs()))
        assert_equal(results[1], results[0], "the same inputs give another result")

    def check_reductions(self, reductions: Sequence[str]) -> None:
        if not reductions:
            return
        values = {reduction: self.value(self.inputs(), reduction) for reduction in reductions}
        count = self.batch
        if "none" in values:
            each = values["none"]
            if each.ndim == 0 or each.shape[0] != self.batch:
                raise AssertionError(f"'none' has the shape {tuple(each.shape)} for a batch of {self.batch}")
            count = each.numel()
            expected = {"mean": each.mean(), "sum": each.sum()}
        elif {"mean", "sum"} <= values.keys():
            expected = {"sum": values["mean"] * count}
        else:
            expected = {}
        for name in expected.keys() & values.keys():
            assert_near(
                values[name], expected[name], f"{name!r} is not the {name} of {count} terms", rtol=1e-9, atol=1e-12
            )
        expect_error(ValueError, "reduction='average'", self.value, self.inputs(), "average")

    def check_permutation(self, reductions: Sequence[str]) -> None:
        reduction = "none" if "none" in reductions else None
        order = torch.randperm(self.batch, generator=generator(1))
        inputs = self.inputs()
        leaves = [x.detach()[order] if i in self.batched else x for i, x in enumerate(Leaves.of(inputs))]
        permuted = Leaves.put(inputs, leaves)
        expected, value = self.value(inputs, reduction), self.value(permuted, reduction)
        if expected.ndim > 0 and expected.shape[0] == self.batch:
            expected = expected[order]
        assert_near(value, expected, f"rows in the order {order.tolist()} give another loss", rtol=1e-9, atol=1e-12)

    def check_types(self) -> None:
        i = self.differentiable[0]
        for kind, wrong in (("an integer tensor", Tensor.long), ("a list", Tensor.tolist)):
            inputs = self.inputs()
            inputs = Leaves.replace(inputs, i, wrong(Leaves.of(inputs)[i].detach()))
            expect_error(TypeError, f"{kind} as argument {self.names[i]}", self.value, inputs)

    def check_shapes(self) -> None:
        for i in self.batched[1:]:
            inputs = self.inputs()
            inputs = Leaves.replace(inputs, i, Leaves.of(inputs)[i].detach()[:-1])
            expect_error(ValueError, f"argument {self.names[i]} one row short", self.value, inputs)

    def check_empty(self) -> None:
        inputs = self.inputs()
        leaves = [x.detach()[:0] if i in self.batched else x for i, x in enumerate(Leaves.of(inputs))]
        expect_error(ValueError, "a batch of no rows", self.value, Leaves.put(inputs, leaves))

    def check_nan(self, nan: Literal["raise", "propagate"]) -> None:
        for i in self.floating if nan == "raise" else self.differentiable:
            inputs = self.inputs()
            spoiled = Leaves.of(inputs)[i].detach().clone()
            spoiled.view(-1)[0] = torch.nan
            inputs = Leaves.replace(inputs, i, spoiled)
            if nan == "raise":
                expect_error(ValueError, f"NaN in argument {self.names[i]}", self.value, inputs)
            elif not (value := self.value(inputs)).isnan().any():
                raise AssertionError(f"NaN in argument {self.names[i]} is lost: the loss is {shorten(value)}")

    def check_precision(self) -> None:
        for dtype, autocast, tolerance in (
            (torch.float32, False, 1e-4),
            (torch.float32, True, 5e-2),
            (torch.bfloat16, False, 5e-2),
        ):
            what = f"{dtype}{' under autocast to bfloat16' if autocast else ''}"
            inputs = self.inputs(dtype)
            expected = self.value(cast(inputs, torch.float64))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value = self.value(inputs)
            # Compared on the scale of the loss: an entry near zero carries the rounding of its terms.
            atol = tolerance * max(1.0, float(expected.detach().abs().max()))
            assert_near(value.double(), expected, f"{what} against float64", rtol=tolerance, atol=atol)
            gradients = gradients_of(value, self.variables(inputs))
            for i, gradient in zip(self.differentiable, gradients, strict=True):
                if not gradient.isfinite().all():
                    raise AssertionError(f"{what}: the gradient of argument {i} is not finite: {shorten(gradient)}")

    def check_device(self) -> None:
        inputs = self.inputs()
        if not torch.cuda.is_available():
            with simulated_accelerator() as to_cuda:
                value = self.value(map_tensors(to_cuda, inputs))
                if not value.is_cuda:
                    raise AssertionError(f"CUDA inputs give a loss on {value.device}")
            return
        moved = map_tensors(lambda x: x.detach().cuda().requires_grad_(x.requires_grad), inputs)
        loss = copy.deepcopy(self.loss).cuda() if isinstance(self.loss, nn.Module) else self.loss
        on_device = LossCase(loss, self.make_inputs, self.kwargs).value_and_gradients(moved)
        if not all(t.is_cuda for t in on_device):
            raise AssertionError(f"CUDA inputs give a loss on {on_device[0].device}")
        expected = self.value_and_gradients(inputs)
        assert_near(on_device, expected, "CUDA against CPU", rtol=1e-6, atol=1e-9)

    def check_networks(self, skip: dict[str, str]) -> None:
        inputs = self.make_inputs(generator(0))
        called = self.loss.forward if isinstance(self.loss, nn.Module) else self.loss
        names = list(inspect.signature(called).parameters)
        for i, network in enumerate(inputs):
            if not callable(network):
                continue

            def call(hostile: Callable[..., Any], i: int = i) -> Tensor:
                given = [clone(x) if isinstance(x, Tensor) else x for x in inputs]
                before = [clone(x) for x in Leaves.of(given)]
                given[i] = hostile
                value = self.value(given)
                assert_equal(Leaves.of(given), before, "an argument was changed")
                return value

            check_networks(call, network, names[i], skip)

    def check_gradient(self) -> None:
        inputs = self.inputs()

        def of_leaves(*leaves: Tensor) -> Tensor:
            return self.value(Leaves.put(inputs, leaves))

        # nondet_tol: backward may add in another order, as torch's own losses do on an accelerator
        torch.autograd.gradcheck(of_leaves, tuple(Leaves.of(inputs)), nondet_tol=1e-12)


def _loss_of(result: Any) -> Tensor:
    value = result if isinstance(result, Tensor) else getattr(result, "loss", None)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise AssertionError(f"a floating tensor, or an object with one as .loss, expected; got {shorten(result)}")
    return value


def gradients_of(value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Return the gradients of one weighted sum of the loss's entries; each input has to have one, in its type."""
    if not value.requires_grad:
        raise AssertionError("the loss has no gradient")
    gradients = torch.autograd.grad(weighted_sum(value), inputs, allow_unused=True, create_graph=create_graph)
    for gradient, x in zip(gradients, inputs, strict=True):
        if gradient is None:
            raise AssertionError(f"no gradient reaches the input of shape {tuple(x.shape)}")
        if gradient.dtype != x.dtype:
            raise AssertionError(f"a gradient of {gradient.dtype} for an input of {x.dtype}")
    return list(gradients)


def weighted_sum(value: Tensor) -> Tensor:
    """Return a sum with distinct weights, so that the entries of an unreduced loss do not cancel."""
    weights = torch.linspace(1.0, 2.0, max(value.numel(), 1), dtype=value.dtype, device=value.device)
    return (value * weights.view(value.shape)).sum()
