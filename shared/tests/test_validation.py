from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError as SklearnNotFittedError

from offprints.shared import estimators
from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.extras import MissingData, MissingExtra, require, require_folder
from offprints.shared.testing import check_errors
from offprints.shared.usage import as_usage_error
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_labels,
    check_monotone,
    check_number,
    check_probabilities,
    check_same_device,
    check_same_length,
    check_same_shape,
    check_tensor,
    reduce,
    should_check,
)

x = torch.zeros(2, 3)
nan = torch.tensor([[0.0, math.nan]])
labels = torch.tensor([0, 2, -100])

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: check_tensor([1.0], "x"), TypeError, "x"),  # type: ignore[arg-type]
    (lambda: check_tensor(x.long(), "x"), TypeError, "int64"),
    (lambda: check_tensor(x, "x", ndim=3), ValueError, "3 dimensions"),
    (lambda: check_tensor(x, "x", ndim=(3, 4)), ValueError, "3 or 4"),
    (lambda: check_tensor(x, "x", min_ndim=3), ValueError, "at least 3 dimensions"),
    (lambda: check_bool("no", "return_trajectory"), TypeError, "return_trajectory"),
    (lambda: check_bool(1, "flag"), TypeError, "True or False"),
    (lambda: check_tensor(x, "x", shape=(None, 4)), ValueError, "(*, 4)"),
    (lambda: check_tensor(x, "x", shape=(2, 3, 1)), ValueError, "shape"),
    (lambda: check_tensor(x[:0], "x"), ValueError, "empty"),
    (lambda: check_tensor(nan, "x"), ValueError, "x must be finite, got nan (1 of 2 entries refused)"),
    (lambda: check_tensor(nan / 0, "x"), ValueError, "finite"),
    (lambda: check_same_shape(x, x.T, ("a", "b")), ValueError, "a and b"),
    (lambda: check_same_length(x, [1], ("a", "b")), ValueError, "2 and 1"),
    (lambda: check_same_device(x, x.to("meta"), names=("a", "b")), ValueError, "meta"),
    (lambda: check_labels([0], "y"), TypeError, "list"),  # type: ignore[arg-type]
    (lambda: check_labels(labels.double(), "y"), TypeError, "float64"),
    (lambda: check_labels(labels > 0, "y"), TypeError, "bool"),
    (lambda: check_labels(labels, "y", num_classes=3), ValueError, "got -100 (1 of 3"),
    (lambda: check_labels(labels, "y", num_classes=2, ignore_index=-100), ValueError, "[0, 2) or -100, got 2"),
    (lambda: check_labels(labels, "y", length=2), ValueError, "length 2"),
    (lambda: check_labels(labels[:0], "y"), ValueError, "empty"),
    (lambda: check_number(True, "v"), TypeError, "v"),
    (lambda: check_number("1", "v"), TypeError, "str"),  # type: ignore[arg-type]
    (lambda: check_number(1.5, "v", integer=True), TypeError, "integer"),
    (lambda: check_number(math.nan, "v", low=0), ValueError, "nan"),
    (lambda: check_number(math.inf, "v", low=0), ValueError, "[0, inf)"),
    (lambda: check_number(math.inf, "v"), ValueError, "v must be a number in (-inf, inf), got inf"),
    (lambda: check_number(0, "v", low=0, open_low=True), ValueError, "(0"),
    (lambda: check_number(1, "v", high=1, open_high=True), ValueError, "1)"),
    (lambda: check_choice("x", "v", ("a", "b")), ValueError, "'a', 'b'"),
    (lambda: check_choice([], "v", {"a"}), ValueError, "v"),
    (
        lambda: check_probabilities(torch.tensor([0.5, 0.4]), "p"),
        ValueError,
        "sum to 1 along the last axis within 0.001, got a sum off by 0.1",
    ),
    (lambda: check_probabilities(torch.tensor([1.5, -0.5]), "p"), ValueError, "negative, got -0.5"),
    (lambda: check_probabilities(torch.tensor(1.0), "p"), ValueError, "scalar"),
    (lambda: check_monotone(torch.tensor([0.0, 0.0]), "t"), ValueError, "strictly increasing, got 0.0 before 0.0"),
    (lambda: check_monotone(torch.tensor([3, 1], dtype=torch.uint8), "t"), ValueError, "got 3 before 1"),
    (lambda: check_monotone(torch.tensor([0.0, 1.0]), "t", increasing=False), ValueError, "decreasing"),
    (lambda: check_monotone(x, "t"), ValueError, "1 dimensions"),
    (lambda: reduce(x, "max"), ValueError, "reduction"),  # type: ignore[arg-type]
    (lambda: reduce(x, "sum", weight=x.T), ValueError, "weight"),
    (lambda: as_features(np.zeros((2, 2), dtype=int), "X"), TypeError, "int64"),
    (lambda: as_features(np.zeros((2, 2), dtype=np.longdouble), "X"), TypeError, "X"),
    (
        lambda: check_tensor(torch.eye(2).to_sparse(), "x"),
        TypeError,
        "x must be a dense tensor, got the layout torch.sparse_coo",
    ),
    (lambda: as_features(sparse.eye_array(2), "X"), TypeError, "dia_array"),
    (lambda: as_features(sparse.csr_array(np.eye(2)), "X"), TypeError, "X must be dense, got a sparse csr_array"),
    (lambda: as_features(torch.eye(2).to_sparse(), "X"), TypeError, "X must be dense, got a sparse tensor"),
    (lambda: as_features(np.ma.masked_less(np.eye(2), 1), "X"), ValueError, "X must not have masked entries"),
    (
        lambda: as_features(np.zeros((3, 0)), "X"),
        ValueError,
        "X must not be empty, got 0 feature(s)",
    ),
    (lambda: as_features(np.zeros(3), "X"), ValueError, "Reshape your data"),
    (lambda: as_features(None, "X"), TypeError, "NoneType"),
    (lambda: as_features(np.zeros(3), "X"), ValueError, "2 dimensions"),
    (lambda: as_features(np.full((1, 1), np.nan), "X"), ValueError, "finite"),
]


def test_bad_input() -> None:
    check_errors(BAD)


def test_good_input_passes() -> None:
    assert check_tensor(x, "x", ndim=2, shape=(2, None)) is x
    check_tensor(nan, "x", finite=False)
    check_tensor(x[:0], "x", allow_empty=True)
    checked = check_labels(labels.to(torch.int16), "y", length=3, num_classes=3, ignore_index=-100)
    assert checked.dtype == torch.int64
    check_number(np.float32(0.5), "v", low=0, high=1)
    check_number(math.inf, "v", low=0, high=math.inf)
    check_number(np.int64(3), "v", low=3, high=3, integer=True)
    check_probabilities(torch.tensor([0.3333, 0.6666]), "p")
    check_monotone(torch.tensor([0.0, 0.0, 1.0]), "t", strict=False)


def test_finite_values_may_have_a_sum_that_is_not() -> None:
    check_tensor(torch.full((8,), 60_000, dtype=torch.float16), "x")
    check_tensor(torch.full((8,), 1e308, dtype=torch.float64), "x")
    with pytest.raises(ValueError, match="inf"):
        check_tensor(torch.tensor([math.inf, 1.0, -math.inf]), "x")


def test_probabilities_tolerance_goes_by_the_type() -> None:
    off = torch.tensor([0.5, 0.5001])
    check_probabilities(off, "p")
    with pytest.raises(ValueError, match="sum"):
        check_probabilities(off.double(), "p")
    with pytest.raises(ValueError, match="sum"):
        check_probabilities(off, "p", atol=1e-6)


def test_values_are_not_checked_where_they_would_cost() -> None:
    # A tensor on the meta device has no values: only the structure can have been checked.
    elsewhere = x.to("meta")
    assert should_check(x)
    assert not should_check(x, elsewhere)
    assert not should_check(x, validate=False)
    assert should_check(elsewhere, validate=True)
    check_tensor(nan, "x", validate=False)


def every_check(t: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
    check_number(scale, "scale", low=0)
    check_tensor(t, "t", ndim=2, shape=(None, 2))
    check_probabilities(t, "t")
    check_monotone(t[:, 0], "t")
    check_labels(y, "y", length=len(t), num_classes=2, ignore_index=-100)
    check_same_length(t, y, ("t", "y"))
    return reduce(t.sum(1) * scale, "mean")


def test_values_are_left_out_under_compile() -> None:
    compiled = torch.compile(every_check, backend="eager", fullgraph=True)
    y = torch.tensor([0, 1])
    assert compiled(torch.eye(2), y, 2.0) == 2
    assert compiled(torch.full((2, 2), math.nan), y + 5, 2.0).isnan()
    with pytest.raises(ValueError, match=r"shape \(\*, 2\)"):
        torch.compile(every_check, backend="eager")(torch.eye(3), y, 2.0)


def test_values_are_left_out_under_vmap() -> None:
    gradient = torch.func.grad(lambda t, y: every_check(t, y, 2.0))
    many = torch.func.vmap(gradient)(torch.zeros(3, 2, 2), torch.zeros(3, 2, dtype=torch.int64))
    assert torch.equal(many, torch.ones(3, 2, 2))
    with pytest.raises(ValueError, match="must sum to 1"):
        gradient(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))


def test_structure_is_checked_without_values() -> None:
    # On the meta device the assertions are made, and hold nothing back.
    t, y = torch.empty(2, 2, device="meta"), torch.empty(2, dtype=torch.int32, device="meta")
    assert every_check(t, y, 1.0).device.type == "meta"
    with pytest.raises(ValueError, match="length 2"):
        every_check(t, y[:1], 1.0)


def test_reduce() -> None:
    values = torch.tensor([1.0, 2.0])
    weight = torch.tensor([3.0, 1.0])
    assert reduce(values, "mean") == 1.5
    assert reduce(values, "sum", weight=weight) == 5
    assert reduce(values, "none") is values


def test_missing_extra_names_the_command() -> None:
    assert require("math", package="shared", extra="vision") is math
    with pytest.raises(ImportError, match=r"pip install 'offprints-lct\[fid\]'"):
        require("no_such_module.inner", package="lct", extra="fid")


@pytest.mark.parametrize("writeable", [True, False])
def test_features_round_trip(writeable: bool) -> None:
    array = np.arange(6.0).reshape(2, 3)[:, ::-1]
    array.flags.writeable = writeable
    features = as_features(array.astype(">f8"), "X")
    np.testing.assert_array_equal(features, array)
    features = as_features(array, "X", dtype=torch.float32)
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(like_input(features, array), array)
    assert isinstance(like_input(features, features), torch.Tensor)


def test_not_fitted() -> None:
    class Estimator:
        weights_ = None

    with pytest.raises(estimators.NotFittedError, match="Estimator is not fitted") as caught:
        check_fitted(Estimator(), "weights_")
    assert isinstance(caught.value, SklearnNotFittedError)
    assert isinstance(caught.value, RuntimeError)
    assert type(pickle.loads(pickle.dumps(caught.value))) is estimators.NotFittedError
    with pytest.raises(AttributeError):
        _ = estimators.no_such_name


def test_numbers_come_back_as_plain_ones() -> None:
    assert type(check_number(np.int64(3), "n", integer=True)) is int
    assert type(check_number(np.float32(0.5), "x")) is float
    assert check_number(np.float32(0.5), "x") == 0.5
    assert type(check_number(2, "x")) is int
    assert check_bool(np.True_, "flag") is True


def test_an_integer_beyond_every_float_is_no_finite_number() -> None:
    with pytest.raises(ValueError, match="x must be a number"):
        check_number(10**400, "x")
    with pytest.raises(ValueError, match="x must be a number"):
        check_number(-(10**400), "x", low=-math.inf)
    assert check_number(10**400, "n", integer=True) == 10**400


def test_what_is_missing_has_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'offprints-lct\[fid\]'"):
        require("no_such_module", package="lct", extra="fid")
    with pytest.raises(MissingData, match="the layout"):
        require_folder(tmp_path / "nowhere", "the layout")
    for mistaken in (MissingExtra, MissingData):
        assert str(as_usage_error(mistaken("in one line"))) == "in one line"
    assert as_usage_error(FileNotFoundError("the program's own")) is None


def test_sparse_tensors_pass_where_they_are_wanted() -> None:
    x = torch.eye(2).to_sparse()
    assert check_tensor(x, "x", shape=(2, 2), dense=False) is x
    with pytest.raises(ValueError, match="x must have 1 dimensions"):
        check_tensor(x, "x", ndim=1, dense=False)


def test_meta_tensors_have_a_structure_and_no_values() -> None:
    x = torch.empty(2, 3, device="meta")
    assert check_tensor(x, "x", ndim=2) is x
    with pytest.raises(ValueError, match="x must have 1 dimensions"):
        check_tensor(x, "x", ndim=1)
