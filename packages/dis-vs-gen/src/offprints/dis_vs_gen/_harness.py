"""Test errors of several estimators on the same random subsets, those of this package trained in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from offprints.dis_vs_gen._rule import pooled_variance
from offprints.dis_vs_gen._solver import solve
from offprints.dis_vs_gen.logistic import LogisticRegression, compute_type, exponent_of
from offprints.dis_vs_gen.naive_bayes import GaussianNaiveBayes
from offprints.dis_vs_gen.scaling import minimum_and_range, scaled
from offprints.shared.distributed import GroupMoments
from offprints.shared.labels import Classes, as_labels
from offprints.shared.tables import row_blocks

DRAWS = 100
ENTRIES = 2**26  # of the subsets held at once

Affine = tuple[Tensor, Tensor]  # weights [R, K, d] and biases [R, K] of linear rules on unscaled features, float64


def draw_subset(index: np.ndarray, n_classes: int, m: int, seed: Sequence[int]) -> np.ndarray:
    """Rows of a random subset of size m that holds every class."""
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS):
        rows = generator.choice(len(index), m, replace=False)
        if len(np.unique(index[rows])) == n_classes:
            return rows
    shuffled = generator.permutation(len(index))
    first = shuffled[np.unique(index[shuffled], return_index=True)[1]]
    rest = np.setdiff1d(shuffled, first)
    return np.concatenate([first, generator.choice(rest, m - n_classes, replace=False)])


def subset_errors(
    makers: Sequence[Callable[[], Any]],
    X: Tensor,
    index: Tensor,
    X_test: Tensor,
    y_test: Tensor,
    m: int,
    *,
    classes: np.ndarray,
    repeats: int,
    scale: bool,
    seed: int,
    arrays: bool,
) -> list[Tensor]:
    """Test errors ``[repeats]`` of each estimator.

    ``index`` ``[n]`` and ``y_test`` number the labels of ``classes`` ``[K]``; a test label that is none of them is -1.
    """
    on_cpu = index.cpu().numpy()
    rows = np.stack([draw_subset(on_cpu, len(classes), m, (seed, m, repeat)) for repeat in range(repeats)])
    errors: list[list[Tensor]] = [[] for _ in makers]
    at_once = max(1, ENTRIES // (m * X.shape[1]))
    for part in np.array_split(rows, range(at_once, repeats, at_once)):
        chosen = torch.from_numpy(part).to(X.device)
        subset, labels = X[chosen], index[chosen]
        low, width = minimum_and_range(subset) if scale else (None, None)
        if low is not None and width is not None:
            high = subset.amax(1, keepdim=True).to(low.dtype)
            subset = scaled(subset, low.unsqueeze(1), width.unsqueeze(1), high)
        for maker, found in zip(makers, errors, strict=True):
            estimator = maker()
            rule = linear_rules(estimator, subset, labels, len(classes))
            if rule is None:
                found.append(_one_by_one(maker, subset, labels, X_test, y_test, low, width, classes, arrays))
            else:
                found.append(_errors_of(_on_unscaled(rule, low, width), X_test, y_test))
    return [torch.cat(found) for found in errors]


def linear_rules(estimator: Any, X: Tensor, index: Tensor, n_classes: int) -> Affine | None:
    """The rules fitted to subsets X ``[R, m, d]`` at once; None for an estimator that has no batched form."""
    if type(estimator) is GaussianNaiveBayes and estimator.shared_variance:
        return _naive_bayes(estimator, X, index, n_classes)
    if type(estimator) is LogisticRegression and estimator.class_weight is None:
        C = torch.full((len(X),), float(estimator.C), dtype=torch.float64)
        return logistic_rules(estimator, X, index, n_classes, C)
    return None


def _naive_bayes(estimator: GaussianNaiveBayes, X: Tensor, index: Tensor, n_classes: int) -> Affine:
    priors = estimator._check_parameters(n_classes).priors
    repeats, m, width = X.shape
    moments = GroupMoments(repeats * n_classes, (width,))
    groups = index + n_classes * torch.arange(repeats, device=index.device).unsqueeze(1)
    moments.update(X.reshape(-1, width), groups.flatten())
    count = moments.count.view(repeats, n_classes)
    theta = moments.mean.view(repeats, n_classes, width)
    variances = moments.m2.view_as(theta) / count.unsqueeze(2)
    variance = pooled_variance(count, variances).unsqueeze(1) + estimator.var_smoothing
    if bool((variance == 0).any()):
        raise ValueError("var_smoothing must be positive where a feature has no variance in a subset")
    prior = count / m if priors is None else priors.to(count.device).expand_as(count)
    reference = theta[:, :1]
    center = reference + ((count / m).unsqueeze(1) @ (theta - reference))
    weight = (theta - center) / variance
    bias = prior.log() - ((theta - center) * weight).sum(2) / 2
    return weight, bias - (weight @ center.mT).squeeze(2)


def logistic_rules(estimator: LogisticRegression, X: Tensor, index: Tensor, n_classes: int, C: Tensor) -> Affine:
    """Logistic regressions with the estimator's parameters but C ``[R]``, as two-column rules for two classes."""
    estimator._check_parameters()
    if X.device.type == "mps":
        X, index = X.cpu(), index.cpu()
    dtype, exponent = compute_type(X.dtype), exponent_of(X)
    if exponent:  # the units of single fits: W x = (W 2^e) (x 2^-e)
        X, C = X.double() * 2.0**-exponent, C * 2.0**exponent * 2.0**exponent
    found = solve(
        X.to(dtype),
        index,
        C,
        n_classes=n_classes,
        fit_intercept=estimator.fit_intercept,
        max_iter=estimator.max_iter,
        tol=estimator.tol,
    )
    if not bool(found.converged.all()):
        failed = int((~found.converged).sum())
        message = f"{failed} of {len(X)} logistic regressions did not converge: gradient {found.gradient.max():.2g}"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    weight, bias = found.weight / 2.0**exponent, found.intercept
    if n_classes == 2:
        weight = torch.cat([torch.zeros_like(weight), weight], 1)
        bias = torch.cat([torch.zeros_like(bias), bias], 1)
    return weight, bias


def _on_unscaled(rule: Affine, low: Tensor | None, width: Tensor | None) -> Affine:
    """The same rules on features before scaling: test data are scaled without a copy for each subset."""
    if low is None or width is None:
        return rule
    weight = rule[0] / width.unsqueeze(1).to(rule[0])
    return weight, rule[1] - (weight @ low.unsqueeze(2).to(weight)).squeeze(2)


def _errors_of(rule: Affine, X_test: Tensor, y_test: Tensor) -> Tensor:
    """Errors ``[R]`` of linear rules."""
    weight, bias = rule
    repeats, n_classes, width = weight.shape
    X_test, y_test = X_test.to(weight.device), y_test.to(weight.device)
    origin = X_test[0].double()
    offset = (bias + weight @ origin).view(-1)
    flat = weight.reshape(-1, width).T
    wrong = torch.zeros(repeats, dtype=torch.int64, device=weight.device)
    start = 0
    for block in row_blocks(X_test):
        labels = y_test[start : start + len(block)]
        scores = torch.addmm(offset, block.double() - origin, flat).view(-1, repeats, n_classes)
        wrong += (scores.argmax(2) != labels.unsqueeze(1)).sum(0)
        start += len(block)
    return (wrong.double() / len(y_test)).cpu()


def _one_by_one(
    maker: Callable[[], Any],
    subsets: Tensor,
    index: Tensor,
    X_test: Tensor,
    y_test: Tensor,
    low: Tensor | None,
    width: Tensor | None,
    classes: np.ndarray,
    arrays: bool,
) -> Tensor:
    """Errors ``[R]`` of estimators made anew for every subset."""
    errors = []
    labels = Classes(classes)
    expected = y_test.cpu().numpy()
    for repeat, X in enumerate(subsets):
        test = X_test if low is None or width is None else (X_test - low[repeat]) / width[repeat]
        table, queries = ((data.cpu().numpy() if arrays else data) for data in (X, test))
        estimator = maker().fit(table, labels.shown(index[repeat], None if arrays else X))
        predicted, known = labels.find(
            as_labels(estimator.predict(queries), "what the estimator predicts", len(queries))
        )
        errors.append(float(np.mean((predicted != expected) | ~known)))
    return torch.tensor(errors, dtype=torch.float64)
