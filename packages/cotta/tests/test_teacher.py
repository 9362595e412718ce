"""The averaged teacher and stochastic restoration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offprints.cotta import ema_update_, stochastic_restore_
from offprints.cotta.teacher import bernoulli_positions


def tensors(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4, 2, 2), (5,), (), (7, 3), (1000,)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[0] = made[0].contiguous(memory_format=torch.channels_last)
    return made


@given(st.floats(0, 1), st.integers(0, 10))
def test_average(decay: float, seed: int) -> None:
    teacher, student, before = tensors(seed), tensors(seed + 1), tensors(seed)
    ema_update_(teacher, student, decay)
    for t, s, b in zip(teacher, student, before, strict=True):
        torch.testing.assert_close(t, decay * b + (1 - decay) * s)


def test_ends_of_the_average_are_exact() -> None:
    teacher, student = tensors(0), tensors(1)
    ema_update_(teacher, student, 1.0)
    assert all(map(torch.equal, teacher, tensors(0)))
    ema_update_(teacher, student, 0.0)
    assert all(map(torch.equal, teacher, student))
    assert all(map(torch.equal, student, tensors(1)))


def test_tied_tensors_move_once() -> None:
    teacher, student = torch.zeros(3), torch.ones(3)
    ema_update_([teacher, teacher], [student, student], 0.5)
    assert torch.equal(teacher, torch.full((3,), 0.5))
    weights, generator = torch.zeros(100_000), torch.Generator().manual_seed(0)
    stochastic_restore_([weights, weights], [torch.ones(100_000)] * 2, 0.05, generator=generator)
    assert abs(float(weights.mean()) - 0.05) < 0.005


@pytest.mark.parametrize("probability", [0.01, 0.3])
def test_restored_share(probability: float) -> None:
    generator = torch.Generator().manual_seed(0)
    current = [torch.zeros(300, 400), torch.zeros(5), torch.zeros(400, 300).t()]
    source = [torch.ones_like(tensor) for tensor in current]
    stochastic_restore_(current, source, probability, generator=generator)
    share = torch.cat([tensor.flatten() for tensor in current])
    assert set(share.unique().tolist()) == {0.0, 1.0}
    deviation = math.sqrt(probability * (1 - probability) / len(share))
    assert abs(float(share.mean()) - probability) < 4 * deviation


def test_positions_are_independent_trials() -> None:
    """The law of the gaps: counts per block are binomial, each place is as likely as another."""
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(50)
    counts = []
    for _ in range(4000):
        positions = bernoulli_positions(50, 0.08, generator)
        assert (positions.diff() > 0).all()
        hits[positions] += 1
        counts.append(float(len(positions)))
    drawn = torch.tensor(counts)
    assert abs(float(drawn.mean()) - 4) < 0.1
    assert abs(float(drawn.var()) - 4 * 0.92) < 0.3
    assert (hits / 4000 - 0.08).abs().max() < 5 * math.sqrt(0.08 * 0.92 / 4000)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_ends_of_the_restoration_are_exact(probability: float) -> None:
    current = tensors(1)
    stochastic_restore_(current, tensors(0), probability)
    assert all(map(torch.equal, current, tensors(1 - int(probability))))


def test_masks_override_the_draw() -> None:
    current, source = tensors(1), tensors(0)
    masks = [tensor > 0 for tensor in tensors(2)]
    stochastic_restore_(current, source, 0.5, masks=masks)
    for tensor, old, new, mask in zip(current, tensors(1), source, masks, strict=True):
        assert torch.equal(tensor, torch.where(mask, new, old))


def test_a_generator_decides() -> None:
    results = []
    for _ in range(2):
        current = tensors(1)
        stochastic_restore_(current, tensors(0), 0.05, generator=torch.Generator().manual_seed(7))
        results.append(current)
    assert all(map(torch.equal, *results))
