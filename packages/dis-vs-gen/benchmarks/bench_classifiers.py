"""Naive Bayes and logistic regression beside scikit-learn's: CPU time and memory, one thread, float32.

Contenders of a case take turns in one process; times are CPU times, so that other work on the machine counts little.
Memory is the peak of one call beyond the data, each in a fresh process. ``--case WORD`` runs the cases whose name has
the word; results of the others stay in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import MinMaxScaler as SklearnMinMaxScaler

from offprints.dis_vs_gen import GaussianNaiveBayes, LogisticRegression, learning_curve
from offprints.shared.benchmark import machine, version
from offprints.shared.device import peak_memory_mib, reset_peak_memory

RESULTS = Path(__file__).parent / "results" / "classifiers.json"
Calls = dict[str, Callable[[], Any]]


def data(n: int, d: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated non-negative features on [0, 1], as deep features after min-max scaling."""
    generator = np.random.default_rng(0)
    y = np.arange(n) % K
    mixing = (np.logspace(0, -2, d)[:, None] * generator.normal(size=(d, d)) * 3 / d**0.5).astype(np.float32)
    centers = (0.6 * generator.normal(size=(K, d))).astype(np.float32) @ mixing
    X = np.empty((n, d), dtype=np.float32)
    for start in range(0, n, 10_000):
        part = slice(start, start + 10_000)
        noise = generator.standard_normal((len(y[part]), d), dtype=np.float32)
        X[part] = np.maximum(noise @ mixing + centers[y[part]], 0)
    X -= X.min(0)
    X /= np.maximum(X.max(0), 1e-6)
    return X, y


class PandasNB:
    """The straightforward algorithm of the official class, in pandas: groups by label, one pass per class."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> PandasNB:
        import pandas as pd

        groups = pd.DataFrame(X).groupby(y)
        self.means = groups.mean().to_numpy()
        counts = groups.size().to_numpy()
        self.prior = counts / len(y)
        variances = groups.apply(lambda group: pd.Series(np.var(group, axis=0) + 1e-9)).to_numpy()
        self.variance = (variances * self.prior[:, None]).sum(0)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        scores = [
            np.log(prior) - 0.5 * np.sum((X - mean) ** 2 / self.variance, 1)
            for prior, mean in zip(self.prior, self.means, strict=True)
        ]
        return np.array(scores).T.argmax(1)


def naive_bayes_fit(n: int, d: int, K: int, pandas: bool = False) -> Calls:
    X, y = data(n, d, K)
    calls: Calls = {"ours": lambda: GaussianNaiveBayes().fit(X, y), "scikit-learn": lambda: GaussianNB().fit(X, y)}
    if pandas:
        calls["official algorithm, pandas"] = lambda: PandasNB().fit(X, y)
    return calls


def naive_bayes_predict(n: int, d: int, K: int, pandas: bool = False) -> Calls:
    X, y = data(n, d, K)
    models = {"ours": GaussianNaiveBayes().fit(X, y), "scikit-learn": GaussianNB().fit(X, y)}
    if pandas:
        models["official algorithm, pandas"] = PandasNB().fit(X, y)
        assert (models["ours"].predict(X) == models["official algorithm, pandas"].predict(X)).mean() > 0.9999
    return {name: lambda model=model: model.predict(X) for name, model in models.items()}


def naive_bayes_stream(n: int, d: int, K: int) -> Calls:
    """A million rows pass by in batches; one batch, again and again."""
    X, y = data(10_000, d, K)
    classes = np.arange(K)

    def stream(make: Callable[[], Any]) -> None:
        model = make()
        for _ in range(n // len(X)):
            model.partial_fit(X, y, classes=classes)

    return {"ours": lambda: stream(GaussianNaiveBayes), "scikit-learn": lambda: stream(GaussianNB)}


def regression(n: int, d: int, K: int, tol: float = 1e-4) -> Calls:
    X, y = data(n, d, K)
    return {
        "ours": lambda: LogisticRegression(tol=tol).fit(X, y),
        "scikit-learn": lambda: SklearnLogisticRegression(tol=tol, max_iter=1000).fit(X, y),
    }


def sweep(m: int, d: int, K: int, repeats: int) -> Calls:
    """One point of a learning curve: subsets, scaling, fits, test errors."""
    X, y = data(3000, d, K)
    train, test = (X[:2000], y[:2000]), (X[2000:], y[2000:])

    def theirs() -> list[float]:
        errors = []
        for repeat in range(repeats):
            rows = np.random.default_rng(repeat).choice(2000, m, replace=False)
            scaler = SklearnMinMaxScaler().fit(train[0][rows])
            model = SklearnLogisticRegression(max_iter=1000).fit(scaler.transform(train[0][rows]), train[1][rows])
            errors.append(1 - model.score(scaler.transform(test[0]), test[1]))
        return errors

    def ours() -> Any:
        return learning_curve(lambda: LogisticRegression(tol=1e-4), *train, *test, [m], repeats=repeats)

    return {"ours": ours, "scikit-learn": theirs}


CASES: dict[str, tuple[Callable[..., Calls], tuple[Any, ...], int]] = {
    "NB fit, 20 000 x 512, 100 classes": (naive_bayes_fit, (20_000, 512, 100, True), 5),
    "NB predict, 20 000 x 512, 100 classes": (naive_bayes_predict, (20_000, 512, 100, True), 1),
    "NB fit, 10^4 x 512": (naive_bayes_fit, (10**4, 512, 10), 7),
    "NB fit, 10^4 x 2048": (naive_bayes_fit, (10**4, 2048, 10), 5),
    "NB fit, 10^5 x 512": (naive_bayes_fit, (10**5, 512, 10), 5),
    "NB fit, 10^5 x 2048": (naive_bayes_fit, (10**5, 2048, 10), 2),
    "NB fit, 10^6 x 512": (naive_bayes_fit, (10**6, 512, 10), 1),
    "NB predict, 10^4 x 2048": (naive_bayes_predict, (10**4, 2048, 10), 5),
    "NB predict, 10^5 x 512": (naive_bayes_predict, (10**5, 512, 10), 3),
    "NB stream, 10^6 x 512 in batches of 10^4": (naive_bayes_stream, (10**6, 512, 10), 1),
    "NB stream, 10^6 x 2048 in batches of 10^4": (naive_bayes_stream, (10**6, 2048, 10), 1),
    "LR fit, 5000 x 512": (regression, (5000, 512, 10), 5),
    "LR fit, 5000 x 512, tol 1e-6": (regression, (5000, 512, 10, 1e-6), 3),
    "LR fit, 2000 x 512, 100 classes": (regression, (2000, 512, 100), 3),
    "LR fit, 10^4 x 512": (regression, (10**4, 512, 10), 5),
    "LR fit, 10^4 x 2048": (regression, (10**4, 2048, 10), 3),
    "LR fit, 10^5 x 512": (regression, (10**5, 512, 10), 1),
    "LR fit, 10^5 x 2048": (regression, (10**5, 2048, 10), 1),
    "LR fit, 10^6 x 512": (regression, (10**6, 512, 10), 1),
    "LR curve, m = 20, 64 features, 40 repeats": (sweep, (20, 64, 10, 40), 3),
    "LR curve, m = 100, 512 features, 40 repeats": (sweep, (100, 512, 10, 40), 3),
}


def times(name: str) -> dict[str, float]:
    """Median CPU seconds of each contender."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    build, arguments, rounds = CASES[name]
    calls = build(*arguments)
    measured: dict[str, list[float]] = {contender: [] for contender in calls}
    for number in range(rounds + 1):  # the first warms up
        for contender in list(calls)[:: -1 if number % 2 else 1]:
            start = time.process_time()
            calls[contender]()
            measured[contender].append(time.process_time() - start)
    return {contender: statistics.median(values[1:]) for contender, values in measured.items()}


def memory(name: str, contender: str) -> float:
    """Peak MiB of one call beyond what is there before."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    build, arguments, _ = CASES[name]
    calls = build(*arguments)
    warm = data(60, 4, 3)
    for model in (GaussianNaiveBayes(), GaussianNB(), LogisticRegression(), SklearnLogisticRegression()):
        model.fit(*warm).predict(warm[0])
    reset_peak_memory()
    before = peak_memory_mib()
    calls[contender]()
    return peak_memory_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="a word in the name of the cases to run")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    record |= {"benchmark": "classifiers", "threads": 1, "clock": "CPU time", "machine": machine()}
    record["versions"] = {name: version(name) for name in ("scikit-learn", "pandas", "torch")}
    cases = record.setdefault("cases", {})
    for name in CASES:
        if options.case not in name:
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds = pool.submit(times, name).result()
        peaks = {}
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes started below: what is freed is given back
        for contender in [] if options.no_memory else seconds:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                peaks[contender] = pool.submit(memory, name, contender).result()
        del os.environ["MALLOC_MMAP_THRESHOLD_"]  # which would slow down the next case's temporaries
        cases[name] = {
            contender: {"seconds": value, "ratio": value / seconds["ours"], "peak_mib": peaks.get(contender)}
            for contender, value in seconds.items()
        }
        for contender, row in cases[name].items():
            peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:8.0f} MiB"
            print(f"{name:45} {contender:27} {row['seconds']:9.4f} s {row['ratio']:7.2f} {peak}", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
