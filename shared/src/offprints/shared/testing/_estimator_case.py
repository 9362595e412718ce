"""What the properties of `check_estimator` share: the estimator, the data in both kinds, and how results compare."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone as sklearn_clone
from torch import Tensor

from offprints.shared.testing._properties import assert_near, clone, tensors

METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "transform")


def as_arrays(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return copies with every tensor as an array."""
    return tuple(x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in clone(tuple(values)))


def as_tensors(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return copies with every array as a tensor."""
    return tuple(torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in clone(tuple(values)))


def with_x(data: Sequence[Any], x: Any) -> tuple[Any, ...]:
    """Return the arguments with another X."""
    return (x, *data[1:])


class Case:
    """One estimator with its data."""

    def __init__(
        self,
        estimator: Any,
        data: tuple[Any, ...],
        query: Sequence[Any] | None,
        methods: Sequence[str] | None,
        rtol: float,
    ) -> None:
        self.estimator, self.rtol = estimator, rtol
        self.numpy, self.tensors = as_arrays(data), as_tensors(data)
        self.asks_x = query is None  # the methods take the same X as fit
        given = data[:1] if query is None else tuple(query)
        self.query_numpy, self.query_tensors = as_arrays(given), as_tensors(given)
        self.methods = tuple(m for m in METHODS if hasattr(estimator, m)) if methods is None else tuple(methods)
        if not self.methods:
            raise ValueError(f"{type(estimator).__name__} has none of {', '.join(METHODS)}: pass methods=")

    def new(self) -> Any:
        """Return a clone that is not fitted and has a seed."""
        estimator = sklearn_clone(self.estimator)
        if estimator.get_params(deep=False).get("random_state", 0) is None:
            estimator.set_params(random_state=0)
        return estimator

    def fitted(self, data: Sequence[Any] | None = None) -> Any:
        """Return a clone fitted with a copy of the data, by default the arrays."""
        return self.new().fit(*clone(self.numpy if data is None else data))

    def results(self, estimator: Any, query: Sequence[Any] | None = None) -> dict[str, Any]:
        """Return what every method gives for a copy of the query, by default the arrays."""
        query = self.query_numpy if query is None else query
        return {method: getattr(estimator, method)(*clone(tuple(query))) for method in self.methods}

    def near(self, actual: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
        """Compare the results of all methods up to rounding."""
        for method, wanted in expected.items():
            (values,) = tensors(wanted)
            floating = values.is_floating_point()
            scale = float(values.abs().max()) if floating else 0.0
            rtol = self.rtol if floating else 0.0
            assert_near(actual[method], wanted, f"{what}: {method}", rtol=rtol, atol=rtol * scale, dtype=False)

    @property
    def words(self) -> tuple[str, ...]:
        """The names under which fit takes the data."""
        return tuple(inspect.signature(self.estimator.fit).parameters)[: len(self.numpy)]

    def refused_or(self, attempt: Callable[[], Any], *words: str) -> Any:
        """Return the attempt's result, or None where it is a TypeError or ValueError with one of the words in it.

        By default the words are the names of the data.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what comes out is looked at
                return attempt()
        except (TypeError, ValueError) as error:
            names = words or self.words
            if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in names):
                return None
            raise AssertionError(
                f"the message does not name {' or '.join(names)}: {type(error).__name__}: {error}"
            ) from error


def run_parts(property_name: str, parts: Mapping[str, Callable[[], None]], skip: Mapping[str, str]) -> None:
    """Run every part of a property that `skip` does not name, and report all that fail together."""
    if unknown := skip.keys() - parts.keys():
        raise ValueError(f"skip names {sorted(unknown)}; the parts of {property_name} are {', '.join(parts)}")
    failures = []
    for name, holds in parts.items():
        if name in skip:
            continue
        try:
            holds()
        except AssertionError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:
            failures.append(f"{name}: raised {type(error).__name__}: {error}")
    if failures:
        raise AssertionError("; ".join(failures))
