"""Pairs of a batch and the box-and-whisker filter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packages.unpg.tests.cases import make_batch

from offprints.shared.testing import check_arguments
from offprints.unpg import iqr_bounds, iqr_filter, pair_similarities, reference
from offprints.unpg.pairs import masked_quartiles, pair_logsumexp


def test_equals_the_reference() -> None:
    x, y = make_batch(9, 4, 3)
    for ours, theirs in zip(pair_similarities(x, y), reference.pairs(x, y), strict=True):
        torch.testing.assert_close(ours, theirs)
    products = pair_similarities(x, y, normalize=False)
    upper = torch.ones(9, 9, dtype=torch.bool).triu(1)
    torch.testing.assert_close(products.negative, (x @ x.T)[upper & (y[:, None] != y)])


def test_one_class_all_different_one_row() -> None:
    x, _ = make_batch(4, 3, 2)
    one = pair_similarities(x, torch.zeros(4, dtype=torch.int64))
    assert (len(one.positive), len(one.negative)) == (6, 0)
    different = pair_similarities(x, torch.tensor([3, -1, 7, 100]))  # any integers
    assert (len(different.positive), len(different.negative)) == (0, 6)
    alone = pair_similarities(x[:1], torch.tensor([0]))
    assert len(alone.positive) == len(alone.negative) == 0


def test_gradient_reaches_both_members() -> None:
    x, y = torch.eye(3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2])
    (gradient,) = torch.autograd.grad(pair_similarities(x, y).negative[0], x)
    torch.testing.assert_close(gradient, torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    x, y = make_batch(8, 5, 3)
    half = x.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = pair_similarities(half, y)
    expected = pair_similarities(half.float(), y)
    assert found.negative.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_lengths_do_not_matter(factor: float) -> None:
    x, y = make_batch(6, 5, 3)
    expected = pair_similarities(x.float(), y)
    torch.testing.assert_close(pair_similarities(x.float() * factor, y), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 60), st.floats(0, 3), st.integers(0, 10**6))
@settings(max_examples=40)
def test_filter_is_that_of_sorted_values(n: int, whisker: float, seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=n).round(1))  # with ties
    ordered = values.sort()[0]
    q1, q3 = ordered[int(0.25 * n)], ordered[int(0.75 * n)]
    low, high = iqr_bounds(values, whisker=whisker)
    assert low == q1 - whisker * (q3 - q1)
    assert high == q3 + whisker * (q3 - q1)
    kept = iqr_filter(values, whisker=whisker)
    assert kept.tolist() == [v for v in values.tolist() if low <= v <= high]
    torch.testing.assert_close(kept.sort()[0], reference.box_and_whisker(values, whisker))


def test_bounds_of_constant_values_keep_all() -> None:
    values = torch.full((5,), 0.3)
    low, high = iqr_bounds(values)
    assert low == high == values[0]
    assert len(iqr_filter(values)) == 5
    assert len(iqr_filter(iqr_filter(values))) == 5


@pytest.mark.parametrize("whisker", [1e39, 1e308])
def test_whiskers_beyond_the_type_keep_all(whisker: float) -> None:
    """Infinite in float32: a box of length 0 still has its own ends, any other none."""
    low, high = iqr_bounds(torch.ones(5), whisker=whisker)
    assert (low.item(), high.item()) == (1.0, 1.0)
    assert len(iqr_filter(torch.tensor([-50.0, 0.0, 1.0, 2.0, 90.0]), whisker=whisker)) == 5
    unit = torch.eye(4)  # all pairs alike
    found = pair_logsumexp(unit, torch.arange(4), 2.0, whisker)
    torch.testing.assert_close(found, torch.tensor(6.0).log())


def test_equal_cosines_are_kept_together_in_spite_of_rounding() -> None:
    """Rows along one line in either direction: all pairs are at an end of the box."""
    draws = torch.Generator().manual_seed(0)
    line = torch.randn(7, generator=draws)
    ends = torch.tensor([1.0, -1.0]).repeat(12)[:, None] * (0.2 + torch.rand(24, 1, generator=draws))
    x = torch.nn.functional.normalize(ends * line)
    assert len(set(pair_similarities(x, torch.arange(24)).negative.tolist())) > 2
    found = pair_logsumexp(x, torch.arange(24), 2.0, 0.0)  # 66 + 66 pairs of one direction, 144 of two
    expected = torch.tensor([2 * 66.0, 144.0]).log() + torch.tensor([2.0, -2.0])
    torch.testing.assert_close(found, expected.logsumexp(0), rtol=1e-6, atol=1e-6)


def test_whisker_zero_keeps_the_box() -> None:
    assert iqr_filter(torch.arange(8.0), whisker=0).tolist() == [2, 3, 4, 5, 6]


def test_both_ends_are_removed_and_no_gradient_flows_through_them() -> None:
    values = torch.tensor([-50.0, 0, 1, 2, 3, 50], requires_grad=True)
    kept = iqr_filter(values)
    assert kept.tolist() == [0, 1, 2, 3]
    assert not any(end.requires_grad for end in iqr_bounds(values))
    kept.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_many_values() -> None:
    """More than `torch.quantile` takes."""
    values = torch.arange(2**24 + 5, dtype=torch.float32).flip(0)  # falling: the worst case of some selections
    low, high = iqr_bounds(values, whisker=0)
    assert (low.item(), high.item()) == (float((2**24 + 5) // 4), float(3 * (2**24 + 5) // 4))


@pytest.mark.parametrize("labels", [[0, 0, 1, 2, 1], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
def test_quartiles_without_reading_values_are_the_same(labels: list[int]) -> None:
    """As on an accelerator: under vmap the number of pairs cannot be read."""
    x, _ = make_batch(5, 4, 2)
    y = torch.tensor(labels)
    similarities = x @ x.T
    mask = (y[:, None] != y) & torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = masked_quartiles(similarities, mask)
    for found, one in zip(torch.func.vmap(masked_quartiles)(similarities[None], mask[None]), expected, strict=True):
        assert found.item() == one.item()
    for whisker in (None, 0.5):
        alone = pair_logsumexp(x, y, 0.1, whisker)
        mapped = torch.func.vmap(lambda x, y, w=whisker: pair_logsumexp(x, y, 0.1, w))(x[None], y[None])[0]
        torch.testing.assert_close(mapped, alone)
        assert alone.isfinite()


def test_arguments() -> None:
    def batch(generator: torch.Generator):
        return torch.randn(7, 4, generator=generator), torch.randint(3, (7,), generator=generator)

    check_arguments(pair_similarities, batch)
    for function in (iqr_bounds, iqr_filter):
        check_arguments(function, lambda g: (torch.randn(9, generator=g),))
