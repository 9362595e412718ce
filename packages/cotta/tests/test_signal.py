"""With nothing to learn nothing moves; what there is to learn is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from packages.cotta.tests.models import batches, golden_net
from torch import Tensor, nn

from offprints.cotta import CoTTA
from offprints.cotta.losses import cross_entropies, rounding, training_signal

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "sgd": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
}


def transformer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Conv2d(3, 12, 4, 4), nn.Flatten(2), Tokens(), layer, Tokens(), nn.Flatten(), nn.Linear(48, 5)
    )


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [golden_net, transformer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gate_that_stays_shut_moves_nothing(name: str, make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """Teacher, student and source are one model: the exact gradient is zero, its rounding errors are no signal."""
    net = make().to(dtype)
    before = {key: value.clone() for key, value in net.named_parameters()}
    adapted = CoTTA(net, OPTIMIZERS[name], seed=0, confidence_threshold=0.0, ema_decay=0.9)
    expected = None
    for x in batches(4, size=8) + batches(1, size=8):
        out = adapted(x.to(dtype))
        assert adapted.last_skipped
        expected = out if expected is None else expected
    for model in (adapted.model, adapted.teacher, adapted.source):
        for key, value in model.named_parameters():
            assert torch.equal(value, before[key])
    assert torch.equal(out, expected)
    assert not adapted.optimizer.state


def test_the_switch_takes_the_steps_of_the_official_code() -> None:
    adapted = CoTTA(golden_net(), seed=0, confidence_threshold=0.0, skip_without_signal=False)
    adapted(batches(1)[0])
    assert adapted.last_skipped is False
    assert len(adapted.optimizer.state) == len(list(adapted.model.parameters()))


def test_learning_begins_when_the_gate_has_opened_and_goes_on_when_it_shuts() -> None:
    adapted = CoTTA(golden_net(), seed=0, confidence_threshold=0.0, num_augmentations=2)
    x, y, z = batches(3)
    adapted(x)
    adapted.confidence_threshold = 1.0
    adapted(y)
    assert adapted.last_augmented is True
    assert adapted.last_skipped is False
    adapted.confidence_threshold = 0.0
    moved = adapted.model.fc.weight.clone()
    adapted(z)
    assert adapted.last_augmented is False
    assert adapted.last_skipped is False
    assert not torch.equal(adapted.model.fc.weight, moved)


def test_the_symmetric_loss_has_a_signal_of_its_own() -> None:
    """Half of it is an entropy: also equal predictions give a gradient."""
    adapted = CoTTA(golden_net(), seed=0, confidence_threshold=0.0, symmetric=True)
    adapted(batches(1)[0])
    assert adapted.last_skipped is False


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_signal_is_the_gradient(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(cross_entropies(s, t, symmetric).sum(), s)
    assert float(training_signal(s, t, symmetric)) == pytest.approx(float(gradient.abs().max()), rel=1e-12)


def test_classes_without_probability_count_nothing() -> None:
    """Logits of -inf mask a class; 0 log 0 is 0, in value and gradient."""
    s = torch.tensor([[1.0, 2.0, -math.inf]], requires_grad=True)
    t = torch.tensor([[0.5, 0.1, -math.inf]])
    for symmetric in (False, True):
        small = s[:, :2].detach().requires_grad_()
        loss, expected = cross_entropies(s, t, symmetric).sum(), cross_entropies(small, t[:, :2], symmetric).sum()
        torch.testing.assert_close(loss, expected)
        (gradient,), (wanted,) = torch.autograd.grad(loss, s), torch.autograd.grad(expected, small)
        torch.testing.assert_close(gradient, torch.cat([wanted, torch.zeros(1, 1)], 1))


def test_rounding_is_that_of_the_coarser_type() -> None:
    assert 1e-6 < rounding(torch.float32, torch.float32) < 1e-5
    assert rounding(torch.float32, torch.bfloat16) == rounding(torch.bfloat16) > 1e-3
    assert rounding(torch.float64, torch.float64) < 1e-11


def test_teacher_and_source_in_bfloat16() -> None:
    x, y = batches(2, size=8)
    settings = {"seed": 0, "num_augmentations": 2}
    shut = CoTTA(golden_net(), confidence_threshold=0.0, precision="bfloat16", **settings)
    out = shut(x)
    assert shut.last_skipped, "the teacher's rounding is no signal"
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, shut.source(x), rtol=0.02, atol=0.02)
    half = CoTTA(golden_net(), confidence_threshold=1.0, precision="bfloat16", **settings)
    full = CoTTA(golden_net(), confidence_threshold=1.0, **settings)
    torch.testing.assert_close(half(y), full(y), rtol=0.05, atol=0.05)
    assert not half.last_skipped


class Widened(nn.Module):
    """Its logits are float32 whatever they were computed in, as in many networks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = golden_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).float()


@pytest.mark.parametrize("outer", [False, True])
def test_rounding_is_that_of_the_forwards_and_not_of_what_they_return(outer: bool) -> None:
    x, y = batches(2, size=8)
    adapted = CoTTA(
        Widened(), confidence_threshold=0.0, seed=0, precision="float32" if outer else "bfloat16", num_augmentations=2
    )
    before = adapted.model.net.fc.weight.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        adapted(x)
        adapted(y)
    assert adapted.last_skipped
    assert torch.equal(adapted.model.net.fc.weight, before)
