"""Long-tailed handwritten digits: how right pseudo-labels are, and what clusterers make of them."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.datasets import digits
from offprints.shared.device import local_seed
from offprints.sp2ot.graph import knn_similarity
from offprints.sp2ot.head import CosineHead
from offprints.sp2ot.longtail import long_tailed_indices
from offprints.sp2ot.losses import SP2OTLoss
from offprints.sp2ot.reference import partial_transport
from offprints.sp2ot.scores import cluster_scores
from offprints.sp2ot.semantic import semantic_partial_ot
from offprints.sp2ot.transport import partial_ot

Features = Literal["pixels", "pca", "spectral"]
SIZE_FREE_WEIGHT = 0.195  # of the semantic term, per sample
NEIGHBORS = 20
CLASSES = 10
SCALINGS = 20_000  # of the paper's algorithm, more than it needs
SELF_LABELING: dict[str, dict[str, Any]] = {
    "balanced OT": {"rho_base": 1.0, "gamma": math.inf, "semantic_weight": 0.0},
    "P²OT": {"semantic_weight": 0.0},
    "SP²OT": {},
}
CONTROL = "equal sizes"  # the growing share as in P²OT, with sizes that are enforced
OPTIONS = SELF_LABELING | {CONTROL: {"gamma": math.inf, "semantic_weight": 0.0}}
RATE, NOISE = 1e-2, 0.1  # of Adam; of the views, relative to the features' deviation


def long_tailed_digits(seed: int, *, ratio: float) -> tuple[Float[Tensor, "n 64"], Int[Tensor, " n"]]:
    """Digits whose classes, in an order drawn by the seed, get fewer and fewer samples; the first class is the head."""
    images, labels = digits(dtype=torch.float64)
    place = torch.from_numpy(np.random.default_rng(seed).permutation(CLASSES))
    labels = place[labels]
    chosen = torch.from_numpy(long_tailed_indices(labels, ratio=ratio, seed=seed))
    return images[chosen], labels[chosen]


def features_of(images: Float[Tensor, "n 64"], kind: Features, seed: int) -> Float[Tensor, "n dim"]:
    """The pixels, their first 20 principal components, or a spectral embedding in 12 dimensions."""
    if kind == "pixels":
        return images
    if kind == "pca":
        from sklearn.decomposition import PCA

        return torch.from_numpy(PCA(20, random_state=seed).fit_transform(images.numpy()))
    from sklearn.manifold import SpectralEmbedding

    embedding = SpectralEmbedding(12, affinity="nearest_neighbors", n_neighbors=NEIGHBORS, random_state=seed)
    embedded = torch.from_numpy(embedding.fit_transform(images.numpy()))
    return embedded / embedded.std()


def kmeans(features: Float[Tensor, "n dim"], seed: int) -> tuple[Tensor, Tensor]:
    """Centers and labels of ten starts."""
    from sklearn.cluster import KMeans

    model = KMeans(CLASSES, n_init=10, random_state=seed).fit(features.numpy())
    return torch.from_numpy(model.cluster_centers_), torch.from_numpy(model.labels_).long()


def pseudo_label_quality(
    seed: int,
    *,
    features: Features,
    ratio: float,
    rhos: tuple[float, ...],
    control_rhos: tuple[float, ...],
    exact: bool,
) -> dict[str, Any]:
    """Share of the transported mass that is on the right class, by method and ``rho``.

    Logits are ten times the cosines with the centers of k-means, whose clusters are matched to classes once. The
    control with strangers for neighbors is judged at ``control_rhos``; ``exact`` runs the paper's algorithm as well.
    """
    images, labels = long_tailed_digits(seed, ratio=ratio)
    x = features_of(images, features, seed)
    centers, assigned = kmeans(x, seed)
    head = CosineHead(x.shape[1], CLASSES).double()
    head.reset_prototypes(centers)
    cost = -head(x).detach().log_softmax(1)
    mapping = cluster_scores(labels, assigned, num_clusters=CLASSES)["mapping"]
    right = torch.tensor([mapping[cluster] for cluster in range(CLASSES)])[None] == labels[:, None]
    graph = knn_similarity(images, k=NEIGHBORS)
    weight = SIZE_FREE_WEIGHT * len(x)

    def quality(pseudo_labels: Tensor) -> float:
        return float((pseudo_labels * right).sum() / pseudo_labels.sum())

    def of_semantic(graph: Tensor, rhos: tuple[float, ...]) -> list[Any]:
        return [semantic_partial_ot(cost, graph, rho=rho, semantic_weight=weight) for rho in rhos]

    strangers = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    graph_of_strangers = torch.sparse_coo_tensor(strangers[graph.indices()], graph.values(), graph.shape).coalesce()
    balanced = partial_ot(cost, rho=1.0, gamma=math.inf)
    plain = [partial_ot(cost, rho=rho) for rho in rhos]
    semantic = of_semantic(graph, rhos)
    result: dict[str, Any] = {}
    if exact:
        expected = partial_transport(cost, rhos[0], iterations=SCALINGS, tol=1e-13)
        result["off the paper's scaling"] = float((plain[0].plan - expected).abs().max()) * len(x)
    return result | {
        "k-means": float((torch.tensor([mapping[int(a)] for a in assigned]) == labels).double().mean()),
        "balanced OT": quality(balanced.pseudo_labels),
        "P²OT": [quality(result.pseudo_labels) for result in plain],
        "SP²OT": [quality(result.pseudo_labels) for result in semantic],
        "strangers": [quality(result.pseudo_labels) for result in of_semantic(graph_of_strangers, control_rhos)],
        "equal sizes": [quality(partial_ot(cost, rho=rho, gamma=math.inf).pseudo_labels) for rho in rhos],
        "largest residual": max(result.residual for result in [balanced, *plain]),
    }


def self_label(
    x: Float[Tensor, "n dim"], centers: Float[Tensor, "k dim"], seed: int, steps: int, **options: Any
) -> tuple[Int[Tensor, " n"], list[dict[str, float]]]:
    """Labels of prototypes that start at centers and are trained on two noisy views, and the loss and rho of each step.

    The paper's training and nothing else: all samples are one transport problem.
    """
    options = {"semantic_weight": SIZE_FREE_WEIGHT * len(x)} | options
    history = []
    with local_seed(seed):
        graph = knn_similarity(x, k=NEIGHBORS) if options["semantic_weight"] > 0 else None
        criterion = SP2OTLoss(num_clusters=len(centers), total_steps=steps, similarity=graph, **options)
        head = CosineHead(x.shape[1], len(centers)).to(x)
        head.reset_prototypes(centers.to(x))
        optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
        deviation = NOISE * x.std(0, correction=0).square().mean().sqrt()
        for _ in range(steps):
            output = criterion([head(x + deviation * torch.randn_like(x)) for _ in range(2)], torch.arange(len(x)))
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            optimizer.step()
            history.append({"loss": float(output.loss.detach()), "rho": output.rho})
    return head(x).detach().argmax(1), history


def clustering(seed: int, method: str, *, features: Features, ratio: float, steps: int) -> dict[str, Any]:
    """Scores, cluster sizes and history of one clusterer."""
    images, labels = long_tailed_digits(seed, ratio=ratio)
    x = features_of(images, features, seed)
    history: list[dict[str, float]] = []
    if method == "k-means":
        predicted = kmeans(x, seed)[1]
    elif method == "spectral":
        from sklearn.cluster import SpectralClustering

        model = SpectralClustering(
            CLASSES, affinity="nearest_neighbors", n_neighbors=NEIGHBORS, random_state=seed, assign_labels="kmeans"
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Graph is not fully connected")
            predicted = torch.from_numpy(model.fit_predict(x.numpy())).long()
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="semantic transport")
            predicted, history = self_label(x.float(), kmeans(x, seed)[0], seed, steps, **OPTIONS[method])
    scores = cluster_scores(labels, predicted, num_clusters=CLASSES)
    class_of = scores.pop("mapping")
    mapping = torch.tensor([class_of[cluster] for cluster in range(CLASSES)])
    return {
        "scores": scores,
        "sizes": mapping[predicted].bincount(minlength=CLASSES).tolist(),
        "true sizes": labels.bincount(minlength=CLASSES).tolist(),
        "loss": [entry["loss"] for entry in history],
        "rho": [entry["rho"] for entry in history],
    }
