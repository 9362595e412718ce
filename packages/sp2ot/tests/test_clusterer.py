from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.sp2ot import SP2OTClusterer, cluster_scores


def blobs(seed: int = 0, sizes: tuple[int, ...] = (60, 30, 15, 8), spread: float = 0.35) -> tuple[Tensor, Tensor]:
    """Directions in eight dimensions, of very different numbers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centers = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q[: len(sizes)]
    x = centers[labels] + spread * torch.randn(len(labels), 8, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(labels), generator=generator)
    return x[order].float(), labels[order]


def test_imbalanced_clusters_are_found() -> None:
    x, y = blobs(spread=0.15)
    clusterer = SP2OTClusterer(4, max_steps=40, random_state=0)
    labels = clusterer.fit_predict(x)
    assert cluster_scores(y, labels)["balanced_accuracy"] == 1
    assert sorted(clusterer.cluster_sizes_.tolist()) == [8, 15, 30, 60]
    assert torch.equal(clusterer.predict(x), labels)
    assert_close(clusterer.predict_proba(x).sum(1), torch.ones(len(x)))
    assert torch.equal(clusterer.predict_proba(x).argmax(1), labels)


def test_attributes() -> None:
    x, _ = blobs()
    clusterer = SP2OTClusterer(4, max_steps=5, random_state=0).fit(x.numpy())
    assert isinstance(clusterer.labels_, np.ndarray)
    assert clusterer.cluster_centers_.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(clusterer.cluster_centers_, axis=1), 1, rtol=1e-5)
    assert [entry["step"] for entry in clusterer.history_] == list(range(5))
    assert clusterer.history_[0].keys() == {"step", "loss", "rho"}
    assert clusterer.rho_ == clusterer.history_[-1]["rho"]
    assert clusterer.n_steps_ == 5
    assert clusterer.n_features_in_ == 8
    assert clusterer.cluster_sizes_.sum() == len(x)
    assert clusterer.encoder_ is None


@pytest.mark.filterwarnings("ignore:semantic", "ignore:partial")
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 24, "n_heads": 2},
        {"semantic_weight": 0.0, "init": "random"},
        {"init": torch.eye(4, 8), "gamma": float("inf"), "semantic_weight": 2.0},
        {"batch_size": 1000, "n_neighbors": 1000, "noise": 0.0},
    ],
)
def test_options(options: dict) -> None:
    x, _ = blobs()
    clusterer = SP2OTClusterer(4, max_steps=12, random_state=1, **options)
    labels = clusterer.fit_predict(x)
    assert labels.shape == (len(x),)
    assert all(np.isfinite(entry["loss"]) for entry in clusterer.history_)
    assert torch.equal(SP2OTClusterer(4, max_steps=12, random_state=1, **options).fit_predict(x), labels)


def test_encoder_is_trained_on_a_copy() -> None:
    x, y = blobs(spread=0.15)
    images = x.view(-1, 1, 2, 4)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    clusterer = SP2OTClusterer(4, encoder=encoder, max_steps=20, random_state=0).fit(images)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(clusterer.encoder_[1].weight, encoder[1].weight)
    assert torch.equal(clusterer.predict(images), clusterer.labels_)
    assert torch.equal(clusterer.predict(images[3:4]), clusterer.labels_[3:4])
    assert cluster_scores(y, clusterer.labels_)["accuracy"] > 0.8


def test_best_head_has_the_lowest_loss() -> None:
    """The first head starts from the truth, the second from nothing."""
    x, y = blobs(spread=0.15)
    centers = torch.stack([x[y == c].mean(0) for c in range(4)])
    clusterer = SP2OTClusterer(4, init=centers, n_heads=2, max_steps=3, noise=0.0, random_state=0).fit(x)
    assert cluster_scores(y, clusterer.labels_)["accuracy"] == 1


def test_one_cluster_and_one_sample() -> None:
    x, _ = blobs()
    assert SP2OTClusterer(1, max_steps=2).fit_predict(x).sum() == 0
    assert SP2OTClusterer(1, max_steps=2).fit_predict(x[:1]).tolist() == [0]
