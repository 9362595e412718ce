from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from offprints.shared.testing import check_loss, check_module
from offprints.wad import WADLoss, nt_xent


def batches(g: torch.Generator) -> tuple[Tensor, ...]:
    return (
        torch.randn(7, 4, generator=g, dtype=torch.float64).requires_grad_(),
        torch.randint(4, (7,), generator=g),
        torch.randn(7, 4, generator=g, dtype=torch.float64).requires_grad_(),
        torch.randint(4, (7,), generator=g),
        torch.rand(7, generator=g, dtype=torch.float64).requires_grad_(),
    )


def unweighted(g: torch.Generator) -> tuple[Tensor, ...]:
    return (*batches(g)[:4], torch.zeros(7, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("normalize_weights", [False, True])
def test_conformance(normalize_weights: bool) -> None:
    check_loss(WADLoss(normalize_weights=normalize_weights), batches, special={"no weight": unweighted})


def test_module() -> None:
    skip = {"gradients": "there is nothing to train"}
    check_module(WADLoss(), lambda g: tuple(x.detach() for x in batches(g)), nan="raise", skip=skip)


def test_nt_xent_conformance() -> None:
    def views(g: torch.Generator) -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(5, 3, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))

    def tiny(g: torch.Generator) -> tuple[Tensor, Tensor]:
        return tuple((1e-3 * x.detach()).requires_grad_() for x in views(g))

    check_loss(nt_xent, views, special={"tiny": tiny})
    check_loss(nt_xent, views, kwargs={"temperature": 0.05}, skip={"precision": "rounded cosines over 0.05"})


@settings(max_examples=15)
@given(seed=st.integers(0, 999), share=st.floats(0, 1))
def test_linear_in_the_weights(seed: int, share: float) -> None:
    g = torch.Generator().manual_seed(seed)
    *arguments, first = (x.detach() for x in batches(g))
    second = torch.rand(7, generator=g, dtype=torch.float64)
    loss = WADLoss()
    mixed = loss(*arguments, share * first + (1 - share) * second).loss
    assert_close(mixed, share * loss(*arguments, first).loss + (1 - share) * loss(*arguments, second).loss)


def test_values() -> None:
    logits_x, labels_x, logits_u, pseudo, weights = (x.detach() for x in batches(torch.Generator().manual_seed(0)))
    each = F.cross_entropy(logits_u, pseudo, reduction="none")
    output = WADLoss()(logits_x, labels_x, logits_u, pseudo, weights)
    assert_close(output.supervised, F.cross_entropy(logits_x, labels_x))
    assert_close(output.distillation, (weights * each).sum() / 7)
    assert_close(output.loss, output.supervised + output.distillation)
    assert_close(output.effective_weight, weights.mean())
    normalized = WADLoss(normalize_weights=True)(logits_x, labels_x, logits_u, pseudo, weights)
    assert_close(normalized.distillation, (weights * each).sum() / weights.sum())
    assert_close(normalized.effective_weight, weights.mean())
    for loss in (WADLoss(), WADLoss(normalize_weights=True)):
        without = loss(logits_x, labels_x, logits_u, pseudo, torch.zeros_like(weights))
        assert without.loss == output.supervised
        assert without.distillation == 0


def test_batches_of_other_sizes() -> None:
    logits_x, labels_x, logits_u, pseudo, weights = (x.detach() for x in batches(torch.Generator().manual_seed(0)))
    output = WADLoss()(logits_x[:2], labels_x[:2], logits_u, pseudo.to(torch.uint8), weights)
    assert_close(output.supervised, F.cross_entropy(logits_x[:2], labels_x[:2]))


def test_half_types_return_float32() -> None:
    arguments = [x.detach() for x in batches(torch.Generator().manual_seed(0))]
    halves = [x.bfloat16() if x.is_floating_point() else x for x in arguments]
    output = WADLoss()(*halves)
    assert {term.dtype for term in output} == {torch.float32}
    assert nt_xent(halves[0], halves[2]).dtype == torch.float32
    assert WADLoss()(halves[0], halves[1], arguments[2], *halves[3:]).loss.dtype == torch.float64


@settings(max_examples=15)
@given(seed=st.integers(0, 999), exponent=st.integers(-120, 120))
def test_nt_xent_symmetries(seed: int, exponent: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(5, 3, generator=g) for _ in range(2))
    value = nt_xent(z1, z2)
    assert_close(nt_xent(z2, z1), value)
    assert_close(nt_xent(z1 * 2.0**exponent, z2), value)
    order = torch.randperm(5, generator=g)
    assert_close(nt_xent(z1[order], z2[order]), value)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=g)).Q
    assert_close(nt_xent(z1 @ turn, z2 @ turn), value, rtol=1e-4, atol=1e-5)


def test_nt_xent_at_small_temperatures() -> None:
    """The form with exponentials overflows or loses its digits; log-sum-exp does not."""
    z = torch.eye(4)
    for temperature in (0.5, 0.05, 1e-3, 1e-6):
        expected = torch.log1p(6 * torch.tensor(-1 / temperature, dtype=torch.float64).exp())
        assert_close(nt_xent(z, z, temperature=temperature).double(), expected, rtol=1e-5, atol=1e-7)
        assert_close(nt_xent(z, z.roll(1, 0), temperature=temperature).double(), expected + 1 / temperature)


def test_one_pair_is_told_from_nothing() -> None:
    z = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = nt_xent(z, 2 * z.detach() + 1)
    value.backward()
    assert value == 0
    assert z.grad.abs().max() == 0


def test_small_weights_that_are_normalized() -> None:
    """The weighted mean, also where the weights sum up to less than 1."""
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 3, generator=g), torch.tensor([0, 1, 2, 0])
    weights = torch.tensor([0.01, 0.0, 0.02, 0.01])
    found = WADLoss(normalize_weights=True)(logits, labels, logits, labels, weights)
    losses = F.cross_entropy(logits, labels, reduction="none")
    assert_close(found.distillation, (losses * weights).sum() / 0.04)
