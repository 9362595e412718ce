"""Continual test-time domain adaptation (CoTTA, arXiv 2203.13591)."""

from offprints.cotta.adaptation import CoTTA
from offprints.cotta.augmentation import AugmentationParams, ImageAugmentation
from offprints.cotta.baselines import BNAdapt, Source, Tent
from offprints.cotta.confidence import source_confidence_threshold
from offprints.cotta.configuration import OptimizerLike, collect_params, configure_model
from offprints.cotta.corruptions import (
    CORRUPTIONS,
    VALIDATION_CORRUPTIONS,
    CorruptionStream,
    StreamBatch,
    corrupt,
    severity_schedule,
)
from offprints.cotta.datasets import ACDC, ImageNetC, load_cifar_c
from offprints.cotta.losses import ConsistencyLoss, consistency_loss
from offprints.cotta.metrics import mean_iou
from offprints.cotta.multiscale import MultiScaleFlip
from offprints.cotta.teacher import ema_update_, stochastic_restore_

__all__ = [  # in order of importance
    "ACDC",
    "CORRUPTIONS",
    "VALIDATION_CORRUPTIONS",
    "AugmentationParams",
    "BNAdapt",
    "CoTTA",
    "ConsistencyLoss",
    "CorruptionStream",
    "ImageAugmentation",
    "ImageNetC",
    "MultiScaleFlip",
    "OptimizerLike",
    "Source",
    "StreamBatch",
    "Tent",
    "collect_params",
    "configure_model",
    "consistency_loss",
    "corrupt",
    "ema_update_",
    "load_cifar_c",
    "mean_iou",
    "severity_schedule",
    "source_confidence_threshold",
    "stochastic_restore_",
]
