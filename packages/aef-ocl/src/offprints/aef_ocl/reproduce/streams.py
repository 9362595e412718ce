"""One stream: every method along it, and how exact ours is."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from offprints.aef_ocl import (
    AEFOCLClassifier,
    PseudoFeatureGenerator,
    RecursiveRidge,
    long_tailed_stream,
    mean_class_accuracy,
    ridge_solution,
)
from offprints.aef_ocl.reference import Reference
from offprints.aef_ocl.reproduce.baselines import Means, SGDHead
from offprints.aef_ocl.reproduce.data import Data, clothing, scans
from offprints.shared.device import make_generator

if TYPE_CHECKING:
    from offprints.aef_ocl.reproduce.experiment import Config

OURS, PLAIN, LDA, NEAREST = "AEF-OCL", "without pseudo-features", "streaming LDA", "nearest class mean"
SGD, RECENT, POOLED = "SGD head, tuned", "ridge of the last batch", "pseudo-features of one Gaussian"
SOLVERS: tuple[Literal["cholesky"], Literal["recursive"]] = ("cholesky", "recursive")


def stream_of(data: Data, config: Config, seed: int) -> tuple[Tensor, Tensor]:
    """All rows of the stream in order."""
    options: dict[str, Any] = {"ratio": config.ratio, "max_count": config.max_count, "drift": config.drift}
    rows, labels = zip(*long_tailed_stream(*data.train, **options, seed=seed), strict=True)
    return torch.stack(rows), torch.stack(labels)


def stream_unit(config: Config, seed: int) -> dict[str, Any]:
    """One stream: accuracies of every method along it, and how exact ours is at its end."""
    if config.source == "digits":
        data = scans(config.test_size, seed)
    else:
        data = clothing(config.folder, seed, width=config.width, epochs=config.epochs, download=config.download)
    x, y = stream_of(data, config, seed)
    x_test, y_test = data.test
    K, d = int(data.train[1].max()) + 1, x.shape[1]
    model = AEFOCLClassifier(
        buffer_size=config.buffer_size, gamma=config.gamma, noise=config.noise, random_state=seed, device="cpu"
    )
    sgd = {rate: SGDHead(config.buffer_size, K, rate) for rate in config.rates}
    means = Means(d, K)
    batches = list(zip(x.split(config.batch_size), y.split(config.batch_size), strict=True))
    stops = {math.ceil(len(batches) * (i + 1) / config.points) for i in range(config.points)}
    curves: dict[str, list[float]] = {}
    for number, (rows, labels) in enumerate(batches, start=1):
        model.partial_fit(rows, labels, classes=range(K))
        phi = model.buffer_(rows)
        for head in sgd.values():
            head.batch(phi, labels)
        means.batch(rows, labels)
        if number not in stops:
            continue
        phi_test = model.buffer_(x_test)
        recent = RecursiveRidge(config.buffer_size, gamma=config.gamma).partial_fit(phi, labels)
        predicted = {
            OURS: model.predict(x_test),
            PLAIN: model.set_params(balance=False).predict(x_test),
            LDA: means.lda(x_test).argmax(1),
            NEAREST: means.nearest_mean(x_test).argmax(1),
            RECENT: recent(phi_test).argmax(1),
            **{f"SGD {rate}": head.scores(phi_test).argmax(1) for rate, head in sgd.items()},
        }
        model.set_params(balance=True)
        for name, labels_of in predicted.items():
            curves.setdefault(name, []).append(mean_class_accuracy(y_test, labels_of))
    found: dict[str, Any] = {f"curve {name}": torch.tensor(values) for name, values in curves.items()}
    for name in (OURS, PLAIN):
        found[f"classes {name}"] = class_accuracies(y_test, predicted[name], K)
    found["counts"] = model.generator_.count_
    found["pooled"] = mean_class_accuracy(y_test, pooled(model, x, config.noise, seed, x_test))
    strong = AEFOCLClassifier(**model.get_params() | {"gamma": 100 * config.gamma}).fit(x, y)
    found["strong"] = mean_class_accuracy(y_test, strong.predict(x_test))
    joint = ridge_solution(model.buffer_(x), y, config.gamma)
    found["joint error"] = relative(model.ridge_.weight, joint)
    found |= orders_and_machines(model, x, y, x_test, seed)
    return found


def class_accuracies(true: Tensor, predicted: Tensor, K: int) -> Tensor:
    """Accuracy of each class ``[K]``."""
    return torch.stack([(predicted[true == c] == c).double().mean() for c in range(K)])


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest weight."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pooled(model: AEFOCLClassifier, x: Tensor, noise: float, seed: int, x_test: Tensor) -> Tensor:
    """The control: as many pseudo-features of each class, all from the moments of all data together."""
    one = PseudoFeatureGenerator(x.shape[1], noise=noise).partial_fit(x, torch.zeros(len(x), dtype=torch.int64))
    counts = model.generator_.deficits()
    features, _ = one.sample(counts.sum()[None], generator=make_generator(seed))
    ridge = copy.deepcopy(model.ridge_)
    ridge.partial_fit(model.buffer_(features), torch.arange(len(counts)).repeat_interleave(counts))
    return ridge(model.buffer_(x_test)).argmax(1)


def orders_and_machines(model: AEFOCLClassifier, x: Tensor, y: Tensor, x_test: Tensor, seed: int) -> dict[str, float]:
    """The same rows shuffled, and the same rows on three machines that merge."""

    def made(rows: Tensor) -> AEFOCLClassifier:
        other = AEFOCLClassifier(**model.get_params())
        for part in rows.split(50):
            other.partial_fit(x[part], y[part])
        return other

    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    first, *others = (made(part) for part in torch.arange(len(x)).tensor_split(3))
    for other in others:
        first.merge_(other)
    expected = model.predict(x_test)
    return {
        "order": float((made(order).predict(x_test) != expected).double().mean()),
        "machines": relative(first.ridge_.weight, model.ridge_.weight),
    }


def exactness_unit(config: Config, seed: int) -> dict[str, Any]:
    """Distance to the joint solution after every batch: both solvers, and the recursion as it is published."""
    data = scans(config.test_size, seed)
    x, y = stream_of(data, config, seed)
    K = int(y.max()) + 1
    first = AEFOCLClassifier(buffer_size=config.buffer_size, gamma=config.gamma, random_state=seed, device="cpu")
    phi = first.partial_fit(x[:1], y[:1]).buffer_(x)
    ridges = {solver: RecursiveRidge(config.buffer_size, gamma=config.gamma, solver=solver) for solver in SOLVERS}
    published = Reference(first.buffer_.state_dict()["weight"].numpy(), K, config.gamma, config.noise)
    errors: dict[str, list[float]] = {name: [] for name in (*SOLVERS, "published recursion")}
    batch = config.batch_size
    for number in range(min(config.exact_batches, math.ceil(len(x) / batch))):
        part, upto = slice(number * batch, (number + 1) * batch), slice(0, (number + 1) * batch)
        joint = ridge_solution(phi[upto], torch.nn.functional.one_hot(y[upto], K).double(), config.gamma)
        for solver, ridge in ridges.items():
            ridge.partial_fit(phi[part], torch.nn.functional.one_hot(y[part], K).double())
            errors[solver].append(relative(ridge.weight, joint))
        published.batch(x[part].double().numpy(), y[part].numpy())
        errors["published recursion"].append(relative(torch.from_numpy(published.W), joint))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in errors.items()}
