"""The training loss, the model and sampling."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.lct import (
    LatentConsistencyLoss,
    LatentConsistencyModel,
    LatentConsistencyOutput,
    adaptive_c,
    cauchy_loss,
    consistency_sample,
    karras_sigmas,
    ot_permutation,
)

CENTER, SPREAD = 0.3, 0.5


def gaussian_oracle(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact consistency function of data N(CENTER, SPREAD^2)."""
    sigma = sigma.to(x).view(-1, *[1] * (x.ndim - 1))
    return CENTER + (x - CENTER) * ((SPREAD**2 + 0.002**2) / (SPREAD**2 + sigma.square())).sqrt()


class Network(nn.Module):
    def __init__(self, dim: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return self.dropout(torch.tanh(self.layer(x.flatten(1)) + t[:, None] + shift).view_as(x))


def batch(n: int = 16, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return (0.5 * torch.randn(n, *(shape or (2, 3)), generator=g)).to(dtype)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_boundary_condition(dtype: torch.dtype) -> None:
    model = LatentConsistencyModel(Network()).to(dtype)
    x = batch(dtype=dtype)
    low, high = (torch.full((16,), 0.002, dtype=kind) for kind in (torch.bfloat16, torch.float64))
    for sigma in (0.002, low, low.new_full((16,), 0.002, dtype=torch.float32), high):
        y = model(x, sigma)
        assert y.dtype == dtype
        assert torch.equal(y, x)


def test_preconditioning() -> None:
    seen = {}

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.update(x=x, t=t)
        return torch.ones_like(x)

    class Wrapped(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return network(x, t)

    model = LatentConsistencyModel(Wrapped(), sigma_data=0.7, noise_scale=3.0)
    x = batch(2, dtype=torch.float64)
    sigma = torch.tensor([0.5, 8.0], dtype=torch.float64)
    y = model(x, sigma)
    for i, s in enumerate(sigma.tolist()):
        assert_close(seen["x"][i], x[i] / math.hypot(s, 0.7))
        assert float(seen["t"][i]) == pytest.approx(3 * math.log(s))
        skip = 0.49 / ((s - 0.002) ** 2 + 0.49)
        assert_close(y[i], skip * x[i] + 0.7 * (s - 0.002) / math.hypot(s, 0.7))


def test_definition_of_the_loss() -> None:
    torch.manual_seed(0)
    model = LatentConsistencyModel(Network())
    x = batch()
    loss = LatentConsistencyLoss(total_steps=70, c=0.2)
    out = loss(model, x, step=30, generator=seeded(1))
    assert (out.num_scales, out.c) == (81, 0.2)
    sigmas = karras_sigmas(81)
    assert torch.equal(out.sigma, sigmas[out.indices])
    assert torch.equal(out.sigma_next, sigmas[out.indices + 1])
    assert torch.equal(ot_permutation(x, out.noise), torch.arange(16))
    low, high = (x + s[:, None, None] * out.noise for s in (out.sigma, out.sigma_next))
    assert_close(out.target, model(low, out.sigma))
    assert_close(out.prediction, model(high, out.sigma_next))
    assert not out.target.requires_grad
    each = cauchy_loss(out.prediction, out.target, c=0.2, reduction="none")
    assert_close(out.consistency, (each / (out.sigma_next - out.sigma)).mean())
    early = out.indices <= 79 - int(0.75 * 81)
    assert torch.equal(out.diffusion_mask, early)
    assert early.any()
    errors = (1 / out.sigma_next**2 + 4) * (out.prediction - x).square().mean((1, 2))
    assert_close(out.diffusion, errors[early].mean())
    assert_close(out.loss, out.consistency + 5 * out.diffusion)


def test_draws() -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    loss = LatentConsistencyLoss(total_steps=70, c=0.2)
    first, again, other = (loss(model, x, step=0, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.noise, other.noise)
    given = loss(model, x, step=0, noise=first.noise.flip(0), indices=first.indices)
    assert torch.equal(given.noise, first.noise)  # what is given is coupled too
    assert torch.equal(given.loss, first.loss)
    free = LatentConsistencyLoss(total_steps=70, c=0.2, coupling="none")
    assert torch.equal(free(model, x, step=0, noise=first.noise.flip(0)).noise, first.noise.flip(0))


def test_no_early_sample_is_no_nan() -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    loss = LatentConsistencyLoss(total_steps=70, c=0.2)
    out = loss(model, x, step=0, indices=torch.full((16,), 9))
    assert not out.diffusion_mask.any()
    assert out.diffusion == 0
    assert torch.equal(out.loss, out.consistency)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("fraction", "last"), [(0.25, {11: 1, 641: 159}), (0.0, {11: -1, 641: -1}), (1.0, {11: 9})])
def test_which_timesteps_are_early(fraction: float, last: dict[int, int]) -> None:
    loss = LatentConsistencyLoss(total_steps=700, c=0.2, diffusion_fraction=fraction, coupling="none")
    for num_scales, expected in last.items():
        step = 0 if num_scales == 11 else 700
        indices = torch.arange(num_scales - 1)
        out = loss(gaussian_oracle, batch(num_scales - 1, 2), step=step, indices=indices)
        assert out.num_scales == num_scales
        assert int(out.diffusion_mask.sum()) == expected + 1
        assert out.diffusion_mask[: expected + 1].all()


def test_parts_can_be_off() -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    out = LatentConsistencyLoss(total_steps=70, c=0.2, diffusion_weight=0.0)(model, x, step=0)
    assert torch.equal(out.loss, out.consistency)
    assert out.diffusion == 0


def test_dropout_masks_are_the_same_in_both_calls() -> None:
    masks = []

    class Masked(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            masks.append(nn.functional.dropout(torch.ones_like(x), 0.5))
            return x * masks[-1]

    loss = LatentConsistencyLoss(total_steps=70, c=0.2)
    torch.manual_seed(0)
    loss(LatentConsistencyModel(Masked()), batch(), step=0, generator=seeded(0))
    loss(LatentConsistencyModel(Masked()), batch(), step=1, generator=seeded(1))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_model_arguments_and_labels() -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    loss = LatentConsistencyLoss(total_steps=70, c=0.2)
    plain, shifted = (
        loss(model, x, step=0, generator=seeded(0), model_kwargs=kwargs) for kwargs in (None, {"shift": torch.ones(6)})
    )
    assert not torch.equal(plain.prediction, shifted.prediction)
    noise = batch(4)
    assert not torch.equal(
        consistency_sample(model, noise), consistency_sample(model, noise, model_kwargs={"shift": 1.0})
    )


def test_adaptive_c() -> None:
    x = batch(4, 4, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = LatentConsistencyLoss(total_steps=70)(gaussian_oracle, x, step=40)
        assert out.c == adaptive_c(161, dim=4096)
        small = LatentConsistencyLoss(total_steps=70, c=lambda n: adaptive_c(n, dim=4096))
        assert small(gaussian_oracle, batch(), step=0).c == pytest.approx(0.03456)
        assert LatentConsistencyLoss(total_steps=70, final_scales=10)(gaussian_oracle, batch(), step=0).c > 0
    loss = LatentConsistencyLoss(total_steps=70)
    with pytest.warns(UserWarning, match="fixed c"):
        loss(gaussian_oracle, batch(), step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(gaussian_oracle, batch(), step=0)  # once


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    x = batch(dtype=dtype)
    loss = LatentConsistencyLoss(total_steps=70, c=0.2, coupling="none")
    out = loss(gaussian_oracle, x, step=70, indices=torch.arange(16))
    assert out.diffusion_mask.all()
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    assert out.prediction.dtype == dtype


def test_the_oracle_of_gaussian_data_is_consistent() -> None:
    """Its consistency loss is of second order in the step, that of another function is not."""
    x = CENTER + SPREAD * torch.randn(512, 3, generator=seeded(0), dtype=torch.float64)
    loss = LatentConsistencyLoss(total_steps=700, c=0.2, coupling="none", diffusion_weight=0.0)

    def wrong(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian_oracle(x, 0.9 * sigma)

    values = {f: float(loss(f, x, step=700, generator=seeded(1)).loss) for f in (gaussian_oracle, wrong)}
    assert values[gaussian_oracle] < values[wrong]
    samples = consistency_sample(gaussian_oracle, torch.randn(20_000, 1, generator=seeded(2), dtype=torch.float64))
    assert float(samples.mean()) == pytest.approx(CENTER, abs=0.02)
    assert float(samples.std()) == pytest.approx(SPREAD, abs=0.02)
    two = consistency_sample(gaussian_oracle, torch.randn(20_000, 1), sigmas=(80.0, 0.4), generator=seeded(3))
    assert float(two.std()) == pytest.approx(SPREAD, abs=0.02)


def test_training_makes_a_generator() -> None:
    torch.manual_seed(0)
    data = CENTER + SPREAD * torch.randn(4096, 1)

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layers(torch.cat([x, t[:, None]], 1))

    model = LatentConsistencyModel(Affine())
    loss = LatentConsistencyLoss(total_steps=200, final_scales=10, c=0.3, diffusion_weight=0.0)
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-2)
    for step in range(200):
        out = loss(model, data[torch.randint(4096, (128,))], step=step)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    samples = consistency_sample(model, torch.randn(4096, 1))  # untrained: mean 0.02, deviation 0.07
    assert float(samples.mean()) == pytest.approx(CENTER, abs=0.15)
    assert float(samples.std()) == pytest.approx(SPREAD, abs=0.2)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    torch.manual_seed(0)
    model, x = LatentConsistencyModel(Network()), batch()
    loss = LatentConsistencyLoss(total_steps=70, c=0.2)
    here = loss(model, x, step=30, generator=seeded(0))
    there = loss(model.cuda(), x.cuda(), step=30, generator=seeded(0))
    assert there.loss.is_cuda
    assert_close(there.loss.cpu(), here.loss, rtol=1e-4, atol=1e-5)


class Noisy(nn.Module):
    """With dropout twice, and of a given way to answer."""

    def __init__(self, answer: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.answer = nn.Linear(6, 6), answer

    def forward(self, x: Tensor, t: Tensor) -> object:
        h = nn.functional.dropout(self.layer(x.flatten(1)), 0.5, self.training)
        y = nn.functional.dropout(torch.tanh(h + t[:, None]), 0.5, self.training).view_as(x)
        return {"tensor": y, "sample": SimpleNamespace(sample=y), "tuple": (y,)}[self.answer]


# The compiler looks at `.grad` of what an eager call returned and hides the warning, but not one that is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_as_a_whole_the_masks_are_the_same(backend: str) -> None:
    """Equal levels and equal masks: what is left is the small difference of neighboring levels."""
    model, x = LatentConsistencyModel(Noisy()), batch()
    loss = LatentConsistencyLoss(total_steps=70, c=0.2, coupling="none", diffusion_weight=0.0)
    indices, noise = torch.full((16,), 150), batch(16).flip(0)

    def whole(x: Tensor) -> LatentConsistencyOutput:
        return loss(model, x, step=70, noise=noise, indices=indices)

    torch.compiler.reset()
    torch.manual_seed(3)
    expected = whole(x)
    for fn in (
        torch.compile(whole, backend=backend),
        lambda x: torch.compile(loss, backend=backend)(model, x, step=70, noise=noise, indices=indices),
    ):
        torch.manual_seed(3)
        found = fn(x)
        assert_close(found.prediction, expected.prediction)
        assert_close(found.target, expected.target)
        assert_close(found.loss, expected.loss)
    assert float((found.prediction - found.target).detach().square().mean()) < 1e-3
    model.eval()
    other = whole(x)
    assert float((other.prediction - expected.prediction).detach().square().mean()) > 1e-2  # the masks were at work


@pytest.mark.parametrize("answer", ["sample", "tuple"])
def test_networks_of_diffusers(answer: str) -> None:
    x = batch()
    plain, other = (LatentConsistencyModel(Noisy(kind)).eval() for kind in ("tensor", answer))
    assert torch.equal(plain(x, 0.7), other(x, 0.7))
    loss = LatentConsistencyLoss(total_steps=70, c=0.2)
    values = [loss(model, x, step=3, generator=seeded(0)).loss for model in (plain, other)]
    assert torch.equal(*values)
    samples = [consistency_sample(model, x) for model in (plain, other)]
    assert torch.equal(*samples)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda y: y[:, :1], ValueError),
        (lambda y: y.mean(), ValueError),
        (lambda y: y[:1], ValueError),
        (lambda y: torch.cat([y, y], 1), ValueError),
        (lambda y: y.flatten(1), ValueError),
        (lambda y: None, TypeError),
        (lambda y: (y, y), TypeError),
        (lambda y: y.long(), TypeError),
    ],
)
def test_outputs_of_the_wrong_shape_do_not_broadcast(answer, error) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> object:
            return answer(x)

    x = batch(4, 2, 3, 3)
    with pytest.raises(error, match="network must return"):
        LatentConsistencyModel(Wrong())(x, 0.7)
    with pytest.raises(error, match="model must return"):
        consistency_sample(lambda x, s: answer(x), x)
    with pytest.raises(error, match="model must return"):
        LatentConsistencyLoss(total_steps=70, c=0.2)(lambda x, s: answer(x), x, step=0)


@pytest.mark.parametrize("value", [0.0, 0.001, -1.0, math.nan])
def test_levels_below_the_lowest_are_refused(value: float) -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    for sigma in (value, torch.tensor([1.0] * 15 + [value])):
        with pytest.raises(ValueError, match="sigma must be"):
            model(x, sigma)
    if value == 0:  # where values cannot be looked at the lowest level is taken
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(compiled(x, torch.zeros(16)), x)


def test_a_distance_of_your_own() -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    seen = []

    def distance(prediction: Tensor, target: Tensor, c: float) -> Tensor:
        seen.append(c)
        return cauchy_loss(prediction, target, c=c, reduction="none")

    ours, plain = (
        LatentConsistencyLoss(total_steps=70, c=0.2, robust=robust)(model, x, step=0, generator=seeded(0))
        for robust in (distance, "cauchy")
    )
    assert seen == [0.2]
    assert torch.equal(ours.loss, plain.loss)
    for wrong in (lambda p, t, c: p.mean(), lambda p, t, c: p, lambda p, t, c: None):
        with pytest.raises(ValueError, match="robust must return"):
            LatentConsistencyLoss(total_steps=70, c=0.2, robust=wrong)(model, x, step=0)


def test_a_constant_for_each_interval() -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    out = LatentConsistencyLoss(total_steps=70, c=lambda n: 0.1 + torch.arange(n - 1.0))(
        model, x, step=0, generator=seeded(0)
    )
    assert_close(out.c, 0.1 + out.indices)
    each = cauchy_loss(out.prediction, out.target, c=0.1 + out.indices.float(), reduction="none")
    assert_close(out.consistency, (each / (out.sigma_next - out.sigma)).mean())
    with pytest.raises(ValueError, match="c must"):
        LatentConsistencyLoss(total_steps=70, c=lambda n: torch.ones(n))(model, x, step=0)


def test_numbers_of_numpy() -> None:
    model, x = LatentConsistencyModel(Network()), batch()
    loss = LatentConsistencyLoss(
        total_steps=np.int64(70),
        initial_scales=np.int32(10),
        final_scales=np.int64(640),
        c=np.float32(0.25),
        sigma_max=np.float64(80),
        diffusion_weight=np.float32(5),
    )
    plain = LatentConsistencyLoss(total_steps=70, c=0.25)
    ours, expected = (fn(model, x, step=np.int64(30), generator=seeded(0)) for fn in (loss, plain))
    assert torch.equal(ours.loss, expected.loss)
    assert type(ours.num_scales) is int
    assert type(ours.c) is float


def test_extreme_residuals_in_training() -> None:
    x = batch()
    weights = torch.ones(6, requires_grad=True)
    loss = LatentConsistencyLoss(total_steps=70, c=0.2, diffusion_weight=0.0, coupling="none")
    out = loss(lambda x, s: x + 1e20 * s.view(-1, 1, 1) * weights.view(2, 3), x, step=0, indices=torch.full((16,), 4))
    gap = 1e20 * float(out.sigma_next[0].double() - out.sigma[0].double())
    expected = math.log1p((gap / 0.2) ** 2 / 2) / float(out.sigma_next[0] - out.sigma[0])
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-4)
    out.loss.backward()
    assert weights.grad.isfinite().all()
    assert (weights.grad > 0).all()


def test_a_level_as_a_tensor_of_one_number() -> None:
    class Network(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x + t[:, None])

    model, x = LatentConsistencyModel(Network()), torch.randn(4, 3)
    for sigma in karras_sigmas(5):
        assert torch.equal(model(x, sigma), model(x, sigma.expand(4)))
    for wrong in (
        torch.tensor(math.inf),
        torch.tensor([1.0, 1.0, math.nan, 1.0]),
        torch.tensor([1.0, 1.0, 1.0, math.inf]),
    ):
        with pytest.raises(ValueError, match="sigma must"):
            model(x, wrong)


def test_settings_that_are_changed_later_count() -> None:
    x, g = torch.randn(64, 3), torch.Generator()
    for name, value in (("sigma_max", 40.0), ("sigma_min", 0.01), ("rho", 3.0), ("p_mean", 2.0), ("p_std", 0.5)):
        changed = LatentConsistencyLoss(total_steps=70, c=0.1)
        changed(lambda x, s: x, x, step=0)
        setattr(changed, name, value)
        fresh = LatentConsistencyLoss(total_steps=70, c=0.1, **{name: value})
        a, b = (loss(lambda x, s: x, x, step=0, generator=g.manual_seed(0)) for loss in (changed, fresh))
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.sigma_next, b.sigma_next)


def test_laws_and_indices_that_are_none() -> None:
    with pytest.raises(ValueError, match="p_mean = 1000000"):
        LatentConsistencyLoss(total_steps=70, p_mean=1e6)
    with pytest.raises(ValueError, match=r"indices must have shape \(4,\), got \(4, 1\)"):
        loss = LatentConsistencyLoss(total_steps=70, c=0.1)
        loss(lambda x, s: x, torch.randn(4, 3), step=0, indices=torch.zeros(4, 1, dtype=torch.int64))
