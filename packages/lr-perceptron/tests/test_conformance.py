"""The common suites: the losses, every argument of every function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from offprints.lr_perceptron import (
    METHODS,
    NormalizedLogisticLoss,
    is_separable,
    iteration_bound,
    logistic_gradient,
    logistic_loss,
    loss_divergence_dataset,
    margin,
    normalized_logistic_loss,
    radius,
    separate,
    sweep,
    worst_case_dataset,
)
from offprints.shared.testing import check_arguments, check_loss


def samples(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A separable set in float32."""
    X = torch.randn(12, 3, generator=generator)
    return X, torch.where(X @ torch.tensor([1.0, -2.0, 0.5]) > 0, 1.0, -1.0)


def weighted(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return *samples(generator), torch.randn(3, generator=generator)


def scored(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    scores = torch.randn(7, generator=generator)
    return scores, torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0])


def confident(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Margins at which sigmoids underflow in float32."""
    scores, target = scored(generator)
    return (200 + 50 * scores) * target, target


@pytest.mark.parametrize("loss", [normalized_logistic_loss, NormalizedLogisticLoss()])
def test_normalized_loss(loss: Any) -> None:
    number = "the normalization counts as a number: tested against its formula in test_losses.py"
    check_loss(
        loss,
        scored,
        special={"zero": lambda g: (torch.zeros(7), scored(g)[1]), "confident": confident},
        skip={"gradcheck": number, "double backward": number},
    )


def test_logistic_loss() -> None:
    X, y = samples(torch.Generator().manual_seed(0))

    def of_theta(theta: Tensor) -> Tensor:
        return logistic_loss(X.to(theta.dtype), y, theta)

    check_loss(
        of_theta,
        lambda g: (torch.randn(3, generator=g),),
        skip={
            "batch permutation": "theta is no batch",
            "shapes": "the same",
            "types": "of a function in this test",
            "arguments": "test_arguments_of_the_loss",
        },
    )


@pytest.mark.parametrize("function", [logistic_loss, logistic_gradient])
def test_arguments_of_the_loss(function: Any) -> None:
    check_arguments(function, weighted)


@pytest.mark.parametrize("method", METHODS)
def test_arguments_of_separate(method: str) -> None:
    check_arguments(separate, samples, kwargs={"method": method, "max_iter": 40, "theta0": torch.zeros(3)})


def test_arguments_of_the_others() -> None:
    check_arguments(sweep, lambda g: (*samples(g), [0.1, 10.0]), kwargs={"max_iter": 40})
    check_arguments(sweep, lambda g: (*samples(g), torch.tensor([0.1, 10.0])), kwargs={"max_iter": 40})
    for function in (margin, is_separable):
        check_arguments(function, samples)
    check_arguments(radius, lambda g: samples(g)[:1])
    numbers = {"n": 5, "radius": 2.0, "margin": 0.5}
    skip = {"margin: tiny": "a bound of 4e60, finite in Python's floats but not in float32"}
    check_arguments(iteration_bound, lambda g: ("perceptron",), kwargs=numbers, skip=skip)
    with pytest.raises(ValueError, match="margin must be large enough"):
        iteration_bound("perceptron", n=5, radius=2.0, margin=1e-200)
    check_arguments(worst_case_dataset, lambda g: (5,))
    check_arguments(loss_divergence_dataset, lambda g: ())
