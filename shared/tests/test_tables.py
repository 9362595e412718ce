"""Tables and labels of every kind that users bring, against their plain numbers."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from torch import Tensor

from offprints.shared import tables
from offprints.shared.estimators import LearnedAttributes, NotFittedError, all_or_nothing
from offprints.shared.labels import Classes, as_labels, training_classes
from offprints.shared.tables import as_table, as_weights, is_sparse, row_blocks
from offprints.shared.testing import check_errors

X = np.arange(12.0).reshape(4, 3) - 5


class Estimator(LearnedAttributes, BaseEstimator):
    """Learns the mean of the columns."""

    _learned = ("mean_",)

    @all_or_nothing
    def fit(self, table: Any) -> Estimator:
        features = as_table(table, estimator=self, reset=True)
        self.mean_ = features.mean(0)
        if bool((self.mean_ > 100).any()):
            raise ValueError("too large")
        return self

    def seen(self, table: Any) -> Tensor:
        return as_table(table, estimator=self)


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i2"])
def test_numbers_keep_their_values(dtype: str) -> None:
    """The smallest floating type that holds all numbers of the type, as an array and as a tensor."""
    array = np.abs(X).astype(dtype)
    if array.dtype.kind in "iu":
        array[0, 0] = min(np.iinfo(dtype).max, 2**53)
    found = as_table(array)
    expected = {"f2": torch.float16, "f4": torch.float32, ">f4": torch.float32, "f8": torch.float64}.get(
        dtype, torch.float32 if array.itemsize <= 2 else torch.float64
    )
    assert found.dtype == expected
    np.testing.assert_array_equal(found.double().numpy(), array.astype(np.float64))
    if array.dtype.isnative:
        tensor = as_table(torch.from_numpy(array))
        assert tensor.dtype == expected
        assert torch.equal(tensor, found)


def test_kinds_of_tables() -> None:
    expected = torch.from_numpy(X)
    nullable = pd.DataFrame(X.astype(int)).astype("Int64")
    kinds = {
        "list": X.tolist(), "tuple": tuple(map(tuple, X.tolist())), "Fortran order": np.asfortranarray(X),
        "every other row": np.repeat(X, 2, 0)[::2], "data frame": pd.DataFrame(X), "nullable": nullable,
        "unmasked": np.ma.masked_array(X), "needs grad": torch.from_numpy(X).requires_grad_(),
        "objects": X.astype(object),
    }  # fmt: skip
    for kind, table in kinds.items():
        found = as_table(table)
        assert torch.equal(found, expected), kind
        assert not found.requires_grad


def test_memory_is_shared() -> None:
    read_only = X.copy()
    read_only.flags.writeable = False
    assert as_table(read_only).data_ptr() == read_only.ctypes.data


def test_sparse_tables_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 7)
    for make in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array):
        table = as_table(make(X), sparse=True)
        assert is_sparse(table)
        blocks = list(row_blocks(table))
        assert [len(block) for block in blocks] == [2, 2]
        assert torch.equal(torch.cat(blocks), torch.from_numpy(X))
    assert [len(block) for block in row_blocks(torch.from_numpy(X))] == [2, 2]


def test_what_is_no_table() -> None:
    masked = np.ma.masked_array(X, mask=X > 2)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "table must be a table of numbers"),
        ("abc", TypeError, "table must be a table of numbers"),
        ({"a": [1.0]}, TypeError, "table must be a table of numbers"),
        (3.0, TypeError, "table must be a table of numbers"),
        ([[1.0], [1.0, 2.0]], ValueError, "table must have rows of equal length"),
        (X[0], ValueError, "table must have 2 dimensions"),
        (X[None], ValueError, "table must have 2 dimensions"),
        (X[:0], ValueError, "table must not be empty"),
        (X[:, :0], ValueError, "table has 0 feature"),
        (X + 1j, ValueError, "table"),
        (torch.from_numpy(X) + 1j, TypeError, "table"),
        (np.full((2, 2), np.nan), ValueError, "table"),
        (torch.full((2, 2), torch.inf), ValueError, "table must be finite"),
        (masked, ValueError, "table must not have masked"),
        (np.array([["a", "b"]]), ValueError, "table"),
        (sparse.csr_array(X), TypeError, "table must be dense"),
        (torch.from_numpy(X).to_sparse(), TypeError, "table must be dense"),
        (pd.DataFrame({"a": [1, None]}, dtype="Int64"), ValueError, "table"),
        (X.astype("M8[s]"), TypeError, "table must hold numbers"),
        (pd.DataFrame({"a": [1.0], "b": pd.to_datetime(["2020"])}), TypeError, "table must hold numbers"),
    ]
    check_errors([(lambda value=value: as_table(value, "table"), error, text) for value, error, text in wrong])


def test_columns_are_remembered() -> None:
    frame = pd.DataFrame(X, columns=list("abc"))
    model = Estimator().fit(frame)
    assert model.feature_names_in_.tolist() == list("abc")
    assert torch.equal(model.seen(frame), torch.from_numpy(X))
    check_errors(
        [
            (lambda: model.seen(frame[["b", "a", "c"]]), ValueError, "order"),
            (lambda: model.seen(frame.rename(columns={"a": "d"})), ValueError, "names"),
            (lambda: model.seen(X[:, :2]), ValueError, "X has 2 features, but Estimator is expecting 3"),
            (
                lambda: model.seen(torch.from_numpy(X[:, :2])),
                ValueError,
                "X has 2 features, but Estimator is expecting 3",
            ),
        ]
    )
    assert not hasattr(model.fit(torch.from_numpy(X)), "feature_names_in_")


def test_a_refused_fit_changes_nothing() -> None:
    model = Estimator().fit(X)
    before = dict(vars(model))
    for refused in (X * np.nan, X + 1000, "text"):
        with pytest.raises((TypeError, ValueError)):
            model.fit(refused)
        assert vars(model) == before


def test_an_interrupted_fit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Estimator().fit(X)
    before = dict(vars(model))

    def interrupt(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tensor, "mean", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X + 1)
    assert vars(model) == before


def test_states_hold_arrays_alone() -> None:
    model = Estimator()
    with pytest.raises(NotFittedError, match="mean_ comes with fit"):
        _ = model.mean_
    with pytest.raises(AttributeError, match="other"):
        _ = model.other
    model.fit(X)
    state = model.__getstate__()
    assert not any(isinstance(value, Tensor) for value in state.values())
    assert torch.equal(pickle.loads(pickle.dumps(model)).mean_, model.mean_)
    half = Estimator()
    half.mean_ = torch.tensor([1.5], dtype=torch.bfloat16)
    assert torch.equal(pickle.loads(pickle.dumps(half)).mean_, half.mean_)


def test_weights() -> None:
    cpu = torch.device("cpu")
    expected = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    for given in ([1, 2, 0], np.array([1, 2, 0], np.uint8), torch.tensor([1.0, 2, 0]), pd.Series([1, 2, 0])):
        assert torch.equal(as_weights(given, 3, cpu), expected)
    assert as_weights(None, 3, cpu) is None
    assert torch.equal(as_weights(2, 3, cpu), torch.full((3,), 2.0, dtype=torch.float64))
    wrong = ([1, 2], [[1, 2, 3]], [-1, 1, 1], [0, 0, 0], [np.nan, 1, 1])
    check_errors([(lambda value=value: as_weights(value, 3, cpu), ValueError, "sample_weight") for value in wrong])
    check_errors([(lambda: as_weights(["a", "b", "c"], 3, cpu), TypeError, "sample_weight")])


LABELS = {
    "integers": [3, 1, 3],
    "unsigned": np.array([3, 1, 3], np.uint64),
    "big endian": np.array([3, 1, 3], ">i4"),
    "tensor": torch.tensor([3, 1, 3], dtype=torch.int16),
    "whole floats": [3.0, 1.0, 3.0],
    "nullable": pd.Series([3, 1, 3], dtype="Int64"),
    "booleans": [True, False, True],
    "strings": ["b", "a", "b"],
    "series of strings": pd.Series(["b", "a", "b"]),
    "strings of varying width": np.array(["b", "a", "b"], dtype=np.dtypes.StringDType()),
    "categories": pd.Series(["b", "a", "b"], dtype="category"),
    "objects": np.array(["b", "a", "b"], dtype=object),
}


@pytest.mark.parametrize("kind", list(LABELS))
def test_labels_come_back_as_they_were(kind: str) -> None:
    classes, numbers = training_classes(LABELS[kind], 3)
    assert numbers.tolist() == [1, 0, 1]
    assert numbers.dtype == torch.int64
    plain = [value.item() if isinstance(value, Tensor) else value for value in LABELS[kind]]
    assert list(classes.shown(numbers, X)) == plain
    assert classes.numbers(as_labels(LABELS[kind], "y", 3), "y").tolist() == [1, 0, 1]
    shown = classes.shown(numbers, torch.zeros(1))
    if isinstance(plain[0], str):
        assert isinstance(shown, np.ndarray)
    else:
        assert shown.tolist() == plain


def test_what_are_no_labels() -> None:
    wrong: list[tuple[Any, type[Exception]]] = [
        (None, ValueError), ([1, 2], ValueError), ([[1, 2, 3]], ValueError), ([0.5, 1, 2], ValueError),
        ([np.nan, 1, 2], ValueError), ([1j, 2, 3], TypeError),
        (np.array([1, "a", None], object), TypeError), (np.array([1, np.str_("a"), 2], object), TypeError),
        (np.ma.masked_array([1, 2, 3], [0, 1, 0]), ValueError),
        (sparse.csr_array(np.ones((3, 1))), TypeError), (np.zeros(3, "M8[s]"), TypeError),
    ]  # fmt: skip
    for value, error in wrong:
        check_errors([(lambda value=value: as_labels(value, "y", 3), error, "y")])
    check_errors([(lambda: training_classes([1, 1, 1], 3), ValueError, "y must hold at least 2 classes")])
    with pytest.warns(UserWarning, match="column-vector y"):
        assert as_labels(np.array([[1], [2], [3]]), "y", 3).tolist() == [1, 2, 3]


def test_classes_of_other_types() -> None:
    classes = Classes(np.array([1, 5, 2**60], np.int64))
    numbers, known = classes.find(np.array([5, 7, 2**60, 2**63], np.uint64))
    assert known.tolist() == [True, False, True, False]
    assert numbers[known].tolist() == [1, 2]
    assert not classes.find(np.array(["1", "5"]))[1].any()
    with pytest.raises(ValueError, match="among the classes"):
        classes.numbers(np.array([7]), "y")
    assert classes.union(Classes(np.array([3]))).values.tolist() == [1, 3, 5, 2**60]
    with pytest.raises(TypeError, match="same kind"):
        classes.union(Classes(np.array(["a"])))


def test_scikit_learn_is_not_imported_for_tensors() -> None:
    code = (
        "import sys, torch; from offprints.shared.tables import as_table;"
        "from offprints.shared.labels import training_classes;"
        "as_table(torch.zeros(2, 2)); training_classes(torch.tensor([0, 1]), 2);"
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
