"""What an estimator keeps after fit, for `check_estimator`: parameters set later, graphs, its own output as input."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from offprints.shared.testing._estimator_case import Case, as_arrays, as_tensors, run_parts
from offprints.shared.testing._properties import assert_equal, clone


class Habits:
    """The properties of one estimator that are about what it keeps."""

    def __init__(self, case: Case, own_output: Mapping[str, str] | None) -> None:
        self.case, self.own_output = case, own_output

    def check_set_params(self, skip: Mapping[str, str]) -> None:
        """Set each parameter after fit: all methods give the old results, or all give those of a fit with it.

        The next fit gives the latter. What the estimator refuses tells nothing.
        """
        fitted = self.case.fitted()
        before = self.case.results(fitted)
        parts = {
            name: partial(self._set, fitted, name, value, before)
            for name, value in other_values(self.case.new()).items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence
            run_parts("set_params after fit", parts, skip)

    def _set(self, fitted: Any, name: str, value: Any, before: Mapping[str, Any]) -> None:
        estimator = copy.deepcopy(fitted)
        try:
            fresh = self.case.new().set_params(**{name: value}).fit(*clone(self.case.numpy))
            expected = self.case.results(fresh)
        except (TypeError, ValueError):
            return
        estimator.set_params(**{name: value})
        told = f"{name}={value!r} set after fit"
        try:
            found = self.case.refused_or(lambda: self.case.results(estimator), name)
        except NotFittedError:
            found = None
        if found is not None:
            try:
                assert_equal(found, before, told)
            except AssertionError:
                self.case.near(found, expected, f"{told}, neither the old results nor those of a new fit")
        again = self.case.results(estimator.fit(*clone(self.case.numpy)))
        self.case.near(again, expected, f"{told}, and fit again")

    def check_no_graph(self) -> None:
        """Fit with X that requires a gradient: no graph is kept, and what was learned can be copied and read."""
        data = clone(self.case.tensors)
        if not (isinstance(data[0], Tensor) and data[0].is_floating_point()):
            return
        data[0].requires_grad_()
        estimator = self.case.refused_or(lambda: self.case.new().fit(*data))
        if estimator is None:
            return
        held = [path for path, tensor in walk(vars(estimator), "") if tensor.grad_fn is not None]
        if held:
            raise AssertionError(f"a graph is kept by {', '.join(held)}")
        for name, value in vars(estimator).items():
            public = name.endswith("_") and not name.startswith("_")
            if public and isinstance(value, Tensor) and value.requires_grad:
                raise AssertionError(f"{name} requires a gradient, and numpy() fails on it")
        copy.deepcopy(estimator)
        pickle.loads(pickle.dumps(estimator))

    def check_own_output(self, skip: Mapping[str, str]) -> None:
        """Give back what the estimator gave: predicted labels to fit, what was learned as parameters."""
        parts: dict[str, Callable[[], None]] = {}
        for kind, data in (("arrays", self.case.numpy), ("tensors", self.case.tensors)):
            parts[f"labels, {kind}"] = partial(self._labels, data)
            parts[f"transformed, {kind}"] = partial(self._transformed, data)
        for parameter, attribute in self._pairs().items():
            parts[parameter] = partial(self._learned, parameter, attribute)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence
            run_parts("own output", parts, skip)

    def _labels(self, data: Sequence[Any]) -> None:
        if "predict" not in self.case.methods or len(data) < 2 or not isinstance(data[1], Tensor | np.ndarray):
            return
        estimator = self.case.fitted(data)
        if not hasattr(estimator, "classes_"):
            return
        predicted = estimator.predict(clone(data[0]))
        if set(np.unique(predicted)) == set(np.unique(data[1])):
            self.case.new().fit(clone(data[0]), predicted, *clone(data[2:]))
        if "classes" in inspect.signature(getattr(estimator, "partial_fit", len)).parameters:
            self.case.new().partial_fit(*clone(tuple(data)), classes=estimator.classes_)

    def _transformed(self, data: Sequence[Any]) -> None:
        if "transform" in self.case.methods:
            self.case.new().fit(self.case.fitted(data).transform(clone(data[0])), *clone(data[1:]))

    def _pairs(self) -> dict[str, str]:
        """Match parameters to learned attributes: those named by the caller, `name` to `name_`, `name_init` too."""
        estimator = self.case.fitted()
        found = {
            name: f"{name.removesuffix('_init')}_"
            for name in estimator.get_params(deep=False)
            if getattr(estimator, f"{name.removesuffix('_init')}_", None) is not None
        }
        return {**found, **(self.own_output or {})}

    def _learned(self, parameter: str, attribute: str) -> None:
        for data in (self.case.numpy, self.case.tensors):
            value = getattr(self.case.fitted(data), attribute)
            for given in (as_arrays([value])[0], as_tensors([value])[0]):
                kind = type(given).__name__
                try:
                    self.case.new().set_params(**{parameter: given}).fit(*clone(self.case.numpy))
                except Exception as error:
                    raise AssertionError(f"{attribute} ({kind}) is refused: {type(error).__name__}: {error}") from error


def other_values(estimator: Any) -> dict[str, Any]:
    """Return another value for every parameter that is a number, a boolean or one of the words in its annotation."""
    try:
        hints = typing.get_type_hints(type(estimator).__init__)
    except (NameError, TypeError):
        hints = {}
    found: dict[str, Any] = {}
    for name, value in estimator.get_params(deep=False).items():
        if isinstance(value, bool):
            found[name] = not value
        elif isinstance(value, int):
            found[name] = value + 1
        elif isinstance(value, float):
            found[name] = 2 * value if value else 0.5
        elif isinstance(value, str):
            others = [word for word in typing.get_args(hints.get(name)) if isinstance(word, str) and word != value]
            found |= {name: others[0]} if others else {}
    return found


def walk(value: Any, path: str, seen: list[Any] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Find every tensor in containers, modules and objects of this workspace, with its path."""
    seen = [] if seen is None else seen
    if any(value is one for one in seen):
        return
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        seen.append(value)
        for key, item in value.items():
            yield from walk(item, f"{path}.{key}" if path else str(key), seen)
    elif isinstance(value, list | tuple):
        seen.append(value)
        for place, item in enumerate(value):
            yield from walk(item, f"{path}[{place}]", seen)
    elif isinstance(value, nn.Module) or type(value).__module__.startswith("offprints."):
        seen.append(value)
        yield from walk(getattr(value, "__dict__", {}), path, seen)
