"""What the methods promise: orders of convergence, exactness, conventions, parametrizations."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.pndm import AlphaSchedule, GaussianMixtureEps, num_model_calls, pndm_sample, transfer

METHODS = ["ddim", "s-pndm", "f-pndm", "plms", "fon", "f-pndm-sigma"]
PHI = [method for method in METHODS if method != "fon"]
SDE = AlphaSchedule.continuous_linear()
LINEAR = AlphaSchedule.linear()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigma(level: Tensor) -> Tensor:
    return ((1 - level) / level).sqrt()


def mixture(schedule: AlphaSchedule = SDE) -> GaussianMixtureEps:
    return GaussianMixtureEps([[1.0, 0.2], [-0.6, 0.8], [-0.3, -1.0]], [0.4, 0.5, 0.35], [0.3, 0.4, 0.3], schedule)


def gaussian(x: Tensor, mean: Tensor, variance: float, a: Tensor, b: Tensor) -> Tensor:
    """The solution for a single Gaussian, in closed form."""
    ratio = (b * variance + 1 - b) / (a * variance + 1 - a)
    return mean * b.sqrt() + (x - mean * a.sqrt()) * ratio.sqrt()


# ---- order -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> Tensor:
    """The fourth-order variant at 640 steps, whose own error is 256 times smaller than at 160."""
    return solve(640, "f-pndm-sigma")


def solve(n: int, method: Any) -> Tensor:
    return pndm_sample(mixture(), normal(16, 2), schedule=SDE, times=np.linspace(1, 0.02, n + 1), method=method)


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [("ddim", 0.9, 1.1), ("s-pndm", 1.8, 2.2), ("f-pndm", 1.8, 3.0), ("plms", 1.8, 3.0), ("f-pndm-sigma", 3.5, 4.5)],
)
def test_order_on_a_mixture(method: Any, low: float, high: float, exact: Tensor) -> None:
    coarse, fine = ((solve(n, method) - exact).square().mean().sqrt() for n in (80, 160))
    assert low < float(torch.log2(coarse / fine)) < high


def test_order_on_one_gaussian() -> None:
    """The closed form as the reference; a grid whose steps grow, where only the sigma variant keeps its order."""
    mean, std = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.5
    model, noise = GaussianMixtureEps(mean[None], [std], [1.0], SDE), normal(8, 2)
    ends = SDE.alpha_bar(torch.tensor([1.0, 0.01], dtype=torch.float64))
    exact = gaussian(noise, mean, std**2, *ends)
    errors: dict[str, list[float]] = {"f-pndm": [], "f-pndm-sigma": []}
    for n in (100, 200):
        times = (1 - np.linspace(0, 1, n + 1)) ** 2 * 0.99 + 0.01
        for method, found in errors.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                out = pndm_sample(model, noise, schedule=SDE, times=times, method=method)  # type: ignore[arg-type]
            found.append(float((out - exact).abs().max()))
    orders = {method: np.log2(coarse / fine) for method, (coarse, fine) in errors.items()}
    assert 3.6 < orders["f-pndm-sigma"] < 4.6
    assert orders["f-pndm"] < 2.5


# ---- exactness -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.sampled_from(PHI), st.sampled_from(["linear", "quadratic", "cosine"]))
@settings(max_examples=25)
def test_a_constant_prediction_is_solved_exactly(n: int, method: Any, name: str) -> None:
    schedule = getattr(AlphaSchedule, name)()
    noise, eps = normal(2, 3), normal(2, 3, seed=1)
    out = pndm_sample(lambda x, t: eps, noise, schedule=schedule, num_steps=n, method=method)
    start = schedule.alpha_bar((n - 1) * (1000 // n)).item()
    scale = float(noise.abs().max()) / start**0.5
    torch.testing.assert_close(out, transfer(noise, eps, start, 1.0), rtol=1e-9, atol=1e-11 * scale)


@given(st.integers(4, 12), st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.integers(0, 5))
@settings(max_examples=15)
def test_sigma_weights_are_exact_for_cubics(n: int, factors: list[float], seed: int) -> None:
    """eps a cubic in sigma, the same for all x, on a random grid."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return sum(f * sigma(SDE.alpha_bar(t)) ** k for k, f in enumerate(factors)).unsqueeze(1).expand_as(x)  # type: ignore[union-attr]

    steps = np.random.default_rng(seed).uniform(0.2, 1, n)
    times = 0.5 - np.concatenate([[0], np.cumsum(steps)]) / steps.sum() * 0.45
    noise = normal(2, 3)
    out = pndm_sample(eps, noise, schedule=SDE, times=times, method="f-pndm-sigma")
    first, last = SDE.alpha_bar(torch.tensor([times[0], times[-1]]))
    a, b = sigma(first), sigma(last)
    integral = sum(f * (b ** (k + 1) - a ** (k + 1)) / (k + 1) for k, f in enumerate(factors))
    torch.testing.assert_close(out, last.sqrt() * (noise / first.sqrt() + integral), rtol=1e-9, atol=1e-9)


def test_it_commutes_with_rotations_and_permutations() -> None:
    mean, noise = torch.zeros(1, 4, dtype=torch.float64), normal(5, 4)
    model = GaussianMixtureEps(mean, [0.5], [1.0], LINEAR)
    rotation = torch.linalg.qr(normal(4, 4, seed=2)).Q
    out = pndm_sample(model, noise, schedule=LINEAR, num_steps=7)
    turned = pndm_sample(model, noise @ rotation, schedule=LINEAR, num_steps=7)
    torch.testing.assert_close(turned, out @ rotation, rtol=1e-9, atol=1e-10)
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(pndm_sample(model, noise[order], schedule=LINEAR, num_steps=7), out[order])


# ---- small and uneven grids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_few_steps(method: Any, n: int) -> None:
    asked = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t[0]))
        return 0.2 * x

    out = pndm_sample(model, normal(2, 3), schedule=LINEAR, num_steps=n, method=method)
    assert out.isfinite().all()
    assert len(asked) == num_model_calls(n, method)
    if method in ("f-pndm", "fon") and n <= 3:
        assert asked[-1] == -1


def test_the_sigma_variant_ends_at_the_data() -> None:
    """The midpoint of the last step lies above the table's first entry: the model is asked at time 0 there."""
    asked = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t[0]))
        return 0.2 * x

    pndm_sample(model, normal(2, 3), schedule=LINEAR, num_steps=2, method="f-pndm-sigma")
    assert asked[-4:] == [0, 0, 0, -1]
    first = AlphaSchedule.linear(final="first")  # a last step of no width
    assert pndm_sample(model, normal(2, 3), schedule=first, num_steps=6, method="f-pndm-sigma").isfinite().all()


def test_uneven_times_warn() -> None:
    uneven = [999.0, 700.0, 300.0, 0.0]
    for method in ("s-pndm", "f-pndm", "plms", "fon"):
        with pytest.warns(UserWarning, match="equally spaced") as caught:
            pndm_sample(lambda x, t: x, normal(2, 3), schedule=LINEAR, times=uneven, method=method)  # type: ignore[arg-type]
        assert caught[0].filename == __file__
    for method in ("ddim", "f-pndm-sigma"):
        pndm_sample(lambda x, t: x, normal(2, 3), schedule=LINEAR, times=uneven, method=method)  # type: ignore[arg-type]
    pndm_sample(lambda x, t: x, normal(2, 3), schedule=LINEAR, times=[600, 400, 200, 0, -1])  # but the last: no warning


def test_steps_that_differ_by_more_than_one_percent_warn() -> None:
    for width, warns in ((100.5, False), (103.0, True)):
        times = [900.0, 900.0 - width, 800.0 - width, 700.0 - width, 0.0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pndm_sample(lambda x, t: x, normal(2, 3), schedule=LINEAR, times=times, method="plms")
        assert bool(caught) == warns


def test_times_of_every_kind() -> None:
    runs = [
        pndm_sample(mixture(LINEAR), normal(2, 2), schedule=LINEAR, times=times)
        for times in ([800, 400, 0], np.array([800, 400, 0]), torch.tensor([800.0, 400.0, 0.0]))
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


# ---- what the model sees and returns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_parametrizations(method: Any) -> None:
    """A model of v or of the sample gives what the same model of the noise gives."""
    model, noise = mixture(LINEAR), normal(6, 2)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        a = LINEAR.alpha_bar(t).unsqueeze(1)
        return (model(x, t) - (1 - a).sqrt() * x) / a.sqrt()

    def clean(x: Tensor, t: Tensor) -> Tensor:
        a = LINEAR.alpha_bar(t).unsqueeze(1)
        return (x - (1 - a).sqrt() * model(x, t)) / a.sqrt()

    expected = pndm_sample(model, noise, schedule=LINEAR, num_steps=9, method=method)
    for other, kind in ((velocity, "v_prediction"), (clean, "sample")):
        out = pndm_sample(other, noise, schedule=LINEAR, num_steps=9, method=method, prediction_type=kind)  # type: ignore[arg-type]
        torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    times = set()

    def model(x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == dtype
        assert t.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert t.shape == (3,)
        times.update(t.tolist())
        return (0.5 * x).to(torch.float16)  # as under autocast

    out = pndm_sample(model, normal(3, 4).to(dtype), schedule=LINEAR, num_steps=10)
    assert out.dtype == dtype
    assert {900.0, 850.0, 700.0, 0.0} <= times


def test_half_precision_accumulates_in_float32() -> None:
    """One step in bfloat16 is the step in float64, rounded once."""
    x, eps = normal(20, 50).bfloat16(), normal(20, 50, seed=1).bfloat16()
    out = pndm_sample(lambda x, t: eps, x, schedule=LINEAR, times=[300, 200], method="ddim")
    exact = pndm_sample(lambda x, t: eps.double(), x.double(), schedule=LINEAR, times=[300, 200], method="ddim")
    assert (out != exact.bfloat16()).double().mean() < 0.01


def test_the_output_of_the_model_is_left_alone() -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        out = torch.tanh(x)
        kept.append((out, out.clone()))
        return out

    pndm_sample(model, normal(2, 3), schedule=LINEAR, num_steps=12)
    pndm_sample(lambda x, t: x, normal(2, 3), schedule=LINEAR, num_steps=12)  # its input itself
    assert all(torch.equal(out, before) for out, before in kept)


def test_trajectory_and_keyword_arguments() -> None:
    noise = normal(2, 3)

    def model(x: Tensor, t: Tensor, *, scale: float) -> Tensor:
        return scale * x

    options: Any = {"schedule": LINEAR, "num_steps": 8, "model_kwargs": {"scale": 0.3}}
    trajectory = pndm_sample(model, noise, return_trajectory=True, **options)
    assert trajectory.shape == (9, 2, 3)
    assert torch.equal(trajectory[0], noise)
    assert torch.equal(trajectory[-1], pndm_sample(model, noise, **options))
    # ends of steps, not stages
    part = pndm_sample(model, noise, schedule=LINEAR, times=[875, 750], model_kwargs={"scale": 0.3})
    assert torch.equal(trajectory[1], part)


def test_validation_can_be_left_out() -> None:
    noise = normal(2, 3)
    noise[0, 0] = torch.nan
    out = pndm_sample(lambda x, t: x, noise, schedule=LINEAR, num_steps=3, validate=False)
    assert out[1].isfinite().all()


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    noise = normal(4, 2)
    for method in METHODS:
        here, there = (
            pndm_sample(mixture(LINEAR), x, schedule=LINEAR, method=method)  # type: ignore[arg-type]
            for x in (noise, noise.cuda())
        )
        torch.testing.assert_close(there.cpu(), here)


# ---- hostile and unusual networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_network_that_works_in_place(method: Any, prediction: Any) -> None:
    """Its input and its times are its own; the caller's noise stays as it is."""
    noise = normal(4, 3).requires_grad_()
    before = noise.detach().clone()

    def careful(x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * torch.relu(x) + torch.sin(t / 200).unsqueeze(1)

    def reckless(x: Tensor, t: Tensor) -> Tensor:
        x.relu_().mul_(0.3)
        x.add_(t.div_(200).sin_().unsqueeze(1))
        return x

    options: Any = {"schedule": LINEAR, "num_steps": 7, "method": method, "prediction_type": prediction}
    for trajectory in (False, True):
        expected = pndm_sample(careful, noise, return_trajectory=trajectory, **options)
        assert torch.equal(pndm_sample(reckless, noise, return_trajectory=trajectory, **options), expected)
        assert torch.equal(noise, before)
    strided = before.t().contiguous().t()
    assert torch.equal(pndm_sample(reckless, strided, **options), pndm_sample(careful, strided, **options))
    assert torch.equal(strided, before)


def test_a_network_that_changes_what_it_returned() -> None:
    buffer = torch.empty(2, 3, dtype=torch.float64)

    def reuses(x: Tensor, t: Tensor) -> Tensor:
        return buffer.copy_(torch.tanh(x))

    with pytest.raises(ValueError, match="output of the model"):
        pndm_sample(reuses, normal(2, 3), schedule=LINEAR, num_steps=8)
    expected = pndm_sample(lambda x, t: torch.tanh(x), normal(2, 3), schedule=LINEAR, num_steps=8)
    assert torch.equal(
        pndm_sample(lambda x, t: reuses(x, t).clone(), normal(2, 3), schedule=LINEAR, num_steps=8), expected
    )
    # DDIM keeps nothing, and a view of the buffer is copied.
    pndm_sample(reuses, normal(2, 3), schedule=LINEAR, num_steps=8, method="ddim")
    assert torch.equal(pndm_sample(lambda x, t: reuses(x, t)[:], normal(2, 3), schedule=LINEAR, num_steps=8), expected)

    @torch.inference_mode()
    def inference(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x)

    assert torch.equal(pndm_sample(inference, normal(2, 3), schedule=LINEAR, num_steps=8), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("sample", "output"),
    [
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float64),
    ],
)
def test_an_output_of_another_type(method: Any, prediction: Any, sample: torch.dtype, output: torch.dtype) -> None:
    """The same samples as with the output converted by the network itself, in the type of the noise."""
    options: Any = {"schedule": LINEAR, "num_steps": 6, "method": method, "prediction_type": prediction}
    noise = normal(3, 4).to(sample)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return (0.4 * torch.tanh(x.double())).to(output)

    out = pndm_sample(model, noise, **options)
    assert out.dtype == sample
    expected = pndm_sample(lambda x, t: model(x, t).to(sample), noise, **options)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4}.get(sample, 0.1)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    if prediction == "epsilon" and method != "fon":  # kept as it is, converted
        assert torch.equal(out, expected)


@pytest.mark.parametrize("method", METHODS)
def test_nan_of_the_network_stays_in_its_row(method: Any) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(torch.arange(3).unsqueeze(1) == 1, torch.nan, 0.3 * x)

    out = pndm_sample(model, normal(3, 4), schedule=LINEAR, num_steps=6, method=method)
    clean = pndm_sample(lambda x, t: 0.3 * x, normal(3, 4), schedule=LINEAR, num_steps=6, method=method)
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    last = pndm_sample(  # also in a last step that has no width
        lambda x, t: x + torch.where(t == 0, torch.nan, 0.0).unsqueeze(1),
        normal(3, 4),
        schedule=AlphaSchedule.linear(final="first"),
        num_steps=6,
        method=method,
    )
    assert last.isnan().all()


def test_an_output_with_a_sample() -> None:
    class Output:
        def __init__(self, sample: Any) -> None:
            self.sample = sample

    expected = pndm_sample(lambda x, t: 0.3 * x, normal(2, 3), schedule=LINEAR, num_steps=5)
    assert torch.equal(pndm_sample(lambda x, t: Output(0.3 * x), normal(2, 3), schedule=LINEAR, num_steps=5), expected)
    for bad in (lambda x, t: Output(None), lambda x, t: torch.distributions.Normal(x, 1.0), lambda x, t: None):
        with pytest.raises(TypeError, match="model"):
            pndm_sample(bad, normal(2, 3), schedule=LINEAR, num_steps=5)


def test_a_network_with_whole_times() -> None:
    """The README's way: half steps are 850.5 for an odd number of training steps each; an embedding takes the floor."""
    table = torch.nn.Embedding(1000, 3, dtype=torch.float64)
    asked = set()

    def model(x: Tensor, t: Tensor) -> Tensor:
        asked.add(float(t[0]))
        return 0.2 * x + 0.1 * table(t.long().clamp(min=0))

    for n in (10, 111, 2):
        assert pndm_sample(model, normal(2, 3), schedule=LINEAR, num_steps=n).isfinite().all()
    assert {850.0, 985.5, -1.0} <= asked
    asked.clear()
    pndm_sample(model, normal(2, 3), schedule=LINEAR, num_steps=111, method="plms")
    assert all(t == int(t) for t in asked)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_gradients_through_the_run(method: Any, prediction: Any) -> None:
    schedule = AlphaSchedule.linear(50)
    theta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def run(noise: Tensor, theta: Tensor) -> Tensor:
        return pndm_sample(
            lambda x, t: torch.tanh(theta * x),
            noise,
            schedule=schedule,
            num_steps=5,
            method=method,
            prediction_type=prediction,
            differentiable=True,
        )

    noise = normal(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(run, (noise, theta))
    plain = pndm_sample(
        lambda x, t: torch.tanh(theta * x),
        noise,
        schedule=schedule,
        num_steps=5,
        method=method,
        prediction_type=prediction,
    )
    assert torch.equal(run(noise, theta), plain)
    assert not plain.requires_grad


# ---- caches ----------------------------------------------------------------------------------------------------------


def test_a_schedule_that_is_changed_is_read_anew() -> None:
    schedule = AlphaSchedule.linear()
    options: Any = {"num_steps": 6, "method": "plms"}
    pndm_sample(lambda x, t: torch.tanh(x), normal(2, 3), schedule=schedule, **options)
    for name, value in (("final", "first"), ("offset", 1), ("interpolation", "floor")):
        setattr(schedule, name, value)
        given = {key: getattr(schedule, key) for key in ("final", "offset", "interpolation")}
        expected = pndm_sample(
            lambda x, t: torch.tanh(x), normal(2, 3), schedule=AlphaSchedule.linear(**given), **options
        )
        actual = pndm_sample(lambda x, t: torch.tanh(x), normal(2, 3), schedule=schedule, **options)
        assert torch.equal(actual, expected)


# ---- zero terminal SNR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("s-pndm", 2), ("plms", 2), ("f-pndm", 2)])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_from_zero_terminal_snr(method: Any, order: int, prediction: Any) -> None:
    """A Gaussian in closed form from level 0, where the sample is noise alone."""
    schedule = AlphaSchedule.cosine(1000, rescale_zero_snr=True)
    assert schedule.alpha_bar(999).item() == 0
    mean, variance = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3

    def model(x: Tensor, t: Tensor) -> Tensor:
        a = schedule.alpha_bar(t).unsqueeze(1)
        total = a * variance + 1 - a
        clean = (a.sqrt() * variance * x + (1 - a) * mean) / total
        eps = (1 - a).sqrt() * (x - a.sqrt() * mean) / total
        return clean if prediction == "sample" else a.sqrt() * eps - (1 - a).sqrt() * clean

    noise, errors = normal(6, 2), []
    exact = gaussian(noise, mean, variance, *schedule.alpha_bar(torch.tensor([999.0, 19.0], dtype=torch.float64)))
    for n in (49, 98):
        times = torch.linspace(999, 19, n + 1, dtype=torch.float64)
        out = pndm_sample(model, noise, schedule=schedule, times=times, method=method, prediction_type=prediction)
        errors.append(float((out - exact).abs().max()))
    assert errors[1] < 0.03
    assert np.log2(errors[0] / errors[1]) > order - 0.5


def test_level_zero_is_refused_where_nothing_leads_away() -> None:
    schedule = AlphaSchedule.linear(rescale_zero_snr=True)
    times = [999, 500, 0, -1]
    for options in (
        {},
        {"method": "fon", "prediction_type": "sample"},
        {"method": "f-pndm-sigma", "prediction_type": "sample"},
    ):
        with pytest.raises(ValueError, match="alpha_bar 0"):
            pndm_sample(lambda x, t: x, normal(2, 3), schedule=schedule, times=times, **options)  # type: ignore[arg-type]
    late = pndm_sample(lambda x, t: 0.1 * x, normal(2, 3), schedule=schedule, times=[998, 500, 2, -1])
    assert late.isfinite().all()
