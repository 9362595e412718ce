"""The shrunk loss: conformance, properties, infinite losses, gradients, every path."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from offprints.shared.testing import check_arguments, check_loss
from offprints.shrinkmatch import ShrinkLoss, shrink_class_space, shrink_loss

SEEDS = st.integers(0, 10_000)


def inputs(generator: torch.Generator, batch: int = 7, classes: int = 5) -> tuple[Tensor, Tensor]:
    probs = (4 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)).softmax(1)
    return 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64), probs


def exact(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Probabilities that every type holds without rounding, so that rows sum to 1 in all of them."""
    logits, probs = inputs(generator)
    counts = torch.multinomial(probs, 128, replacement=True, generator=generator)
    return logits, torch.zeros_like(probs).scatter_add(1, counts, torch.full_like(probs[:, :1], 1 / 128).expand(7, 128))


def with_probs(*rows: list[float]) -> partial[tuple[Tensor, Tensor]]:
    """Random logits beside fixed pseudo-labels."""

    def make(generator: torch.Generator, rows: tuple[list[float], ...]) -> tuple[Tensor, Tensor]:
        logits = 3 * torch.randn(len(rows), len(rows[0]), generator=generator, dtype=torch.float64)
        return logits, torch.tensor(rows, dtype=torch.float64)

    return partial(make, rows=rows)


def extreme(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    logits, probs = exact(generator)
    return 100 * logits, probs


SPECIAL = {
    "ties, certain and not reached": with_probs(
        [0.375, 0.375, 0.125, 0.125],
        [0.25] * 4,
        [0.5, 0.5, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
        [0.96875, 0.03125, 0.0, 0.0],
    ),
    "two classes": with_probs([0.625, 0.375], [0.96875, 0.03125]),
    "far logits": extreme,
}
THRESHOLD = 0.9137  # no ratio of the numbers of 128ths


def test_conformance() -> None:
    check_loss(partial(shrink_loss, threshold=THRESHOLD), exact, special=SPECIAL)


def test_conformance_of_the_soft_target() -> None:
    check_loss(ShrinkLoss(threshold=THRESHOLD, reweight=False, target="soft"), exact)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", ["hard", "soft"])
def test_module_is_the_function(target: str, reduction: str) -> None:
    logits, probs = inputs(torch.Generator().manual_seed(0))
    options = {"threshold": 0.8, "reweight": target == "hard", "target": target, "reduction": reduction}
    assert torch.equal(ShrinkLoss(**options)(logits, probs), shrink_loss(logits, probs, **options))


def test_constructor() -> None:
    check_arguments(ShrinkLoss, lambda g: {"threshold": 0.9})
    text = repr(ShrinkLoss(threshold=0.9, target="soft"))
    assert text == "ShrinkLoss(threshold=0.9, reweight=True, target='soft', reduction='mean')"


def test_by_hand() -> None:
    """One row kept as {0, 3}, one certain, one not reached."""
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.96, 0.02, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])
    logits = torch.tensor([[1.0, 9.0, 9.0, 2.0]] * 3)
    expected = 0.5 * torch.tensor([1.0, 2.0]).log_softmax(0)[0].neg().item()
    for options, value in (({}, expected), ({"reweight": False}, 2 * expected)):
        rows = shrink_loss(logits, probs, threshold=0.9, reduction="none", **options)
        assert rows.tolist() == pytest.approx([value, 0.0, 0.0])
        assert shrink_loss(logits, probs, threshold=0.9, **options).item() == pytest.approx(value / 3)
        assert shrink_loss(logits, probs, threshold=0.9, reduction="sum", **options).item() == pytest.approx(value)
    share = 0.5 / 0.55
    soft = -(
        share * torch.tensor([1.0, 2.0]).log_softmax(0)[0] + (1 - share) * torch.tensor([1.0, 2.0]).log_softmax(0)[1]
    )
    rows = shrink_loss(logits, probs, threshold=0.9, target="soft", reduction="none")
    assert rows.tolist() == pytest.approx([0.5 * soft.item(), 0.0, 0.0])


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(["hard", "soft"]), st.booleans())
def test_gradient(seed: int, target: str, reweight: bool) -> None:
    """Not negative; rows of the gradient sum to 0, and vanish on removed classes and on rows without a loss."""
    logits, probs = inputs(torch.Generator().manual_seed(seed), batch=12)
    logits.requires_grad_()
    rows = shrink_loss(logits, probs, target=target, reweight=reweight, reduction="none")
    rows.sum().backward()
    space = shrink_class_space(probs)
    assert (rows >= 0).all()
    assert torch.equal(rows != 0, space.reached)
    assert_close(logits.grad.sum(1), torch.zeros(12).double(), rtol=0, atol=1e-12)
    assert (logits.grad[~space.kept | ~space.reached[:, None]] == 0).all()
    assert (logits.grad[space.kept & space.reached[:, None]] != 0).all()


@settings(max_examples=15)
@given(SEEDS, st.sampled_from(["hard", "soft"]))
def test_invariance(seed: int, target: str) -> None:
    """To a constant in a row of logits, and to the names of the classes."""
    generator = torch.Generator().manual_seed(seed)
    logits, probs = inputs(generator)
    expected = shrink_loss(logits, probs, target=target, reduction="none")
    shift = 50 * torch.randn(len(logits), 1, generator=generator, dtype=torch.float64)
    assert_close(shrink_loss(logits + shift, probs, target=target, reduction="none"), expected, rtol=1e-9, atol=1e-11)
    renamed = torch.randperm(5, generator=generator)
    found = shrink_loss(logits[:, renamed], probs[:, renamed], target=target, reduction="none")
    assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_probs_are_detached() -> None:
    logits, probs = inputs(torch.Generator().manual_seed(0))
    logits.requires_grad_()
    weak = probs.log().requires_grad_()
    shrink_loss(logits, weak.softmax(1)).backward()
    assert weak.grad is None
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_uncertain_is_zero_with_a_graph(reduction: str) -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = shrink_loss(logits, torch.tensor([[0.98, 0.01, 0.01]] * 4), reduction=reduction)
    assert (loss == 0).all()
    loss.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_infinite_losses_of_rows_without_weight(target: str) -> None:
    """The loss of a row that does not count overflows: 0 times infinity would be NaN."""
    big = torch.finfo(torch.float32).max
    logits = torch.tensor([[-big, big, big, big], [0.0, 1.0, 2.0, 3.0]], requires_grad=True)
    probs = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.5, 0.45, 0.04, 0.01]])
    loss = shrink_loss(logits, probs, target=target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert torch.equal(logits.grad[0], torch.zeros(4))


def test_half_types_give_float32() -> None:
    logits, probs = (x.float() for x in inputs(torch.Generator().manual_seed(0), batch=60_000))
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype).requires_grad_()
        loss = shrink_loss(half, probs, reduction="sum", reweight=False)
        assert loss.dtype == torch.float32
        assert loss.item() > 65504 / 2, "a sum that float16 would barely hold"
        loss.backward()
        assert half.grad.dtype == dtype


def test_mixed_types() -> None:
    """The type of the logits is that of the loss; pseudo-labels may have another."""
    logits, probs = inputs(torch.Generator().manual_seed(0))
    expected = shrink_loss(logits, probs)
    assert shrink_loss(logits.float(), probs).dtype == torch.float32
    assert shrink_loss(logits, probs.float()).dtype == torch.float64
    assert_close(shrink_loss(logits, probs.float()), expected, rtol=1e-6, atol=0)


def test_compiles_as_one_graph() -> None:
    logits, probs = (x.float() for x in inputs(torch.Generator().manual_seed(0)))
    compiled = torch.compile(shrink_loss, backend="aot_eager", fullgraph=True)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    compiled(a, probs).backward()
    shrink_loss(b, probs).backward()
    assert_close(a.grad, b.grad)


def test_compiles_without_a_look_at_values() -> None:
    """No shape depends on data: one graph serves batches of the same size with any share of certain samples."""
    compiled = torch.compile(shrink_loss, backend="aot_eager", fullgraph=True)
    logits = torch.randn(4, 3)
    assert compiled(logits, torch.tensor([[0.98, 0.01, 0.01]] * 4)) == 0
    assert compiled(logits, torch.tensor([[0.5, 0.49, 0.01]] * 4)) > 0


def test_autocast_changes_nothing() -> None:
    logits, probs = (x.float() for x in inputs(torch.Generator().manual_seed(0)))
    expected = shrink_loss(logits, probs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(shrink_loss(logits, probs), expected)
