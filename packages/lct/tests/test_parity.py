"""Equal to the official code on its outputs (golden/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.lct import (
    TWO_STEP_SIGMAS,
    LatentConsistencyLoss,
    LatentConsistencyModel,
    LatentNormalizer,
    adaptive_c,
    cauchy_loss,
    consistency_sample,
    discretization_curriculum,
    geman_mcclure_loss,
    karras_sigmas,
    lognormal_index_probabilities,
    ot_couple,
    ot_permutation,
    pseudo_huber_loss,
)

LOSSES = {"cauchy": cauchy_loss, "pseudo_huber": pseudo_huber_loss, "geman_mcclure": geman_mcclure_loss}
NEAR = {"rtol": 1e-7, "atol": 1e-12}


class FixedNetwork(nn.Module):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        for name in ("net_A", "net_b", "net_u"):
            self.register_buffer(name, data[name])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.net_A + t[:, None] * self.net_u + self.net_b).view_as(x)


@pytest.fixture
def data(golden) -> dict[str, Any]:
    return golden("golden")


@pytest.fixture
def model(data) -> LatentConsistencyModel:
    return LatentConsistencyModel(FixedNetwork(data), noise_scale=250)


def test_schedules(data) -> None:
    total, initial, final = data["curriculum_args"].tolist()
    scales = [discretization_curriculum(k, total, initial=initial, final=final) for k in range(total + 1)]
    assert scales == data["curriculum"].tolist()
    c = torch.tensor([adaptive_c(n, dim=64) for n in scales], dtype=torch.float64)
    assert_close(c, data["adaptive_c"], **NEAR)


def test_index_law(data) -> None:
    sigmas = karras_sigmas(int(data["num_scales"]), dtype=torch.float64)
    assert_close(sigmas[data["indices"] + 1], data["sigma_next"], **NEAR)
    ours = lognormal_index_probabilities(sigmas)
    assert_close(ours, data["probs"], rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("norm", ["mean", "element"])
def test_losses_of_a_step(data, model, name, norm) -> None:
    loss = LatentConsistencyLoss(total_steps=700, robust=name, norm=norm, c=float(data["c"]), coupling="none")
    out = loss(model, data["x"], step=int(data["step"]), noise=data["noise"], indices=data["indices"])
    assert out.num_scales == int(data["num_scales"])
    weight = 1 / (out.sigma_next - out.sigma)
    each = LOSSES[name](out.prediction, out.target, c=out.c, norm=norm, weight=weight, reduction="none")
    expected = data[f"consistency_{name}" + ("_element" if norm == "element" else "")]
    assert_close(each, expected, **NEAR)
    assert_close(out.consistency, expected.mean(), **NEAR)
    assert torch.equal(out.diffusion_mask, data["diffusion_mask"])
    assert_close(out.diffusion, data["diffusion_selected"].mean(), **NEAR)
    if name == "cauchy" and norm == "mean":
        assert_close(out.loss, data["total_cauchy"], **NEAR)


def test_adaptive_c_of_the_step(data, model) -> None:
    loss = LatentConsistencyLoss(total_steps=700, coupling="none")
    with pytest.warns(UserWarning, match="4096"):
        out = loss(model, data["x"], step=450, noise=data["noise"], indices=data["indices"])
    assert out.c == pytest.approx(float(data["c"]), rel=1e-12)
    assert_close(out.loss, data["total_cauchy"], **NEAR)


@pytest.mark.parametrize("name", list(LOSSES))
def test_robust_losses(data, name) -> None:
    residuals = data["rl_input"]
    ours = LOSSES[name](residuals, torch.zeros_like(residuals), c=float(data["rl_c"]), reduction="none")
    assert_close(ours, data[f"rl_{name}"], **NEAR)


def test_coupling(data) -> None:
    x, noise = data["ot_x"], data["ot_noise"]
    assert torch.equal(ot_permutation(x, noise), data["ot_permutation"])
    cost = (x - ot_couple(x, noise)).square().flatten(1).sum(1).mean()
    assert_close(cost, data["ot_cost"], **NEAR)


def test_normalizer(data) -> None:
    normalizer = LatentNormalizer((4, 3, 3))
    for batch in data["lat"].split(17):
        normalizer.update(batch)
    assert_close(normalizer(data["lat"]), data["lat_normalized"], **NEAR)


def test_two_step_sampling(data, model) -> None:
    assert_close(torch.tensor(TWO_STEP_SIGMAS, dtype=torch.float64), data["sample_sigmas"], **NEAR)
    first, second = data["sample_noises"]

    drawn = torch.randn(first.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sigma_max, sigma = data["sample_sigmas"].tolist()
    ours = consistency_sample(model, first, sigmas=(sigma_max, sigma), generator=torch.Generator().manual_seed(3))
    # The second noise is drawn inside: what it adds is taken out and the recorded one put in its place.
    one = consistency_sample(model, first)
    amount = (sigma**2 - 0.002**2) ** 0.5
    levels = torch.full((len(first),), sigma, dtype=torch.float64)
    assert_close(ours, model(one + amount * drawn, levels), **NEAR)
    assert_close(model(one + amount * second, levels), data["sample_out"], **NEAR)
