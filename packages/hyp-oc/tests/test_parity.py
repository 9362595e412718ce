"""Equality with geoopt (operations) and with the official implementation (head, losses, gradients, metrics)."""

from __future__ import annotations

import pytest
import torch

from offprints.hyp_oc import (
    GyroplaneClassifier,
    PseudoNegativeSampler,
    ToPoincare,
    conformal_factor,
    distance,
    distance0,
    expmap,
    expmap0,
    gyroplane_logits,
    hyp_ce_loss,
    hyp_pc_loss,
    logmap,
    logmap0,
    mobius_add,
    pairwise_distance,
    spoof_metrics,
)


def near(actual, expected, rtol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("prefix", ["ops", "ops_c1"])
def test_operations(golden, prefix: str) -> None:
    stored = golden("golden")
    c = float(stored[f"{prefix}_c"])
    u, v, x, y = (stored[f"{prefix}_{name}"] for name in ("u", "v", "expmap0_u", "expmap0_v"))
    found = {
        "expmap0_u": expmap0(u, c=c),
        "expmap0_v": expmap0(v, c=c),
        "mobius_add": mobius_add(x, y, c=c),
        "dist": distance(x, y, c=c),
        "dist0": distance0(x, c=c),
        "expmap": expmap(x, v, c=c),
        "logmap": logmap(x, y, c=c),
        "logmap0": logmap0(x, c=c),
        "lambda": conformal_factor(x, c=c),
    }
    for name, value in found.items():
        expected = stored[f"{prefix}_{name}"]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    near(pairwise_distance(x, y, c=c).diagonal(), stored[f"{prefix}_dist"], 1e-6)


def head_of(data, prefix: str) -> tuple[ToPoincare, GyroplaneClassifier, float]:
    c, a = float(data[f"{prefix}_c"]), data[f"{prefix}_a"]
    to_poincare = ToPoincare(c=c, dim=a.shape[1], learn_origin=True, clip_radius=float(data[f"{prefix}_clip"])).double()
    classifier = GyroplaneClassifier(a.shape[1], len(a), c=c).double()
    with torch.no_grad():
        to_poincare.origin.copy_(data[f"{prefix}_origin"])
        classifier.normals.copy_(a)
        classifier.offsets.copy_(data[f"{prefix}_p"])
    return to_poincare, classifier, c


@pytest.mark.parametrize("prefix", ["head", "head_c1"])
def test_head_losses_and_gradients(golden, prefix: str) -> None:
    data = golden("golden")
    to_poincare, classifier, c = head_of(data, prefix)
    x = data[f"{prefix}_x"].clone().requires_grad_()
    z = to_poincare(x)
    logits = classifier(z)
    near(z, data[f"{prefix}_z"], 1e-3)
    near(logits, data[f"{prefix}_logits"], 1e-3)
    ce, pc = hyp_ce_loss(logits, data[f"{prefix}_y"]), hyp_pc_loss(z, c=c, form="arctan")
    near(ce, data[f"{prefix}_ce"], 1e-3)
    near(pc, data[f"{prefix}_pc_arctan"], 1e-3)
    (ce + pc).backward()
    gradients = {
        "x": x.grad,
        "origin": to_poincare.origin.grad,
        "a": classifier.normals.grad,
        "p": classifier.offsets.grad,
    }
    for name, gradient in gradients.items():
        near(gradient, data[f"{prefix}_grad_{name}"], 5e-3)


@pytest.mark.parametrize(("prefix", "rtol"), [("head", 1e-7), ("head_c1", 1e-8)])
def test_exact_logits(golden, prefix: str, rtol: float) -> None:
    """At the official ball points; the first were made with c rounded to float32."""
    data = golden("golden")
    _, classifier, c = head_of(data, prefix)
    z = data[f"{prefix}_z"]
    near(classifier(z).detach(), data[f"{prefix}_logits_exact"], rtol)
    near(hyp_pc_loss(z, c=c), data[f"{prefix}_pc_artanh"], 1e-6)
    points = expmap0(classifier.offsets, c=c)
    normals = classifier.normals * (1 - c * points.square().sum(1, keepdim=True))
    near(gyroplane_logits(z, points, normals, c=c).detach(), classifier(z).detach(), 1e-12)


def test_metrics_on_the_official_grid(golden) -> None:
    """Their "APCER" is BPCER, and their "NPCER" is APCER."""
    data = golden("golden")
    found = spoof_metrics(data["met_score"], data["met_y"], grid=10_000)
    names = ("bpcer", "apcer", "acer", "eer", "hter", "auc", "threshold", "accuracy")
    for name, expected in zip(names, data["met_official"].tolist(), strict=True):
        assert getattr(found, name) == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("running", ["previous_batch", "ema"])
def test_means_of_the_sampler(golden, running: str) -> None:
    data = golden("golden")
    sampler = PseudoNegativeSampler(5, alpha=float(data["samp_alpha"]), running=running).double()
    for batch, mean in zip(data["samp_batches"], data[f"samp_mean_{running}"], strict=True):
        sampler(batch)
        torch.testing.assert_close(sampler.mean, mean, rtol=1e-12, atol=1e-15)
