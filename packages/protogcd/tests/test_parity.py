"""Equality with the official implementation, on its own numbers."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

from offprints.protogcd import (
    ProtoGCDLoss,
    dapl_loss,
    entropy_regularization,
    gcd_accuracy,
    info_nce,
    ood_measures,
    ood_score,
    prototype_separation,
    ratio_schedule,
    supervised_contrastive,
)

LOSS = {"rtol": 2e-5, "atol": 2e-5, "check_dtype": False}
GRADIENT = {"rtol": 0.0, "atol": 2e-6}
EPOCHS = (0, 5, 19)


@pytest.fixture
def official(golden):
    return golden("protogcd")


def test_schedule(official) -> None:
    ours = [ratio_schedule(epoch, total_epochs=20, wait=0, ramp=10) for epoch in range(20)]
    assert ours == official["ratio_schedule"].tolist()
    assert [ProtoGCDLoss(total_epochs=20).ratio(epoch) for epoch in range(20)] == ours


@pytest.mark.parametrize("epoch", EPOCHS)
def test_dapl(official, epoch: int) -> None:
    logits = official["logits"].requires_grad_()
    loss = dapl_loss(logits, ratio=float(official["ratio_schedule"][epoch]))
    loss.backward()
    assert_close(loss, official[f"dapl_{epoch}"], **LOSS)
    assert_close(logits.grad, official[f"dapl_grad_{epoch}"], **GRADIENT)


def test_regularizers(official) -> None:
    assert_close(entropy_regularization(official["logits"]), official["entropy"], **LOSS)
    prototypes = official["prototypes"].requires_grad_()
    loss = prototype_separation(prototypes)
    loss.backward()
    assert_close(loss, official["separation"], **LOSS)
    assert_close(prototypes.grad, official["separation_grad"], **GRADIENT)


def test_contrastive(official) -> None:
    assert_close(info_nce(official["proj"]), official["infonce"], **LOSS)
    labeled = official["mask"].repeat(2)
    projections, labels = official["proj"][labeled], official["labels"].repeat(2)[labeled]
    assert_close(supervised_contrastive(projections, labels), official["supcon"], **LOSS)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_objective(official, epoch: int) -> None:
    output = ProtoGCDLoss(total_epochs=20)(
        *(official[key] for key in ("logits", "proj", "prototypes", "labels", "mask")), epoch=epoch
    )
    assert_close(output.loss, official[f"total_{epoch}"], **LOSS)
    assert_close(output.classification, official["cls"], **LOSS)
    assert_close(output.dapl, official[f"dapl_{epoch}"], **LOSS)
    assert_close(output.entropy, official["entropy"], **LOSS)
    assert_close(output.separation, official["separation"], **LOSS)
    assert_close(output.contrastive, official["infonce"], **LOSS)
    assert_close(output.supervised_contrastive, official["supcon"], **LOSS)
    assert output.ratio == float(official["ratio_schedule"][epoch])


def test_accuracy(official) -> None:
    found = gcd_accuracy(official["eval_true"], official["eval_pred"], official["eval_old"])
    assert list(found) == official["eval_acc"].tolist()


@pytest.mark.parametrize("kind", ["msp", "mls", "energy", "margin", "proto", "xent"])
def test_outliers(official, kind) -> None:
    scores = {}
    for side in ("in", "out"):
        scores[side] = ood_score(official[f"ood_{side}"], kind=kind)
        assert_close(scores[side], official[f"ood_{kind}_{side}"], rtol=1e-5, atol=1e-5)
    found = ood_measures(scores["in"], scores["out"])
    expected = official[f"ood_{kind}_measures"].tolist()
    assert [found[name] for name in ("auroc", "aupr_in", "fpr95")] == pytest.approx(expected, abs=1e-6)
