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
    betti_matching_loss,
)
from offprints.betti_matching.baselines import cldice_loss, wasserstein_loss
from offprints.shared.testing import check_loss, check_module, check_package, check_streaming

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


SWITCHES = {f"arguments: {name}: *": "not yet: any object is taken as a boolean" for name in ("relative", "reduced")}
NO_FUNC = {"torch.func": "not yet: the number of pairs depends on the values"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"filtration": "bothlevel", "construction": "T", "comparison": "intersection", "relative": True, "dims": (1,)},
    ],
)
def test_loss_function(options: dict[str, Any]) -> None:
    check_loss(partial(betti_matching_loss, **options), probabilities, skip={**NO_FUNC, **SWITCHES})


@pytest.mark.parametrize("loss", [BettiMatchingLoss(relative=True), DiceBettiMatchingLoss(filtration="bothlevel")])
def test_loss_modules(loss: torch.nn.Module) -> None:
    done = {**NO_FUNC, "gradcheck": "see the function", "torch.compile": "see below"}
    check_loss(loss, logits, skip=done)
    check_module(loss, logits)


@pytest.mark.parametrize("loss", [wasserstein_loss, cldice_loss])
def test_baselines(loss: Any) -> None:
    # clDice follows torch's own losses: NaN goes through
    nan: Any = "raise" if loss is wasserstein_loss else "propagate"
    skip = dict.fromkeys(("torch.compile", "torch.func"), "baselines are not made for it")
    skip["arguments"] = "not yet: any object is taken as relative and reduced"
    check_loss(loss, probabilities, nan=nan, skip=skip)


@pytest.mark.parametrize("options", [{}, {"filtration": "sublevel", "construction": "T", "relative": True}])
def test_metric(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(n, 1, 7, 8, generator=generator), torch.rand(n, 1, 7, 8, generator=generator)) for n in (1, 3, 2)
    ]
    skip = {"two processes": "the defaults show it"} if options else {}
    check_streaming(partial(BettiMatchingMetric, **options), batches, skip=skip)


NOT_YET = {
    "reference": "not yet: to be written",
    "the paper in the code": "not yet: to be written",
    "examples": "not yet: to be written",
}


def test_package() -> None:
    check_package("betti-matching", public=PUBLIC, skip=NOT_YET)
