"""The gap of a feature space, against all pairs at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packages.unpg.tests.cases import make_batch

from offprints.shared.testing import check_arguments
from offprints.unpg import pair_similarities, similarity_gap


@given(st.integers(0, 10**6), st.integers(4, 40), st.floats(0, 0.49), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=20)
def test_equals_numpy_quantiles(seed: int, rows: int, quantile: float, dtype: torch.dtype) -> None:
    x, y = make_batch(rows, 2, 3, seed)
    x = x.round(decimals=0).to(dtype) if seed % 2 else x.to(dtype)  # with ties
    y[:3] = torch.tensor([0, 0, 1])
    positive, negative = (part.double().numpy() for part in pair_similarities(x, y))
    found = similarity_gap(x, y, quantile=quantile, chunk_size=7 + seed % 50)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6  # blocks of other sizes round otherwise
    assert found.inf_positive == pytest.approx(np.quantile(positive, quantile), abs=tolerance)
    assert found.sup_negative == pytest.approx(np.quantile(negative, 1 - quantile), abs=tolerance)
    assert found.gap == found.inf_positive - found.sup_negative


def test_well_discriminative_spaces() -> None:
    y = torch.arange(12) % 3
    assert similarity_gap(torch.eye(3)[y], y).gap == 1
    assert similarity_gap(torch.eye(3)[y], y, quantile=0.3).gap == 1
    assert similarity_gap(torch.ones(12, 3), y, quantile=0.1).gap == 0
    spoiled = torch.eye(3)[y].clone()
    spoiled[0] = torch.tensor([0.0, 1.0, 0.0])  # one wrong label
    assert similarity_gap(spoiled, y).gap == -1
    assert similarity_gap(spoiled, y, quantile=0.2).gap == 1


def test_two_pairs() -> None:
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
    found = similarity_gap(x, torch.tensor([0, 0, 1]), quantile=0.25)
    assert found.inf_positive == pytest.approx(0.6)
    assert found.sup_negative == pytest.approx(-1 + 0.75 * 0.4)


def test_half_types_and_labels_of_any_integers() -> None:
    x, y = make_batch(20, 6, 3)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            found = similarity_gap(x.to(dtype), (y * 1000 - 7).to(torch.int16), quantile=0.1)
        assert found == similarity_gap(x.to(dtype).float(), y, quantile=0.1)


def test_arguments() -> None:
    check_arguments(similarity_gap, lambda g: (torch.randn(12, 4, generator=g), torch.arange(12) % 3))
