"""What naive Bayes must keep to, whatever the data."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from offprints.dis_vs_gen import GaussianNaiveBayes


def data(seed: int, n: int = 50, d: int = 6, K: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    centers = torch.randn(K, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + centers[y], y * 3 - 2


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 49), max_size=6), st.booleans())
def test_any_batching_any_order(seed: int, cuts: list[int], shared: bool) -> None:
    X, y = data(seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    whole = GaussianNaiveBayes(shared_variance=shared).fit(X, y)
    streamed = GaussianNaiveBayes(shared_variance=shared)
    edges = [0, *sorted(set(cuts)), len(y)]
    for start, stop in itertools.pairwise(edges):
        streamed.partial_fit(X[order[start:stop]], y[order[start:stop]], classes=[4, 1, -2])
    torch.testing.assert_close(streamed.theta_, whole.theta_, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(streamed.var_, whole.var_, rtol=1e-10, atol=1e-12)
    assert torch.equal(streamed.predict(X), whole.predict(X))


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_merge_is_associative_and_unites_classes(seed: int) -> None:
    X, y = data(seed)
    parts = [y != -2, y == -2, y == 1]
    parts[1] |= y == 4  # a fit needs two classes

    def fitted(i: int) -> GaussianNaiveBayes:
        return GaussianNaiveBayes().partial_fit(X[parts[i]], y[parts[i]], classes=torch.unique(y[parts[i] | (y == 4)]))

    left = fitted(0).merge(fitted(1)).merge(fitted(2))
    right = fitted(0).merge(fitted(1).merge(fitted(2)))
    everything = torch.cat([torch.nonzero(part).squeeze(1) for part in parts])
    whole = GaussianNaiveBayes().fit(X[everything], y[everything])
    for merged in (left, right):
        assert merged.classes_.tolist() == [-2, 1, 4]
        torch.testing.assert_close(merged.theta_, whole.theta_, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(merged.class_var_, whole.class_var_, rtol=1e-10, atol=1e-12)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-100, 100))
def test_units_of_a_feature_do_not_matter(seed: int, scale: float, shift: float) -> None:
    X, y = data(seed)
    changed = X.clone()
    changed[:, 2] = scale * changed[:, 2] + shift
    plain = GaussianNaiveBayes(var_smoothing=0.0).fit(X, y)
    other = GaussianNaiveBayes(var_smoothing=0.0).fit(changed, y)
    torch.testing.assert_close(other.predict_proba(changed), plain.predict_proba(X), rtol=1e-7, atol=1e-9)


def test_names_of_classes_do_not_matter() -> None:
    X, y = data(0)
    renamed = GaussianNaiveBayes().fit(X, 1000 - 7 * y)
    assert torch.equal(renamed.predict(X), 1000 - 7 * GaussianNaiveBayes().fit(X, y).predict(X))


def test_is_lda_with_a_diagonal_covariance() -> None:
    """On features whose pooled covariance is diagonal, LDA is the same classifier."""
    X, y = data(1, n=300)
    means = torch.stack([X[y == k].mean(0) for k in y.unique()])
    within = X - means[torch.searchsorted(y.unique(), y)]
    decorrelated = X @ torch.linalg.eigh(within.T @ within)[1]
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(decorrelated.numpy(), y.numpy())
    ours = GaussianNaiveBayes(var_smoothing=0.0).fit(decorrelated, y)
    np.testing.assert_allclose(
        ours.predict_proba(decorrelated).numpy(), lda.predict_proba(decorrelated.numpy()), atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_predictions_are_those_of_float64(dtype: torch.dtype, offset: float) -> None:
    """Also between classes that nearly coincide, where a float32 product alone would guess."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4000) % 20
    centers = 1e-3 * torch.randn(20, 64, generator=generator)
    X = (torch.randn(4000, 64, generator=generator) + centers[y] + offset).to(dtype)
    model = GaussianNaiveBayes().fit(X, y)
    assert torch.equal(model.predict(X), model.predict_proba(X).argmax(1))
    assert torch.equal(model.predict(X), model.predict(X.double()))


def test_predictions_far_from_zero_are_those_of_float64() -> None:
    """Around 1e5 float32 holds the center of the data to 0.004 alone; classes differ by less than that."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4000) % 20
    centers = 1e-2 * torch.randn(20, 16, generator=generator)
    X = torch.randn(4000, 16, generator=generator) + centers[y] + 1e5
    model = GaussianNaiveBayes().fit(X, y)
    assert torch.equal(model.predict(X), model.predict(X.double()))


def test_float32_keeps_the_variance_far_from_zero() -> None:
    X, y = data(2)
    far = (X.float() + 1e5).double()
    model = GaussianNaiveBayes().fit(far.float(), y)
    expected = torch.stack([far[y == k].var(0, correction=0) for k in y.unique()])
    torch.testing.assert_close(model.class_var_, expected, rtol=1e-6, atol=1e-8)


def test_class_without_samples_is_never_predicted() -> None:
    X, y = data(3)
    model = GaussianNaiveBayes().partial_fit(X, y, classes=[-2, 1, 4, 7])
    reference = GaussianNaiveBayes().fit(X, y)
    torch.testing.assert_close(model.var_, reference.var_)
    assert torch.equal(model.predict(X), reference.predict(X))
    assert model.class_prior_[3] == 0
    assert (model.predict_proba(X)[:, 3] == 0).all()
    assert (model.log_likelihood(X)[:, 3] == -torch.inf).all()
    assert not model.predict_log_proba(X).isnan().any()
    given_prior = GaussianNaiveBayes(priors=torch.full((4,), 0.25)).partial_fit(X, y, classes=[-2, 1, 4, 7])
    assert torch.equal(given_prior.predict(X), reference.predict(X))
    assert torch.equal(model.to_linear(torch.float64)(X).argmax(1), (reference.predict(X) + 2) // 3)


def test_class_without_samples_needs_no_smoothing() -> None:
    X, y = data(3)
    for shared in (True, False):
        options = {"shared_variance": shared, "var_smoothing": 0.0}
        model = GaussianNaiveBayes(**options).partial_fit(X, y, classes=[-2, 1, 4, 7])
        reference = GaussianNaiveBayes(**options).fit(X, y)
        assert torch.equal(model.predict(X), reference.predict(X))
        torch.testing.assert_close(model.predict_proba(X)[:, :3], reference.predict_proba(X))


def test_dead_features() -> None:
    """A feature that never varies weighs nothing; one that is fixed within each class decides, and fit says so."""
    X, y = data(4)
    dead = torch.cat([X, torch.full((len(X), 1), 0.1)], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = GaussianNaiveBayes().fit(dead.float(), y)
    plain = GaussianNaiveBayes().fit(X.float(), y)
    moved = dead.float()
    moved[:, -1] = 5.0
    assert torch.equal(model.predict(moved), plain.predict(X.float()))
    telling = torch.cat([X, y.unsqueeze(1).double()], 1)
    with pytest.warns(UserWarning, match="1 of 7 features"):
        model = GaussianNaiveBayes().fit(telling.float(), y)
    assert torch.equal(model.predict(telling.float()), y)
    assert torch.equal(model.predict_proba(telling).argmax(1), (y + 2) // 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_layer(dtype: torch.dtype) -> None:
    X, y = data(5)
    model = GaussianNaiveBayes(priors=torch.tensor([0.2, 0.3, 0.5])).fit(X, y)
    layer = model.to_linear(dtype)
    logits = layer(X.to(dtype))
    assert torch.equal(model.classes_[logits.argmax(1)], model.predict(X))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(logits.double().softmax(1), model.predict_proba(X), rtol=0, atol=tolerance)
    with pytest.raises(AttributeError, match="shared_variance"):
        GaussianNaiveBayes(shared_variance=False).fit(X, y).to_linear()


def test_what_is_shown_and_what_was_given_are_copies() -> None:
    X, y = data(6)
    priors = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for table, labels in ((X, y), (X.numpy(), y.numpy())):
        model = GaussianNaiveBayes(priors=priors).fit(table, labels)
        expected = model.predict_proba(X)
        for name in ("theta_", "class_count_", "class_prior_", "class_var_", "var_", "coef_", "intercept_"):
            shown = getattr(model, name)
            before = shown.copy() if isinstance(shown, np.ndarray) else shown.clone()
            shown[...] = 7
            assert np.array_equal(getattr(model, name), before), name
        assert torch.equal(model.predict_proba(X), expected)
    streamed = GaussianNaiveBayes(priors=priors).partial_fit(X, y, classes=[-2, 1, 4])
    expected = streamed.class_prior_
    priors[:] = torch.tensor([0.6, 0.3, 0.1])
    assert torch.equal(streamed.class_prior_, expected)


def test_attributes_are_of_the_kind_of_the_first_data() -> None:
    X, y = data(6)
    for first, second in (((X, y), (X.numpy(), y.numpy())), ((X.numpy(), y.numpy()), (X, y))):
        model = GaussianNaiveBayes().partial_fit(*first, classes=[-2, 1, 4]).partial_fit(*second)
        for name in ("classes_", "class_count_", "theta_", "var_"):
            assert type(getattr(model, name)) is type(first[0])


def test_kinds_of_attributes() -> None:
    X, y = data(6)
    arrays = GaussianNaiveBayes().fit(X.numpy(), y.numpy())
    assert all(isinstance(v, np.ndarray) for v in (arrays.classes_, arrays.theta_, arrays.var_, arrays.coef_))
    assert isinstance(GaussianNaiveBayes().fit(X, y).coef_, Tensor)
    assert isinstance(arrays.predict(X), Tensor)
    assert isinstance(GaussianNaiveBayes(shared_variance=False).fit(X, y).var_, Tensor)
    two = GaussianNaiveBayes().fit(X[y < 4], y[y < 4])
    assert two.decision_function(X).shape == (50,)
    assert two.coef_.shape == (2, 6)
