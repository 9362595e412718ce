"""Kernels, fully connected and convolutional: edges, types, and the features whose kernel they are."""

import pytest
import torch

from offprints.more_is_better import myrtle_kernel, relu_nngp, relu_ntk

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
IMAGES = torch.randn(4, 2, 8, 8, generator=GENERATOR, dtype=torch.float64)


def test_random_features_have_this_kernel() -> None:
    weight = torch.randn(400_000, 4, generator=GENERATOR, dtype=torch.float64) * (2 / 4) ** 0.5
    features = torch.relu(X @ weight.T) / len(weight) ** 0.5
    torch.testing.assert_close(features @ features.T, relu_nngp(X), rtol=0.02, atol=0.005)


@pytest.mark.parametrize("kernel", [relu_nngp, relu_ntk])
def test_fully_connected(kernel) -> None:
    K = kernel(X, depth=3)
    assert torch.equal(K, K.T)
    torch.testing.assert_close(kernel(X, X, depth=3), K, rtol=1e-6, atol=0)
    assert torch.linalg.eigvalsh(K)[0] > 0
    assert kernel(X.float()).dtype == torch.float32
    assert kernel(X.bfloat16()).dtype == torch.float32
    assert kernel(X.float(), X).dtype == torch.float64
    torch.testing.assert_close(kernel(3 * X, 2 * X), 6 * kernel(X, X), rtol=1e-12, atol=0)
    torch.testing.assert_close(kernel(1e200 * X, 1e-200 * X), kernel(X, X), rtol=1e-12, atol=0)
    assert not kernel(X.clone().requires_grad_()).requires_grad


def test_parallel_opposite_and_zero_rows() -> None:
    """Cosines of 1 and -1 exactly, and rows without a direction (trap 9)."""
    rows = torch.cat([X[:1], 2 * X[:1], -X[:1], 0 * X[:1]])
    K, T = relu_nngp(rows, rows), relu_ntk(rows, rows)
    length = float(X[0].square().sum()) / 4
    torch.testing.assert_close(K[0], length * torch.tensor([1, 2, 0, 0]).double(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(T[0], length * torch.tensor([2, 4, 0, 0]).double(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize("depth", [5, 7, 10])
def test_myrtle(kind: str, depth: int) -> None:
    K = myrtle_kernel(IMAGES, depth=depth, kind=kind)
    assert torch.equal(K, K.T)
    assert torch.linalg.eigvalsh(K)[0] > 0
    torch.testing.assert_close(
        myrtle_kernel(IMAGES[:3], IMAGES[2:], depth=depth, kind=kind), K[:3, 2:], rtol=1e-6, atol=0
    )
    for batch_size in (1, 3, 100):
        torch.testing.assert_close(myrtle_kernel(IMAGES, depth=depth, kind=kind, batch_size=batch_size), K)
    std = 2**0.5
    layers = {5: 4, 7: 6, 10: 9}[depth] + 1
    torch.testing.assert_close(myrtle_kernel(IMAGES, depth=depth, kind=kind, weight_std=std), K * 2**layers)


def test_myrtle_sizes_types_and_dark_images() -> None:
    large = torch.randn(2, 1, 16, 16, generator=GENERATOR, dtype=torch.float64)
    large[1, :, 3:9] = 0
    K = myrtle_kernel(large)
    assert K.isfinite().all()
    torch.testing.assert_close(myrtle_kernel(large.float()).double(), K, rtol=1e-5, atol=0)
    assert myrtle_kernel(large.half()).dtype == torch.float32
    dark = myrtle_kernel(torch.cat([large, 0 * large[:1]]))
    assert torch.equal(dark[2], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(dark[:2, :2], K)
    apart = myrtle_kernel(1e30 * large.float(), 1e-30 * large.float()).double()
    torch.testing.assert_close(apart, myrtle_kernel(large, large), rtol=1e-4, atol=0)
    turned = large.permute(0, 1, 3, 2)
    torch.testing.assert_close(myrtle_kernel(turned), K)  # the architecture has no direction
    assert not turned.is_contiguous()


def test_myrtle_of_finite_networks() -> None:
    """Wide random networks: the covariance of their outputs."""
    torch.manual_seed(0)
    images, outputs = IMAGES[:2].float(), []
    width = 256
    for _ in range(60):
        x = images
        for count, pools in ((2, 1), (1, 1), (1, 1)):
            for _ in range(count):
                weight = torch.randn(width, x.shape[1], 3, 3) / (9 * x.shape[1]) ** 0.5
                x = torch.relu(torch.conv2d(x, weight, padding=1))
            for _ in range(pools):
                x = torch.nn.functional.avg_pool2d(x, 2)
        outputs.append(x.flatten(1) @ x.flatten(1).T / x.flatten(1).shape[1])
    torch.testing.assert_close(torch.stack(outputs).mean(0), myrtle_kernel(images, kind="nngp"), rtol=0.05, atol=0)
