"""The generator: NumPy's moments at any offset, and pseudo-features of exactly these."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.aef_ocl import PseudoFeatureGenerator
from offprints.aef_ocl.pseudo_features import CHUNK
from offprints.shared.device import make_generator
from offprints.shared.testing import check_arguments, check_streaming


def data(n: int, d: int, K: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64), torch.randint(K, (n,), generator=generator)


def test_streaming() -> None:
    """Far from zero, where sums of squares would lose everything; later batches bring classes."""
    X, y = data(40, 5, 4)
    X, y[:15] = X + 1e4, y[:15] % 2
    check_streaming(
        lambda: PseudoFeatureGenerator(5),
        [(X[:7], y[:7]), (X[7:8], y[7:8]), (X[8:], y[8:])],
        result=lambda one: (one.count_, one.mean_, one.std_, one.deficits()),
        rtol=1e-8,
    )


@settings(max_examples=15)
@given(st.integers(1, 60), st.sampled_from([0.0, -3.0, 1e7]), st.integers(0, 10**6))
def test_moments_are_numpys(n, offset, seed) -> None:
    X, y = data(n, 3, 4, seed)
    X = X + offset
    generator = PseudoFeatureGenerator(3)
    for x, labels in zip(X.split(9), y.split(9), strict=True):
        generator.partial_fit(x, labels)
    for c in range(len(generator.count_)):
        rows = X[y == c].numpy()
        assert generator.count_[c] == len(rows)
        if len(rows):
            np.testing.assert_allclose(generator.mean_[c], rows.mean(0), rtol=1e-12, atol=1e-12)
        expected = (rows - offset).std(0, ddof=1) if len(rows) > 1 else np.zeros(3)
        np.testing.assert_allclose(generator.std_[c], expected, rtol=1e-6, atol=1e-7)


def test_float32_features_far_from_zero() -> None:
    """A deviation of 1 at 1e5 in float32: E[f^2] - E[f]^2 in float32 would be off by hundreds."""
    X, y = data(500, 2, 1)
    moved = (X + 1e5).float()
    std = PseudoFeatureGenerator(2).partial_fit(moved, y).std_
    torch.testing.assert_close(std, moved.double().std(0)[None], rtol=1e-9, atol=0)


def test_one_sample_and_none() -> None:
    generator = PseudoFeatureGenerator(2).partial_fit(
        torch.tensor([[1.0, 2.0], [4.0, 5.0], [6.0, 9.0]]), torch.tensor([1, 3, 3])
    )
    assert generator.count_.tolist() == [0, 1, 0, 2]
    assert generator.deficits().tolist() == [0, 1, 0, 0]
    assert generator.std_.tolist() == [[0, 0], [0, 0], [0, 0], pytest.approx([2**0.5, 8**0.5])]
    features, labels = generator.sample()
    assert features.tolist() == [[1, 2]]
    assert labels.tolist() == [1]
    empty = PseudoFeatureGenerator(2)
    assert empty.deficits().tolist() == []
    features, labels = empty.sample()
    assert features.shape == (0, 2)
    assert labels.shape == (0,)


def test_samples_are_mean_and_deviation_times_normals() -> None:
    X, y = data(50, 3, 3)
    generator = PseudoFeatureGenerator(3, noise=0.5).partial_fit(X, y)
    normals = torch.randn(7, 3, dtype=torch.float64)
    features, labels = generator.sample(torch.tensor([2, 0, 5]), normals=normals)
    assert labels.tolist() == [0, 0, 2, 2, 2, 2, 2]
    torch.testing.assert_close(features, generator.mean_[labels] + 0.5 * generator.std_[labels] * normals)
    assert torch.equal(
        PseudoFeatureGenerator(3, noise=0.0).partial_fit(X, y).sample()[0].unique(dim=0),
        torch.stack([generator.mean_[c] for c in range(3) if generator.deficits()[c]]).unique(dim=0),
    )


def test_many_samples_have_the_moments() -> None:
    """More than a chunk, and the next chunk does not repeat the first."""
    X, y = data(30, 2, 1)
    generator = PseudoFeatureGenerator(2).partial_fit(X, y)
    n = 3 * CHUNK + 5
    features, _ = generator.sample(torch.tensor([n]), generator=make_generator(0))
    assert len(features.unique(dim=0)) == n
    torch.testing.assert_close(features.mean(0), generator.mean_[0], rtol=0, atol=0.05)
    torch.testing.assert_close(features.std(0), generator.std_[0], rtol=0.03, atol=0)
    again, _ = generator.sample(torch.tensor([n]), generator=make_generator(0))
    assert torch.equal(again, features)


def test_draws_are_the_generators() -> None:
    X, y = data(30, 2, 2)
    generator = PseudoFeatureGenerator(2).partial_fit(X, y)
    before = torch.get_rng_state()
    first = generator.sample(torch.tensor([3, 4]), generator=make_generator(5))[0]
    assert torch.equal(torch.get_rng_state(), before)
    try:
        torch.set_default_device("meta")
        assert torch.equal(generator.sample(torch.tensor([3, 4], device="cpu"), generator=make_generator(5))[0], first)
        assert generator.sample()[0].device.type == "cpu"
    finally:
        torch.set_default_device(None)
    torch.manual_seed(5)
    assert torch.equal(generator.sample(torch.tensor([3, 4]))[0], first)  # without one: torch's global generator


def test_state() -> None:
    X, y = data(30, 2, 3)
    generator = PseudoFeatureGenerator(2).partial_fit(X[:20], y[:20])
    file = io.BytesIO()
    torch.save(generator.state_dict(), file)
    file.seek(0)
    loaded = PseudoFeatureGenerator(2).partial_fit(X[:1], y[:1] + 7)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for one in (generator, loaded):
        one.partial_fit(X[20:], y[20:])
    assert torch.equal(loaded.std_, generator.std_)
    assert torch.equal(loaded.count_, generator.count_)


def test_surroundings_change_nothing() -> None:
    X, y = data(30, 2, 3)
    expected = PseudoFeatureGenerator(2).partial_fit(X, y).std_
    with torch.inference_mode():
        generator = PseudoFeatureGenerator(2).partial_fit(X[:9], y[:9])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generator.partial_fit(X[9:].requires_grad_(), y[9:])
        torch.testing.assert_close(generator.std_, expected, rtol=1e-12, atol=1e-14)
        assert not generator.sample()[0].requires_grad


def test_arguments() -> None:
    def moments(X: Tensor, y: Tensor) -> list[Tensor]:
        made = PseudoFeatureGenerator(3).partial_fit(X, y)
        return [made.mean_, made.std_]

    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(7, 3, generator=generator), torch.randint(3, (7,), generator=generator)

    check_arguments(moments, inputs)
    check_arguments(PseudoFeatureGenerator, lambda g: {"in_features": 4, "noise": 1.0})
    fitted = PseudoFeatureGenerator(3).partial_fit(*data(30, 3, 3))
    check_arguments(
        fitted.sample,
        lambda g: {"counts": torch.tensor([1, 2, 1]), "normals": torch.randn(4, 3, generator=g, dtype=torch.float64)},
    )


def test_float32_counts_on() -> None:
    """Beyond 2^24, where float32 has no odd numbers."""
    generator = PseudoFeatureGenerator(1, dtype=torch.float32)
    generator.partial_fit(torch.ones(2, 1), torch.tensor([0, 1]))
    generator._count = torch.tensor([2**24, 1])
    for _ in range(3):
        generator.partial_fit(torch.ones(1, 1), torch.tensor([0]))
    assert generator.count_.tolist() == [2**24 + 3, 1]
    assert generator.deficits().tolist() == [0, 2**24 + 2]
    other = PseudoFeatureGenerator(1, dtype=torch.float32).partial_fit(torch.ones(1, 1), torch.tensor([2]))
    assert generator.merge_(other).count_.tolist() == [2**24 + 3, 1, 1]
    assert torch.equal(generator.half().mean_, torch.ones(3, 1))
    assert generator.mean_.dtype == torch.float32
