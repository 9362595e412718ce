"""The layer fused with its loss: the loss of the layer, in blocks of rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.testing import check_errors
from offprints.stablemax import (
    exact_cross_entropy,
    linear_exact_cross_entropy,
    linear_stablemax_cross_entropy,
    stablemax_cross_entropy,
)

PAIRS = [
    (linear_stablemax_cross_entropy, stablemax_cross_entropy),
    (linear_exact_cross_entropy, exact_cross_entropy),
]


def fused_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((40, 6), (33, 6), (33,)))
    target = torch.randint(33, (40,), generator=generator)
    target[5] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), target, bias.requires_grad_()


@pytest.mark.parametrize(("fused_loss", "loss"), PAIRS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk_size", [1, 5, 33, 1000])
def test_the_fused_loss_is_the_loss_of_the_layer(
    fused_loss: Callable[..., Tensor], loss: Callable[..., Tensor], reduction: str, chunk_size: int
) -> None:
    hidden, weight, target, bias = fused_inputs()
    expected = loss(F.linear(hidden, weight, bias), target, reduction=reduction)
    fused = fused_loss(hidden, weight, target, bias, chunk_size=chunk_size, reduction=reduction)
    torch.testing.assert_close(fused, expected, rtol=1e-10, atol=0)
    inputs = (hidden, weight, bias)
    for value, wanted in zip(
        torch.autograd.grad(3 * fused, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("fused_loss", "loss"), PAIRS)
def test_more_classes_than_the_logits_that_may_exist(
    fused_loss: Callable[..., Tensor], loss: Callable[..., Tensor]
) -> None:
    """A row is taken whole, however small the bound is."""
    hidden, weight, target, bias = fused_inputs()
    for rows in (1, 4):
        expected = loss(F.linear(hidden[:rows], weight, bias), target[:rows])
        fused = fused_loss(hidden[:rows], weight, target[:rows], bias, chunk_size=1)
        torch.testing.assert_close(fused, expected, rtol=1e-10, atol=0)


def test_the_fused_loss_without_some_gradients() -> None:
    hidden, weight, target, bias = fused_inputs()
    expected = linear_stablemax_cross_entropy(hidden, weight, target, bias)
    with torch.no_grad():
        assert torch.equal(linear_stablemax_cross_entropy(hidden, weight, target, bias), expected)
    frozen = linear_stablemax_cross_entropy(hidden, weight.detach(), target, bias.detach(), chunk_size=3)
    first, second = (torch.autograd.grad(frozen, hidden, retain_graph=True)[0].clone() for _ in range(2))
    torch.testing.assert_close(first, torch.autograd.grad(expected, hidden)[0])
    assert torch.equal(first, second)


def weighted(each: Tensor, counts: Tensor, reduction: str) -> Tensor:
    return {"none": each, "sum": each.sum(), "mean": each.sum() / counts.sum()}[reduction]


@pytest.mark.parametrize(("fused_loss", "loss"), PAIRS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_option_of_the_fused_loss(
    fused_loss: Callable[..., Tensor], loss: Callable[..., Tensor], reduction: str
) -> None:
    hidden, weight, target, bias = fused_inputs()
    hidden, target = hidden.view(8, 5, 6), target.view(8, 5)
    of_class, of_token = torch.linspace(0.1, 2, 33).double(), torch.linspace(0, 3, 40).double().view(8, 5)
    of_token.requires_grad_()
    for smoothing, with_class, with_token in product((0.0, 0.2), (False, True), (False, True)):
        classes, tokens = of_class if with_class else None, of_token if with_token else None
        logits = F.linear(hidden, weight, bias).movedim(-1, 1)
        each = loss(logits, target, classes, label_smoothing=smoothing, reduction="none")
        counts = (target != -100).double()
        if classes is not None:
            counts = counts * classes[target.clamp(min=0)]
        if tokens is not None:
            each, counts = each * tokens, counts * tokens
        expected = weighted(each, counts, reduction)
        fused = fused_loss(
            hidden,
            weight,
            target,
            bias,
            chunk_size=7,
            reduction=reduction,
            label_smoothing=smoothing,
            class_weight=classes,
            token_weight=tokens,
        )
        torch.testing.assert_close(fused, expected, rtol=1e-10, atol=0)
        inputs = [hidden, weight, bias, *([of_token] if with_token else [])]
        direction = torch.linspace(-1, 2, fused.numel()).double().view(fused.shape)
        wanted = torch.autograd.grad(expected, inputs, direction)
        for create_graph in (True, False):
            found = torch.autograd.grad(fused, inputs, direction, create_graph=create_graph, retain_graph=True)
            for value, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(value, right, rtol=1e-9, atol=1e-12)


def test_the_fused_loss_in_bfloat16() -> None:
    """Beside the exact loss of the same rounded logits, with the rounding that the products themselves have."""
    hidden, weight, target, bias = fused_inputs(torch.bfloat16)
    loss = linear_stablemax_cross_entropy(hidden, weight, target, bias, chunk_size=7)
    assert loss.dtype == torch.float32
    logits = F.linear(hidden, weight, bias).detach().double().requires_grad_()
    exact = stablemax_cross_entropy(logits, target)
    hidden_, weight_ = hidden.detach().double(), weight.detach().double()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    (of_logits,) = torch.autograd.grad(exact, logits)
    expected = (of_logits @ weight_, of_logits.T @ hidden_, of_logits.sum(0))
    sizes = (
        of_logits.abs() @ weight_.abs(),
        of_logits.abs().T @ hidden_.abs(),
        of_logits.abs().sum(0),
    )
    found = torch.autograd.grad(loss, (hidden, weight, bias))
    for value, wanted, size in zip(found, expected, sizes, strict=True):
        assert value.dtype == torch.bfloat16
        error = (value.double() - wanted).abs()  # measured by the sum of the terms' sizes
        assert (error <= 3 * 2**-9 * size).all()  # half an ulp: of the logits' gradient, of each product, of the result


@pytest.mark.parametrize("fused_loss", [linear_stablemax_cross_entropy, linear_exact_cross_entropy])
def test_a_single_row(fused_loss: Callable[..., Tensor]) -> None:
    hidden, weight, target, bias = fused_inputs()
    expected = fused_loss(hidden[:1], weight, target[:1], bias)
    for reduction in ("mean", "sum", "none"):
        single = fused_loss(hidden[0], weight, target[0], bias, reduction=reduction)
        assert single.shape == ()
        torch.testing.assert_close(single, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("fused_loss", "loss"), PAIRS)
def test_the_types_of_autocast(fused_loss: Callable[..., Tensor], loss: Callable[..., Tensor]) -> None:
    """The layer runs in the low type, and stays in double precision, as `F.linear` does."""
    for dtype in (torch.float32, torch.float64):
        hidden, weight, target, bias = fused_inputs(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            fused, expected = (
                fused_loss(hidden, weight, target, bias),
                loss(F.linear(hidden, weight, bias), target),
            )
        assert fused.dtype == expected.dtype == dtype
        torch.testing.assert_close(fused, expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)
    half = fused_inputs(torch.bfloat16)[0]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="weight must have the type"):
        fused_loss(half, weight, target)


@pytest.mark.parametrize("fused_loss", [linear_stablemax_cross_entropy, linear_exact_cross_entropy])
def test_all_tokens_ignored(fused_loss: Callable[..., Tensor]) -> None:
    hidden, weight, target, _ = fused_inputs()
    hidden.data[3] = math.nan
    for options in ({}, {"label_smoothing": 0.1}, {"token_weight": torch.rand(40)}):
        value = fused_loss(hidden, weight, torch.full_like(target, -100), **options)
        assert value == 0
        for gradient in torch.autograd.grad(value, (hidden, weight)):
            assert (gradient == 0).all()
    hidden.data[3] = 0  # labels that count, of tokens without a weight: a micro-batch that is masked as a whole
    for options in ({}, {"class_weight": torch.rand(33).double() + 0.1}):
        value = fused_loss(hidden, weight, target, token_weight=torch.zeros(40), **options)
        assert value == 0
        for gradient in torch.autograd.grad(value, (hidden, weight)):
            assert (gradient == 0).all()


def test_the_fused_loss_compiled_and_transformed() -> None:
    hidden, weight, target, bias = fused_inputs()

    def loss(hidden: Tensor) -> Tensor:
        return linear_exact_cross_entropy(hidden, weight.detach(), target, bias.detach(), label_smoothing=0.1)

    (expected,) = torch.autograd.grad(loss(hidden), hidden)
    torch._dynamo.reset()
    compiled: Any = torch.compile(loss, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own, at the break of the graph
        torch.testing.assert_close(torch.autograd.grad(compiled(hidden), hidden)[0], expected)
    torch.testing.assert_close(torch.func.grad(loss)(hidden.detach()), expected)
    assert torch.autograd.gradgradcheck(
        lambda h: linear_exact_cross_entropy(h, weight.detach(), target[:3]), hidden[:3]
    )


def test_bad_input_of_the_fused_loss() -> None:
    hidden, weight, target, bias = fused_inputs()
    fused = linear_stablemax_cross_entropy
    check_errors(
        [
            (lambda: fused(hidden, weight, target, chunk_size=0), ValueError, "chunk_size"),
            (lambda: fused(hidden, weight, target, reduction="max"), ValueError, "reduction"),  # type: ignore[arg-type]
            (lambda: fused(hidden, weight, target, ignore_index=0.5), TypeError, "ignore_index"),  # type: ignore[arg-type]
            (lambda: fused(hidden, weight, target, label_smoothing=2), ValueError, "label_smoothing"),
            (lambda: fused(hidden, weight, target, class_weight=torch.ones(3)), ValueError, "class_weight"),
            (lambda: fused(hidden, weight, target, token_weight=torch.ones(3)), ValueError, "token_weight"),
            (lambda: fused(hidden, weight, target.unsqueeze(1)), ValueError, "target"),
            (lambda: fused(hidden, weight, target[:5]), ValueError, "target"),
            (lambda: fused(hidden[0, 0], weight, target[0]), ValueError, "hidden"),
            (lambda: fused(hidden[:0], weight, target[:0]), ValueError, "hidden"),
            (lambda: fused(hidden, weight[:, :3], target), ValueError, "weight"),
            (lambda: fused(hidden, weight[:1], target * 0), ValueError, "weight"),
            (lambda: fused(hidden, weight, target, bias[:3]), ValueError, "bias"),
            (lambda: fused(hidden, weight.float(), target), ValueError, "weight"),
            (lambda: fused(hidden, weight, target + 30), ValueError, "target"),
            (lambda: fused(hidden.long(), weight, target), TypeError, "hidden"),
        ]
    )
