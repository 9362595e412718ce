"""Every bad input gets an error that names the argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offprints.protogcd import (
    ProtoGCDClusterer,
    ProtoGCDLoss,
    PrototypeHead,
    balanced_sampler,
    dapl_loss,
    dapl_pseudo_labels,
    dino_backbone,
    entropy_regularization,
    estimate_num_classes,
    gcd_accuracy,
    gcd_split,
    info_nce,
    ood_measures,
    ood_score,
    prototype_separation,
    ratio_schedule,
    supervised_contrastive,
)
from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_errors

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
NAN, INF = X.clone(), X.clone()
NAN[0, 0], INF[1, 1] = float("nan"), float("inf")
WHOLE = torch.ones(4, 3, dtype=torch.int64)
LABELS = torch.tensor([0, 1, 0, 1])
ROWS = {
    "logits": lambda x: dapl_loss(x, ratio=0.5),
    "projections": info_nce,
    "prototypes": prototype_separation,
}


@pytest.mark.parametrize("name", ROWS)
def test_tensors(name: str) -> None:
    fn = ROWS[name]
    check_errors(
        [
            (lambda: fn(NAN), ValueError, name),
            (lambda: fn(INF), ValueError, name),
            (lambda: fn(WHOLE), TypeError, name),
            (lambda: fn(X.numpy()), TypeError, name),
            (lambda: fn(X[0]), ValueError, name),
            (lambda: fn(X[:0]), ValueError, name),
        ]
    )


def test_losses() -> None:
    check_errors(
        [
            (lambda: dapl_loss(X[:3], ratio=0.5), ValueError, "num_views"),
            (lambda: dapl_loss(X, ratio=0.5, num_views=3), ValueError, "num_views"),
            (lambda: dapl_loss(X, ratio=0.5, num_views=1), ValueError, "num_views"),
            (lambda: dapl_loss(X[:, :1], ratio=0.5), ValueError, "logits"),
            (lambda: dapl_loss(X, ratio=1.1), ValueError, "ratio"),
            (lambda: dapl_loss(X, ratio=0.5, student_temperature=0), ValueError, "student_temperature"),
            (lambda: dapl_loss(X, ratio=0.5, teacher_temperature=-1), ValueError, "teacher_temperature"),
            (lambda: dapl_pseudo_labels(X, ratio=-0.1), ValueError, "ratio"),
            (lambda: dapl_pseudo_labels(X, ratio="all"), TypeError, "ratio"),
            (lambda: dapl_pseudo_labels(NAN, ratio=0.5), ValueError, "logits"),
            (lambda: dapl_pseudo_labels(X[:, :1], ratio=0.5), ValueError, "logits"),
            (lambda: dapl_pseudo_labels(X, ratio=0.5, temperature=0.0), ValueError, "temperature"),
            (lambda: entropy_regularization(NAN), ValueError, "logits"),
            (lambda: entropy_regularization(X[:, :1]), ValueError, "logits"),
            (lambda: entropy_regularization(X, temperature=0.0), ValueError, "temperature"),
            (lambda: prototype_separation(X[:1]), ValueError, "prototypes"),
            (lambda: prototype_separation(torch.cat([X, torch.zeros(1, 3)])), ValueError, "prototypes"),
            (lambda: prototype_separation(X, temperature=-0.1), ValueError, "temperature"),
            (lambda: info_nce(X[:3]), ValueError, "projections"),
            (lambda: info_nce(X, temperature=0.0), ValueError, "temperature"),
            (lambda: supervised_contrastive(X, LABELS[:3]), ValueError, "labels"),
            (lambda: supervised_contrastive(X, LABELS.float()), TypeError, "labels"),
            (lambda: supervised_contrastive(X, LABELS[:, None]), ValueError, "labels"),
            (lambda: supervised_contrastive(X[:0], LABELS), ValueError, "labels"),
            (lambda: supervised_contrastive(X[:, :0], LABELS), ValueError, "projections"),
            (lambda: supervised_contrastive(NAN, LABELS), ValueError, "projections"),
            (lambda: supervised_contrastive(X, LABELS, temperature=0), ValueError, "temperature"),
        ]
    )


def test_schedule() -> None:
    check_errors(
        [
            (lambda: ratio_schedule(-1, total_epochs=10), ValueError, "epoch"),
            (lambda: ratio_schedule(1.5, total_epochs=10), TypeError, "epoch"),
            (lambda: ratio_schedule(0, total_epochs=0), ValueError, "total_epochs"),
            (lambda: ratio_schedule(0, total_epochs=10, wait=-1), ValueError, "wait"),
            (lambda: ratio_schedule(0, total_epochs=10, ramp=-1), ValueError, "ramp"),
            (lambda: ratio_schedule(0, total_epochs=10, wait=6), ValueError, "wait"),
            (lambda: ratio_schedule(0, total_epochs=10, wait=1, ramp=10), ValueError, "wait"),
            (lambda: ratio_schedule(0, total_epochs=10, initial=-0.1), ValueError, "initial"),
            (lambda: ratio_schedule(0, total_epochs=10, final=1.1), ValueError, "final"),
        ]
    )


def test_objective() -> None:
    criterion, labels, mask = ProtoGCDLoss(), LABELS[:2], torch.tensor([True, False])

    def call(**changes: object) -> object:
        given: dict[str, object] = {
            "logits": X, "projections": X, "prototypes": X[:3], "labels": labels, "labeled_mask": mask, "epoch": 0,
        }  # fmt: skip
        return criterion(**{**given, **changes})

    cases = [
        ({"logits": X[:3]}, ValueError, "logits"),
        ({"logits": NAN}, ValueError, "logits"),
        ({"logits": WHOLE}, TypeError, "logits"),
        ({"logits": X[:, :1], "prototypes": X[:1]}, ValueError, "logits"),
        ({"projections": X[:2]}, ValueError, "projections"),
        ({"projections": INF}, ValueError, "projections"),
        ({"prototypes": X}, ValueError, "prototypes"),
        ({"prototypes": NAN[:3]}, ValueError, "prototypes"),
        ({"prototypes": torch.zeros(3, 3)}, ValueError, "prototypes"),
        ({"labels": LABELS}, ValueError, "labels"),
        ({"labels": labels.float()}, TypeError, "labels"),
        ({"labels": torch.tensor([3, 0])}, ValueError, "labels"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, "labels"),
        ({"labels": labels[:, None]}, ValueError, "labels"),
        ({"labeled_mask": mask.long()}, TypeError, "labeled_mask"),
        ({"labeled_mask": mask.float()}, TypeError, "labeled_mask"),
        ({"labeled_mask": mask[:1]}, ValueError, "labeled_mask"),
        ({"labeled_mask": [True, False]}, TypeError, "labeled_mask"),
        ({"epoch": -1}, ValueError, "epoch"),
        ({"epoch": 0.5}, TypeError, "epoch"),
    ]
    check_errors([(lambda c=change: call(**c), error, word) for change, error, word in cases])
    options = [
        ({"total_epochs": 0}, ValueError, "total_epochs"),
        ({"wait_epochs": -1}, ValueError, "wait_epochs"),
        ({"ramp_epochs": -1}, ValueError, "ramp_epochs"),
        ({"wait_epochs": 150, "ramp_epochs": 100}, ValueError, "wait_epochs"),
        ({"wait_epochs": 150}, ValueError, "ramp_epochs"),
        ({"initial_ratio": 2}, ValueError, "initial_ratio"),
        ({"final_ratio": -1}, ValueError, "final_ratio"),
        ({"student_temperature": 0}, ValueError, "student_temperature"),
        ({"teacher_temperature": 0}, ValueError, "teacher_temperature"),
        ({"contrastive_temperature": 0}, ValueError, "contrastive_temperature"),
        ({"supervised_temperature": "low"}, TypeError, "supervised_temperature"),
        ({"supervised_weight": 1.5}, ValueError, "supervised_weight"),
        ({"entropy_weight": -1}, ValueError, "entropy_weight"),
        ({"separation_weight": -1}, ValueError, "separation_weight"),
    ]
    check_errors([(lambda c=change: ProtoGCDLoss(**c), error, word) for change, error, word in options])


def test_head_and_backbone() -> None:
    head = PrototypeHead(3, 4, hidden=5, projection_dim=2)
    check_errors(
        [
            (lambda: PrototypeHead(0, 4), ValueError, "in_features"),
            (lambda: PrototypeHead(3, 1), ValueError, "num_classes"),
            (lambda: PrototypeHead(3, 4, hidden=0), ValueError, "hidden"),
            (lambda: PrototypeHead(3, 4, projection_dim=0), ValueError, "projection_dim"),
            (lambda: PrototypeHead(3, 4, layers=0), ValueError, "layers"),
            (lambda: head(X[:, :2]), ValueError, "features"),
            (lambda: head(WHOLE), TypeError, "features"),
            (lambda: head.set_prototypes(X[:, :2]), ValueError, "values"),
            (lambda: head.set_prototypes(X, start=1), ValueError, "start"),
            (lambda: head.set_prototypes(X, start=4), ValueError, "start"),
            (lambda: head.set_prototypes(NAN), ValueError, "values"),
            (lambda: head.set_prototypes(torch.zeros(1, 3)), ValueError, "values"),
            (lambda: head.set_prototypes(WHOLE), TypeError, "values"),
            (lambda: dino_backbone(trainable_blocks=13), ValueError, "trainable_blocks"),
            (lambda: dino_backbone(pretrained="yes"), TypeError, "pretrained"),
        ]
    )


def test_accuracy_and_splits() -> None:
    old = [True, False]
    check_errors(
        [
            (lambda: gcd_accuracy([0, 1], [0], old), ValueError, "labels_pred"),
            (lambda: gcd_accuracy([0, 1], [0, 1], old[:1]), ValueError, "old_mask"),
            (lambda: gcd_accuracy([], [], []), ValueError, "labels_true"),
            (lambda: gcd_accuracy([0, -1], [0, 1], old), ValueError, "labels_true"),
            (lambda: gcd_accuracy([0, 1], [0, -1], old), ValueError, "labels_pred"),
            (lambda: gcd_accuracy([0, 1], [0.0, 1.0], old), TypeError, "labels_pred"),
            (lambda: gcd_accuracy([True, False], [0, 1], old), TypeError, "labels_true"),
            (lambda: gcd_accuracy([[0, 1]], [0, 1], old), ValueError, "labels_true"),
            (lambda: gcd_accuracy([0, 1], [0, 1], [1, 0]), TypeError, "old_mask"),
            (lambda: gcd_accuracy(range(9000), range(9000), [True] * 9000), ValueError, "labels_true"),
            (lambda: gcd_accuracy(np.ma.array([0, 1], mask=[0, 1]), [0, 1], old), ValueError, "labels_true"),
            (lambda: gcd_accuracy([0, 1], [0, 1], np.ma.array(old, mask=[0, 1])), ValueError, "old_mask"),
            (lambda: gcd_accuracy("01", [0, 1], old), TypeError, "labels_true"),
            (lambda: gcd_split([0, 1], old_classes=[2], seed=0), ValueError, "old_classes"),
            (lambda: gcd_split([0, 1], old_classes=[0, 0], seed=0), ValueError, "old_classes"),
            (lambda: gcd_split([0, 1], old_classes=[], seed=0), ValueError, "old_classes"),
            (lambda: gcd_split([0, 1], old_classes=0, seed=0), TypeError, "old_classes"),
            (lambda: gcd_split([0, 0], old_classes=[0], labeled_fraction=0.0, seed=0), ValueError, "labeled_fraction"),
            (lambda: gcd_split([0, 0], old_classes=[0], labeled_fraction=1.1, seed=0), ValueError, "labeled_fraction"),
            (lambda: gcd_split([0, 0], old_classes=[0], labeled_fraction=0.4, seed=0), ValueError, "labeled_fraction"),
            (lambda: gcd_split([0, 0], old_classes=[0], seed=-1), ValueError, "seed"),
            (lambda: gcd_split([0, 0], old_classes=[0], seed=None), TypeError, "seed"),
            (lambda: balanced_sampler(0, 3), ValueError, "num_labeled"),
            (lambda: balanced_sampler(3, 0), ValueError, "num_unlabeled"),
            (lambda: balanced_sampler(3, 2**24), ValueError, "num_labeled"),
            (lambda: balanced_sampler(3, 3, generator=0), TypeError, "generator"),
        ]
    )


def test_outliers() -> None:
    check_errors(
        [
            (lambda: ood_score(X, kind="max"), ValueError, "kind"),
            (lambda: ood_score(X, temperature=0), ValueError, "temperature"),
            (lambda: ood_score(X, kind="mls", temperature=0), ValueError, "temperature"),
            (lambda: ood_score(NAN), ValueError, "logits"),
            (lambda: ood_score(WHOLE), TypeError, "logits"),
            (lambda: ood_score(X[:, :1]), ValueError, "logits"),
            (lambda: ood_measures([], [1.0]), ValueError, "scores_in"),
            (lambda: ood_measures([1.0], [float("nan")]), ValueError, "scores_out"),
            (lambda: ood_measures([1.0], [[1.0]]), ValueError, "scores_out"),
            (lambda: ood_measures(["a"], [1.0]), TypeError, "scores_in"),
            (lambda: ood_measures([1.0], [1.0], recall=0), ValueError, "recall"),
            (lambda: ood_measures([1.0], [1.0], recall=1.1), ValueError, "recall"),
        ]
    )


def test_class_count() -> None:
    x, y = X.numpy(), [0, 1, -1, -1]
    check_errors(
        [
            (lambda: estimate_num_classes(x, y, max_classes=1), ValueError, "max_classes"),
            (lambda: estimate_num_classes(x, [0, 1, 2, -1], max_classes=2), ValueError, "max_classes"),
            (lambda: estimate_num_classes(x, y, max_classes=5), ValueError, "max_classes"),
            (lambda: estimate_num_classes(x, y, max_classes=3, min_classes=1), ValueError, "min_classes"),
            (lambda: estimate_num_classes(x, y, max_classes=3, min_classes=4), ValueError, "min_classes"),
            (lambda: estimate_num_classes(x, y, max_classes=3, criterion="gap"), ValueError, "criterion"),
            (
                lambda: estimate_num_classes(x, [0, -1, -1, -1], max_classes=3, criterion="product"),
                ValueError,
                "labels",
            ),
            (lambda: estimate_num_classes(x, [0, 0, 1, 1], max_classes=3), ValueError, "labels"),
            (lambda: estimate_num_classes(x, [0, 1, -2, -1], max_classes=3), ValueError, "labels"),
            (lambda: estimate_num_classes(x, y[:3], max_classes=3), ValueError, "labels"),
            (lambda: estimate_num_classes(NAN, y, max_classes=3), ValueError, "features"),
            (lambda: estimate_num_classes(x[0], y, max_classes=3), ValueError, "features"),
            (lambda: estimate_num_classes(x, y, max_classes=3, n_init=0), ValueError, "n_init"),
            (lambda: estimate_num_classes(x, y, max_classes=3, seed=-1), ValueError, "seed"),
        ]
    )


def test_clusterer() -> None:
    x, y = X.numpy(), [0, 1, -1, -1]
    parameters = [
        ({"n_classes": 1}, ValueError), ({"n_classes": "guess"}, ValueError), ({"n_classes": 2.5}, TypeError),
        ({"epochs": 0}, ValueError), ({"lr": 0}, ValueError), ({"batch_size": 0}, ValueError),
        ({"noise": -1}, ValueError), ({"adapter": "cnn"}, ValueError), ({"supervised_weight": 1.1}, ValueError),
        ({"entropy_weight": -1}, ValueError), ({"separation_weight": -1}, ValueError), ({"init": "means"}, ValueError),
        ({"views": 3}, TypeError), ({"random_state": -1}, ValueError), ({"random_state": 1.5}, TypeError),
    ]  # fmt: skip

    def fit(X: object = x, y: object = y, **options: object) -> object:
        return ProtoGCDClusterer(**{"n_classes": 3, "epochs": 1, "random_state": 0, **options}).fit(X, y)  # type: ignore[arg-type]

    check_errors([(lambda c=change: fit(**c), error, next(iter(change))) for change, error in parameters])
    check_errors(
        [
            (lambda: fit(y=[-1, -1, -1, -1]), ValueError, "y"),
            (lambda: fit(y=[0, 1, 0, 1]), ValueError, "y"),
            (lambda: fit(y=[0, 2, -1, -1]), ValueError, "y"),
            (lambda: fit(y=[0, -2, -1, -1]), ValueError, "y"),
            (lambda: fit(y=[0, 1, -1]), ValueError, "y"),
            (lambda: fit(y=[0.0, 1.0, -1.0, -1.0]), TypeError, "y"),
            (lambda: fit(y=None), TypeError, "y"),
            (lambda: fit(n_classes=2, y=[0, 1, 2, -1]), ValueError, "n_classes"),
            (lambda: fit(X=NAN), ValueError, "X"),
            (lambda: fit(X=x[0]), ValueError, "X"),
            (lambda: fit(X=np.ma.array(x, mask=x > 0)), ValueError, "X"),
            (lambda: fit(X="table"), TypeError, "X"),
            (lambda: fit(X=[[1.0], [1.0, 2.0]]), ValueError, "X"),
            (lambda: fit(device="abacus"), ValueError, "device"),
            (lambda: fit(views=lambda batch: batch[:1]), ValueError, "views"),
            (lambda: fit(views=lambda batch: batch.numpy()), TypeError, "views"),
            (lambda: fit(lr=1e30, epochs=9), ValueError, "lr"),
            (lambda: ProtoGCDClusterer(3).predict(x), NotFittedError, "fit"),
            (lambda: ProtoGCDClusterer(3).ood_score(x), NotFittedError, "fit"),
            (lambda: ProtoGCDClusterer(3).score(x, y), NotFittedError, "fit"),
            (lambda: fit().predict(x[:, :2]), ValueError, "features"),
            (lambda: fit().ood_score(x, kind="max"), ValueError, "kind"),
            (lambda: fit().score(x, [0, 1, 2]), ValueError, "y"),
        ]
    )
    with pytest.raises(RuntimeError, match="fit"):
        ProtoGCDClusterer(3).predict_proba(x)
