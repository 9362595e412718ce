"""The augmented views over which the teacher is averaged (equation 4 of the paper)."""

from offprints.cotta.augmentation.views import AugmentationParams, ImageAugmentation

__all__ = ["AugmentationParams", "ImageAugmentation"]
