"""Common corruptions of images, made here instead of downloaded, and streams of them (section 4.1 of the paper)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from offprints.cotta.corruptions.kinds import Setting, quantized
from offprints.cotta.corruptions.pixels import Draws
from offprints.cotta.corruptions.severities import TABLE
from offprints.shared.device import make_generator
from offprints.shared.validation import check_choice, check_labels, check_number, check_same_length, check_tensor

CORRUPTIONS: tuple[str, ...] = tuple(TABLE)
Scale = Literal["auto", "cifar", "imagenet"]


def corrupt(
    images: Num[Tensor, "B 3 H W"],
    name: str,
    severity: int,
    *,
    scale: Scale = "auto",
    generator: torch.Generator | None = None,
    frost_textures: Num[Tensor, "T 3 h w"] | None = None,
) -> Num[Tensor, "B 3 H W"]:
    """Corrupt images as CIFAR-10-C and ImageNet-C (Hendrycks and Dietterich, 2019) define it, on the images' device.

    Args:
        images: uint8, or floating in [0, 1].
        name: One of ``CORRUPTIONS``.
        severity: 1 to 5.
        scale: Whose constants: ``"auto"`` takes CIFAR's up to 64 pixels of the shorter side, else ImageNet's. What
            depends on the size follows the images' own.
        generator: Of the random ones, on the images' device or on the CPU; default: torch's global one.
        frost_textures: Photographs of frost, of which a crop of one of the first five is laid over each image; with the
            public ones this is the public corruption. Default: a texture of our own.

    Returns:
        uint8 for uint8, truncated as the public files are; floating for floating, not quantized, in [0, 1].

    Raises:
        TypeError: ``images`` is neither uint8 nor floating.
        ValueError: not a batch of images with 3 channels, empty, floating values outside [0, 1], an unknown name or
            scale, a severity outside 1..5, textures that are too small.
    """
    check_choice(name, "name", CORRUPTIONS)
    check_number(severity, "severity", low=1, high=5, integer=True)
    check_choice(scale, "scale", ("auto", "cifar", "imagenet"))
    _check_images(images, "images")
    if frost_textures is not None:
        _check_images(frost_textures, "frost_textures")
    levels = images.dtype == torch.uint8
    small = scale == "cifar" or (scale == "auto" and min(images.shape[2:]) <= 64)
    half = images.is_floating_point() and images.dtype not in (torch.float32, torch.float64)
    x = images.float() / 255 if levels else images.float() if half else images
    function, cifar, imagenet = TABLE[name]
    constants = (cifar if small else imagenet)[severity - 1]
    setting = Setting(constants, Draws(generator, x), small, levels, frost_textures)
    with torch.no_grad():
        result = function(x, setting).clamp(0, 1)
    return (quantized(result) * 255).round().to(torch.uint8) if levels else result.to(images.dtype)


def _check_images(images: Tensor, name: str) -> None:
    check_tensor(images, name, ndim=4, floating=False)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{name} must be uint8 or floating, got {images.dtype}")
    if images.shape[1] != 3:
        raise ValueError(f"{name} must have shape [B, 3, H, W], got {tuple(images.shape)}")
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"{name} must lie in [0, 1] where they are floating, got values from {low:g} to {high:g}")


def severity_schedule(
    corruptions: Sequence[str] = CORRUPTIONS, *, severity: int = 5, gradual: bool = False
) -> list[tuple[str, int]]:
    """The segments of a stream: (corruption, severity) in order.

    Args:
        corruptions: Their order.
        severity: Of all of them, unless gradual.
        gradual: The paper's gradual setting: the first one falls from 5 to 1, every later one rises from 1 to 5 and
            falls again.

    Raises:
        ValueError: no or an unknown corruption, ``severity`` outside 1..5.
    """
    check_number(severity, "severity", low=1, high=5, integer=True)
    if isinstance(corruptions, str) or len(corruptions) == 0:
        raise ValueError(f"corruptions must be a sequence of names, got {corruptions!r}")
    for name in corruptions:
        check_choice(name, "corruptions", CORRUPTIONS)
    if not gradual:
        return [(name, severity) for name in corruptions]
    falling = [5, 4, 3, 2, 1]
    later = [1, 2, 3, 4, *falling]
    return [(name, s) for i, name in enumerate(corruptions) for s in (later if i else falling)]


class StreamBatch(NamedTuple):
    """One batch of a stream: images in [0, 1], labels, and what was done to them."""

    x: Float[Tensor, "B 3 H W"]
    y: Int[Tensor, " B"]
    corruption: str
    severity: int


class CorruptionStream:
    """A data set under one corruption after the other: an iterable of :class:`StreamBatch`.

    Each segment of :func:`severity_schedule` shows all images in their order. Batches are corrupted when they are
    asked for; what is drawn depends on ``seed``, corruption, severity and place alone, so that a stream can be iterated
    again, and a repeated pass shows the same images, as files would.

    Args:
        images: uint8, or floating in [0, 1].
        labels: One per image.
        corruptions: As for :func:`severity_schedule`.
        severity: As for :func:`severity_schedule`.
        gradual: As for :func:`severity_schedule`.
        repeats: Passes over all segments.
        batch_size: Images of a batch; the last of a segment may be smaller.
        seed: Of the corruptions.

    Attributes:
        schedule: The segments of one pass.

    Raises:
        TypeError: images neither uint8 nor floating, labels not integers.
        ValueError: as :func:`corrupt` and :func:`severity_schedule`; another number of labels than images.
    """

    def __init__(
        self,
        images: Num[Tensor, "N 3 H W"],
        labels: Int[Tensor, " N"],
        *,
        corruptions: Sequence[str] = CORRUPTIONS,
        severity: int = 5,
        gradual: bool = False,
        repeats: int = 1,
        batch_size: int = 200,
        seed: int = 0,
    ) -> None:
        _check_images(images, "images")
        check_same_length(labels, images, ("labels", "images"))
        check_number(repeats, "repeats", low=1, integer=True)
        check_number(batch_size, "batch_size", low=1, integer=True)
        check_number(seed, "seed", low=0, integer=True)
        self.images, self.labels = images, check_labels(labels, "labels")
        self.schedule = severity_schedule(corruptions, severity=severity, gradual=gradual)
        self.repeats, self.batch_size, self.seed = repeats, batch_size, seed

    def __len__(self) -> int:
        """Number of batches."""
        return self.repeats * len(self.schedule) * -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[StreamBatch]:
        for _ in range(self.repeats):
            for corruption, severity in self.schedule:
                for start in range(0, len(self.images), self.batch_size):
                    yield self._batch(corruption, severity, start)

    def _batch(self, corruption: str, severity: int, start: int) -> StreamBatch:
        part = slice(start, start + self.batch_size)
        key = f"{self.seed}/{corruption}/{severity}/{start}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
        x = corrupt(self.images[part], corruption, severity, generator=make_generator(seed))
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return StreamBatch(x, self.labels[part], corruption, severity)
