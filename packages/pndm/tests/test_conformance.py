"""The conformance suite on every public object, and the README's example."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from offprints.pndm import AlphaSchedule, GaussianMixtureEps, adams_bashforth, num_model_calls, pndm_sample
from offprints.shared.testing import check_package, check_sampler

PUBLIC = [
    "AlphaSchedule",
    "GaussianMixtureEps",
    "adams_bashforth",
    "inference_times",
    "num_model_calls",
    "pndm_sample",
    "transfer",
]


def test_package() -> None:
    check_package("pndm", public=PUBLIC)


def test_readme(readme_example: Any) -> None:
    names = readme_example()
    assert names["samples"].shape == names["noise"].shape
    assert len(names["images"]) == 2


@pytest.mark.parametrize("method", ["ddim", "s-pndm", "f-pndm", "plms", "fon", "f-pndm-sigma"])
def test_samplers(method: Any) -> None:
    theta = torch.tensor(0.3, requires_grad=True)
    schedule = AlphaSchedule.linear()

    def model(x: Tensor, t: Tensor) -> Tensor:
        return theta.to(x) * x + torch.sin(t / 300).view(-1, 1, 1)

    noise = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    check_sampler(lambda noise: pndm_sample(model, noise, schedule=schedule, num_steps=6, method=method), noise)

    def in_place(x: Tensor, t: Tensor) -> Tensor:
        return x.relu_().mul_(theta.detach().to(x))

    check_sampler(lambda noise: pndm_sample(in_place, noise, schedule=schedule, num_steps=6, method=method), noise)


def test_sampling_from_a_mixture() -> None:
    schedule = AlphaSchedule.cosine()
    model = GaussianMixtureEps([[1.0, 0.0], [0.0, -1.0]], [0.2, 0.4], [0.5, 0.5], schedule)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    check_sampler(lambda noise: pndm_sample(model, noise, schedule=schedule, num_steps=8), noise)


def test_examples() -> None:
    """The examples of the docstrings."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    attempted = 0
    for name in ("mixtures", "plans", "sampling", "schedules", "transfers", "diffusers"):
        module = importlib.import_module(f"offprints.pndm.{name}")
        outcome = doctest.testmod(module, optionflags=options, raise_on_error=False)
        assert outcome.failed == 0, name
        attempted += outcome.attempted
    assert attempted >= 15


def test_import_is_light() -> None:
    """Nothing but torch, numpy and the core is imported with the method."""
    heavy = ("sklearn", "scipy", "diffusers", "matplotlib", "pandas", "numba")
    program = f"import sys, offprints.pndm; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_weights() -> None:
    for order in (1, 2, 3, 4):
        weights = adams_bashforth(order)  # type: ignore[arg-type]
        assert len(weights) == order
        # They integrate every polynomial below the order over the step to come, from the values at 0, -1, -2 ...
        for power in range(order):
            value = sum(weight * (-j) ** power for j, weight in enumerate(weights))
            assert value == pytest.approx(1 / (power + 1))


def test_calls() -> None:
    assert [num_model_calls(n) for n in (1, 2, 3, 4, 50)] == [4, 8, 12, 13, 59]
    assert num_model_calls(50, "fon") == num_model_calls(50, "f-pndm-sigma") == 59
    assert num_model_calls(50, "s-pndm") == num_model_calls(50, "plms") == 51
    assert num_model_calls(50, "ddim") == 50
