"""The fast code equals the paper's algorithm as `reference.py` writes it."""

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
    adaptive_c,
    consistency_sample,
    discretization_curriculum,
    karras_sigmas,
    lognormal_index_probabilities,
    ot_couple,
    reference,
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.flatten(1)) + t[:, None]).view_as(x)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("step", "indices"), [(0, range(10)), (250, [0, 19, 29, 30, 31, 5, 9, 10, 11, 12]), (350, [79] * 10)]
)
@pytest.mark.filterwarnings("ignore:the adaptive c")
def test_a_training_step(step: int, indices: Any) -> None:
    network = Network().double()
    x, z = 0.5 * drawn(0, 10, 3, 2, 2), drawn(1, 10, 3, 2, 2)
    out = LatentConsistencyLoss(total_steps=700)(
        LatentConsistencyModel(network), x, step=step, noise=z, indices=torch.tensor(list(indices))
    )
    expected = reference.training_loss(network, x, z, list(indices), step, 700)
    assert_close(out.loss, expected, rtol=1e-9, atol=1e-12)
    ours, plain = (torch.autograd.grad(loss, list(network.parameters())) for loss in (out.loss, expected))
    assert_close(ours, plain, rtol=1e-8, atol=1e-10)


def test_its_parts() -> None:
    for k in (0, 99, 100, 450, 700):
        n = discretization_curriculum(k, 700)
        assert n == reference.number_of_levels(k, 700)
        assert adaptive_c(n, dim=4096) == pytest.approx(reference.scaling_c(n, 4096), rel=1e-12)
        sigmas = karras_sigmas(n, dtype=torch.float64)
        assert_close(sigmas, torch.tensor(reference.levels(n), dtype=torch.float64), rtol=1e-12, atol=0)
        law = torch.tensor(reference.index_law(sigmas.tolist()), dtype=torch.float64)
        assert_close(lognormal_index_probabilities(sigmas), law, rtol=1e-6, atol=1e-12)
    x, z = drawn(2, 9, 4), drawn(3, 9, 4)
    assert torch.equal(ot_couple(x, z), reference.couple(x, z))


def test_the_sampler() -> None:
    network, z = Network().double(), drawn(4, 5, 3, 2, 2)
    fresh = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours = consistency_sample(
        LatentConsistencyModel(network), z, sigmas=TWO_STEP_SIGMAS, generator=torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        assert_close(ours, reference.sample(network, z, TWO_STEP_SIGMAS, [fresh]), rtol=1e-10, atol=1e-12)
