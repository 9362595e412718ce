"""Teachers that need no labels, and how well their weights tell known from unknown samples."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.device import make_generator
from offprints.wad import Knowledge, error_decomposition, teacher_knowledge


def spectral_features(samples: Tensor, *, dim: int, neighbors: int) -> Tensor:
    """Spectral embedding of all samples together, without labels: `(N, dim)`."""
    from sklearn.manifold import SpectralEmbedding

    embedding = SpectralEmbedding(
        dim, affinity="nearest_neighbors", n_neighbors=neighbors, random_state=0, eigen_solver="arpack"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a graph that is not connected
        z = torch.from_numpy(embedding.fit_transform(samples.flatten(1).double().numpy()))
    # The eigenvectors have tiny entries; a common factor changes no cosine.
    return (z / z.abs().max()).float()


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive.numpy(), scores.double().numpy()))


def judged(features: tuple[Tensor, Tensor], labels: Tensor, truth: Tensor, *, seed: int) -> dict[str, Any]:
    """What a teacher knows, against the truth.

    Args:
        features: Of labeled and unlabeled samples.
        labels: Of the labeled samples.
        truth: Of the unlabeled ones, -1 for unknown classes.
        seed: Of the control's permutation.

    Returns:
        `weights`, `known`; `pseudo-labeling` and `invasion`, the errors, each also `of equal weights` and `of permuted
        weights`; `auroc` of the weights, `auroc of the control` with the labeled samples' labels permuted,
        `auroc of the maximum` of the largest cosine alone; `right`, the share of right pseudo-labels of target samples.
    """
    classes = int(labels.max()) + 1
    known = truth >= 0

    def ask(y: Tensor) -> Knowledge:
        return teacher_knowledge(features[1], features[0], y, num_classes=classes)

    knowledge = ask(labels)
    generator = make_generator(seed)
    strangers = ask(labels[torch.randperm(len(labels), generator=generator)])
    weights = knowledge.weights
    of_weights = {
        "": weights,
        " of equal weights": torch.ones_like(weights),
        " of permuted weights": weights[torch.randperm(len(weights), generator=generator)],
    }
    errors: dict[str, float] = {}
    for name, weighing in of_weights.items():
        found = error_decomposition(knowledge.pseudo_labels, weighing, truth)
        errors |= {f"pseudo-labeling{name}": found.pseudo_labeling, f"invasion{name}": found.invasion}
    return {
        **errors,
        "weights": weights,
        "known": known,
        "auroc": auroc(weights, known),
        "auroc of the control": auroc(strangers.weights, known),
        "auroc of the maximum": auroc(knowledge.scores.amax(1), known),
        "right": float((knowledge.pseudo_labels == truth)[known].double().mean()),
    }


def mean_of(values: Any) -> float:
    """Mean of numbers."""
    return float(np.mean(list(values)))


def ratio(part: float, whole: float) -> float:
    """One over the other; 1, no difference, where there is nothing of either."""
    return part / whole if whole else 1.0


def standard_error(values: Any) -> float | None:
    """Standard error of a mean; None of one number."""
    numbers = list(values)
    return float(np.std(numbers, ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else None
