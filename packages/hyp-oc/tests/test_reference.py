"""The fast code equals the paper's listing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offprints.hyp_oc import HypOCHead, HypOCLoss, PseudoNegativeSampler, ToPoincare, distance, expmap, gyroplane_logits
from offprints.hyp_oc import reference as plain

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("c", [0.1, 1.0, 7.0])
def test_operations(c: float) -> None:
    # Not far out: there the listing's artanh has no digits left.
    u, v = GENERATOR.normal(size=(2, 6, 4)) * 0.4 / c**0.5
    x = np.array([plain.expmap(np.zeros(4), row, c) for row in u])
    moved = np.array([plain.expmap(*pair, c) for pair in zip(x, v, strict=True)])
    found = expmap(torch.from_numpy(x), torch.from_numpy(v), c=c)
    np.testing.assert_allclose(found.numpy(), moved, rtol=1e-11, atol=1e-13)
    apart = [plain.distance(*pair, c) for pair in zip(x, moved, strict=True)]
    np.testing.assert_allclose(distance(torch.from_numpy(x), found, c=c).numpy(), apart, rtol=1e-7)
    offsets, normals = GENERATOR.normal(size=(2, 3, 4)) / c**0.5
    logits = [[plain.gyroplane_logit(z, p, a, c) for p, a in zip(offsets, normals, strict=True)] for z in x]
    points = torch.from_numpy(np.array([plain.expmap(np.zeros(4), p, c) for p in offsets]))
    transported = torch.from_numpy(normals) * (1 - c * points.square().sum(1, keepdim=True))
    found = gyroplane_logits(torch.from_numpy(x), points, transported, c=c)
    np.testing.assert_allclose(found.numpy(), logits, rtol=1e-9, atol=1e-11)


def test_embedding() -> None:
    """Clipped, moved to the base point and projected, each where it acts and where it does not."""
    origin = GENERATOR.normal(size=5)
    x = GENERATOR.normal(size=(6, 5)) * np.array([0.01, 0.5, 1, 3, 30, 0])[:, None]
    for clip_radius in (2.0, 40.0):
        to_poincare = ToPoincare(c=0.1, dim=5, learn_origin=True, clip_radius=clip_radius).double()
        with torch.no_grad():
            to_poincare.origin.copy_(torch.from_numpy(origin))
        expected = [plain.embed(row, origin, 0.1, clip_radius) for row in x]
        np.testing.assert_allclose(to_poincare(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_loss_of_three_batches() -> None:
    torch.manual_seed(0)
    head = HypOCHead(6, (7, 5), c=0.3).double()
    sampler = PseudoNegativeSampler(6, alpha=0.7, variance=0.5).double()
    criterion = HypOCLoss(head, sampler)
    with torch.no_grad():
        head.to_poincare.origin.normal_()
    previous = np.zeros(6)
    layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in head.layers]
    planes = (head.classifier.offsets.detach().numpy(), head.classifier.normals.detach().numpy())
    for seed in range(3):
        features = torch.randn(4, 6, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        negatives, previous = plain.pseudo_negatives(features.numpy(), previous, noise.numpy(), 0.7, 0.5)
        origin = head.to_poincare.origin.detach().numpy()
        expected = plain.loss(features.numpy(), negatives, layers, origin, *planes, c=0.3)
        assert float(criterion(features, generator=generator).loss.detach()) == pytest.approx(expected, rel=1e-9)
