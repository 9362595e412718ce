"""Common corruptions of images, made here instead of downloaded, and streams of them (section 4.1 of the paper)."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from offprints.cotta.corruptions.kinds import Setting, quantized
from offprints.cotta.corruptions.pixels import Draws
from offprints.cotta.corruptions.severities import TABLE, VALIDATION
from offprints.shared.device import make_generator, working_dtype
from offprints.shared.validation import check_bool, check_choice, check_labels, check_number, check_tensor

CORRUPTIONS: tuple[str, ...] = tuple(TABLE)
VALIDATION_CORRUPTIONS: tuple[str, ...] = tuple(VALIDATION)
KNOWN = (*CORRUPTIONS, *VALIDATION_CORRUPTIONS)
Scale = Literal["auto", "cifar", "imagenet"]


def corrupt(
    images: Num[Tensor, "B C H W"],
    name: str,
    severity: int,
    *,
    scale: Scale = "auto",
    generator: torch.Generator | None = None,
    frost_textures: Num[Tensor, "T 3 h w"] | None = None,
) -> Num[Tensor, "B C H W"]:
    """Corrupt images as CIFAR-10-C and ImageNet-C (Hendrycks and Dietterich, 2019) define it, on the images' device.

    Args:
        images: uint8, or floating in [0, 1]; with 3 channels, or 1 for gray images.
        name: One of ``CORRUPTIONS`` or of ``VALIDATION_CORRUPTIONS``.
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
        ValueError: not a batch of images with 1 or 3 channels, empty, floating values outside [0, 1], an unknown name
            or scale, a severity outside 1..5, textures that are too small.

    Example:
        >>> images = torch.full((2, 3, 32, 32), 0.5)
        >>> corrupt(images, "brightness", 5).amax()
        tensor(0.8000)
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    _check_options(name, severity, scale, frost_textures)
    _check_images(images, "images")
    return _corrupted(images, name, severity, scale, generator, frost_textures)


def _check_options(name: str, severity: int, scale: Scale, frost_textures: Tensor | None) -> None:
    check_choice(name, "name", KNOWN)
    check_number(severity, "severity", low=1, high=5, integer=True)
    check_choice(scale, "scale", ("auto", "cifar", "imagenet"))
    if frost_textures is not None:
        _check_images(frost_textures, "frost_textures", channels=(3,))


def _corrupted(
    images: Tensor,
    name: str,
    severity: int,
    scale: Scale,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    frost_textures: Tensor | None,
) -> Tensor:
    """The corruption, without checks."""
    levels = images.dtype == torch.uint8
    small = scale == "cifar" or (scale == "auto" and min(images.shape[2:]) <= 64)
    x = images.float() / 255 if levels else images.to(working_dtype(images))
    function, cifar, imagenet = (TABLE | VALIDATION)[name]
    constants = (cifar if small else imagenet)[severity - 1]
    setting = Setting(constants, Draws(generator, x), small, levels, frost_textures)
    with torch.no_grad():
        result = function(x, setting).clamp(0, 1)
    return (quantized(result) * 255).round().to(torch.uint8) if levels else result.to(images.dtype)


def _check_images(images: Tensor, name: str, channels: tuple[int, ...] = (1, 3)) -> None:
    check_tensor(images, name, ndim=4, floating=False)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{name} must be uint8 or floating, got {images.dtype}")
    if images.shape[1] not in channels:
        allowed = " or ".join(map(str, channels))
        raise ValueError(f"{name} must have shape [B, C, H, W] with C = {allowed}, got {tuple(images.shape)}")
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"{name} must lie in [0, 1] where they are floating, got values from {low:g} to {high:g}")


def severity_schedule(
    corruptions: Sequence[str] = CORRUPTIONS, *, severity: int = 5, gradual: bool = False
) -> list[tuple[str, int]]:
    """The segments of a stream: (corruption, severity) in order.

    Args:
        corruptions: Their order; names of ``CORRUPTIONS`` or ``VALIDATION_CORRUPTIONS``.
        severity: Of all of them, unless gradual.
        gradual: The paper's gradual setting: the first one falls from 5 to 1, every later one rises from 1 to 5 and
            falls again.

    Raises:
        ValueError: no or an unknown corruption, ``severity`` outside 1..5.

    Example:
        >>> severity_schedule(["fog", "snow"], severity=3)
        [('fog', 3), ('snow', 3)]
    """
    check_number(severity, "severity", low=1, high=5, integer=True)
    check_bool(gradual, "gradual")
    if not isinstance(corruptions, Sequence):
        raise TypeError(f"corruptions must be a sequence of names, got {type(corruptions).__name__}")
    if isinstance(corruptions, str) or len(corruptions) == 0:
        raise ValueError(f"corruptions must be a sequence of names, got {corruptions!r}")
    for name in corruptions:
        check_choice(name, "corruptions", KNOWN)
    if not gradual:
        return [(name, severity) for name in corruptions]
    falling = [5, 4, 3, 2, 1]
    later = [1, 2, 3, 4, *falling]
    return [(name, s) for i, name in enumerate(corruptions) for s in (later if i else falling)]


class StreamBatch(NamedTuple):
    """One batch of a stream: images in [0, 1], labels, and what was done to them.

    Example:
        >>> stream = CorruptionStream(torch.rand(8, 3, 32, 32), torch.arange(8))
        >>> x, y, corruption, severity = stream[0]
        >>> corruption, severity
        ('gaussian_noise', 5)
    """

    x: Float[Tensor, "B 3 H W"]
    y: Int[Tensor, " B"]
    corruption: str
    severity: int


class CorruptionStream:
    """A data set under one corruption after the other: a sequence of `StreamBatch`.

    Each segment of `severity_schedule` shows all images in their order. Batches are corrupted when they are
    asked for. What is drawn for an image depends on ``seed``, corruption, severity and the image's place among the
    images alone: not on the size of the batches, and not on the pass, as with images from files.

    It can be iterated again, indexed by batch, and loaded in parallel:
    ``DataLoader(stream, batch_size=None, num_workers=2)``.

    Args:
        images: uint8, or floating in [0, 1]; with 3 channels, or 1 for gray images.
        labels: One per image.
        corruptions: As for `severity_schedule`.
        severity: As for `severity_schedule`.
        gradual: As for `severity_schedule`.
        repeats: Passes over all segments.
        batch_size: Images of a batch; the last of a segment may be smaller.
        seed: Of the corruptions.
        scale: As for `corrupt`.
        frost_textures: As for `corrupt`.

    Attributes:
        schedule: The segments of one pass.

    Raises:
        TypeError: images neither uint8 nor floating, labels not integers.
        ValueError: as `corrupt` and `severity_schedule`; another number of labels than images.

    Example:
        >>> images, labels = torch.rand(64, 3, 32, 32), torch.randint(5, (64,))
        >>> stream = CorruptionStream(images, labels, corruptions=["fog", "snow"], batch_size=32)
        >>> [(batch.corruption, len(batch.x)) for batch in stream]
        [('fog', 32), ('fog', 32), ('snow', 32), ('snow', 32)]
    """

    def __init__(
        self,
        images: Num[Tensor, "N C H W"],
        labels: Int[Tensor, " N"],
        *,
        corruptions: Sequence[str] = CORRUPTIONS,
        severity: int = 5,
        gradual: bool = False,
        repeats: int = 1,
        batch_size: int = 200,
        seed: int = 0,
        scale: Scale = "auto",
        frost_textures: Num[Tensor, "T 3 h w"] | None = None,
    ) -> None:
        _check_images(images, "images")
        self.labels = check_labels(labels, "labels", length=len(images))
        if labels.ndim != 1:  # a column would be broadcast against predictions
            raise ValueError(f"labels must have one axis, got shape {tuple(labels.shape)}")
        self.repeats = check_number(repeats, "repeats", low=1, integer=True)
        self.batch_size = check_number(batch_size, "batch_size", low=1, integer=True)
        self.seed = check_number(seed, "seed", low=0, integer=True)
        self.schedule = severity_schedule(corruptions, severity=severity, gradual=gradual)
        _check_options(self.schedule[0][0], severity, scale, frost_textures)
        self.images, self.scale, self.frost_textures = images, scale, frost_textures

    @property
    def _batches(self) -> int:
        """Of a segment."""
        return -(-len(self.images) // self.batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return self.repeats * len(self.schedule) * self._batches

    def __iter__(self) -> Iterator[StreamBatch]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> StreamBatch:
        """One batch, by its number.

        Raises:
            TypeError: ``index`` is not an integer.
            IndexError: there is no such batch.
        """
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"index must be in [{-len(self)}, {len(self)}), got {index}")
        segment, number = divmod(place % len(self), self._batches)
        corruption, severity = self.schedule[segment % len(self.schedule)]
        first = number * self.batch_size
        images = self.images[first : first + self.batch_size]
        generators = [make_generator(self._seed_of(corruption, severity, first + i)) for i in range(len(images))]
        x = _corrupted(images, corruption, severity, self.scale, generators, self.frost_textures)
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return StreamBatch(x, self.labels[first : first + self.batch_size], corruption, severity)

    def _seed_of(self, corruption: str, severity: int, place: int) -> int:
        key = f"{self.seed}/{corruption}/{severity}/{place}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
