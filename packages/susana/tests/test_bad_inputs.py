"""Every bad input gets an error that names the argument."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offprints.shared.estimators import NotFittedError  # type: ignore[attr-defined]
from offprints.shared.testing import check_errors
from offprints.susana import (
    EpisodeSampler,
    FewShotLoss,
    PrototypicalClassifier,
    PrototypicalNetwork,
    compute_prototypes,
    icnn_components,
    icnn_loss,
    icnn_score,
    mean_confidence_interval,
    original_icnn_score,
    pairwise_distance,
    proto_triplet_loss,
    prototypical_logits,
    resnet12,
)

X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
NAN = torch.full((8, 3), math.nan)


@pytest.mark.parametrize("fn", [icnn_components, icnn_score, icnn_loss])
def test_score(fn) -> None:
    check_errors(
        [
            (lambda: fn(X[0], Y), ValueError, "features"),
            (lambda: fn(X[:0], Y[:0]), ValueError, "features"),
            (lambda: fn(NAN, Y), ValueError, "features"),
            (lambda: fn(X / 0, Y), ValueError, "features"),
            (lambda: fn(X, Y[None]), ValueError, "labels"),
            (lambda: fn(X, Y[:, None]), ValueError, "labels"),
            (lambda: fn(X, Y[:5]), ValueError, "labels"),
            (lambda: fn(X, Y, target=X), ValueError, "target_labels"),
            (lambda: fn(X, Y, target_labels=Y), ValueError, "target"),
            (lambda: fn(X, Y, target=X[:, :2], target_labels=Y), ValueError, "target"),
            (lambda: fn(X, Y, k=0), ValueError, "k"),
            (lambda: fn(X, Y, k=4, window=3), ValueError, "window"),
            (lambda: fn(X, Y, k=4, window=8), ValueError, "window"),
            (lambda: fn(X[:3], Y[:3]), ValueError, "features"),
            (lambda: fn(X, Y, target=X[:2], target_labels=Y[:2]), ValueError, "target"),
            (lambda: fn(X, Y, target=X[:3], target_labels=Y[:3], drop_nearest=True), ValueError, "target"),
            (lambda: fn(X.numpy(), Y), TypeError, "features"),
            (lambda: fn(X.long(), Y), TypeError, "features"),
            (lambda: fn(X, Y.float()), TypeError, "labels"),
            (lambda: fn(X, Y.bool()), TypeError, "labels"),
            (lambda: fn(X, Y, drop_nearest=1), TypeError, "drop_nearest"),
            (lambda: fn(X, Y, eps=0.0), ValueError, "eps"),
            (lambda: fn(X * 1e30, Y), ValueError, "features"),
        ]
    )


def test_proto_triplet() -> None:
    p = X[:2]
    check_errors(
        [
            (lambda: proto_triplet_loss(X, Y, X[:1]), ValueError, "prototypes"),
            (lambda: proto_triplet_loss(X, Y + 1, p), ValueError, "query_labels"),
            (lambda: proto_triplet_loss(X, Y, p, torch.tensor([0, 5])), ValueError, "query_labels"),
            (lambda: proto_triplet_loss(X, Y, X[:3], torch.tensor([0, 1, 1])), ValueError, "prototype_labels"),
            (lambda: proto_triplet_loss(X, Y, p, margin=-0.1), ValueError, "margin"),
            (lambda: proto_triplet_loss(X, Y, p, reduction="max"), ValueError, "reduction"),  # type: ignore[arg-type]
            (lambda: proto_triplet_loss(X, Y, p[:, :2]), ValueError, "prototypes"),
            (lambda: proto_triplet_loss(X, Y.double(), p), TypeError, "query_labels"),
            (lambda: proto_triplet_loss(1e30 * X, Y, p), ValueError, "queries"),
        ]
    )


def test_prototypes() -> None:
    check_errors(
        [
            (lambda: compute_prototypes(X, Y - 1), ValueError, "labels"),
            (lambda: compute_prototypes(X, Y, n_way=1), ValueError, "labels"),
            (lambda: compute_prototypes(X, Y, n_way=3), ValueError, "labels"),
            (lambda: compute_prototypes(X, 2 * Y), ValueError, "labels"),
            (lambda: compute_prototypes(X, Y + 10**12), ValueError, "labels"),
            (lambda: prototypical_logits(X, X, metric="manhattan"), ValueError, "metric"),  # type: ignore[arg-type]
            (lambda: prototypical_logits(X, X, temperature=0.0), ValueError, "temperature"),
            (lambda: PrototypicalNetwork(torch.nn.Flatten(), temperature=-1.0), ValueError, "temperature"),
            (lambda: PrototypicalNetwork(abs), TypeError, "backbone"),  # type: ignore[arg-type]
            (lambda: PrototypicalNetwork(torch.nn.Identity()).embed(X[None]), ValueError, "backbone"),
            (lambda: original_icnn_score(X[:3], Y[:3]), ValueError, "features"),
            (lambda: original_icnn_score(X, Y, p=0), ValueError, "p"),
            (lambda: resnet12(channels=(4, 4, 4)), ValueError, "channels"),
        ]
    )


@pytest.mark.parametrize(
    "terms", [["fullicn"], ["cross"], [], ["cross_entropy", "cross_entropy"], ["cross_entropy", 3]]
)
def test_terms(terms) -> None:
    """The authors' scripts pass "fullicn", which is ignored there and still counts in the divisor."""
    check_errors([(lambda: FewShotLoss(terms), ValueError, "terms")])


def test_distances_that_overflow() -> None:
    check_errors(
        [
            (lambda: pairwise_distance(X, 1e30 * X), ValueError, "x and y"),
            (lambda: prototypical_logits(X, 1e30 * X), ValueError, "queries and prototypes"),
            (lambda: prototypical_logits(X, X, temperature=1e-300), ValueError, "temperature"),
            (lambda: PrototypicalClassifier(temperature=1e-300).fit(X, Y).predict(X), ValueError, "X"),
        ]
    )


def test_few_shot_loss() -> None:
    check_errors(
        [
            (lambda: FewShotLoss("cross_entropy"), TypeError, "terms"),
            (lambda: FewShotLoss(weights=[1.0]), ValueError, "weights"),
            (lambda: FewShotLoss(weights=[1.0, math.nan]), ValueError, "weights"),
            (lambda: FewShotLoss(query_reference="queries"), ValueError, "query_reference"),  # type: ignore[arg-type]
            (lambda: FewShotLoss(("cross_entropy",))(X, Y, X, Y + 1), ValueError, "query_labels"),
            (lambda: FewShotLoss(("cross_entropy",))(X, 2 * Y, X, Y), ValueError, "support_labels"),
            (lambda: FewShotLoss(("cross_entropy",))(X, Y, X[:, :2], Y), ValueError, "query"),
            (lambda: FewShotLoss(("support_icnn",))(X[:3], Y[:3], X, Y), ValueError, "support"),
            (lambda: FewShotLoss(("query_icnn",), query_reference="prototypes")(X, Y, X, Y), ValueError, "support"),
            (lambda: FewShotLoss(("proto_triplet",))(X, 0 * Y, X, 0 * Y), ValueError, "support_labels"),
            (lambda: FewShotLoss(("cross_entropy",))(1e30 * X, Y, X, Y), ValueError, "support"),
        ]
    )


def test_sampler() -> None:
    good = {"n_way": 2, "n_shot": 1, "n_query": 2, "n_episodes": 3}
    y = [0, 0, 0, 1, 1, 1, 2]
    cases = [(lambda n=name: EpisodeSampler(y, **{**good, n: 0}), ValueError, name) for name in good]
    check_errors(
        [
            *cases,
            (lambda: EpisodeSampler(y, **{**good, "n_way": 3}), ValueError, "n_way"),
            (lambda: EpisodeSampler(y, **{**good, "n_query": 3}), ValueError, "n_query"),
            (lambda: EpisodeSampler(y, **good, rank=1), ValueError, "rank"),
            (lambda: EpisodeSampler(y, **good, rank=-1, world_size=2), ValueError, "rank"),
            (lambda: EpisodeSampler([], **good), ValueError, "labels"),
            (lambda: EpisodeSampler([0.0, 1.0], **good), TypeError, "labels"),
            (lambda: EpisodeSampler(np.zeros((3, 3), int), **good), ValueError, "labels"),
            (lambda: EpisodeSampler(y, **good).set_epoch(-1), ValueError, "epoch"),
        ]
    )


def test_interval_and_classifier() -> None:
    check_errors(
        [
            (lambda: mean_confidence_interval([]), ValueError, "values"),
            (lambda: mean_confidence_interval([0.5, math.nan]), ValueError, "values"),
            (lambda: mean_confidence_interval(torch.tensor([math.inf])), ValueError, "values"),
            (lambda: mean_confidence_interval([0.5], method="t"), ValueError, "values"),
            (lambda: mean_confidence_interval([0.5], confidence=1.0), ValueError, "confidence"),
            (lambda: PrototypicalClassifier().fit(X, Y.float() + 0.5), ValueError, "y"),
            (lambda: PrototypicalClassifier(metric="l1").fit(X, Y), ValueError, "metric"),  # type: ignore[arg-type]
            (lambda: PrototypicalClassifier().predict(X), NotFittedError, "PrototypicalClassifier"),
            (lambda: PrototypicalClassifier().predict(X), RuntimeError, "fit"),
        ]
    )
