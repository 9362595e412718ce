"""Intervals by their formulas, and accuracies over episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import Subset, TensorDataset

from offprints.susana import (
    EpisodeSampler,
    PrototypicalNetwork,
    conv4,
    evaluate_episodes,
    icnn_score,
    mean_confidence_interval,
)


def test_intervals() -> None:
    values = np.random.default_rng(0).normal(size=17)
    mean, half = mean_confidence_interval(values)
    assert mean == pytest.approx(values.mean())
    assert half == pytest.approx(1.96 * values.std() / math.sqrt(17))
    assert mean_confidence_interval(torch.from_numpy(values).float())[1] == pytest.approx(half, rel=1e-5)
    assert mean_confidence_interval(values.tolist(), confidence=0.9)[1] == pytest.approx(
        1.6449 * values.std() / 17**0.5, rel=1e-4
    )
    for confidence in (0.5, 0.95):
        low, high = stats.t.interval(confidence, 16, values.mean(), stats.sem(values))
        mean, half = mean_confidence_interval(values, confidence=confidence, method="t")
        assert (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_confidence_interval([3]) == (3.0, 0.0)
    assert mean_confidence_interval([0, 0, 0]) == (0.0, 0.0)
    assert mean_confidence_interval([1e300, -1e300])[1] < math.inf


def data(classes: int = 4, spread: float = 1.5) -> tuple[TensorDataset, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(80) % classes
    return TensorDataset(spread * torch.randn(classes, 3, generator=g)[y] + torch.randn(80, 3, generator=g), y), y


def test_episodes_by_hand() -> None:
    dataset, y = data()
    sampler = EpisodeSampler(y, n_way=3, n_shot=2, n_query=5, n_episodes=12)
    result = evaluate_episodes(PrototypicalNetwork(nn.Flatten()), dataset, sampler)
    read_elsewhere = evaluate_episodes(PrototypicalNetwork(nn.Flatten()), dataset, sampler, num_workers=1)
    assert torch.equal(read_elsewhere.per_episode, result.per_episode)
    accuracies, scores = [], []
    for indices in sampler:
        x, labels = dataset[indices]
        names = labels[:6:2]
        prototypes = torch.stack([x[:6][labels[:6] == name].mean(0) for name in names])
        predicted = names[torch.cdist(x[6:], prototypes).argmin(1)]
        accuracies.append((predicted == labels[6:]).double().mean().item())
        scores.append(icnn_score(x[6:], labels[6:]).item())
    assert result.per_episode.tolist() == pytest.approx(accuracies)
    assert result.icnn.tolist() == pytest.approx(scores)
    assert (result.accuracy, result.ci) == pytest.approx(mean_confidence_interval(accuracies))


def test_modes_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(20) % 2
    dataset = TensorDataset(torch.rand(20, 1, 16, 16, generator=g), y)
    model = PrototypicalNetwork(conv4(in_channels=1, hidden=2)).train()
    model.backbone[0].eval()  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampler = EpisodeSampler(y, n_way=2, n_shot=1, n_query=1, n_episodes=3)
    result = evaluate_episodes(model, dataset, sampler, device="cpu", progress=True)
    assert "3/3 episodes\n" in capsys.readouterr().out
    assert model.training
    assert not model.backbone[0].training  # type: ignore[index]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert result.icnn.isnan().all()  # two queries have no score
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_empty_share() -> None:
    dataset, y = data()
    sampler = EpisodeSampler(y, n_way=2, n_shot=1, n_query=3, n_episodes=1, rank=1, world_size=2)
    result = evaluate_episodes(PrototypicalNetwork(nn.Flatten()), dataset, sampler)
    assert result.per_episode.shape == result.icnn.shape == (0,)
    assert math.isnan(result.accuracy)
    assert math.isnan(result.ci)


def test_a_forward_of_its_own_is_refused() -> None:
    """It would not be called; embeddings of its own are."""

    class Backwards(PrototypicalNetwork):
        def forward(self, support, support_labels, query):
            return -super().forward(support, support_labels, query)

    class Scaled(PrototypicalNetwork):
        def embed(self, x):
            return 0 * super().embed(x)

    dataset, y = data()
    sampler = EpisodeSampler(y, n_way=2, n_shot=1, n_query=2, n_episodes=3)
    with pytest.raises(TypeError, match="model must not have a forward"):
        evaluate_episodes(Backwards(nn.Flatten()), dataset, sampler)
    assert evaluate_episodes(Scaled(nn.Flatten()), dataset, sampler).per_episode.tolist() == [0.5] * 3


def test_wrong_kinds() -> None:
    dataset, y = data()
    sampler = EpisodeSampler(y, n_way=2, n_shot=1, n_query=1, n_episodes=3)
    with pytest.raises(TypeError, match="model"):
        evaluate_episodes(nn.Flatten(), dataset, sampler)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sampler"):
        evaluate_episodes(PrototypicalNetwork(nn.Flatten()), dataset, [[0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device"):
        evaluate_episodes(PrototypicalNetwork(nn.Flatten()), dataset, sampler, device="abacus")
    with pytest.raises(ValueError, match="dataset must have an item for each of the sampler's labels, 80, got 79"):
        evaluate_episodes(PrototypicalNetwork(nn.Flatten()), Subset(dataset, range(79)), sampler)
    with pytest.raises(ValueError, match="num_workers"):
        evaluate_episodes(PrototypicalNetwork(nn.Flatten()), dataset, sampler, num_workers=-1)
