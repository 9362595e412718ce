"""One fit and what is measured of it: ours in its variants, the same head in Euclidean space, and other detectors."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.hyp_oc import distance, pairwise_distance, spoof_metrics
from offprints.hyp_oc.detector import HypOCDetector
from offprints.shared.datasets import tensor_batches
from offprints.shared.device import local_seed, make_generator

OURS = "Hyp-OC"
NOT_DISPLACED = "mean at the features (alpha 0)"
NO_PC = "without Hyp-PC"
EUCLIDEAN = "Euclidean: linear classifier, Euclidean pair distance"
SMALL, SMALL_EMA = "batch 6", "batch 6, ema"
ONE_CLASS_SVM, ISOLATION_FOREST = "one-class SVM (scikit-learn)", "isolation forest (scikit-learn)"

VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    NOT_DISPLACED: {"alpha": 0.0},
    NO_PC: {"pc_weight": 0.0},
    "Hyp-PC with arctan": {"form": "arctan"},
    "c = 0.01": {"c": 0.01},
    "c = 1": {"c": 1.0},
    "without feature clipping": {"clip_radius": None},
    "without gradient clipping": {"max_grad_norm": math.inf},
    SMALL: {"batch_size": 6},
    SMALL_EMA: {"batch_size": 6, "running": "ema"},
}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Of `HypOCDetector`, in its names.

    Attributes:
        hidden: Widths of the layers.
        lr: Learning rate.
        epochs: Passes over the live samples.
        variance: Of the pseudo-negatives.
        batch_size: Live samples a step.
    """

    hidden: tuple[int, ...] = (64, 32)
    lr: float = 3e-3
    epochs: int = 40
    variance: float = 0.03
    batch_size: int = 32

    def detector(self, seed: int, **changes: Any) -> HypOCDetector:
        """A detector with these settings but for the changes."""
        options: dict[str, Any] = {
            "hidden": self.hidden,
            "lr": self.lr,
            "epochs": self.epochs,
            "variance": self.variance,
            "batch_size": self.batch_size,
        }
        return HypOCDetector(**{**options, **changes}, random_state=seed, device="cpu")


@dataclass(frozen=True)
class Split:
    """Live samples to fit, and live ones and attacks to test, each `(n, d)`."""

    train: Tensor
    live: Tensor
    attacks: Tensor

    def measured(self, spoof_live: Tensor, spoof_attacks: Tensor) -> dict[str, Any]:
        """Metrics of spoof scores."""
        scores = torch.cat([spoof_live, spoof_attacks]).double()
        labels = torch.cat([torch.zeros(len(spoof_live)), torch.ones(len(spoof_attacks))])
        found = spoof_metrics(scores, labels)
        return {"auc": found.auc, "eer": found.eer, "scores": scores, "labels": labels}


def fit_variant(name: str, split: Split, settings: FitSettings, seed: int) -> dict[str, Any]:
    """Fit one variant and measure it on the held-out samples."""
    if name == EUCLIDEAN:
        return fit_euclidean(split, settings, seed)
    if name in (ONE_CLASS_SVM, ISOLATION_FOREST):
        return fit_peer(name, split, seed)
    detector = settings.detector(seed, **VARIANTS[name]).fit(split.train)
    found = split.measured(-detector.score_samples(split.live), -detector.score_samples(split.attacks))
    with torch.no_grad():
        live = detector.head_(split.live).embedding
        attacks = detector.head_(split.attacks).embedding
    return found | distances(live, attacks, detector.head_.c)


def distances(live: Tensor, attacks: Tensor, c: float) -> dict[str, float]:
    """Mean geodesic distance of held-out live pairs, and of live samples to attacks."""
    pairs = pairwise_distance(live, live, c=c)
    above = torch.triu_indices(len(live), len(live), 1)
    apart = pairwise_distance(live, attacks, c=c)
    return {"live_pairs": float(pairs[above[0], above[1]].mean()), "live_to_attacks": float(apart.mean())}


def fit_euclidean(split: Split, settings: FitSettings, seed: int) -> dict[str, Any]:
    """The same layers, pseudo-negatives, losses and optimizer, with nothing hyperbolic."""
    widths = (split.train.shape[1], *settings.hidden)
    with local_seed(seed):
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        body, classifier = nn.Sequential(*layers), nn.Linear(widths[-1], 2)
    parameters = [*body.parameters(), *classifier.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, weight_decay=1e-6)
    generator = make_generator(seed)
    for _ in range(settings.epochs):
        previous = torch.zeros(widths[0])
        for (batch,) in tensor_batches(split.train, batch_size=settings.batch_size, generator=generator):
            live = batch[: len(batch) // 2 * 2]
            if not len(live):
                continue
            mean = 0.8 * previous + 0.2 * live.mean(0)
            previous = live.mean(0)
            negatives = mean + settings.variance**0.5 * torch.randn(live.shape, generator=generator)
            embedding = body(torch.cat([live, negatives]))
            loss = F.cross_entropy(classifier(embedding), torch.arange(2 * len(live)) // len(live))
            first, second = embedding[: len(live)].chunk(2)
            loss = loss + (first - second).square().sum(1).clamp(min=1e-12).sqrt().sum() / len(live)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 3.0)
            optimizer.step()
    with torch.no_grad():
        spoof = [(logits := classifier(body(x)))[:, 1] - logits[:, 0] for x in (split.live, split.attacks)]
    return split.measured(*spoof)


def fit_peer(name: str, split: Split, seed: int) -> dict[str, Any]:
    """scikit-learn's detectors with their defaults, on the same features."""
    from sklearn.ensemble import IsolationForest
    from sklearn.svm import OneClassSVM

    peer: Any = OneClassSVM() if name == ONE_CLASS_SVM else IsolationForest(random_state=seed)
    peer.fit(split.train.numpy())
    return split.measured(*(-torch.from_numpy(peer.score_samples(x.numpy())) for x in (split.live, split.attacks)))


def disc(split: Split, settings: FitSettings, seed: int) -> dict[str, Any]:
    """A fit in a ball of two dimensions, for the figure: embeddings, and the classifier's sign on a grid.

    Of two units that end in a ReLU one is often off for all samples, which leaves a line: the first of ten fits with
    both on is taken, or the last.
    """
    held_out = torch.cat([split.live, split.attacks])
    for start in range(seed, seed + 10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            detector = settings.detector(start, hidden=(*settings.hidden[:-1], 2)).fit(split.train)
        head = detector.head_
        with torch.no_grad():
            if bool((head(held_out).embedding.std(0) > 0.05).all()):
                break
    radius = head.c**-0.5
    sides = torch.linspace(-radius, radius, 161)
    grid = torch.cartesian_prod(sides, sides)
    detector.sampler_.reset()  # as in the first batch of an epoch
    with torch.no_grad():
        negatives = detector.sampler_(split.train, n=100, generator=make_generator(seed))
        logits = head.classifier(grid)
        inside = grid.norm(dim=1) < 0.999 * radius
        margins = torch.where(inside, logits[:, 1] - logits[:, 0], torch.nan)
        groups = {"live": split.live, "pseudo-negatives": negatives, "attacks": split.attacks}
        points = {name: head(x).embedding for name, x in groups.items()}
    return {"radius": radius, "margins": margins.view(161, 161), **points}


def summary(units: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over splits, and the spread of the AUC."""
    auc = torch.tensor([unit["auc"] for unit in units], dtype=torch.float64)
    found: dict[str, float | None] = {
        "AUC": float(auc.mean()),
        "spread of AUC": float(auc.std(correction=0)),
        "EER": sum(unit["eer"] for unit in units) / len(units),
    }
    for key, label in (("live_pairs", "live pairs apart"), ("live_to_attacks", "live and attacks apart")):
        known = [unit[key] for unit in units if key in unit]
        found[label] = sum(known) / len(known) if known else None
    return found


def float32_error(margin: float, seed: int) -> float:
    """Largest deviation of float32 logits and distances from the plain formulas in float64, relative to the largest.

    Points and gyroplanes lie `margin` from the boundary, relatively.
    """
    from offprints.hyp_oc import gyroplane_logits
    from offprints.hyp_oc import reference as plain

    c, generator = 0.1, make_generator(seed)

    def on_shell(count: int, reach: float) -> Tensor:
        return F.normalize(torch.randn(count, 8, generator=generator), dim=1) * reach / c**0.5

    x, points = on_shell(32, 1 - margin), on_shell(4, 0.5)
    normals = torch.randn(4, 8, generator=generator)
    planes = list(zip(points, normals, strict=True))
    exact = torch.tensor([[_plain_logit(plain, z, *plane, c) for plane in planes] for z in x], dtype=torch.float64)
    logits = gyroplane_logits(x, points, normals, c=c).double()
    pairs = zip(x.double().numpy(), x.flip(0).double().numpy(), strict=True)
    apart = torch.tensor([plain.distance(*pair, c) for pair in pairs], dtype=torch.float64)
    found = distance(x, x.flip(0), c=c).double()
    errors = ((logits - exact).abs().max() / exact.abs().max(), ((found - apart) / apart).abs().max())
    return float(max(errors))


def _plain_logit(plain: Any, z: Tensor, p: Tensor, a: Tensor, c: float) -> float:
    """The reference's logit, which takes the plane by its Euclidean parameters."""
    P, A = p.double().numpy(), a.double().numpy()
    length = (P @ P) ** 0.5
    offset = P / length * math.atanh(c**0.5 * length) / c**0.5
    value: float = plain.gyroplane_logit(z.double().numpy(), offset, A / (1 - c * (P @ P)), c)
    return value
