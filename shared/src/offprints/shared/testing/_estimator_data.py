"""The kinds of data that `check_estimator` gives: what files, memory maps, data frames and pipelines hold.

Each kind is refused by a TypeError or ValueError that names the argument, or gives what the plain kind of the same
numbers gives.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier

from offprints.shared.testing._estimator_case import Case, run_parts, with_x
from offprints.shared.testing._properties import assert_equal, clone, shorten


class DataKinds:
    """The properties of one estimator that are about kinds of data."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.x = np.asarray(case.numpy[0])
        self.table = self.x.ndim == 2 and self.x.dtype.kind == "f" and case.asks_x

    def results(self, data: Sequence[Any], query: Sequence[Any]) -> dict[str, Any]:
        """Fit and call with exactly these objects."""
        estimator = self.case.new().fit(*data)
        return {method: getattr(estimator, method)(*query) for method in self.case.methods}

    def same_or_refused(self, data: Sequence[Any], query: Sequence[Any], *expected: Mapping[str, Any]) -> None:
        """Compare with each of what may be expected, unless the data are refused."""
        found = self.case.refused_or(lambda: self.results(data, query))
        if found is None:
            return
        for place, wanted in enumerate(expected):
            try:
                self.case.near(found, wanted, "against the plain kind")
            except AssertionError:
                if place + 1 == len(expected):
                    raise
            else:
                return

    def plain(self, data: Sequence[Any], query: Sequence[Any]) -> dict[str, Any]:
        """Return the results of copies of plain data."""
        return self.results(clone(tuple(data)), clone(tuple(query)))

    def check_arrays(self, skip: Mapping[str, str]) -> None:
        """Try arrays that cannot be written, of the other byte order, with masked entries, and lists."""
        data, query = self.case.numpy, self.case.query_numpy

        def each(change: Callable[[np.ndarray], Any], values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(change(x) if isinstance(x, np.ndarray) else x for x in clone(tuple(values)))

        def read_only(x: np.ndarray) -> np.ndarray:
            x.flags.writeable = False
            return x

        def swapped(x: np.ndarray) -> np.ndarray:
            return x.astype(x.dtype.newbyteorder("S"))

        def as_double(x: np.ndarray) -> np.ndarray:
            return x.astype(np.float64) if x.dtype.kind == "f" else x

        def masked() -> None:
            hidden = np.zeros(self.x.shape, bool)
            hidden.flat[0] = True
            bad = np.ma.masked_array(self.x.copy(), mask=hidden)
            found = self.case.refused_or(lambda: self.results(with_x(data, bad), query), self.case.words[0])
            if found is not None:
                raise AssertionError(f"fit takes what is under the mask: {shorten(found)}")

        run_parts(
            "arrays",
            {
                "read-only": lambda: assert_equal(
                    self.results(each(read_only, data), each(read_only, query)),
                    self.plain(data, query),
                    "against arrays that can be written",
                ),
                "big-endian": lambda: self.same_or_refused(
                    each(swapped, data), each(swapped, query), self.plain(data, query)
                ),
                "a list": lambda: self.same_or_refused(
                    each(np.ndarray.tolist, data),
                    each(np.ndarray.tolist, query),
                    self.plain(each(as_double, data), each(as_double, query)),
                    self.plain(data, query),
                ),
                "masked": masked,
            },
            skip,
        )

    def check_integers(self, skip: Mapping[str, str]) -> None:
        """Try X of integers and booleans against the same numbers as floating ones."""
        if self.x.dtype.kind != "f" or not self.case.asks_x:
            return
        whole = np.rint(self.x * 8)
        whole = np.minimum(whole - min(whole.min(), 0), 255)

        @functools.cache
        def plain(boolean: bool, floating: type) -> dict[str, Any]:
            x = (whole > np.median(whole) if boolean else whole).astype(floating)
            return self.plain(with_x(self.case.numpy, x), (x,))

        def of(dtype: type) -> Callable[[], None]:
            def attempt() -> None:
                boolean = dtype is np.bool_
                x = whole > np.median(whole) if boolean else whole.astype(dtype)
                expected = [plain(boolean, floating) for floating in (np.float64, np.float32)]
                self.same_or_refused(with_x(self.case.numpy, x), (x,), *expected)

            return attempt

        kinds = {"int64": np.int64, "int32": np.int32, "uint8": np.uint8, "uint64": np.uint64, "bool": np.bool_}
        run_parts("integer features", {name: of(dtype) for name, dtype in kinds.items()}, skip)

    def check_sparse(self, skip: Mapping[str, str]) -> None:
        """Try sparse X of SciPy's and torch's kinds against the dense one."""
        if not self.table:
            return
        from scipy import sparse

        thin = np.where(np.abs(self.x) < np.median(np.abs(self.x)), 0, self.x).astype(self.x.dtype)
        dense = with_x(self.case.numpy, thin)
        query = with_x(self.case.query_numpy, thin)
        tensor = torch.from_numpy(thin)

        def of(make: Callable[[], Any]) -> Callable[[], None]:
            return lambda: self.same_or_refused(
                with_x(self.case.numpy, make()), with_x(self.case.query_numpy, make()), self.plain(dense, query)
            )

        parts = {
            "csr_array": of(lambda: sparse.csr_array(thin)),
            "csc_matrix": of(lambda: sparse.csc_matrix(thin)),
            "a sparse tensor": of(tensor.to_sparse),
        }
        run_parts("sparse features", parts, skip)

    def check_labels(self, skip: Mapping[str, str]) -> None:
        """Try labels of other types against their numbers as int64."""
        data = self.case.numpy
        if len(data) < 2 or not isinstance(data[1], np.ndarray) or data[1].dtype.kind not in "iu":
            return
        if not is_classifier(self.case.estimator) or data[1].ndim != 1:
            return
        classes, codes = np.unique(data[1], return_inverse=True)
        codes = codes.astype(np.int64)
        words = np.array([f"class {place:04}" for place in range(len(classes))])

        def of(labels: Any, plain: np.ndarray = codes, names: np.ndarray | None = None) -> Callable[[], None]:
            def attempt() -> None:
                expected = self.plain((data[0], plain, *data[2:]), self.case.query_numpy)
                found = self.case.refused_or(
                    lambda: self.results((data[0].copy(), labels, *data[2:]), self.case.query_numpy),
                    self.case.words[1],
                )
                if found is None:
                    return
                if "predict" in expected:
                    wanted = expected.pop("predict")
                    predicted = np.asarray(found.pop("predict"))
                    wanted = wanted if names is None else names[wanted]
                    if not np.array_equal(predicted, wanted):
                        raise AssertionError(f"predict gives {shorten(predicted)}, expected {shorten(wanted)}")
                self.case.near(found, expected, "against int64 labels")

            return attempt

        parts = {
            "uint64": of(codes.astype(np.uint64)),
            "uint8": of(codes.astype(np.uint8)),
            "big-endian": of(codes.astype(codes.dtype.newbyteorder("S"))),
            "boolean": of(codes > 0, (codes > 0).astype(np.int64)),
            "whole floats": of(codes.astype(np.float64)),
            "text": of(words[codes], codes, words),
            "objects": of(words[codes].astype(object), codes, words),
            "a list": of(codes.tolist()),
        }
        run_parts("labels", parts, skip)

    def check_frames(self, skip: Mapping[str, str]) -> None:
        """Try data frames of pandas: their index does not matter; columns in another order are put right or refused."""
        if not self.table or importlib.util.find_spec("pandas") is None:
            return
        import pandas as pd

        names = [f"feature {place}" for place in range(self.x.shape[1])]
        index = np.random.default_rng(0).permutation(len(self.x)) + 7

        def frame(x: np.ndarray, **options: Any) -> Any:
            return pd.DataFrame(np.array(x), columns=names, **options)

        data = [frame(self.x, index=index), *clone(self.case.numpy[1:])]
        if len(data) > 1 and isinstance(data[1], np.ndarray) and data[1].ndim == 1:
            data[1] = pd.Series(data[1])
        query = self.case.query_numpy
        asked = frame(query[0])
        about = (*self.case.words, "feature", "features", "column", "columns")  # what scikit-learn's messages name

        @functools.cache
        def fitted() -> Any:
            return self.case.refused_or(lambda: self.case.new().fit(*data))

        def values() -> None:
            self.same_or_refused(data, (asked,), self.plain(self.case.numpy, query))
            if list(data[0].columns) != names or not np.array_equal(data[0].to_numpy(), self.x):
                raise AssertionError("fit changed the data frame")

        def other_order() -> None:
            if len(names) == 1 or (estimator := fitted()) is None:
                return
            for method in self.case.methods:
                turned = asked[names[::-1]]
                found = self.case.refused_or(functools.partial(getattr(estimator, method), turned), *about)
                if found is not None:
                    wanted = {method: getattr(estimator, method)(asked)}
                    self.case.near({method: found}, wanted, "columns in another order")

        def other_names() -> None:
            if (estimator := fitted()) is None:
                return
            for method in self.case.methods:
                strange = asked.rename(columns={names[0]: "another name"})
                if self.case.refused_or(functools.partial(getattr(estimator, method), strange), *about) is not None:
                    raise AssertionError(f"{method} takes a column of another name")

        def nullable() -> None:
            whole = frame(self.x).astype("Float64")
            double = self.x.astype(np.float64)
            expected = self.plain(self.case.numpy, query), self.plain(with_x(self.case.numpy, double), query)
            self.same_or_refused([whole, *data[1:]], query, *expected)
            whole.iloc[0, 0] = pd.NA
            if self.case.refused_or(lambda: self.results([whole, *data[1:]], query)) is not None:
                raise AssertionError("fit takes a missing value")

        parts = {"values": values, "other order": other_order, "other names": other_names, "nullable": nullable}
        run_parts("data frames", parts, skip)
