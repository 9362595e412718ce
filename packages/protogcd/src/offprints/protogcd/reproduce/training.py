"""One training on features, with any part of the method switched off, and what is measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offprints.protogcd import ProtoGCDLoss, PrototypeHead, gcd_accuracy, gcd_split
from offprints.protogcd.training import layers
from offprints.shared.device import evaluating

OURS, HARD, SOFT = "ProtoGCD", "hard labels only", "soft labels only"
NO_ENTROPY, NO_SEPARATION, SIMGCD = "no entropy term", "no separation", "SimGCD-like"
PERMUTED = "labels permuted"
KMEANS = "k-means"
VARIANTS: dict[str, dict[str, float]] = {
    OURS: {},
    PERMUTED: {},
    HARD: {"initial_ratio": 1.0},
    SOFT: {"final_ratio": 0.0},
    NO_ENTROPY: {"entropy_weight": 0.0},
    NO_SEPARATION: {"separation_weight": 0.0},
    SIMGCD: {"final_ratio": 0.0, "separation_weight": 0.0},
}
WARM = (0.07, 0.04)  # teacher temperatures of SimGCD, from first to last
WARM_SHARE = 0.15  # of the epochs: 30 of 200


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """A training on features.

    Attributes:
        epochs: Passes over the samples; labels turn hard in the first half.
        batch_size: Samples a step, each seen twice.
        lr: Of Adam.
        noise: Standard deviation of the views' noise, in units of the features' spread.
        widths: Of the adapter.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 2e-3
    noise: float = 0.6
    widths: tuple[int, ...] = (256, 128, 64)


def criterion(name: str, settings: TrainingSettings, epoch: int) -> ProtoGCDLoss:
    """The loss of one epoch: SimGCD's teacher gets sharper as it goes on."""
    options: dict[str, Any] = dict(VARIANTS[name])
    if name == SIMGCD:
        progress = min(epoch / max(WARM_SHARE * settings.epochs, 1), 1.0)
        options["teacher_temperature"] = WARM[0] + (WARM[1] - WARM[0]) * progress
    return ProtoGCDLoss(total_epochs=settings.epochs, **options)


def train(
    name: str,
    x: Tensor,
    given: Tensor,
    true: Tensor,
    old: int,
    classes: int,
    settings: TrainingSettings,
    outliers: Tensor | None = None,
) -> dict[str, Any]:
    """Train on features `(N, D)` whose known labels are `given`, -1 elsewhere; measured on the unlabeled samples.

    Draws are of torch's global stream. With outliers `(M, D)`, the logits of both and the prototypes' cosines are kept.
    """
    model = layers(x.shape[1], *settings.widths)
    head = PrototypeHead(settings.widths[-1], classes, hidden=256, projection_dim=64)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=settings.lr, fused=True)
    unlabeled, batch = given < 0, min(settings.batch_size, len(x))
    curve: list[list[float]] = []

    def logits(of: Tensor) -> Tensor:
        with evaluating(model, head):
            return head.cosines(model(of))

    for epoch in range(settings.epochs):
        loss = criterion(name, settings, epoch)
        for rows in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            both = torch.cat([x[rows], x[rows]])
            projections, cosines, prototypes = head(model(both + settings.noise * torch.randn_like(both)))
            output = loss(cosines, projections, prototypes, given[rows], given[rows] >= 0, epoch=epoch)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        predicted = logits(x[unlabeled]).argmax(1)
        found = gcd_accuracy(true[unlabeled], predicted, true[unlabeled] < old)
        curve.append([loss.ratio(epoch), found.all])
    named = (predicted == true[unlabeled])[true[unlabeled] < old].double().mean()
    unit = head.prototypes.detach()
    similarity = unit @ unit.T
    other = ~torch.eye(classes, dtype=torch.bool)
    largest = float((similarity[other] + 1 / (classes - 1)).abs().max())
    outcome = {
        **found._asdict(),
        "named": float(named),
        "off_simplex": largest,
        "curve": torch.tensor(curve, dtype=torch.float64),
    }
    if outliers is not None:
        outcome |= {
            "logits": logits(x[unlabeled]),
            "outliers": logits(outliers),
            "similarity": similarity,
        }
    return outcome


def partly_labeled(true: Tensor, old: int, seed: int) -> Tensor:
    """The labels that are known: of half of the samples of the first `old` classes, -1 elsewhere."""
    given = torch.full_like(true, -1)
    labeled = torch.from_numpy(gcd_split(true, old_classes=range(old), seed=seed).labeled)
    given[labeled] = true[labeled]
    return given


def scaled(x: Tensor) -> Tensor:
    """Columns centered, all divided by the root of their mean square."""
    centered = x - x.mean(0)
    return centered / centered.square().mean().sqrt()


def kmeans(x: Tensor, given: Tensor, true: Tensor, old: int, classes: int, seed: int) -> dict[str, Any]:
    """scikit-learn's k-means of all samples, measured as a training is."""
    from sklearn.cluster import KMeans

    found = torch.from_numpy(KMeans(classes, n_init=10, random_state=seed).fit_predict(x.numpy()))
    unlabeled = given < 0
    return gcd_accuracy(true[unlabeled], found[unlabeled], true[unlabeled] < old)._asdict()
