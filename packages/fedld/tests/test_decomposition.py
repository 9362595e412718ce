"""The decomposition telescopes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprints.fedld import loss_decomposition
from offprints.fedld.reference import decomposition
from offprints.shared.testing import check_arguments

losses = st.floats(-1e3, 1e3)
clients = st.lists(st.tuples(losses, losses, st.floats(0.01, 1e3)), min_size=1, max_size=6)


@given(clients, losses)
def test_telescopes_and_equals_the_reference(each: list[tuple[float, float, float]], whole: float) -> None:
    own, cross, sizes = map(list, zip(*each, strict=True))
    terms = loss_decomposition(own, cross, whole, sizes)
    assert terms["local"] + terms["shift"] + terms["aggregation"] == pytest.approx(whole, abs=1e-9)
    assert terms["total"] == pytest.approx(whole, abs=1e-9)
    expected = decomposition(own, cross, whole, [size / sum(sizes) for size in sizes])
    assert [terms["local"], terms["shift"], terms["aggregation"]] == pytest.approx(expected, abs=1e-9)


def test_values() -> None:
    terms = loss_decomposition([1.0, 3.0], [2.0, 6.0], 2.5, weights=[3, 1])
    assert terms == {"local": 1.5, "shift": 1.5, "aggregation": -0.5, "total": 2.5}
    assert loss_decomposition([1.0, 3.0], [2.0, 6.0], 2.5)["local"] == 2.0


def test_arrays_and_tensors_are_taken() -> None:
    expected = loss_decomposition([1.0, 3.0], [2.0, 6.0], 2.5, [3.0, 1.0])
    for kind in (np.array, torch.tensor, tuple):
        assert loss_decomposition(kind([1.0, 3.0]), kind([2.0, 6.0]), np.float64(2.5), kind([3, 1])) == expected
    assert loss_decomposition([1.0, 3.0], [2.0, 6.0], 2.5, [1.5e308, 0.5e308]) == pytest.approx(expected)


def test_every_argument() -> None:
    check_arguments(loss_decomposition, lambda g: ([0.1, 0.2], [0.3, 0.4], 0.5, [1.0, 2.0]))
