"""Weak and strong views of pictures: FixMatch's transforms (step 9), on torchvision's (the extra ``vision``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.extras import require
from offprints.shared.validation import check_bool, check_number

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Compose

CUTOUT = 16  # pixels, at every size of the picture
GRAY = (127, 127, 127)


def _vision(module: str) -> Any:
    return require(f"torchvision.transforms.v2{module}", package="shrinkmatch", extra="vision")


def _whole(low: int, high: int) -> int:
    """A draw from low..high on torch's global stream, which data loaders seed in each of their processes."""
    return int(torch.randint(low, high + 1, (), device="cpu"))


def _uniform() -> float:
    return float(torch.rand((), device="cpu"))


def _signed(value: float) -> float:
    return value if _uniform() < 0.5 else -value


def _shear(image: Any, x: float, y: float) -> Any:
    f = _vision(".functional")
    degrees = [float(np.degrees(np.arctan(slope))) for slope in (x, y)]
    return f.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])


def _translate(image: Any, s: float, axis: int) -> Any:
    f = _vision(".functional")
    shift = [0, 0]
    height, width = f.get_size(image)
    shift[axis] = int(_signed(1.0)) * int(0.3 * s * (width, height)[axis])
    return f.affine(image, angle=0.0, translate=shift, scale=1.0, shear=[0.0, 0.0])


def _adjust(name: str) -> Callable[[Any, float], Any]:
    return lambda image, s: getattr(_vision(".functional"), f"adjust_{name}")(image, 0.05 + 0.9 * s)


# The pool, each operation at a strength s in [0, 1].
OPERATIONS: dict[str, Callable[[Any, float], Any]] = {
    "AutoContrast": lambda image, s: _vision(".functional").autocontrast(image),
    "Brightness": _adjust("brightness"),
    "Color": _adjust("saturation"),
    "Contrast": _adjust("contrast"),
    "Equalize": lambda image, s: _vision(".functional").equalize(image),
    "Identity": lambda image, s: image,
    "Posterize": lambda image, s: _vision(".functional").posterize(image, 4 + int(4 * s)),
    "Rotate": lambda image, s: _vision(".functional").rotate(image, _signed(int(30 * s))),
    "Sharpness": _adjust("sharpness"),
    "ShearX": lambda image, s: _shear(image, _signed(0.3 * s), 0.0),
    "ShearY": lambda image, s: _shear(image, 0.0, _signed(0.3 * s)),
    "Solarize": lambda image, s: _vision(".functional").solarize(image, 256 - int(256 * s)),
    "TranslateX": lambda image, s: _translate(image, s, 0),
    "TranslateY": lambda image, s: _translate(image, s, 1),
}


class AsPicture(nn.Module):
    """Check that the input is a picture; arrays become tensors."""

    def forward(self, image: Any) -> Any:
        """A PIL image of mode RGB or L, or a uint8 tensor ``(C, H, W)``, C 1 or 3, of an array ``(H, W[, C])``."""
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.array(image))
            image = image.unsqueeze(0) if image.ndim == 2 else image.movedim(-1, 0)
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8:
                raise TypeError(f"image must be a picture with values of 0 to 255, uint8, got {image.dtype}")
            if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
                raise ValueError(f"image must have shape (C, H, W) with 1 or 3 channels, got {tuple(image.shape)}")
            return image.contiguous()
        mode = getattr(image, "mode", None)
        if mode is None:
            raise TypeError(f"image must be a PIL image, a uint8 array or tensor, got {type(image).__name__}")
        if mode not in ("RGB", "L"):
            raise ValueError(f"image must have the mode 'RGB' or 'L', got {mode!r}: image.convert('RGB')")
        return image


class RandAugment(nn.Module):
    """``n`` operations of the pool, drawn with replacement; each is applied with probability 1/2.

    The magnitude v is drawn in 1..m-1, the strength is v/10.
    """

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.n, self.m = n, m

    def forward(self, image: Any) -> Any:
        """A picture of the same kind and size."""
        names = list(OPERATIONS)
        for _ in range(self.n):
            operation, strength = OPERATIONS[names[_whole(0, len(names) - 1)]], _whole(1, self.m - 1) / 10
            if _uniform() < 0.5:
                image = operation(image, strength)
        return image

    def extra_repr(self) -> str:
        """The settings, as they appear in the module's repr."""
        return f"n={self.n}, m={self.m}"


def cut_out(image: Any, side: int, color: Sequence[int]) -> Any:
    """Fill a square around a random position; its left upper corner is kept within the picture."""
    height, width = _vision(".functional").get_size(image)
    top = max(0, int(_uniform() * height - side / 2))
    left = max(0, int(_uniform() * width - side / 2))
    if isinstance(image, Tensor):
        filled = image.clone()
        color_ = torch.tensor(color, dtype=image.dtype, device=image.device)[: image.shape[0]]
        filled[:, top : top + side, left : left + side] = color_[:, None, None]
        return filled
    image = image.copy()
    box = (left, top, min(left + side, width), min(top + side, height))
    image.paste(tuple(color) if image.mode == "RGB" else color[0], box)
    return image


class Cutout(nn.Module):
    """A gray square of 16 pixels, at most half of the shorter side."""

    def forward(self, image: Any) -> Any:
        """A picture of the same kind and size."""
        return cut_out(image, min(CUTOUT, min(_vision(".functional").get_size(image)) // 2), GRAY)


class Standardize(nn.Module):
    """A picture as a float32 tensor, ``(x / 255 - mean) / std`` by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, image: Any) -> Tensor:
        """``(C, H, W)``."""
        pixels = _vision(".functional").to_image(image).as_subclass(Tensor)
        if len(pixels) != len(self.mean):
            raise ValueError(f"mean must have one value for each of the {len(pixels)} channels, got {len(self.mean)}")
        mean, std = (
            torch.tensor(x, dtype=torch.float32, device=pixels.device)[:, None, None] for x in (self.mean, self.std)
        )
        return (pixels.to(torch.float32) / 255 - mean) / std

    def extra_repr(self) -> str:
        """The settings, as they appear in the module's repr."""
        return f"mean={self.mean}, std={self.std}"


def standardize(mean: Sequence[float], std: Sequence[float]) -> Standardize:
    """A checked `Standardize`."""
    moments = []
    for values, name, low in ((mean, "mean", None), (std, "std", 0.0)):
        if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
            raise TypeError(f"{name} must be a sequence of numbers, one a channel, got {type(values).__name__}")
        moments.append([check_number(v, name, low=low, open_low=low is not None) for v in values])
    if len(moments[0]) != len(moments[1]) or not moments[0]:
        raise ValueError(f"std must have as many values as mean, {len(moments[0])}, got {len(moments[1])}")
    return Standardize(*moments)


def _moved(size: int, flip: bool) -> list[Any]:
    """A flip and a crop of the picture, extended by an eighth of its size."""
    v2 = _vision("")
    crop = v2.RandomCrop(size, padding=int(size * 0.125), padding_mode="reflect")
    return [v2.RandomHorizontalFlip(), crop] if flip else [crop]


def weak_transform(size: int, *, mean: Sequence[float], std: Sequence[float], flip: bool = True) -> Compose:
    """The weak view: a random flip, and a crop of the picture extended by an eighth of its size (reflected).

    Draws come from torch's global stream.

    Args:
        size: Side of the view in pixels; pictures of that size are shifted, larger ones cropped.
        mean: Of each channel, on the scale of 0 to 1.
        std: Of each channel.
        flip: False for pictures with a left and a right, as digits.

    Returns:
        A ``torchvision.transforms.v2.Compose`` of a PIL image (RGB or L), a uint8 array ``(H, W[, C])`` or tensor
        ``(C, H, W)`` to a float32 tensor ``(C, size, size)``.

    Raises:
        MissingExtra: torchvision is not installed.
        TypeError, ValueError: an argument of the wrong kind or out of range; later, what is not a picture, or has
            another number of channels.

    Example:
        >>> transform = weak_transform(32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> transform(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([3, 32, 32])
    """
    size = check_number(size, "size", low=1, integer=True)
    last = standardize(mean, std)
    return _vision("").Compose([AsPicture(), *_moved(size, check_bool(flip, "flip")), last])


def strong_transform(
    size: int, *, mean: Sequence[float], std: Sequence[float], n: int = 2, m: int = 10, flip: bool = True
) -> Compose:
    """The strong view: the weak one, then RandAugment of FixMatch's pool, then a gray square of 16 pixels.

    ``n`` operations are drawn with replacement, each is applied with probability 1/2 at a strength v/10, v drawn in
    1..m-1. The square is there always; it is at most half of the shorter side.

    Args:
        size: As in `weak_transform`.
        mean: Of each channel.
        std: Of each channel.
        n: Operations, at least 0.
        m: In 2..10.
        flip: As in `weak_transform`.

    Returns:
        As `weak_transform`.

    Raises:
        MissingExtra, TypeError, ValueError: as `weak_transform`.

    Example:
        >>> transform = strong_transform(32, mean=(0.5,), std=(0.2,), flip=False)
        >>> transform(np.zeros((32, 32), np.uint8)).shape
        torch.Size([1, 32, 32])
    """
    size = check_number(size, "size", low=1, integer=True)
    n = check_number(n, "n", low=0, integer=True)
    m = check_number(m, "m", low=2, high=10, integer=True)
    last = standardize(mean, std)
    moved = _moved(size, check_bool(flip, "flip"))
    return _vision("").Compose([AsPicture(), *moved, RandAugment(n, m), Cutout(), last])
