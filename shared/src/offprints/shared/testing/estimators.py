"""`check_estimator`: scikit-learn's conventions, on NumPy arrays and tensors.

::

    check_estimator(LogisticGDClassifier(), (X, y))
    check_estimator(SP2OTClusterer(3, max_steps=2), (X,), expected_failed_checks={"check_fit2d_1sample": "3 clusters"})
"""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone as sklearn_clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks
from torch import Tensor

from offprints.shared.testing._estimator_case import Case, with_x
from offprints.shared.testing._estimator_data import DataKinds
from offprints.shared.testing._estimator_habits import Habits
from offprints.shared.testing._properties import (
    Skip,
    assert_equal,
    cast,
    clone,
    expect_error,
    parts_of,
    random_state_untouched,
    run_properties,
    seed_globally,
    shorten,
    strided,
)
from offprints.shared.testing.arguments import check_arguments

_TYPE = "a TypeError here"
# Where `as_features` and `check_labels` part from scikit-learn's conventions, for the estimators that stand on them:
# what these checks are about is covered by *bad data*, *integer features* and *labels*. One that holds is right too.
DEPARTURES = {
    "check_estimators_dtypes": f"integers as features: {_TYPE}",
    "check_classifier_data_not_an_array": f"integers as features: {_TYPE}",
    "check_regressor_data_not_an_array": f"integers as features: {_TYPE}",
    "check_transformer_data_not_an_array": f"integers as features: {_TYPE}",
    "check_dtype_object": f"objects as features: {_TYPE}",
    "check_complex_data": f"complex features: {_TYPE}",
    "check_classifiers_classes": f"text as labels: {_TYPE}",
    "check_classifiers_regression_target": f"fractions as labels: {_TYPE}",
    "check_supervised_y_no_nan": f"fractions as labels: {_TYPE}",
    "check_estimators_nan_inf": f"floating labels: {_TYPE}",
    "check_classifiers_one_label": f"floating labels: {_TYPE}",
    "check_supervised_y_2d": "a column of labels: a ValueError here",
}


PARTED = (
    "arrays",
    "integer features",
    "sparse features",
    "labels",
    "data frames",
    "set_params after fit",
    "own output",
    "arguments",
)


def check_estimator(
    estimator: Any,
    data: Sequence[Any],
    *,
    query: Sequence[Any] | None = None,
    methods: Sequence[str] | None = None,
    own_output: Mapping[str, str] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    rtol: float = 1e-5,
    skip: Skip | None = None,
) -> None:
    """Check an estimator on clones of it; make its training short.

    Properties, in order: *parameters* (kept as given; get_params, set_params, clone), *not fitted*, *fit* (returns
    self, leaves parameters and data alone), *determinism* (with an integer `random_state`, whatever the global seeds,
    which are left alone), *refit* (forgets), *NumPy and tensors* (the kind that came in comes out, with the same
    values), *probabilities* (rows sum to one; the largest is the prediction), *rows* (results do not depend on the
    batch), *strided and double* (any strides; float32 and float64), *pickle* (and deepcopy), *bad data* (X with NaN,
    infinity, no rows, one axis, another number of features; y too short; labels with two axes or fractions; targets
    with NaN), *rejected fit* (changes nothing), *device* (CUDA).

    Then the kinds of data that users bring: each is refused by an error that names the argument, or gives what plain
    arrays of the same numbers give. *arrays* (read-only, which is never refused; big-endian; a list; masked, which is
    refused), *integer features* (int64, int32, uint8, uint64, bool), *sparse features* (csr_array, csc_matrix, a sparse
    tensor), *labels* of a classifier (uint64, uint8, big-endian, boolean, whole floats, text, objects, a list), *data
    frames* (where pandas is installed: values, whatever the index; other order: reordered or refused; other names:
    refused; nullable: missing values are refused).

    Then what it keeps: *set_params after fit* (each parameter, which is the part's name: all methods give the old
    results or those of a new fit, and fit again gives the latter), *no graph* (after a fit with X that requires a
    gradient), *own output* (predicted labels, transformed data and what was learned are taken back). At the end
    *scikit-learn* (its own ``check_estimator``, only where `expected_failed_checks` is given) and *arguments*
    (`check_arguments` of the parameters, by fitting with them, of fit and of every method).

    A part of a property can be skipped alone: "labels: text", "arguments: fit: X: inf".

    Args:
        estimator: An instance, not fitted. A parameter `random_state` of None is set to 0 where results are compared.
        data: Positional arguments of fit, X first, as NumPy arrays or tensors: floating ``[N, ...]``, integer ``[N]``.
        query: Positional arguments of the methods; default: X.
        methods: Default: those of predict, predict_proba, predict_log_proba, decision_function, score_samples,
            transform that the estimator has.
        own_output: Parameter to the learned attribute that it takes, as in ``{"init": "cluster_centers_"}``, beyond
            those whose names tell (`prior` and `prior_`, `means_init` and `means_`).
        expected_failed_checks: Name of scikit-learn's check to the reason why it cannot hold, beyond `DEPARTURES`; one
            that holds after all is reported. ``{}`` runs all. None runs none: right for X that is not a table.
        rtol: How closely float32 results of the same numbers agree, relative to the largest.
        skip: Property, or property and part, to reason.
    """
    case = _Properties(estimator, tuple(data), query, methods, rtol)
    kinds, habits = DataKinds(case), Habits(case, own_output)
    properties: dict[str, Callable[[], None]] = {
        "parameters": case.check_parameters,
        "not fitted": case.check_not_fitted,
        "fit": case.check_fit,
        "determinism": case.check_determinism,
        "refit": case.check_refit,
        "NumPy and tensors": case.check_kinds,
        "probabilities": case.check_probabilities,
        "rows": case.check_rows,
        "strided and double": case.check_strided_and_double,
        "pickle": case.check_pickle,
        "bad data": case.check_bad_data,
        "rejected fit": case.check_rejected_fit,
        "device": case.check_device,
        "arrays": lambda: kinds.check_arrays(parts_of(skip, "arrays")),
        "integer features": lambda: kinds.check_integers(parts_of(skip, "integer features")),
        "sparse features": lambda: kinds.check_sparse(parts_of(skip, "sparse features")),
        "labels": lambda: kinds.check_labels(parts_of(skip, "labels")),
        "data frames": lambda: kinds.check_frames(parts_of(skip, "data frames")),
        "set_params after fit": lambda: habits.check_set_params(parts_of(skip, "set_params after fit")),
        "no graph": habits.check_no_graph,
        "own output": lambda: habits.check_own_output(parts_of(skip, "own output")),
        "scikit-learn": lambda: case.check_scikit_learn(expected_failed_checks),
        "arguments": lambda: case.check_arguments(parts_of(skip, "arguments")),
    }
    run_properties("check_estimator", estimator, properties, skip, parts=PARTED)


class _Properties(Case):
    def check_parameters(self) -> None:
        estimator = self.estimator
        params = estimator.get_params(deep=False)
        learned = [name for name in vars(estimator) if name.endswith("_") and not name.startswith("_")]
        if learned:
            raise AssertionError(f"there are learned attributes before fit: {', '.join(learned)}")
        for name, parameter in inspect.signature(type(estimator).__init__).parameters.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self"
            if named and (name not in params or getattr(estimator, name, params) is not params[name]):
                raise AssertionError(f"the argument {name!r} of __init__ is not kept as the attribute {name!r}")
        twin = sklearn_clone(estimator)
        if type(twin) is not type(estimator) or repr(twin.get_params(deep=False)) != repr(params):
            raise AssertionError(f"clone has {shorten(twin.get_params(deep=False))} instead of {shorten(params)}")
        if twin.set_params(**params) is not twin:
            raise AssertionError("set_params does not return self")
        expect_error(ValueError, "set_params(no_such_parameter=1)", twin.set_params, no_such_parameter=1)

    def check_not_fitted(self) -> None:
        for method in self.methods:
            expect_error(NotFittedError, f"{method} before fit", getattr(self.new(), method), *clone(self.query_numpy))

    def check_fit(self) -> None:
        for data in (self.numpy, self.tensors):
            estimator, given = self.new(), clone(data)
            before = {name: repr(value) for name, value in estimator.get_params(deep=False).items()}
            if estimator.fit(*given) is not estimator:
                raise AssertionError("fit does not return self")
            assert_equal(given, data, "fit changed its arguments")
            for name, value in estimator.get_params(deep=False).items():
                if repr(value) != before[name]:
                    raise AssertionError(f"fit changed the parameter {name!r} from {before[name]} to {value!r}")
            if not any(name.endswith("_") and not name.startswith("_") for name in vars(estimator)):
                raise AssertionError("no attribute with a trailing underscore after fit")

    def check_determinism(self) -> None:
        results = []
        for seed in (1, 2):
            seed_globally(seed)
            with random_state_untouched():
                estimator = self.fitted()
                results.append(self.results(estimator))
        assert_equal(results[1], results[0], "the same random_state gives another result under another global seed")
        assert_equal(self.results(estimator), results[0], "a second call gives another result")

    def check_refit(self) -> None:
        estimator = self.fitted()
        expected = self.results(estimator)
        estimator.fit(*clone(with_x(self.numpy, self.numpy[0] * 3 + 1)))
        estimator.fit(*clone(self.numpy))
        assert_equal(self.results(estimator), expected, "fit after another fit gives another result")

    def check_kinds(self) -> None:
        from_numpy, from_tensors = self.fitted(self.numpy), self.fitted(self.tensors)
        expected = self.results(from_numpy)
        for fit, estimator in (("arrays", from_numpy), ("tensors", from_tensors)):
            for kind, query, wanted in (
                ("arrays", self.query_numpy, np.ndarray),
                ("tensors", self.query_tensors, Tensor),
            ):
                results = self.results(estimator, query)
                for method, result in results.items():
                    if not isinstance(result, wanted):
                        raise AssertionError(f"{method} of {kind} gives {type(result).__name__} (fitted with {fit})")
                    if isinstance(result, Tensor) and result.requires_grad:
                        raise AssertionError(f"{method} of tensors holds a graph")
                self.near(results, expected, f"fitted with {fit}, called with {kind}, against arrays")

    def check_probabilities(self) -> None:
        if "predict_proba" not in self.methods:
            return
        results = self.results(self.fitted())
        probabilities = np.asarray(results["predict_proba"])
        if not (probabilities >= 0).all() or not np.allclose(probabilities.sum(1), 1, atol=1e-5):
            raise AssertionError(f"not rows of probabilities: {shorten(probabilities)}")
        if "predict_log_proba" in results and not np.allclose(
            np.exp(results["predict_log_proba"]), probabilities, atol=1e-5
        ):
            raise AssertionError("predict_log_proba is not the logarithm of predict_proba")
        classes = getattr(self.fitted(), "classes_", None)
        if classes is not None and "predict" in results:
            likeliest = np.asarray(classes)[probabilities.argmax(1)]
            if not np.array_equal(likeliest, results["predict"]):
                raise AssertionError(f"predict gives {shorten(results['predict'])}, the largest: {shorten(likeliest)}")

    def check_rows(self) -> None:
        estimator = self.fitted()
        whole, rows = self.results(estimator), [0, len(self.query_numpy[0]) - 1]
        for row in rows:
            query = tuple(x[row : row + 1] if isinstance(x, np.ndarray) else x for x in self.query_numpy)
            expected = {method: np.asarray(result)[row : row + 1] for method, result in whole.items()}
            self.near(self.results(estimator, query), expected, f"row {row} alone against all rows")

    def check_strided_and_double(self) -> None:
        estimator = self.fitted(self.tensors)
        expected = self.results(estimator, self.query_tensors)
        x, q = self.tensors[0], self.query_tensors[0]
        refitted = self.fitted(with_x(self.tensors, strided(x)))
        self.near(self.results(refitted, with_x(self.query_tensors, strided(q))), expected, "strided X")
        for dtype in (torch.float32, torch.float64):
            results = self.results(self.fitted(cast(self.tensors, dtype)), cast(self.query_tensors, dtype))
            for method, result in results.items():
                if torch.is_floating_point(result) and not torch.isfinite(result).all():
                    raise AssertionError(f"{method} of {dtype} is not finite")

    def check_pickle(self) -> None:
        estimator = self.fitted()
        expected = self.results(estimator)
        assert_equal(self.results(pickle.loads(pickle.dumps(estimator))), expected, "after pickle")
        assert_equal(self.results(copy.deepcopy(estimator)), expected, "after deepcopy")

    def check_bad_data(self) -> None:
        x = np.asarray(self.numpy[0])
        spoiled = {}
        for name, value in (("NaN", np.nan), ("infinity", np.inf)):
            spoiled[name] = x.copy()
            spoiled[name].flat[0] = value
        cases: list[tuple[str, Any, type[Exception]]] = [(name, bad, ValueError) for name, bad in spoiled.items()]
        cases += [("no rows", x[:0], ValueError), ("one axis", x.ravel(), ValueError)]
        fitted = self.fitted()
        for name, bad, error in cases:
            expect_error(error, f"fit with {name} in X", self.new().fit, *with_x(self.numpy, bad))
        if len(self.query_numpy) == 1:
            if x.ndim == 2:
                cases += [("twice the features", np.concatenate([x, x], 1), ValueError)]
            for method in self.methods:
                for name, bad, error in cases:
                    expect_error(error, f"{method} with {name} in X", getattr(fitted, method), bad)
        if len(self.numpy) > 1 and isinstance(self.numpy[1], np.ndarray):
            y = self.numpy[1]
            wrong: list[tuple[str, Any, Any]] = [("one row short", y[:-1], ValueError)]
            if y.dtype.kind in "iu":
                wrong += [("with two axes", np.stack([y, y], 1), ValueError)]
                wrong += [("of fractions", y + 0.5, (TypeError, ValueError))]
            elif y.dtype.kind == "f":
                wrong += [("with NaN", np.full_like(y, np.nan), ValueError)]
            for name, bad, errors in wrong:
                expect_error(errors, f"fit with y {name}", self.new().fit, x, bad, *self.numpy[2:])

    def check_rejected_fit(self) -> None:
        estimator = self.fitted()
        expected, bad = self.results(estimator), np.array(self.numpy[0])
        bad.flat[-1] = np.nan
        expect_error(ValueError, "fit with NaN in X", estimator.fit, *with_x(self.numpy, bad))
        assert_equal(self.results(estimator), expected, "a rejected fit changed the estimator")

    def check_device(self) -> None:
        if not torch.cuda.is_available():
            return
        data = tuple(x.cuda() if isinstance(x, Tensor) else x for x in self.tensors)
        query = tuple(x.cuda() if isinstance(x, Tensor) else x for x in self.query_tensors)
        for method, result in self.results(self.fitted(data), query).items():
            if not result.is_cuda:
                raise AssertionError(f"{method} of CUDA tensors gives a result on {result.device}")

    def check_arguments(self, skip: Mapping[str, str]) -> None:
        """Try the parameters, the arguments of fit, and those of every method; tell all failures together."""

        def made_and_fitted(**params: Any) -> dict[str, Any]:
            return self.results(self.new().set_params(**params).fit(*clone(self.numpy)))

        def fitted_attributes(*args: Any, **kwargs: Any) -> dict[str, Any]:
            estimator = self.new().fit(*args, **kwargs)
            return {name: value for name, value in vars(estimator).items() if name.endswith("_")}

        fitted_attributes.__signature__ = inspect.signature(self.new().fit)  # type: ignore[attr-defined]
        params = {name: value for name, value in self.new().get_params(deep=False).items() if value is not None}
        trials: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
            "parameters": (made_and_fitted, lambda g: dict(params)),
            "fit": (fitted_attributes, lambda g: clone(self.tensors)),
        }
        fitted = self.fitted(self.tensors)
        for method in self.methods:
            trials[method] = (getattr(fitted, method), lambda g: clone(self.query_tensors))
        failures = []
        unused = dict(skip)
        for name, (fn, make_inputs) in trials.items():
            parts = parts_of(skip, name)
            for part in parts:
                unused.pop(f"{name}: {part}")
            try:
                check_arguments(fn, make_inputs, skip=parts)
            except AssertionError as error:
                failures.append(f"{name}: {error}")
        if unused:
            raise ValueError(f"skip names {', '.join(unused)}; the parts of arguments begin with {', '.join(trials)}")
        if failures:
            raise AssertionError("\n".join(failures))

    def check_scikit_learn(self, expected_failed_checks: Mapping[str, str] | None) -> None:
        if expected_failed_checks is None:
            return
        expected = {**DEPARTURES, **expected_failed_checks}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence on data made to be awkward; checks that do not apply
            results = estimator_checks.check_estimator(
                sklearn_clone(self.estimator), expected_failed_checks=expected, on_fail=None, on_skip=None
            )
        failed = [f"{r['check_name']} ({shorten(r['exception'])})" for r in results if r["status"] == "failed"]
        if failed:
            raise AssertionError(f"{len(failed)} of {len(results)} checks fail: {'; '.join(failed)}")
        failing = {r["check_name"] for r in results if r["status"] == "xfail"}
        if stale := sorted(expected_failed_checks.keys() - failing):
            raise AssertionError(f"expected to fail, but not failing: {', '.join(stale)}")
