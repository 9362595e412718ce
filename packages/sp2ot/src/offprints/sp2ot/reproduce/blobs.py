"""Clusters of one to a hundred: the clusterer with its defaults beside what else would be used."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from offprints.sp2ot._inputs import Place
from offprints.sp2ot._partition import exchanged
from offprints.sp2ot.graph import knn_similarity
from offprints.sp2ot.reproduce.digits import self_label
from offprints.sp2ot.scores import cluster_scores

SIZES = (400, 140, 40, 12, 4)
DIM = 16
APART = 6.0  # typical distance of a center from the middle, in deviations of a cluster
METHODS = ("k-means", "Gaussian mixture", "balanced OT", "start", "clusterer")


def blobs(seed: int) -> tuple[Float[np.ndarray, "n dim"], Int[np.ndarray, " n"]]:
    """Normal clusters of very different sizes around random centers."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    centers = APART / DIM**0.5 * rng.standard_normal((len(SIZES), DIM))
    return centers[labels] + rng.standard_normal((len(labels), DIM)), labels


def imbalance(seed: int, *, steps: int) -> dict[str, Any]:
    """Scores of every method on one draw; ``start`` is what the clusterer starts from, without its training."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    from offprints.sp2ot.clusterer import CLOSEST, SP2OTClusterer

    x, labels = blobs(seed)
    clusters = len(SIZES)
    base = KMeans(clusters, n_init=10, random_state=seed).fit(x)
    mixture = GaussianMixture(clusters, covariance_type="spherical", n_init=10, random_state=seed)
    features = torch.from_numpy(x - x.mean(0))
    placed = Place.of(features).apply(features)
    graph = knn_similarity(placed, k=CLOSEST, bandwidth="auto")
    centers = torch.from_numpy(base.cluster_centers_ - x.mean(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = {
            "k-means": base.labels_,
            "Gaussian mixture": mixture.fit_predict(x),
            "balanced OT": self_label(
                features, centers, seed, steps, gamma=math.inf, rho_base=1.0, semantic_weight=0.0
            )[0].numpy(),
            "start": exchanged(graph, torch.from_numpy(base.labels_).long(), clusters).numpy(),
            "clusterer": SP2OTClusterer(clusters, max_steps=steps, random_state=seed, device="cpu").fit_predict(x),
        }
    scores = {name: cluster_scores(labels, of_method, num_clusters=clusters) for name, of_method in found.items()}
    return {name: {key: of[key] for key in ("nmi", "balanced_accuracy", "ari")} for name, of in scores.items()}
