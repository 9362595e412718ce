"""Causal weights, the causal loss, the schedule of eps."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprints.pinn_causal import CausalLoss, EpsilonSchedule, causal_loss, causal_weights
from offprints.shared.testing import check_errors, check_loss, check_module

LOSSES = st.lists(st.floats(0, 5), min_size=1, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64))
EPS = st.floats(0, 10)


def inputs(generator: torch.Generator):
    return (torch.rand(3, 7, generator=generator) + 0.1,)


@pytest.mark.parametrize("loss", [partial(causal_loss, eps=0.5), CausalLoss(eps=0.5)], ids=["function", "module"])
def test_conformance(loss) -> None:
    # The weights are constants to the gradient, which the difference quotient cannot know.
    skip = dict.fromkeys(
        ("gradcheck", "double backward"), "weights are detached: test_gradient_is_that_of_fixed_weights"
    )
    check_loss(loss, inputs, skip=skip)


def test_module_conformance() -> None:
    check_module(CausalLoss(eps=0.5), inputs)


@given(losses=LOSSES, eps=EPS)
def test_properties(losses, eps) -> None:
    loss, weights = causal_loss(losses, eps)
    assert weights[0] == 1
    assert bool((weights.diff() <= 0).all())
    assert float(loss) <= float(losses.mean()) * (1 + 1e-12)
    changed = torch.cat([losses[:-1], losses[-1:] + 1])
    assert torch.equal(causal_weights(changed, eps), weights)
    assert float(causal_loss(losses, 0.0).loss) == pytest.approx(float(losses.mean()))


@given(losses=LOSSES, eps=EPS, scale=st.floats(0.1, 10))
def test_weights_see_eps_times_loss_alone(losses, eps, scale) -> None:
    torch.testing.assert_close(causal_weights(scale * losses, eps / scale), causal_weights(losses, eps))


@given(losses=LOSSES, eps=EPS, initial=st.floats(0, 3))
def test_initial_loss(losses, eps, initial) -> None:
    first = torch.tensor(initial, dtype=torch.float64)
    loss, weights = causal_loss(losses, eps, initial_loss=first)
    torch.testing.assert_close(weights, causal_weights(losses, eps) * torch.exp(-eps * first))
    torch.testing.assert_close(loss, (weights * losses).mean() + first)
    outside, plain = causal_loss(losses, eps, initial_loss=first, weight_by_initial=False)
    assert torch.equal(plain, causal_weights(losses, eps))
    torch.testing.assert_close(outside, (plain * losses).mean() + first)
    torch.testing.assert_close(causal_weights(losses, eps, initial_loss=initial), weights)


def test_batch_dimensions() -> None:
    losses, initial = torch.rand(2, 3, 5), torch.rand(2, 3)
    loss, weights = causal_loss(losses, 2.0, initial_loss=initial)
    assert loss.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = causal_loss(losses[i, j], 2.0, initial_loss=initial[i, j])
            torch.testing.assert_close(loss[i, j], alone.loss)
            torch.testing.assert_close(weights[i, j], alone.weights)


def test_gradient_is_that_of_fixed_weights() -> None:
    losses, initial = torch.rand(6, requires_grad=True), torch.rand((), requires_grad=True)
    loss, weights = causal_loss(losses, 3.0, initial_loss=initial)
    assert not weights.requires_grad
    by_losses, by_initial = torch.autograd.grad(loss, [losses, initial])
    torch.testing.assert_close(by_losses, weights / 6)
    assert by_initial == 1


def test_small_losses_after_a_large_one_keep_their_digits() -> None:
    losses = torch.tensor([1e-8, 1e8, 1.0], dtype=torch.float32)
    weights = causal_weights(losses, 1e6)
    torch.testing.assert_close(weights[1], torch.exp(torch.tensor(-1e-2)))


def test_weights_underflow_to_zero() -> None:
    weights = causal_weights(torch.tensor([10.0, 1.0, 1.0]), 100.0)
    assert weights.tolist() == [1, 0, 0]
    schedule = EpsilonSchedule()
    assert not schedule.step(weights)
    assert schedule.advance()


def test_eps_is_an_attribute() -> None:
    losses = torch.rand(5)
    module = CausalLoss(eps=1.0, weight_by_initial=False)
    module.eps = 4.0
    expected = causal_loss(losses, 4.0, initial_loss=losses.sum(), weight_by_initial=False)
    assert torch.equal(module(losses, losses.sum()).loss, expected.loss)


def test_schedule() -> None:
    schedule = EpsilonSchedule((0.1, 1.0, 10.0), threshold=0.9)
    assert (schedule.eps, schedule.index, schedule.done) == (0.1, 0, False)
    assert not schedule.step(torch.tensor([1.0, 0.9]))  # strictly above
    assert schedule.step(torch.tensor([1.0, 0.95]))
    assert (schedule.eps, schedule.index) == (1.0, 1)
    assert schedule.advance()
    assert schedule.eps == 10.0
    assert not schedule.done
    assert schedule.step(torch.ones(3))
    assert schedule.done
    assert schedule.eps == 10.0
    assert not schedule.advance()
    assert "10.0" in repr(schedule)


def test_a_weight_that_meets_the_threshold_does_not_exceed_it() -> None:
    schedule = EpsilonSchedule((0.1, 1.0), threshold=0.75)
    assert not schedule.step(torch.tensor([1.0, 0.75]))
    assert schedule.eps == 0.1
    assert schedule.step(torch.tensor([1.0, 0.7500001]))


@given(moves=st.lists(st.booleans(), max_size=6))
def test_schedule_state(moves) -> None:
    schedule = EpsilonSchedule()
    for met in moves:
        if met:
            schedule.step(torch.ones(2))
        else:
            schedule.advance()
    other = EpsilonSchedule((7.0,), threshold=0.5)
    other.load_state_dict(schedule.state_dict())
    assert other.state_dict() == schedule.state_dict()
    assert (other.eps, other.done) == (schedule.eps, schedule.done)


def test_errors() -> None:
    good, state = torch.rand(4), EpsilonSchedule().state_dict()
    check_errors(
        [
            (lambda: causal_weights([1.0, 2.0], 1.0), TypeError, "losses"),
            (lambda: causal_weights(torch.arange(3), 1.0), TypeError, "losses"),
            (lambda: causal_weights(torch.empty(0), 1.0), ValueError, "losses"),
            (lambda: causal_weights(torch.tensor(1.0), 1.0), ValueError, "losses"),
            (lambda: causal_weights(torch.tensor([1.0, -1e-9]), 1.0), ValueError, "losses"),
            (lambda: causal_weights(torch.tensor([1.0, float("nan")]), 1.0), ValueError, "losses"),
            (lambda: causal_weights(torch.tensor([1.0, float("inf")]), 1.0), ValueError, "losses"),
            (lambda: causal_weights(good, -1.0), ValueError, "eps"),
            (lambda: causal_weights(good, float("inf")), ValueError, "eps"),
            (lambda: causal_weights(good, float("nan")), ValueError, "eps"),
            (lambda: causal_weights(good, 1.0, initial_loss=-1.0), ValueError, "initial_loss"),
            (lambda: causal_weights(good, 1.0, initial_loss=torch.tensor(-1.0)), ValueError, "initial_loss"),
            (lambda: causal_loss(torch.arange(3), 1.0), TypeError, "losses"),
            (lambda: causal_loss(good, -1.0), ValueError, "eps"),
            (lambda: CausalLoss(eps=-1.0), ValueError, "eps"),
            (lambda: EpsilonSchedule(()), ValueError, "values"),
            (lambda: EpsilonSchedule((0.0, 1.0)), ValueError, "values"),
            (lambda: EpsilonSchedule((1.0, 1.0)), ValueError, "increasing"),
            (lambda: EpsilonSchedule((2.0, 1.0)), ValueError, "increasing"),
            (lambda: EpsilonSchedule(threshold=0.0), ValueError, "threshold"),
            (lambda: EpsilonSchedule(threshold=1.0), ValueError, "threshold"),
            (lambda: EpsilonSchedule().step(torch.tensor([1.0, float("nan")])), ValueError, "weights"),
            (lambda: EpsilonSchedule().load_state_dict({}), ValueError, "state"),
            (lambda: EpsilonSchedule().load_state_dict(state | {"index": 9}), ValueError, "index"),
            (lambda: EpsilonSchedule().load_state_dict(state | {"index": 5}), ValueError, "index"),
            (lambda: EpsilonSchedule().load_state_dict(state | {"index": -1}), ValueError, "index"),
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype) -> None:
    """600 losses of 200 are beyond what float16 holds, and beyond where bfloat16 can count."""
    losses = torch.full((600,), 200.0, dtype=dtype, requires_grad=True)
    right = torch.exp(-1e-5 * 200.0 * torch.arange(600, dtype=torch.float64))
    weights = causal_weights(losses, 1e-5)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights.double(), right, rtol=0, atol=4e-3)
    loss, same = causal_loss(losses, 1e-5)
    assert torch.equal(weights, same)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(200 * float(right.mean()), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(losses.grad.double(), right / 600, rtol=0, atol=1e-5)
    large = torch.full((3,), 6e4, dtype=dtype)
    total = causal_loss(large, 0.0, initial_loss=large[0])
    assert total.loss.item() == pytest.approx(1.2e5, rel=1e-2)
    assert bool((total.weights == 1).all())


def test_a_sum_that_overflows() -> None:
    losses = torch.full((3,), 3e38)
    assert causal_weights(losses, 0.0).tolist() == [1.0, 1.0, 1.0]
    assert causal_weights(losses, 1.0).tolist() == [1.0, 0.0, 0.0]


def test_initial_losses_that_do_not_fit_are_refused_whether_they_weigh_or_not() -> None:
    losses = torch.rand(3, 5)
    for by in (True, False):
        check_errors(
            [
                (
                    lambda v=v, by=by: causal_loss(losses, 1.0, initial_loss=v, weight_by_initial=by),
                    kind,
                    "initial_loss",
                )
                for v, kind in (
                    (torch.ones(7), ValueError),
                    (torch.ones(3, 1), ValueError),
                    (torch.tensor(-1.0), ValueError),
                    (torch.tensor(torch.nan), ValueError),
                    ("a", TypeError),
                )
            ]
        )
