"""The losses of the comparison: Wasserstein matching and clDice."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from offprints.betti_matching import betti_matching_loss, compute_barcode
from offprints.betti_matching.baselines import cldice_loss, soft_skeleton, wasserstein_loss

SHAPES = {1: (20,), 2: (8, 9), 3: (5, 5, 4)}


def images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()


def cheapest(f: np.ndarray, g: np.ndarray) -> float:
    """Least sum of squared distances of points [n, 2], where points may go to the diagonal."""
    n, m = len(f), len(g)
    cost = np.zeros((n + m, n + m))
    cost[:n, :m] = ((f[:, None] - g[None]) ** 2).sum(-1)
    cost[:n, m:] = ((f[:, 0] - f[:, 1]) ** 2 / 2)[:, None]
    cost[n:, :m] = ((g[:, 0] - g[:, 1]) ** 2 / 2)[None]
    return float(cost[linear_sum_assignment(cost)].sum())


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_wasserstein_is_the_cheapest_matching(ndim: int, filtration: Any, relative: bool) -> None:
    pred, target = images(2, 1, *SHAPES[ndim])
    opts: dict[str, Any] = {"filtration": filtration, "relative": relative, "reduction": "none"}
    for k in range(ndim):
        loss = wasserstein_loss(pred, target, dims=[k], reduced=True, **opts)
        for i in range(2):
            points = [
                np.stack((bars[k].birth_values, bars[k].death_values), 1)
                for bars in (
                    compute_barcode(image[i, 0], filtration=filtration, relative=relative, reduced=True)
                    for image in (pred, target)
                )
            ]
            assert loss[i, 0].item() == pytest.approx(2 * cheapest(*points))
    whole = wasserstein_loss(pred, target, **opts)
    assert (whole <= betti_matching_loss(pred, target, **opts) + 1e-12).all()
    assert not wasserstein_loss(pred, pred, **opts).any()


def test_wasserstein_does_not_see_places() -> None:
    target = torch.zeros(1, 1, 9, 20, dtype=torch.float64)
    target[..., 2:7, 2:7] = 1
    target[..., 3:6, 3:6] = 0
    pred = target.flip(-1)
    assert wasserstein_loss(pred, target).item() == 0
    assert betti_matching_loss(pred, target).item() == 2


@pytest.mark.parametrize("relative", [False, True])
def test_wasserstein_gradient(relative: bool) -> None:
    values = torch.randperm(60, generator=torch.Generator().manual_seed(0)).double() / 60
    pred, target = values.view(2, 1, 1, 5, 6)
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: wasserstein_loss(x, target, relative=relative), (pred,))


def test_skeleton_of_a_bar_is_its_centerline() -> None:
    bar = torch.zeros(1, 1, 9, 20, dtype=torch.float64)
    bar[..., 3:6, 2:18] = 1
    skeleton = soft_skeleton(bar, 3)
    expected = torch.zeros_like(bar)
    expected[..., 4, 3:17] = 1
    # opening with a square also takes the corners for ridges
    middle = slice(5, 15)
    torch.testing.assert_close(skeleton[..., middle], expected[..., middle])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_cldice_of_every_image(ndim: int) -> None:
    pred, target = images(2, 3, *SHAPES[ndim])
    mask = target > 0.5
    each = cldice_loss(pred, mask, reduction="none")
    for b, c in np.ndindex(2, 3):
        p, t = pred[b, c], mask[b, c].double()
        sp, st = (soft_skeleton(x[None, None], 3)[0, 0] for x in (p, t))
        precision = ((sp * t).sum() + 1) / (sp.sum() + 1)
        sensitivity = ((st * p).sum() + 1) / (st.sum() + 1)
        torch.testing.assert_close(each[b, c], 1 - 2 * precision * sensitivity / (precision + sensitivity))
    assert cldice_loss(mask.double(), mask).item() == 0
    for axes in permutations(range(2, 2 + ndim)):
        moved = [x.permute(0, 1, *axes) for x in (pred, mask)]
        torch.testing.assert_close(cldice_loss(*moved, reduction="none"), each)
    assert torch.autograd.gradcheck(lambda x: cldice_loss(x, mask[:1, :1]), (pred[:1, :1].clone().requires_grad_(),))
