"""The conformance suites, scikit-learn's own among them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils import estimator_checks

from offprints.dis_vs_gen import GaussianNaiveBayes, LogisticRegression, MinMaxScaler
from offprints.shared.testing import check_estimator, check_streaming

GENERATOR = np.random.default_rng(0)
Y = np.arange(60) % 3 * 5 - 4
X = (GENERATOR.normal(size=(60, 4)) + 0.3 * Y[:, None]).astype(np.float32)


@pytest.mark.parametrize(
    "estimator",
    [GaussianNaiveBayes(), GaussianNaiveBayes(shared_variance=False), LogisticRegression(tol=1e-8)],
    ids=str,
)
def test_classifiers(estimator: Any) -> None:
    skip = {}
    if isinstance(estimator, LogisticRegression):
        skip["arguments: parameters: tol: tiny"] = "all of max_iter's steps, and a warning, take more than five seconds"
    elif not estimator.shared_variance:
        skip["integer features: bool"] = "warns, rightly: a feature is the same throughout a class"
    check_estimator(estimator, (X, Y), skip=skip)  # scikit-learn's own: below, without exceptions


def test_scaler() -> None:
    check_estimator(MinMaxScaler(), (X,))


@pytest.mark.parametrize("shared", [True, False])
def test_streaming(shared: bool) -> None:
    """Batches lack classes; the data lie far from 0, where squares in float32 would lose everything."""
    features = torch.from_numpy(X) + 3000
    labels = torch.from_numpy(Y)
    batches = [(features[:7], labels[:7]), (features[7:8], labels[7:8]), (features[8:], labels[8:])]

    def add(estimator: GaussianNaiveBayes, x: torch.Tensor, y: torch.Tensor) -> None:
        estimator.partial_fit(x, y, classes=[-4, 1, 6, 99])

    def learned(estimator: GaussianNaiveBayes) -> tuple[Any, ...]:
        rule = estimator.log_likelihood(features)[:, :3], estimator.predict(features)
        return (estimator.class_count_, estimator.theta_, estimator.class_var_, estimator.var_, *rule)

    check_streaming(
        lambda: GaussianNaiveBayes(shared_variance=shared),
        batches,
        update=add,
        result=learned,
        rtol=1e-7,
        skip={"two processes": "merging is explicit: test_machines"},
    )


def machine(rank: int, features: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """One of two machines: the first has seen no sample of the last class."""
    share = labels < 6 if rank == 0 else labels == 6
    share[0] = True
    mine = GaussianNaiveBayes().partial_fit(features[share], labels[share], classes=[-4, 1, 6])
    gathered: list[Any] = [None, None]
    torch.distributed.all_gather_object(gathered, mine)
    merged = gathered[0].merge(gathered[1])
    return [merged.class_count_, merged.theta_, merged.var_]


def test_machines(two_processes: Any) -> None:
    features, labels = torch.from_numpy(X), torch.from_numpy(Y)
    whole = GaussianNaiveBayes().fit(torch.cat([features, features[:1]]), torch.cat([labels, labels[:1]]))
    for merged in two_processes(machine, features, labels):
        for got, expected in zip(merged, (whole.class_count_, whole.theta_, whole.var_), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [GaussianNaiveBayes(), LogisticRegression(tol=1e-10), MinMaxScaler()], ids=str)
def test_all_of_scikit_learns_checks(estimator: Any) -> None:
    """None is left out but those named here, each with its reason."""
    expected: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence on data made to be awkward; checks that do not apply
        results = estimator_checks.check_estimator(estimator, expected_failed_checks={}, on_fail=None, on_skip=None)
    failed = {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"}
    assert {name: why for name, why in failed.items() if name not in expected} == {}
