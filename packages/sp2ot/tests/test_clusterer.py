from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
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
    means = [x.numpy()[clusterer.labels_ == cluster].mean(0) for cluster in range(4)]
    np.testing.assert_allclose(clusterer.cluster_centers_, means, atol=1e-6)
    np.testing.assert_allclose(clusterer.mean_, x.numpy().mean(0), atol=1e-6)
    assert clusterer.scale_ == pytest.approx(float(np.sqrt(x.numpy().var(0).sum())), rel=1e-6)
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
    torch.manual_seed(0)
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


# ---- place, unit and kind of the features ----------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 50.0), (100.0, 0.0), (1e-6, 0.0), (1e200, 0.0), (-3.0, 1e4)])
def test_neither_shift_nor_factor_changes_anything(factor: float, shift: float) -> None:
    x, y = blobs(spread=0.15)
    x = x.double()
    expected = SP2OTClusterer(4, max_steps=4, random_state=0).fit_predict(x)
    assert cluster_scores(y, expected)["accuracy"] == 1
    found = SP2OTClusterer(4, max_steps=4, random_state=0).fit(factor * x + shift)
    assert cluster_scores(expected, found.labels_)["accuracy"] == 1
    assert torch.equal(found.predict(factor * x + shift), found.labels_)


def test_clusters_on_one_ray() -> None:
    """Their directions are the same, their distances from the origin are not."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [90, 30, 10])
    x = np.array([3.0, 9.0, 15.0])[y][:, None] * np.full(4, 0.5) + 0.5 * rng.standard_normal((130, 4))
    assert cluster_scores(y, SP2OTClusterer(3, max_steps=10, random_state=0).fit_predict(x))["accuracy"] == 1


def test_integers_lists_and_sparse_matrices() -> None:
    x, y = blobs(spread=0.15)
    table = (20 * x.numpy()).round()
    table[np.abs(table) < 3] = 0
    expected = SP2OTClusterer(4, max_steps=4, random_state=0).fit_predict(table)
    assert cluster_scores(y, expected)["accuracy"] == 1
    for kind in (table.astype(np.int8), table.astype(np.int64), table.tolist(), csr_array(table), table.astype(">f8")):
        clusterer = SP2OTClusterer(4, max_steps=4, random_state=0)
        assert cluster_scores(expected, clusterer.fit_predict(kind))["accuracy"] == 1, type(kind)
        np.testing.assert_array_equal(clusterer.predict(kind), clusterer.labels_)
    tensor = torch.from_numpy(table).int()
    found = SP2OTClusterer(4, max_steps=4, random_state=0).fit_predict(tensor)
    assert cluster_scores(expected, found)["accuracy"] == 1


# ---- the start and the end -------------------------------------------------------------------------------------------


def imbalanced(seed: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(5), [300, 100, 30, 10, 4])
    centers = 6 * rng.standard_normal((5, dim)) / dim**0.5
    return centers[y] + rng.standard_normal((444, dim)), y


def test_not_below_kmeans_on_clusters_of_one_to_seventyfive() -> None:
    """k-means cuts the largest in two; the defaults do not stay there. The draws are not those of the choice."""
    gains = []
    for seed in range(3):
        x, y = imbalanced(seed, 16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a cluster of four may be given up
            found = SP2OTClusterer(5, max_steps=40, random_state=seed).fit_predict(x)
        base = KMeans(5, n_init=10, random_state=seed).fit_predict(x)
        gains.append(cluster_scores(y, found)["nmi"] - cluster_scores(y, base)["nmi"])
    assert min(gains) > -0.02
    assert np.mean(gains) > 0.05


def test_the_better_of_start_and_end_is_kept() -> None:
    """Training at a huge rate destroys a right start, which is what is returned."""
    x, y = blobs(spread=0.15)
    clusterer = SP2OTClusterer(4, max_steps=20, lr=50.0, random_state=0).fit(x)
    assert cluster_scores(y, clusterer.labels_)["accuracy"] == 1
    assert clusterer.best_step_ <= 20


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda centers: np.asarray(centers).tolist()])
def test_centers_of_a_fit_are_a_start(kind) -> None:
    x, _ = blobs(spread=0.15)
    first = SP2OTClusterer(4, max_steps=4, random_state=0).fit(x.numpy())
    again = SP2OTClusterer(4, init=kind(first.cluster_centers_), max_steps=4, random_state=1).fit(x.numpy())
    np.testing.assert_array_equal(again.labels_, first.labels_)


def test_a_prior_numbers_the_clusters() -> None:
    x, _ = blobs(spread=0.15)
    clusterer = SP2OTClusterer(4, prior=[15, 60, 8, 30], gamma=10.0, max_steps=5, random_state=0).fit(x)
    assert clusterer.cluster_sizes_.tolist() == [15, 60, 8, 30]
    with pytest.raises(ValueError, match="prior"):
        SP2OTClusterer(4, prior=[1.0, -1.0, 1.0, 1.0])
    with pytest.raises(TypeError, match="prior"):
        SP2OTClusterer(2, prior=["a", "b"])


def test_fewer_distinct_samples_than_clusters() -> None:
    x = np.repeat([[0.0, 0.0], [5.0, 1.0]], [30, 4], axis=0)
    with pytest.warns(ConvergenceWarning, match="1 of 3 clusters are empty"):
        labels = SP2OTClusterer(3, max_steps=3, random_state=0).fit_predict(x)
    assert len(set(labels[:30])) == len(set(labels[30:])) == 1
    assert labels[0] != labels[-1]


def test_as_many_clusters_as_samples() -> None:
    """Clusters without an edge inside have no gap to look for, and no warning of NumPy's."""
    x = np.random.default_rng(0).normal(size=(6, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = SP2OTClusterer(6, max_steps=5, random_state=0).fit_predict(x)
    assert sorted(labels.tolist()) == list(range(6))
