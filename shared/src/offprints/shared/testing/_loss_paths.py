"""The properties of `check_loss` that compare paths, at ordinary and at special points."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offprints.shared.testing._leaves import Leaves
from offprints.shared.testing._loss_case import LossCase, MakeInputs, gradients_of, weighted_sum
from offprints.shared.testing._properties import (
    assert_equal,
    assert_near,
    cast,
    clone,
    compiled,
    map_tensors,
    shorten,
    strided,
)

_REFUSAL = re.compile("differentiate twice|not implemented|double backward|second derivative", re.IGNORECASE)


class LossPaths:
    """One loss at several points: "ordinary" and those that the package names."""

    def __init__(self, case: LossCase, special: Mapping[str, MakeInputs], unreduced: str | None) -> None:
        self.ordinary, self.unreduced = case, unreduced
        self.special = {name: LossCase(case.loss, make, case.kwargs) for name, make in special.items()}
        self.points = {"ordinary": case, **self.special}

    def check_special(self) -> None:
        for name, case in self.special.items():
            inputs = case.inputs()
            before = clone(inputs)
            value, *gradients = case.value_and_gradients(inputs)
            assert_equal(Leaves.of(inputs), Leaves.of(before), f"{name}: an argument was changed")
            if value.isnan().any():
                raise AssertionError(f"{name}: the loss is NaN: {shorten(value)}")
            if value.isfinite().all():
                for i, gradient in zip(case.differentiable, gradients, strict=True):
                    if not gradient.isfinite().all():
                        where = case.names[i]
                        raise AssertionError(f"{name}: the gradient of argument {where} is {shorten(gradient)}")
            single = case.value_and_gradients(case.inputs(torch.float32))
            _near(single, [value, *gradients], f"{name}: float32 against float64", 1e-4)

    def check_strides(self) -> None:
        for name, case in self.points.items():
            expected = case.value_and_gradients(case.inputs())
            inputs = map_tensors(_strided, case.inputs())
            _near(case.value_and_gradients(inputs), expected, f"{_at(name)}strided inputs differ", 1e-9)

    def check_half(self) -> None:
        for name, case in self.points.items():
            for dtype in (torch.bfloat16, torch.float16):
                rounded = case.inputs(dtype)
                wanted = _outcome(case, cast(rounded, torch.float32))
                found = _outcome(case, rounded)
                what = f"{_at(name)}{dtype} against float32 of the same numbers"
                if isinstance(found, type) or isinstance(wanted, type):
                    if found is not wanted:
                        raise AssertionError(f"{what}: {_told(found)} against {_told(wanted)}")
                    continue
                largest = torch.finfo(dtype).max
                if any(bool((t.detach().abs() > largest).any()) for t in wanted):
                    continue  # what the type cannot hold is not rounding
                _near_rounded(found, wanted, what, torch.finfo(dtype).eps)

    def check_double_backward(self) -> None:
        for name, case in self.points.items():
            inputs, plain = case.inputs(), case.value_and_gradients(case.inputs())
            variables = case.variables(inputs)
            try:
                first = gradients_of(case.value(inputs), variables, create_graph=True)
                _near(first, plain[1:], f"{_at(name)}gradients under create_graph", 1e-9)
                directions = [_direction(x) for x in variables]
                second = _second(first, variables, directions)
            except (RuntimeError, NotImplementedError) as error:
                if not _REFUSAL.search(str(error)):
                    raise
                continue
            for i, derivative in zip(case.differentiable, second, strict=True):
                if plain[0].isfinite().all() and not derivative.isfinite().all():
                    what = f"the second derivative of argument {case.names[i]}"
                    raise AssertionError(f"{_at(name)}{what} is {shorten(derivative)}")
            if case is self.ordinary:
                expected = _finite_differences(case, directions)
                _near(second, expected, "second derivatives against finite differences of gradients", 1e-4)

    def check_func(self) -> None:
        for name, case in self.points.items():
            inputs = case.inputs()
            leaves = [x.detach() for x in Leaves.of(inputs)]
            where = tuple(case.differentiable)

            def total(*leaves: Tensor, case: LossCase = case, inputs: Sequence[Any] = inputs) -> Tensor:
                return weighted_sum(case.value(Leaves.put(inputs, leaves)))

            expected = case.value_and_gradients(case.inputs())[1:]
            found = torch.func.grad(total, where)(*leaves)
            _near(found, expected, f"{_at(name)}torch.func.grad against autograd", 1e-9)
            draws = [[x.detach() for x in Leaves.of(case.inputs(seed=seed))] for seed in (0, 1)]
            if [x.shape for x in draws[0]] != [x.shape for x in draws[1]]:
                continue
            stacked = [torch.stack(pair) for pair in zip(*draws, strict=True)]
            alone = [[total(*d), *torch.func.grad(total, where)(*d)] for d in draws]
            together = [torch.func.vmap(total)(*stacked), *torch.func.vmap(torch.func.grad(total, where))(*stacked)]
            _near(together, _stacked(alone), f"{_at(name)}torch.func.vmap against a loop", 1e-9)
            if self.unreduced is not None:
                self._check_rows(case, name)

    def _check_rows(self, case: LossCase, name: str) -> None:
        """Map the unreduced loss over the rows of the batch."""
        inputs = case.inputs()
        leaves = [x.detach() for x in Leaves.of(inputs)]
        dims = tuple(0 if i in case.batched else None for i in range(len(leaves)))

        def of_row(*row: Tensor) -> Tensor:
            one = [x[None] if dim == 0 else x for x, dim in zip(row, dims, strict=True)]
            return case.value(Leaves.put(inputs, one), self.unreduced)[0]

        rows = [[x[i] if dim == 0 else x for x, dim in zip(leaves, dims, strict=True)] for i in range(case.batch)]
        expected = torch.stack([of_row(*row) for row in rows])
        found = torch.func.vmap(of_row, in_dims=dims)(*leaves)
        _near([found], [expected], f"{_at(name)}torch.func.vmap over the rows against row by row", 1e-9)

    def check_compile(self, backend: str) -> None:
        loss = compiled(self.ordinary.loss, backend)
        tolerance = 1e-9 if backend == "aot_eager" else 1e-6
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # graph breaks and what the compiler itself warns of
            for name, case in self.points.items():
                expected = case.value_and_gradients(case.inputs())
                found = LossCase(loss, case.make_inputs, case.kwargs).value_and_gradients(case.inputs())
                _near(found, expected, f"{_at(name)}compiled against eager", tolerance)


def _at(point: str) -> str:
    return "" if point == "ordinary" else f"{point}: "


def _strided(x: Tensor) -> Tensor:
    return strided(x).requires_grad_(x.requires_grad) if x.ndim > 0 else x


def _near(actual: Sequence[Tensor], expected: Sequence[Tensor], what: str, tolerance: float) -> None:
    """Compare a value and its gradients, each on its own scale."""
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        finite = b.detach()[b.detach().isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 1.0
        part = what if number == 0 else f"{what} (tensor {number})"
        assert_near(a, b, part, rtol=tolerance, atol=tolerance * max(scale, 1e-3), dtype=False)


def _near_rounded(actual: Sequence[Tensor], expected: Sequence[Tensor], what: str, eps: float) -> None:
    """Compare what was computed in float32 and rounded once: half of the last bit.

    Gradients of an input that is used twice are added in the input's type: a bit of the largest is left to them.
    """
    scales = [float(t.detach().abs().max()) if t.numel() else 0.0 for t in expected]
    assert_near(actual[0], expected[0], what, rtol=0.55 * eps, atol=1e-6 * scales[0], dtype=False)
    for a, b, scale in zip(actual[1:], expected[1:], scales[1:], strict=True):
        assert_near(a, b, f"{what} (gradient)", rtol=1.1 * eps, atol=eps * scale, dtype=False)


def _outcome(case: LossCase, inputs: Sequence[Any]) -> list[Tensor] | type[Exception]:
    """Return value and gradients, or the kind of refusal."""
    try:
        return case.value_and_gradients(inputs)
    except (TypeError, ValueError) as error:
        return type(error)


def _told(outcome: list[Tensor] | type[Exception]) -> str:
    return outcome.__name__ if isinstance(outcome, type) else shorten(outcome[0].detach())


def _direction(x: Tensor) -> Tensor:
    draws = torch.rand(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (draws + 0.5).to(x)


def _second(first: Sequence[Tensor], variables: Sequence[Tensor], directions: Sequence[Tensor]) -> list[Tensor]:
    """Return the derivative of the gradients along a direction (zeros where they do not depend on anything)."""
    parts = [(g * d).sum() for g, d in zip(first, directions, strict=True) if g.requires_grad]
    if not parts:
        return [torch.zeros_like(x) for x in variables]
    total = torch.stack(parts).sum()
    found = torch.autograd.grad(total, variables, allow_unused=True, retain_graph=True)
    if any(g is None for g in found):
        total.backward()  # which does not pass by a node that is there to refuse, as grad does
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, variables, strict=True)]


def _finite_differences(case: LossCase, directions: Sequence[Tensor]) -> list[Tensor]:
    step, sides = 1e-5, []
    for sign in (1.0, -1.0):
        inputs = case.inputs()
        leaves = Leaves.of(inputs)
        for i, direction in zip(case.differentiable, directions, strict=True):
            leaves[i] = (leaves[i].detach() + sign * step * direction).requires_grad_()
        sides.append(case.value_and_gradients(Leaves.put(inputs, leaves))[1:])
    return [(a - b) / (2 * step) for a, b in zip(*sides, strict=True)]


def _stacked(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(list(column)) for column in zip(*rows, strict=True)]
