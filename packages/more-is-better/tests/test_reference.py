"""The fast code equals the paper's algorithm as it is written."""

import numpy as np
import pytest
import torch

from offprints.more_is_better import myrtle_kernel, powerlaw_spectrum, relu_nngp, relu_ntk, rf_risk, ridge_path
from offprints.more_is_better import reference as plain

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(("n", "k", "ridge"), [(20, 45, 0.3), (45, 20, 0.02), (30, 30, 1.0)])
def test_risk(n: int, k: int, ridge: float) -> None:
    eigvals, coeffs = powerlaw_spectrum(100, 1.4, 1.7)
    risk = rf_risk(eigvals, coeffs, n, k, ridge, noise_var=0.2)
    found = [float(x) for x in (risk.test_mse, risk.train_mse, risk.kappa, risk.gamma)]
    assert found == pytest.approx(plain.rf_risk(eigvals.numpy(), coeffs.numpy(), n, k, ridge, 0.2), rel=1e-9)


def test_ridge_regression() -> None:
    X, y = GENERATOR.normal(size=(30, 8)), GENERATOR.normal(size=(30, 2))
    K = X @ X.T
    blocks = K[:20, :20], K[20:, :20], y[:20], y[20:]
    train, test = ridge_path(
        *(torch.from_numpy(block) for block in blocks), torch.tensor([0.1, 1.0, 2.0, 9.0]).double()
    )
    for i, ridge in enumerate(torch.tensor([0.1, 1.0, 2.0, 9.0]).double().tolist()):
        assert [train[i].item(), test[i].item()] == pytest.approx(plain.ridge_regression(*blocks, ridge), rel=1e-9)


@pytest.mark.parametrize("depth", [1, 3])
def test_fully_connected(depth: int) -> None:
    X = GENERATOR.normal(size=(3, 5))
    tensor = torch.from_numpy(X)
    expected = np.array([[plain.relu_kernels(x, y, depth) for y in X] for x in X])
    np.testing.assert_allclose(relu_nngp(tensor, depth=depth), expected[..., 0], rtol=1e-6)
    np.testing.assert_allclose(relu_ntk(tensor, depth=depth), expected[..., 1], rtol=1e-6)


def test_myrtle() -> None:
    """One image is dark in places: its patches of zeros have no angle."""
    images = GENERATOR.normal(size=(2, 2, 8, 8))
    images[1, :, :4] = 0
    expected = plain.myrtle_kernels(images[0], images[1], (2, 1, 1))
    first, second = torch.from_numpy(images).split(1)
    for kind, value in zip(("nngp", "ntk"), expected, strict=True):
        assert myrtle_kernel(first, second, kind=kind).item() == pytest.approx(value, rel=1e-9)
