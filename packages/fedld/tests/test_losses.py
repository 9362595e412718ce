"""Margin control: conformance, its values, its bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from offprints.fedld import MarginControlLoss, margin_control_loss
from offprints.shared.testing import check_loss


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(7, 4, generator=generator), torch.randint(4, (7,), generator=generator)


def saturated(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.eye(4).repeat(2, 1)[:7] * 200, torch.arange(7) % 4


def equal(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.zeros(7, 4), torch.arange(7) % 4


SPECIAL = {"sure of everything": saturated, "all logits equal": equal}


def test_conformance_of_the_batch_term() -> None:
    check_loss(MarginControlLoss(penalty=0.5), inputs, special=SPECIAL, reductions=("mean",))


def test_conformance_of_the_term_of_each_sample() -> None:
    check_loss(margin_control_loss, inputs, kwargs={"per_sample": True}, special=SPECIAL)


def test_values() -> None:
    logits, target = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]).double(), torch.tensor([0, 1])
    cross_entropy = torch.tensor([math.log(4 / 3), math.log(2)]).double()
    squares = torch.tensor([10 / 16, 1 / 2]).double()  # of the probabilities 3/4, 1/4 and 1/2, 1/2
    batch = margin_control_loss(logits, target, penalty=2.0)
    torch.testing.assert_close(batch, cross_entropy.mean() + 2 * torch.log1p(squares.sum()))
    each = margin_control_loss(logits, target, penalty=2.0, per_sample=True, reduction="none")
    torch.testing.assert_close(each, cross_entropy + 2 * squares.log1p())
    assert MarginControlLoss()(logits, target) == margin_control_loss(logits, target, penalty=0.1)


@given(st.integers(1, 9), st.integers(1, 6), st.floats(0, 5), st.integers(0, 100))
@settings(max_examples=20)
def test_term_lies_between_its_bounds(size: int, classes: int, penalty: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (size,), generator=generator)
    term = margin_control_loss(logits, target, penalty=penalty) - F.cross_entropy(logits, target)
    assert penalty * math.log1p(size / classes) - 1e-9 <= term.item() <= penalty * math.log1p(size) + 1e-9


def test_without_penalty_it_is_cross_entropy() -> None:
    logits, target = inputs(torch.Generator().manual_seed(0))
    torch.testing.assert_close(margin_control_loss(logits, target, penalty=0.0), F.cross_entropy(logits, target))


def test_pull_on_a_sample_hardly_depends_on_the_batch() -> None:
    """Of n equal samples with ||P_b||^2 = q the pull is n q / (1 + n q) of that for large n, the mean undone."""

    def pull(copies: int, per_sample: bool) -> float:
        logits = torch.tensor([[1.0, 0.0, 0.0]]).double().repeat(copies, 1).requires_grad_()
        target = torch.zeros(copies, dtype=torch.int64)
        losses = [margin_control_loss(logits, target, penalty=p, per_sample=per_sample) for p in (0.0, 1.0)]
        grads = [torch.autograd.grad(loss, logits)[0] for loss in losses]
        return float((grads[1] - grads[0])[0].norm()) * copies

    q = float(torch.tensor([1.0, 0.0, 0.0]).double().softmax(0).square().sum())
    limit = pull(100_000, per_sample=False)
    for copies in (1, 2, 50):
        assert pull(copies, per_sample=True) == pytest.approx(limit * q / (1 + q), rel=1e-4)
        assert pull(copies, per_sample=False) == pytest.approx(limit * copies * q / (1 + copies * q), rel=1e-4)


def test_any_integer_target_and_read_only_memory() -> None:
    logits, target = inputs(torch.Generator().manual_seed(1))
    expected = margin_control_loss(logits, target)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        assert margin_control_loss(logits, target.to(dtype)) == expected
    with torch.inference_mode():
        assert margin_control_loss(logits, target) == expected
