"""Equal to the official code and to diffusers on their golden outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from offprints.pndm import AlphaSchedule, num_model_calls, pndm_sample, transfer
from offprints.pndm.diffusers import PNDMScheduler

Golden = Callable[[str], dict[str, Tensor]]
SCHEDULES = {"linear": AlphaSchedule.linear, "quadratic": AlphaSchedule.quadratic, "cosine": AlphaSchedule.cosine}


class Network:
    """The network of the golden data; counts its calls and notes its times."""

    def __init__(self, data: dict[str, Tensor]) -> None:
        self.matrix, self.shift = data["net_A"], data["net_u"]
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.double().expand(len(x))
        self.times.append(float(t[0]))
        flat = x.flatten(1)
        out = 0.6 * torch.tanh(flat @ self.matrix) + 0.4 * flat + self.shift * torch.sin(t / 150).unsqueeze(1)
        return out.view_as(x)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert float((actual - expected).abs().max() / expected.abs().max()) <= 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", ["ddim", "s-pndm", "f-pndm", "fon"])
@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_official_code(golden: Golden, name: str, method: Any, num_steps: int) -> None:
    data = golden("golden")
    network, schedule = Network(data), SCHEDULES[name](offset=1, interpolation="floor")
    samples = pndm_sample(network, data["noise"], schedule=schedule, num_steps=num_steps, method=method)
    assert_same(samples, data[f"{method}_{name}_{num_steps}"])
    assert len(network.times) == num_model_calls(num_steps, method)
    if name == "linear":
        assert len(network.times) == int(data[f"calls_{method}_{num_steps}"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables(golden: Golden, name: str) -> None:
    table = SCHEDULES[name]().alpha_bar(torch.arange(1000))
    torch.testing.assert_close(table, golden("golden")[f"alphas_{name}"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("final", ["first", "one"])
@pytest.mark.parametrize(("method", "key"), [("plms", "plms"), ("f-pndm", "prk")])
def test_diffusers(golden: Golden, method: Any, key: str, final: Any) -> None:
    data = golden("golden")
    network, n = Network(data), int(data["diffusers_steps"])
    schedule = AlphaSchedule.linear(final=final, interpolation="floor")
    samples = pndm_sample(network, data["noise"], schedule=schedule, num_steps=n, method=method)
    assert_same(samples, data[f"diffusers_{key}_{final}"])
    assert network.times == data[f"diffusers_{key}_timesteps"].tolist()

    scheduler = PNDMScheduler(method=method, set_alpha_to_one=final == "one")
    scheduler.set_timesteps(n)
    assert torch.equal(scheduler.timesteps, data[f"diffusers_{key}_timesteps"])
    x = data["noise"]
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    assert torch.equal(x, samples)  # bit for bit


def test_transfer(golden: Golden) -> None:
    data = golden("golden")
    a, b = data["transfer_ab"].tolist()
    assert_same(transfer(data["noise"], data["transfer_eps"], a, b), data["transfer_out"])
