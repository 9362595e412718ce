"""Losses and gradients against the golden data, in float64 at 1e-9."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offprints.betti_matching import betti_matching_loss

with np.load(Path(__file__).parent / "golden" / "matching.npz") as _file:
    CASES = sorted({key.split("/")[0] for key in _file})


def options(texts: np.ndarray) -> dict[str, Any]:
    pairs = dict(text.split("=") for text in texts)
    return {name: text == "True" if text in ("True", "False") else text for name, text in pairs.items()}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_match_golden_data(case: str, golden: Callable[[str], dict[str, Any]]) -> None:
    data = golden("matching")
    opts = options(data[f"{case}/opts"])
    pred, target = (data[f"{case}/{name}"][None, None].requires_grad_() for name in ("pred", "target"))
    losses = [betti_matching_loss(pred, target, dims=(k,), **opts) for k in range(pred.ndim - 2)]
    expected: Tensor = data[f"{case}/loss"]
    torch.testing.assert_close(torch.stack(losses), expected, rtol=1e-9, atol=1e-12)

    total = betti_matching_loss(pred, target, **opts)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(total, (pred, target))
    for gradient, name in zip(gradients, ("grad_pred", "grad_target"), strict=True):
        torch.testing.assert_close(gradient[0, 0], data[f"{case}/{name}"], rtol=1e-9, atol=1e-12)
