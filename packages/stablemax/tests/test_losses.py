"""Losses without absorption: values, gradients at the awkward places, torch's conventions, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.testing import check_errors
from offprints.stablemax import (
    StableMaxCrossEntropyLoss,
    exact_cross_entropy,
    log_stablemax,
    stablemax,
    stablemax_cross_entropy,
)

LOSSES = [stablemax_cross_entropy, exact_cross_entropy]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def drawn(n: int, classes: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4))
def test_stablemax_is_an_order_keeping_distribution(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    p = stablemax(x)
    torch.testing.assert_close(p.sum(1), torch.ones(len(x), dtype=torch.float64))
    order = x.argsort(1)
    assert (p.gather(1, order).diff() >= 0).all()
    g = x.sign() * x.abs().log1p()
    torch.testing.assert_close(p, g.softmax(1))
    torch.testing.assert_close(log_stablemax(x), g.log_softmax(1))


def test_the_derivative_of_g_is_right_at_zero_and_one() -> None:
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0]], requires_grad=True)
    for i in range(4):
        (gradient,) = torch.autograd.grad(log_stablemax(x)[0, i], x)
        expected = (torch.eye(4)[i] - stablemax(x.detach())[0]) / (1 + x.detach().abs()[0])
        torch.testing.assert_close(gradient[0], expected)


def test_where_the_official_form_gives_nan() -> None:
    x = torch.tensor([[1.0, 0.5, -2.0]], requires_grad=True)
    s = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    official = -(s / s.sum(1)).log()[0, 0]
    (broken,) = torch.autograd.grad(official, x)
    (gradient,) = torch.autograd.grad(stablemax_cross_entropy(x, torch.tensor([0])), x)
    assert broken.isnan().any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_are_finite_for_every_finite_input(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    large, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    values = [0.0, -0.0, 1.0, -1.0, tiny, -tiny, large, -large]
    x = torch.tensor(list(product(values, repeat=3)), dtype=dtype, requires_grad=True)
    for label in range(3):
        each = loss(x, torch.full((len(x),), label), reduction="none")
        assert not each.isnan().any()  # infinite only where the margin itself overflows
        (gradient,) = torch.autograd.grad(each.sum(), x)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradcheck_at_the_kinks(loss: Callable[..., Tensor], label_smoothing: float) -> None:
    x = torch.tensor([[0.0, 1.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0], [5.0, -3.0, 0.5, 0.0]], dtype=torch.float64)
    x.requires_grad_()
    target = torch.tensor([0, 2, -100])
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64)

    def reduced(x: Tensor) -> Tensor:
        return loss(x, target, weight, label_smoothing=label_smoothing)

    assert torch.autograd.gradcheck(reduced, x)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_compiled_loss_has_no_graph_break(loss: Callable[..., Tensor]) -> None:
    x, target = drawn(6, 4)
    target[2] = -100
    x = x.float().requires_grad_()
    torch._dynamo.reset()
    values = [form(x, target) for form in (torch.compile(loss, backend="eager", fullgraph=True), loss)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in values))


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivatives(loss: Callable[..., Tensor]) -> None:
    x, target = drawn(3, 4)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), x.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_retained_graph_gives_the_same_gradient_again(loss: Callable[..., Tensor]) -> None:
    x, target = drawn(5, 4)
    value = loss(x.requires_grad_(), target, label_smoothing=0.2)
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0].clone() for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_cross_entropy_is_torchs(
    dtype: torch.dtype, reduction: str, label_smoothing: float, weighted: bool
) -> None:
    x, target = drawn(60, 7)
    target[::7] = -100
    x = x.to(dtype).view(15, 4, 7).movedim(2, 1).requires_grad_()
    weight = torch.linspace(0.1, 2, 7, dtype=dtype) if weighted else None
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours = exact_cross_entropy(x, target.view(15, 4), weight, **options)
    torchs = F.cross_entropy(x, target.view(15, 4), weight, **options)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ours, torchs, **tolerance)
    gradients = (torch.autograd.grad(value.sum(), x)[0] for value in (ours, torchs))
    torch.testing.assert_close(*gradients, **tolerance)


def test_nothing_is_absorbed() -> None:
    margins = torch.tensor([10.0, 17.0, 20.0, 40.0, 80.0, 85.0])
    x = torch.zeros(len(margins), 5)
    x[:, 2] = margins
    target = torch.full((len(margins),), 2)
    assert (F.cross_entropy(x, target, reduction="none")[2:] == 0).all()  # what the paper calls Softmax Collapse
    x.requires_grad_()
    each = exact_cross_entropy(x, target, reduction="none")
    wide = exact_cross_entropy(x.detach().double(), target, reduction="none")
    torch.testing.assert_close(each.double(), wide, rtol=2e-4, atol=0)
    (gradient,) = torch.autograd.grad(each.sum(), x)
    assert (gradient[:, 2] < 0).all()
    assert (gradient[:, [0, 1, 3, 4]] > 0).all()

    far = torch.tensor([[1e15, 0.0, -1e15]], requires_grad=True)
    value = stablemax_cross_entropy(far, torch.tensor([0]))
    assert value > 0
    assert torch.autograd.grad(value, far)[0][0, 0] < 0


def test_large_losses_have_all_digits_of_double_precision() -> None:
    """Where log(1 + e^d) is nearly d: 21 + 8e-10 is not 21."""
    d = torch.tensor([15.0, 21.0, 30.0, 60.0], dtype=torch.float64)
    each = exact_cross_entropy(torch.stack([0 * d, d], 1), torch.zeros(4, dtype=torch.int64), reduction="none")
    torch.testing.assert_close(each, d + (-d).exp().log1p(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_probability_targets_are_torchs(reduction: str, label_smoothing: float, weighted: bool) -> None:
    x, _ = drawn(60, 7)
    x = x.view(15, 4, 7).movedim(2, 1).requires_grad_()
    q = drawn(60, 7, seed=1)[0].softmax(1).view(15, 4, 7).movedim(2, 1).requires_grad_()
    weight = torch.linspace(0.1, 2, 7, dtype=torch.float64) if weighted else None
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours, torchs = (form(x, q, weight, **options) for form in (exact_cross_entropy, F.cross_entropy))
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(value.sum(), (x, q)) for value in (ours, torchs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_probability_targets_are_as_exact_as_labels(loss: Callable[..., Tensor]) -> None:
    x = torch.tensor([[30.0, 0.0, 0.0], [1e9, 2.0, -3.0], [0.0, 5.0, -math.inf]], requires_grad=True)
    x.data[1] *= 1 if loss is stablemax_cross_entropy else 5e-8
    labels = torch.tensor([0, 0, 1])
    each = loss(x, labels, reduction="none")
    soft = loss(x, F.one_hot(labels, 3).float(), reduction="none")
    torch.testing.assert_close(soft, each, rtol=1e-6, atol=0)
    assert (each > 0).all()
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (soft, each)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_single_sample_needs_no_batch(loss: Callable[..., Tensor], reduction: str) -> None:
    x, target = drawn(1, 4)
    q = drawn(1, 4, seed=1)[0].softmax(1)
    for y, batched in ((target[0], target), (q[0], q)):
        value = loss(x[0], y, reduction=reduction)
        assert value.shape == ()
        torch.testing.assert_close(value, loss(x, batched, reduction="sum"))


def test_stablemax_loss_depends_on_a_shift() -> None:
    x, target = drawn(4, 3)
    assert stablemax_cross_entropy(x, target) != stablemax_cross_entropy(x + 1, target)
    torch.testing.assert_close(exact_cross_entropy(x, target), exact_cross_entropy(x + 1, target))


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_rows(loss: Callable[..., Tensor]) -> None:
    x, target = drawn(4, 3)
    x[1] = math.nan
    target[1] = -100
    x.requires_grad_()
    value = loss(x, target)
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(value, loss(x[[0, 2, 3]], target[[0, 2, 3]]))
    assert (gradient[1] == 0).all()
    nothing = loss(x, torch.full((4,), -100))
    assert nothing == 0
    assert (torch.autograd.grad(nothing, x)[0] == 0).all()


@pytest.mark.parametrize("ignore_index", [1, 2])
def test_a_class_can_be_the_label_to_ignore(ignore_index: int) -> None:
    x, target = drawn(20, 3)
    for weight in (None, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)):
        ours = exact_cross_entropy(x, target, weight, ignore_index=ignore_index)
        torch.testing.assert_close(ours, F.cross_entropy(x, target, weight, ignore_index=ignore_index))
        assert exact_cross_entropy(x, torch.full((20,), ignore_index), weight, ignore_index=ignore_index) == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_all_labels_ignored_with_weights(loss: Callable[..., Tensor], label_smoothing: float) -> None:
    x, _ = drawn(4, 3)
    nothing = loss(x.requires_grad_(), torch.full((4,), -100), torch.ones(3).double(), label_smoothing=label_smoothing)
    assert nothing == 0
    assert (torch.autograd.grad(nothing, x)[0] == 0).all()


def test_probability_on_a_masked_class_costs_infinitely_much() -> None:
    x = torch.tensor([[0.5, -math.inf, 1.0], [2.0, -math.inf, 1.0]])
    q = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.25, 0.25]])
    each = exact_cross_entropy(x, q, reduction="none")
    torch.testing.assert_close(each[0], F.cross_entropy(x[:1, [0, 2]], q[:1, [0, 2]]))
    assert each[1] == F.cross_entropy(x[1:], q[1:]) == math.inf
    assert stablemax_cross_entropy(x, q, reduction="none")[1] == math.inf


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(loss: Callable[..., Tensor], bad: float) -> None:
    x, target = drawn(3, 4)
    x[0, (target[0] + 1) % 4] = bad
    assert not loss(x, target).isfinite()


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_classes(loss: Callable[..., Tensor]) -> None:
    x = torch.tensor([[2.0, -math.inf, 1.0], [0.5, -math.inf, -math.inf]], requires_grad=True)
    each = loss(x, torch.tensor([0, 0]), reduction="none")
    torch.testing.assert_close(each[0], loss(x[:1, [0, 2]], torch.tensor([0])))
    assert each[1] == 0
    assert torch.autograd.grad(each.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_blocks_of_rows_do_not_show(rows: int) -> None:
    x, target = drawn(rows, 500, seed=rows)
    together = stablemax_cross_entropy(x, target, reduction="none")
    single = torch.stack([stablemax_cross_entropy(x[i : i + 1], target[i : i + 1]) for i in range(0, rows, 512)])
    torch.testing.assert_close(together[::512], single, rtol=1e-14, atol=0)


x, y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
COMMON: list[tuple[Callable[..., Any], type[Exception], str]] = [
    (lambda loss: loss(x.long(), y), TypeError, "input"),
    (lambda loss: loss(x, y.float()), TypeError, "target"),
    (lambda loss: loss(x, torch.rand(4, 2)), TypeError, "target"),
    (lambda loss: loss(x, torch.rand(4, 3) - 2), ValueError, "target"),
    (lambda loss: loss(x, torch.full((4, 3), math.nan)), ValueError, "target"),
    (lambda loss: loss(x, y.unsqueeze(1)), ValueError, "target"),
    (lambda loss: loss(x, y, ignore_index=0.5), TypeError, "ignore_index"),
    (lambda loss: loss(x[:0], y[:0]), ValueError, "input"),
    (lambda loss: loss(x[0], y[:1]), ValueError, "target"),
    (lambda loss: loss(x[0, 0], y[0]), ValueError, "input"),
    (lambda loss: loss(x[0, :1], y[0]), ValueError, "input"),
    (lambda loss: loss(x[:, :1], y * 0), ValueError, "input"),
    (lambda loss: loss(x, y[:3]), ValueError, "target"),
    (lambda loss: loss(x.view(2, 3, 2), y), ValueError, "target"),
    (lambda loss: loss(x, y + 1), ValueError, "target"),
    (lambda loss: loss(x, y - 1), ValueError, "target"),
    (lambda loss: loss(x, y, reduction="max"), ValueError, "reduction"),
    (lambda loss: loss(x, y, label_smoothing=1.1), ValueError, "label_smoothing"),
    (lambda loss: loss(x, y, label_smoothing=math.nan), ValueError, "label_smoothing"),
    (lambda loss: loss(x, y, torch.ones(4)), ValueError, "weight"),
    (lambda loss: loss(x, y, torch.ones(3).long()), TypeError, "weight"),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_input(loss: Callable[..., Tensor]) -> None:
    check_errors([(lambda call=call: call(loss), error, word) for call, error, word in COMMON])  # type: ignore[misc]


def test_bad_input_of_the_others() -> None:
    check_errors(
        [
            (lambda: stablemax(x.long()), TypeError, "input"),
            (lambda: stablemax(x, dim=2), ValueError, "dim"),
            (lambda: log_stablemax(x[:0]), ValueError, "input"),
            (lambda: stablemax(torch.tensor(1.0)), ValueError, "input"),
            (lambda: StableMaxCrossEntropyLoss(reduction="max"), ValueError, "reduction"),  # type: ignore[arg-type]
            (lambda: StableMaxCrossEntropyLoss(label_smoothing=-0.1), ValueError, "label_smoothing"),
            (lambda: StableMaxCrossEntropyLoss(torch.ones(2, 2)), ValueError, "weight"),
        ]
    )
