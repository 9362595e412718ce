"""The exact noise prediction."""

from __future__ import annotations

import torch

from offprints.pndm import AlphaSchedule, GaussianMixtureEps

SCHEDULE = AlphaSchedule.continuous_linear()
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
STDS, WEIGHTS = [0.3, 0.5, 0.1], [0.2, 0.5, 0.3]


def test_it_is_the_scaled_score() -> None:
    model = GaussianMixtureEps(MEANS, STDS, WEIGHTS, SCHEDULE)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    level = SCHEDULE.alpha_bar(t).unsqueeze(1)
    parts = [
        torch.distributions.MultivariateNormal(
            level.sqrt() * mean, (level * std**2 + 1 - level).view(-1, 1, 1) * torch.eye(2)
        )
        .log_prob(x)
        .add(torch.tensor(weight).double().log())
        for mean, std, weight in zip(MEANS, STDS, WEIGHTS, strict=True)
    ]
    (score,) = torch.autograd.grad(torch.stack(parts).logsumexp(0).sum(), x)
    expected = -(1 - level).sqrt() * score
    torch.testing.assert_close(model(x.detach(), t), expected, rtol=1e-6, atol=1e-9)
    assert torch.autograd.gradcheck(lambda x: model(x, t), (x,))


def test_far_away_and_at_the_data() -> None:
    model = GaussianMixtureEps(MEANS, STDS, [0.0, 1.0, 0.0], SCHEDULE)
    x = torch.full((1, 2), 1e4)
    assert model(x, torch.tensor([0.5])).isfinite().all()
    assert torch.equal(model(x, torch.tensor([0.0])), torch.zeros(1, 2))
    assert model(x.bfloat16(), torch.tensor([0.5])).dtype == torch.bfloat16


def test_half_types_are_computed_in_float32() -> None:
    model = GaussianMixtureEps(MEANS, STDS, WEIGHTS, SCHEDULE)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.01, 1, 50)
    for dtype in (torch.float16, torch.bfloat16):
        expected = model(x.to(dtype).float(), t).to(dtype)
        assert torch.equal(model(x.to(dtype), t), expected)
