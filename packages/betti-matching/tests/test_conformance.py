"""The checks that every package of this workspace passes."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from offprints.betti_matching import (
    BettiMatchingLoss,
    BettiMatchingMetric,
    DiceBettiMatchingLoss,
    betti_matching_error,
    betti_matching_loss,
    betti_number_error,
    betti_numbers,
    compute_barcode,
    compute_matching,
    compute_matching_batch,
    representative_cycles,
)
from offprints.betti_matching.baselines import cldice_loss, wasserstein_loss
from offprints.shared.testing import check_arguments, check_loss, check_module, check_package, check_streaming

PUBLIC = [
    "BettiMatchingLoss",
    "BettiMatchingMetric",
    "Comparison",
    "Construction",
    "DiceBettiMatchingLoss",
    "Filtration",
    "Matching",
    "PairList",
    "betti_matching_error",
    "betti_matching_loss",
    "betti_number_error",
    "betti_numbers",
    "compute_barcode",
    "compute_matching",
    "compute_matching_batch",
    "plot_barcodes",
    "plot_matching",
    "representative_cycles",
]


def probabilities(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three images in one channel, without ties."""
    values = torch.randperm(96, generator=generator).view(2, 3, 1, 4, 4)
    pred, target = (values.double() + 1) / 98
    return pred, target


def logits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    pred, target = probabilities(generator)
    return pred.logit(), target > 0.5


def plateau(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A constant prediction: no bars but the essential one."""
    pred, target = probabilities(generator)
    return torch.full_like(pred, 0.25), (target > 0.5).double()


def ties(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Few levels, shared by both images."""
    pred, target = probabilities(generator)
    return (4 * pred).round() / 4, (4 * target).round() / 4


POINTS: dict[str, Any] = {"a plateau": plateau, "ties": ties}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"filtration": "bothlevel", "construction": "T", "comparison": "intersection", "relative": True, "dims": (1,)},
    ],
)
def test_loss_function(options: dict[str, Any]) -> None:
    check_loss(partial(betti_matching_loss, **options), probabilities, special=POINTS)


@pytest.mark.parametrize("loss", [BettiMatchingLoss(relative=True), DiceBettiMatchingLoss(filtration="bothlevel")])
def test_loss_modules(loss: torch.nn.Module) -> None:
    check_loss(loss, logits, skip={"gradcheck": "see the function", "torch.compile": "see below"})
    check_module(loss, logits)


@pytest.mark.parametrize("module", [BettiMatchingLoss, DiceBettiMatchingLoss, BettiMatchingMetric])
def test_arguments_of_constructors(module: Any) -> None:
    check_arguments(module, lambda _: {})


@pytest.mark.parametrize("error", [betti_matching_error, betti_number_error])
def test_arguments_of_errors(error: Any) -> None:
    check_arguments(error, lambda g: tuple(x.float() for x in probabilities(g)), nan="propagate")


def arrays(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    pred, target = probabilities(generator)
    return pred[0, 0], target[0, 0]


def test_arguments_of_functions_of_images() -> None:
    for ndim in (1, 2, 3):  # compiled before there is a limit of time
        compute_barcode(torch.rand(*(3,) * ndim, dtype=torch.float64))
        compute_matching(*torch.rand(2, *(3,) * ndim, dtype=torch.float64))
    reduced: dict[str, Any] = {"reduced": True}  # the essential pair ends in infinity, as infinite voxels do
    check_arguments(compute_matching, arrays, kwargs=reduced, nan="propagate")
    check_arguments(compute_barcode, lambda g: arrays(g)[:1], kwargs=reduced, nan="propagate")
    check_arguments(betti_numbers, lambda g: arrays(g)[:1], nan="propagate")
    batch = partial(compute_matching_batch, **reduced)
    check_arguments(batch, lambda g: tuple(x[:, 0] for x in probabilities(g)), nan="propagate")
    image = arrays(torch.Generator().manual_seed(0))[0]
    check_arguments(
        representative_cycles, lambda g: (image, compute_barcode(image)[0]), kwargs={"dim": 0}, nan="propagate"
    )


@pytest.mark.parametrize("loss", [wasserstein_loss, cldice_loss])
def test_baselines(loss: Any) -> None:
    # clDice follows torch's own losses: NaN goes through
    nan: Any = "raise" if loss is wasserstein_loss else "propagate"
    skip = dict.fromkeys(("torch.compile", "torch.func"), "baselines are not made for it")
    check_loss(loss, probabilities, nan=nan, skip=skip)


@pytest.mark.parametrize("options", [{}, {"filtration": "sublevel", "construction": "T", "relative": True}])
def test_metric(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(n, 1, 7, 8, generator=generator), torch.rand(n, 1, 7, 8, generator=generator)) for n in (1, 3, 2)
    ]
    skip = {"two processes": "the defaults show it"} if options else {}
    check_streaming(partial(BettiMatchingMetric, **options), batches, skip=skip)


def test_package() -> None:
    check_package("betti-matching", public=PUBLIC)
