"""The classifier's default views."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from offprints.shrinkmatch.views import FeatureViews, ImageViews


def test_feature_views() -> None:
    torch.manual_seed(0)
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    x = torch.tensor([[4.0, 0.0]]).expand(20_000, 2)
    views = FeatureViews(mean, std)
    weak, strong = views.weak(x), views.strong(x)
    torch.testing.assert_close((weak - x).std(0), 0.1 * std, rtol=0.05, atol=0)
    dropped = strong == mean
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.01)
    noise = torch.where(dropped, torch.nan, strong - x)
    assert [noise[:, i][~dropped[:, i]].std().item() for i in range(2)] == pytest.approx([0.75, 0.125], rel=0.05)


def test_image_views() -> None:
    """Weak views are windows of the extended image; strong ones keep size and order, and every image has its own."""
    torch.manual_seed(0)
    x = torch.rand(50, 2, 9, 8)
    views = ImageViews(torch.ones(2, 1, 1))
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    shifts = set()
    for image, view in zip(padded, views.weak(x), strict=True):
        where = [(i, j) for i in range(3) for j in range(3) if torch.equal(image[:, i : i + 9, j : j + 8], view)]
        assert where
        shifts.add(where[0])
    assert len(shifts) == 9
    strong = views.strong(x)
    assert strong.shape == x.shape
    flat = torch.full((400, 1, 8, 8), 3.0)
    quiet = ImageViews(torch.zeros(1, 1, 1)).strong(flat)
    torch.testing.assert_close(quiet, flat, rtol=1e-5, atol=1e-5)  # no scatter: nothing but the constant image
    squares = views._square(flat).sum((1, 2, 3))
    assert squares.max() == 9
    assert squares.min() >= 2
