"""The fast code equals the paper's algorithm written down plainly, and both equal the official code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offprints.pndm import AlphaSchedule, pndm_sample, reference, transfer

Golden = Callable[[str], dict[str, Tensor]]
NOISE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCHEDULES = {
    "default": AlphaSchedule.linear(),
    "official": AlphaSchedule.quadratic(offset=1, interpolation="floor"),
    "diffusers": AlphaSchedule.cosine(final="first", interpolation="floor"),
    "continuous": AlphaSchedule.continuous_linear(),
}


def network(x: Tensor, t: Any) -> Tensor:
    time = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)
    return 0.6 * torch.tanh(x) + 0.3 * x.roll(1, -1) + torch.sin(time / 150)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", ["s-pndm", "f-pndm"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 20])
def test_pndm_sample_is_the_reference(name: str, method: Any, n: int) -> None:
    schedule = SCHEDULES[name]
    times = np.linspace(1.0, 0.01, n + 1) if name == "continuous" else np.linspace(950.0, 0.0, n + 1).round(1)
    plain = reference.s_pndm if method == "s-pndm" else reference.f_pndm
    with np.errstate(all="raise"):
        expected = plain(NOISE, times.tolist(), network, lambda t: schedule.alpha_bar(t).item())
    actual = pndm_sample(network, NOISE, schedule=schedule, times=times, method=method)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11 * float(expected.abs().max()))


@pytest.mark.parametrize("levels", [(0.3, 0.6), (0.6, 0.3), (4e-5, 5e-5), (0.5, 1.0)])
def test_transfer_is_the_reference(levels: tuple[float, float]) -> None:
    expected = reference.phi(NOISE, NOISE.flip(0), 0, 1, lambda t: levels[int(t)])
    torch.testing.assert_close(transfer(NOISE, NOISE.flip(0), *levels), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine"])
@pytest.mark.parametrize("method", ["s-pndm", "f-pndm"])
def test_the_reference_is_the_official_code(golden: Golden, name: str, method: str) -> None:
    data = golden("golden")
    schedule = getattr(AlphaSchedule, name)(offset=1, interpolation="floor")

    def eps(x: Tensor, t: float) -> Tensor:
        flat = x.flatten(1)
        shift = data["net_u"] * torch.sin(torch.tensor(t, dtype=torch.float64) / 150)
        return (0.6 * torch.tanh(flat @ data["net_A"]) + 0.4 * flat + shift).view_as(x)

    times = [*range(950, -1, -50), -1]
    plain = reference.s_pndm if method == "s-pndm" else reference.f_pndm
    actual = plain(data["noise"], times, eps, lambda t: schedule.alpha_bar(t).item())
    expected = data[f"{method}_{name}_20"]
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-11


def test_the_reference_stays_short() -> None:
    assert reference.__file__ is not None
    assert len(Path(reference.__file__).read_text().splitlines()) <= 100


def test_every_name_in_the_table_of_the_paper_exists() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme.partition("## The paper in the code")[2].partition("\n## ")[0]
    names = [
        name for row in section.splitlines() if row.startswith("|") for name in re.findall(r"`(offprints[\w.]+)`", row)
    ]
    assert len(names) >= 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        while True:  # a class's method has one name more
            try:
                found: Any = importlib.import_module(module)
                break
            except ModuleNotFoundError:
                module, _, owner = module.rpartition(".")
                attribute = f"{owner}.{attribute}"
        for part in attribute.split("."):
            found = getattr(found, part)
