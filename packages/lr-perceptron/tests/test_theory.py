"""Margin, radius and separability against closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC

from offprints.lr_perceptron import is_separable, iteration_bound, margin, radius
from offprints.lr_perceptron.reproduce.digits import digit_pair


@given(st.integers(0, 500), st.integers(2, 6), st.integers(3, 40))
@settings(max_examples=15)
def test_margin_is_that_of_a_support_vector_machine(seed: int, d: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, d))
    y = np.where(X @ generator.normal(size=d) > 0, 1, -1)
    signed = X * y[:, None]
    # Both signs of every sample make the machine's intercept 0.
    machine = SVC(kernel="linear", C=1e8, tol=1e-8).fit(np.r_[signed, -signed], np.r_[np.ones(n), -np.ones(n)])
    assert margin(torch.from_numpy(X), torch.from_numpy(y)) == pytest.approx(
        1 / np.linalg.norm(machine.coef_), rel=1e-3
    )


def test_margin_of_degenerate_sets() -> None:
    one = torch.tensor([[3.0, 4.0]])
    assert margin(one, torch.tensor([-1])) == pytest.approx(5)
    assert margin(one.repeat(7, 1), torch.ones(7)) == pytest.approx(5)
    line = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [-1.0, -1.0]])
    assert margin(line, torch.tensor([1, 1, 1, -1])) == pytest.approx(math.sqrt(2))
    for unit in (1e-150, 1e150):
        assert margin(unit * one.double(), torch.ones(1)) == pytest.approx(5 * unit)
        assert radius(unit * one.double()) == pytest.approx(5 * unit)
    # Lengths far apart: copies of samples that are longer change nothing.
    for short in (1e-3, 1e-10, 1e-100):
        two = torch.tensor([[1.0, 0.0], [0.0, short]], dtype=torch.float64)
        assert margin(two, torch.ones(2)) == pytest.approx(short / math.sqrt(1 + short**2), rel=1e-9)
    X, y = digit_pair((3, 5))
    expected = margin(X, y)
    for factor in (10.0, 1e5, 1e9):
        assert margin(torch.cat([X, factor * X]), torch.cat([y, y])) == pytest.approx(expected, rel=1e-8)
    simplex = torch.eye(6, dtype=torch.float64)
    assert margin(simplex, torch.ones(6)) == pytest.approx(1 / math.sqrt(6), rel=1e-9)


def test_separable_or_not() -> None:
    X, y = digit_pair((3, 5))
    assert is_separable(X, y)
    assert margin(X, y) == pytest.approx(0.25067, abs=1e-4)
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert not is_separable(noise, torch.arange(60) % 2 * 2 - 1)
    plane = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert not is_separable(plane, torch.tensor([1, 1]))
    assert is_separable(plane, torch.tensor([1, -1]))
    assert not is_separable(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    # Separation does not depend on the samples' lengths.
    assert is_separable(plane * torch.tensor([[1e-20], [1e20]]), torch.tensor([1, -1]))


def test_bounds_in_numbers() -> None:
    sizes = {"n": 1000, "radius": math.sqrt(1.25), "margin": 0.5}
    assert iteration_bound("perceptron", **sizes) == pytest.approx(5)
    assert iteration_bound("normalized_batch_perceptron", **sizes) == pytest.approx(5)
    assert iteration_bound("batch_perceptron", **sizes) == iteration_bound("lr_gd", **sizes) == pytest.approx(5000)
    assert iteration_bound("normalized_lr_gd", **sizes) == pytest.approx(5)
    expected = 5 + 2 * math.log(1999) / (0.1 * 0.25)
    assert iteration_bound("normalized_lr_gd", **sizes, step_size=0.1) == pytest.approx(expected)
