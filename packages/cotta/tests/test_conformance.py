"""The conformance suite on every public object."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from packages.cotta.tests.models import batches, golden_net
from torch import Tensor, nn

from offprints.cotta import (
    BNAdapt,
    ConsistencyLoss,
    CoTTA,
    ImageAugmentation,
    MultiScaleFlip,
    Source,
    Tent,
    consistency_loss,
)
from offprints.shared.testing import check_loss, check_module, check_package, check_wrapper

PUBLIC = {
    "CORRUPTIONS",
    "VALIDATION_CORRUPTIONS",
    "OptimizerLike",
    "CoTTA",
    "Tent",
    "BNAdapt",
    "Source",
    "configure_model",
    "collect_params",
    "consistency_loss",
    "ConsistencyLoss",
    "ema_update_",
    "stochastic_restore_",
    "source_confidence_threshold",
    "AugmentationParams",
    "ImageAugmentation",
    "MultiScaleFlip",
    "corrupt",
    "severity_schedule",
    "CorruptionStream",
    "StreamBatch",
    "load_cifar_c",
    "ImageNetC",
    "ACDC",
    "mean_iou",
}


def test_package() -> None:
    check_package("cotta", public=PUBLIC)


def logits(generator: torch.Generator, *pixels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(7, 4, *pixels, generator=generator), torch.randn(7, 4, *pixels, generator=generator)


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss(symmetric: bool) -> None:
    check_loss(partial(consistency_loss, symmetric=symmetric), logits)


def test_loss_module() -> None:
    check_loss(ConsistencyLoss(), lambda generator: logits(generator, 2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: CoTTA(model, seed=0, num_augmentations=3, confidence_threshold=1.0),
        lambda model: CoTTA(
            model,
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
            seed=0,
            num_augmentations=4,
            confidence_threshold=0.5,
            gate="sample",
            average="probabilities",
            restore_probability=0.3,
            augmentation_batch=4,
            steps=2,
        ),
        lambda model: CoTTA(model, seed=0, num_augmentations=2, episodic=True, symmetric=True, train_mode=True),
        Tent,
        BNAdapt,
        lambda model: BNAdapt(model, source_weight=0.3),
        Source,
    ],
    ids=["cotta", "cotta, paper's options", "cotta, episodic in train mode", "tent", "bn", "mixed bn", "source"],
)
def test_wrappers(make) -> None:
    model = nn.Sequential(golden_net(), nn.Dropout(0.3))
    check_wrapper(make, model, batches(4), owns_model=True)


def test_augmentation() -> None:
    augmentation = ImageAugmentation()
    x = torch.rand(2, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    params = augmentation.sample_params(3, x, generator=torch.Generator().manual_seed(1))
    check_module(augmentation, lambda g: (torch.rand(2, 3, 12, 9, generator=g),), kwargs={"params": params})


def test_multiscale() -> None:
    views = MultiScaleFlip(scales=(0.5, 1.0))
    check_module(views, lambda generator: (torch.rand(2, 3, 8, 6, generator=generator), torch.sin))
