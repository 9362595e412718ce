"""Networks and buffers that are changed in place, on every path: the right samples, or a refusal."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from offprints.pndm import AlphaSchedule, GaussianMixtureEps, pndm_sample
from offprints.pndm.diffusers import PNDMScheduler

METHODS = ["ddim", "s-pndm", "f-pndm", "plms", "fon"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SCHEDULE = AlphaSchedule.linear(interpolation="floor", final="first")
NOISE = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MIX = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 3


def network(x: Tensor, t: Any) -> Tensor:
    time = t.reshape(-1)[0] if isinstance(t, Tensor) else t
    return torch.tanh(x @ MIX.to(x.dtype)) * (0.5 + time / 2000) + 0.2 * x.relu()


def expected(method: Any, prediction: Any = "epsilon") -> Tensor:
    return pndm_sample(network, NOISE, schedule=SCHEDULE, num_steps=10, method=method, prediction_type=prediction)


def overwrites(x: Tensor, t: Any) -> Tensor:
    out = network(x, t)
    x.zero_()
    return out


def returns_its_input(x: Tensor, t: Any) -> Tensor:
    return x.copy_(network(x, t))


def returns_a_view(x: Tensor, t: Any) -> Tensor:
    return x.copy_(network(x, t)).view(x.shape)


IN_PLACE = [overwrites, returns_its_input, returns_a_view]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("model", IN_PLACE)
def test_the_sampler_hands_out_a_tensor_of_its_own(method: Any, prediction: Any, model: Callable[..., Tensor]) -> None:
    right = expected(method, prediction)
    options: dict[str, Any] = {"schedule": SCHEDULE, "num_steps": 10, "method": method, "prediction_type": prediction}
    kept = NOISE.clone()
    torch.testing.assert_close(pndm_sample(model, kept, **options), right, rtol=1e-12, atol=1e-12)
    path = pndm_sample(model, kept, return_trajectory=True, **options)
    torch.testing.assert_close(path[-1], right, rtol=1e-12, atol=1e-12)
    assert torch.equal(path[0], NOISE)
    # Recorded by autograd, out of columns, and the gradient too.
    leaf = kept.t().contiguous().t().requires_grad_()
    drawn = pndm_sample(model, leaf, differentiable=True, **options)
    torch.testing.assert_close(drawn, right, rtol=1e-12, atol=1e-12)
    plain = NOISE.clone().requires_grad_()
    other = pndm_sample(network, plain, differentiable=True, **options)
    (got,), (want,) = (torch.autograd.grad(out.square().sum(), x) for out, x in ((drawn, leaf), (other, plain)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert torch.equal(kept, NOISE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("model", IN_PLACE)
def test_the_scheduler_refuses_a_sample_that_the_model_changed(
    method: Any, prediction: Any, model: Callable[..., Tensor]
) -> None:
    """The loop of pipelines, which ask `scale_model_input` before each call."""
    scheduler = PNDMScheduler(method=method, prediction_type=prediction)
    scheduler.set_timesteps(10)
    x, t = NOISE.clone(), scheduler.timesteps[0]
    out = model(scheduler.scale_model_input(x, t), t)
    with pytest.raises(ValueError, match=r"sample was changed in place by the model.*copy"):
        scheduler.step(out, t, x)
    # With the copy that the message asks for, and after edits in place between step and model, all is right.
    runs = []
    for asked in (model, network):
        scheduler.set_timesteps(10)
        x = NOISE.clone()
        for t in scheduler.timesteps:
            x[:, 0] = 0.5
            out = asked(scheduler.scale_model_input(x, t).clone(), t)
            x = scheduler.step(out, t, x).prev_sample
        runs.append(x)
    assert torch.equal(*runs)


@pytest.mark.parametrize("model", IN_PLACE)
def test_without_scale_model_input_an_edit_is_questioned(model: Callable[..., Tensor]) -> None:
    """From the second call on, the scheduler knows the sample; the first one, which it does not, is the user's."""
    scheduler = PNDMScheduler(method="plms")
    scheduler.set_timesteps(10)
    x, times = NOISE.clone(), scheduler.timesteps
    x = scheduler.step(network(x, times[0]), times[0], x).prev_sample
    out = model(x, times[1])
    if model is overwrites:
        with pytest.warns(UserWarning, match="sample was changed in place since the last step"):
            scheduler.step(out, times[1], x)
    else:
        with pytest.raises(ValueError, match="sample was changed in place by the model"):
            scheduler.step(out, times[1], x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", [False, True])
def test_buffers_of_a_loop(method: Any, graph: bool) -> None:
    """A static sample is right in any run; a static output is refused, also where autograd records the loop."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=graph)
    scheduler = PNDMScheduler(method=method)
    scheduler.set_timesteps(10)
    plain = NOISE
    for t in scheduler.timesteps:
        plain = scheduler.step(network(plain, t), t, plain).prev_sample
    scheduler.set_timesteps(10)
    x = NOISE.clone()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in scheduler.timesteps:
            x.copy_(scheduler.step(weight * network(x, t), t, x).prev_sample)
    assert torch.equal(x, plain)
    scheduler.set_timesteps(10)
    x, buffer = NOISE.clone(), torch.empty_like(NOISE)

    def run(x: Tensor) -> Tensor:
        for t in scheduler.timesteps:
            buffer.copy_(weight * network(x, t))
            x = scheduler.step(buffer, t, x).prev_sample
        return x

    if method in ("ddim", "fon"):  # these keep no output
        assert torch.equal(run(x), plain)
    else:
        with pytest.raises(ValueError, match="changed in place, while it is still needed"):
            run(x)


@pytest.mark.parametrize("method", ["s-pndm", "plms", "f-pndm"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_a_buffer_of_the_network_is_refused(method: Any, differentiable: bool) -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    buffer = torch.empty_like(NOISE)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return buffer.copy_(weight * network(x, t))

    with pytest.raises(ValueError, match="the model of an earlier call was changed in place"):
        pndm_sample(model, NOISE, schedule=SCHEDULE, num_steps=10, method=method, differentiable=differentiable)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("through", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_of_a_scheduler_goes_on_with_the_run(method: Any, through: Callable[[Any], Any]) -> None:
    """Outputs that were changed before they were passed on (`mul_` as a network's last step) are copied with it."""
    scheduler = PNDMScheduler(method=method)
    scheduler.set_timesteps(10)
    runs = []
    for copies in (False, True):
        running, x = scheduler, NOISE
        running.set_timesteps(10)
        for i, t in enumerate(scheduler.timesteps):
            x = running.step(network(x, t).mul_(2).div_(2), t, x).prev_sample
            if copies and i in (2, 7):
                running = through(running)
        runs.append(x)
    assert torch.equal(*runs)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own jvp
@pytest.mark.parametrize("method", [*METHODS, "f-pndm-sigma"])
def test_transforms_over_the_weights(method: Any) -> None:
    """Gradients, directional derivatives and ensembles of the model's weights by torch.func, from one noise."""
    schedule = AlphaSchedule.linear()
    weights = torch.tensor([0.7, 1.0, 1.2], dtype=torch.float64)

    def drawn(weight: Tensor) -> Tensor:
        def model(x: Tensor, t: Tensor) -> Tensor:
            return weight * network(x, t)

        return pndm_sample(model, NOISE, schedule=schedule, num_steps=6, method=method, differentiable=True)

    each = torch.stack([drawn(weight) for weight in weights])
    torch.testing.assert_close(torch.func.vmap(drawn)(weights), each, rtol=1e-12, atol=1e-12)
    width = 1e-6
    slope = (drawn(weights[0] + width) - drawn(weights[0] - width)) / (2 * width)
    _, along = torch.func.jvp(drawn, (weights[0],), (torch.ones_like(weights[0]),))
    torch.testing.assert_close(along, slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.func.jacrev(drawn)(weights[0]), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_all_made_inside_of_a_transform(method: Any) -> None:
    """Schedules and schedulers made where torch.func has them without memory."""

    def stepped(noise: Tensor) -> Tensor:
        scheduler, x = PNDMScheduler(method=method), noise
        scheduler.set_timesteps(6)
        for t in (time.item() for time in scheduler.timesteps[:-1]):
            x = scheduler.step(network(x, t), t, x).prev_sample
        return x.square().sum()

    def solved(noise: Tensor) -> Tensor:
        schedule = AlphaSchedule.linear()
        x = pndm_sample(network, noise, schedule=schedule, num_steps=6, method="f-pndm-sigma", differentiable=True)
        return x.square().sum()

    for function in (stepped, solved):
        leaf = NOISE.clone().requires_grad_()
        (want,) = torch.autograd.grad(function(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(function)(NOISE), want, rtol=1e-10, atol=1e-12)


def test_the_users_arrays_are_copied() -> None:
    """A mixture or a table does not change with the tensor that it was made of."""
    means, stds, weights = (
        torch.tensor(v, dtype=torch.float64) for v in ([[1.0, 0], [-1, 0.5]], [0.2, 0.7], [0.4, 0.6])
    )
    table = torch.linspace(0.99, 0.1, 50, dtype=torch.float64)
    schedule = AlphaSchedule(table)
    model = GaussianMixtureEps(means, stds, weights, schedule)
    x, t = torch.ones(2, 2, dtype=torch.float64), torch.tensor([10.0, 40.0])
    before = model(x, t)
    for given in (means, stds, weights, table):
        given.mul_(0.5)
    assert torch.equal(model(x, t), before)
