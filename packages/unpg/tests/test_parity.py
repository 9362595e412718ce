"""Equality with what the official implementation gave, and with scikit-learn's curve (tests/golden)."""

import numpy as np
import pytest
import torch

from offprints.unpg import (
    ArcFaceHead,
    CosFaceHead,
    MagFaceHead,
    MarginHead,
    MarginLoss,
    UNPGLoss,
    iqr_filter,
    pair_similarities,
    reference,
    similarity_gap,
    tar_at_far,
    verification_accuracy,
)

CASES = ("arc", "arc_tight", "cos", "mag")
OFFICIAL = {"rtol": 1e-6, "atol": 1e-6}  # it keeps margins in float32
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def load(data, case: str) -> tuple[MarginHead, float]:
    """The head and the whisker of a case."""
    classes, dim = data[f"{case}_w"].shape
    if case == "mag":
        names = ("scale", "l_margin", "u_margin", "l_a", "u_a", "lambda_g")
        head = MagFaceHead(dim, classes, **dict(zip(names, data["mag_args"].tolist(), strict=True)))
        whisker = 1.5
    else:
        scale, margin, whisker = data[f"{case}_smw"].tolist()
        head = (CosFaceHead if case == "cos" else ArcFaceHead)(dim, classes, scale=scale, margin=margin)
    head = head.double()
    head.weight.data.copy_(data[f"{case}_w"])
    return head, whisker


@pytest.mark.parametrize("case", CASES)
def test_cosines_and_pairs(golden, case: str) -> None:
    data = golden("golden")
    head, whisker = load(data, case)
    x, y = data[f"{case}_x"], data[f"{case}_y"].long()
    output = head(x, y)
    torch.testing.assert_close(output.cosine.detach(), data[f"{case}_margin_cosine"], **OFFICIAL)
    if case == "mag":
        torch.testing.assert_close(output.regularizer.detach(), data["mag_reg"].reshape(()), **OFFICIAL)
        return
    assert output.regularizer == 0
    positive, negative = pair_similarities(x, y)
    torch.testing.assert_close(positive, data[f"{case}_sp"], **EXACT)
    torch.testing.assert_close(negative, data[f"{case}_sn"], **EXACT)
    kept = iqr_filter(negative, whisker=whisker).sort()[0]
    torch.testing.assert_close(kept, data[f"{case}_sn_kept"], **EXACT)
    if case == "arc_tight":
        assert len(kept) < len(negative)  # the filter acts


@pytest.mark.parametrize("chunk", [None, 1, 3, 1000])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(golden, case: str, chunk: int | None) -> None:
    data = golden("golden")
    head, whisker = load(data, case)
    x, y = data[f"{case}_x"].clone().requires_grad_(), data[f"{case}_y"].long()
    loss = UNPGLoss(head, whisker=whisker, class_chunk=chunk)(x, y)
    loss.backward()
    torch.testing.assert_close(loss.detach(), data[f"{case}_loss"].reshape(()), **OFFICIAL)
    torch.testing.assert_close(x.grad, data[f"{case}_grad_x"], **OFFICIAL)
    torch.testing.assert_close(head.weight.grad, data[f"{case}_grad_w"], **OFFICIAL)
    if f"{case}_loss_without" in data:
        plain = MarginLoss(head, class_chunk=chunk)(x, y).detach()
        torch.testing.assert_close(plain, data[f"{case}_loss_without"].reshape(()), **OFFICIAL)


@pytest.mark.parametrize("case", CASES)
def test_reference(golden, case: str) -> None:
    data = golden("golden")
    head, whisker = load(data, case)
    kind = {"arc": "arcface", "cos": "cosface", "mag": "magface"}[case[:3]]
    found = reference.unpg_loss(
        data[f"{case}_x"],
        data[f"{case}_y"].long(),
        data[f"{case}_w"],
        kind,
        scale=head.scale,
        margin=getattr(head, "margin", 0.0),
        whisker=whisker,
    )
    torch.testing.assert_close(found, data[f"{case}_loss"].reshape(()), **OFFICIAL)


@pytest.mark.parametrize("case", ["iqr", "iqr_w1"])
def test_filter(golden, case: str) -> None:
    data = golden("golden")
    kept = iqr_filter(data[f"{case}_sim"], whisker=float(data[f"{case}_whisker"])).sort()[0]
    torch.testing.assert_close(kept, data[f"{case}_kept_sorted"], **EXACT)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_verification(golden, kind) -> None:
    data = golden("golden")
    scores, same = kind(data["ver_sim"]), kind(data["ver_same"])
    best = verification_accuracy(scores, same, method="best_threshold")
    assert best.accuracy == pytest.approx(float(data["ver_best_acc"]), abs=1e-12)
    np.testing.assert_allclose(verification_accuracy(scores, same).per_fold, data["ver_fold_acc"], atol=1e-12)
    for method in ("nearest", "at_most"):
        rates = tar_at_far(scores, same, far=data["ver_far"].tolist(), method=method)
        np.testing.assert_allclose(rates, data[f"ver_tar_{method}"], atol=1e-12)


@pytest.mark.parametrize("chunk_size", [3, 7, 4096])
def test_gap(golden, chunk_size: int) -> None:
    data = golden("golden")
    x, y = data["gap_x"], data["gap_y"].long()
    whole = similarity_gap(x, y, chunk_size=chunk_size)
    assert whole.inf_positive == pytest.approx(float(data["gap_inf_pos"]), abs=1e-10)
    assert whole.sup_negative == pytest.approx(float(data["gap_sup_neg"]), abs=1e-10)
    robust = similarity_gap(x, y, quantile=0.01, chunk_size=chunk_size)
    assert robust.inf_positive == pytest.approx(float(data["gap_q01_pos"]), abs=1e-10)
    assert robust.sup_negative == pytest.approx(float(data["gap_q99_neg"]), abs=1e-10)
    assert robust.gap == robust.inf_positive - robust.sup_negative
