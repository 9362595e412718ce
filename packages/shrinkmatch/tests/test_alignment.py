"""Distribution alignment: both forms, evaluation mode, types, stored states, processes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offprints.shared.testing import check_arguments, check_module
from offprints.shrinkmatch import DistributionAlignment


def draw(seed: int, batch: int = 6, classes: int = 4) -> Tensor:
    return (2 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def updated(mode: str, batches: int = 3) -> DistributionAlignment:
    alignment = DistributionAlignment(4, mode=mode, length=2, momentum=0.9)
    for seed in range(batches):
        alignment(draw(seed))
    return alignment


@pytest.mark.parametrize("mode", ["queue", "ema"])
def test_conformance(mode: str) -> None:
    check_module(updated(mode), lambda g: (torch.randn(6, 4, generator=g).softmax(1),), nan="raise")


def test_constructor() -> None:
    check_arguments(DistributionAlignment, lambda g: {"num_classes": 4, "length": 3, "momentum": 0.9})
    assert repr(DistributionAlignment(4)) == "DistributionAlignment(4, mode='queue', length=32)"
    assert repr(DistributionAlignment(4, mode="ema")) == "DistributionAlignment(4, mode='ema', momentum=0.999)"


def test_the_batch_is_in_the_mean() -> None:
    """The first batch is divided by its own mean in both forms."""
    probs = draw(0)
    ratios = probs / probs.mean(0)
    for mode in ("queue", "ema"):
        alignment = DistributionAlignment(4, mode=mode)
        assert_close(alignment(probs), ratios / ratios.sum(1, keepdim=True))
        assert_close(alignment.target_free_mean, probs.mean(0))


def test_running_mean() -> None:
    alignment = DistributionAlignment(4, mode="ema", momentum=0.75)
    means = [draw(seed).mean(0) for seed in range(3)]
    for seed in range(3):
        alignment(draw(seed))
    expected = 0.75 * (0.75 * means[0] + 0.25 * means[1]) + 0.25 * means[2]
    assert_close(alignment.target_free_mean, expected)


def test_queue_keeps_its_length() -> None:
    assert_close(updated("queue", 5).target_free_mean, (draw(3).mean(0) + draw(4).mean(0)) / 2)
    assert_close(updated("queue", 1).target_free_mean, draw(0).mean(0))


@pytest.mark.parametrize("mode", ["queue", "ema"])
def test_evaluation_changes_nothing(mode: str) -> None:
    fresh = DistributionAlignment(4, mode=mode).eval()
    assert torch.equal(fresh(draw(0)), draw(0))
    assert fresh.target_free_mean.tolist() == [0.25] * 4
    alignment = updated(mode).eval()
    state = copy.deepcopy(alignment.state_dict())
    first = alignment(draw(7))
    assert torch.equal(alignment(draw(7)), first)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), alignment.state_dict().values(), strict=True))
    assert not torch.allclose(first, draw(7))


def test_a_class_never_predicted() -> None:
    """Its mean is 0: 0/0 in training, a finite number over 0 in evaluation mode."""
    never = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])
    alignment = DistributionAlignment(3)
    assert alignment(never).isfinite().all()
    aligned = alignment.eval()(torch.tensor([[0.3, 0.3, 0.4], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]))
    assert aligned.isfinite().all()
    assert_close(aligned.sum(1), torch.ones(3))
    assert aligned[0, 2] > 0.999


def test_half_types_do_not_stop_the_mean() -> None:
    """In bfloat16 a step of 0.001 is below half of the last bit: the state stays in float32."""
    alignment = DistributionAlignment(4, mode="ema").bfloat16()
    assert alignment.means.dtype == torch.float32
    alignment(torch.tensor([[0.25, 0.25, 0.25, 0.25]]).bfloat16())
    for _ in range(100):
        out = alignment(torch.tensor([[0.75, 0.25, 0.0, 0.0]]).bfloat16())
    assert out.dtype == torch.bfloat16
    assert alignment.target_free_mean[0].item() == pytest.approx(0.75 - 0.5 * 0.999**100, rel=1e-4)
    assert alignment.double().means.dtype == torch.float64


def test_no_graph_and_no_alias() -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    alignment = DistributionAlignment(4, mode="ema")
    assert not alignment(logits.softmax(1)).requires_grad
    mean = alignment.target_free_mean
    before = mean.clone()
    alignment(draw(1))
    assert torch.equal(mean, before)


def test_under_inference_mode_and_after_it() -> None:
    alignment, other = DistributionAlignment(4), DistributionAlignment(4)
    with torch.inference_mode():
        alignment(draw(0))
    other(draw(0))
    assert_close(alignment(draw(1)), other(draw(1)))


def test_compiles_with_its_updates() -> None:
    for mode in ("queue", "ema"):
        eager, compiled = DistributionAlignment(4, mode=mode, length=2), DistributionAlignment(4, mode=mode, length=2)
        call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
        for seed in range(4):
            assert_close(call(draw(seed)), eager(draw(seed)))
        assert_close(compiled.target_free_mean, eager.target_free_mean)


def of_rank(rank: int) -> list[Tensor]:
    found = []
    for mode in ("queue", "ema"):
        alignment = DistributionAlignment(4, mode=mode)
        for step in range(3):
            alignment(draw(10 * step + rank))
        found.append(alignment.target_free_mean)
    return found


def test_two_processes(two_processes) -> None:
    """Both hold what one process gets from the batches of both."""
    expected = []
    for mode in ("queue", "ema"):
        single = DistributionAlignment(4, mode=mode)
        for step in range(3):
            single(torch.cat([draw(10 * step), draw(10 * step + 1)]))
        expected.append(single.target_free_mean)
    for found in two_processes(of_rank):
        assert_close(found, expected)
