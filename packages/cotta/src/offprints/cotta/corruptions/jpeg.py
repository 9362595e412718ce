"""JPEG as libjpeg makes it by default: the loss of 4:2:0 chroma and quantized 8x8 cosine blocks, in batched tensors.

The lossless entropy coding is left out, so that it runs on any device.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from offprints.cotta.corruptions.pixels import pad

# Annex K of the standard.
LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
CHROMA = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]


def jpeg(x: Float[Tensor, "B C H W"], quality: int) -> Float[Tensor, "B C H W"]:
    """Images in [0, 1] after coding and decoding; the result has 256 levels."""
    height, width = x.shape[-2:]
    if x.shape[1] == 1:  # a gray image has no chroma
        y = F.pad((x * 255).round(), (0, -width % 8, 0, -height % 8), mode="replicate")
        return quantize(y, table(LUMA, quality).to(x))[..., :height, :width] / 255
    red, green, blue = (x * 255).round().unbind(1)
    y = (0.299 * red + 0.587 * green + 0.114 * blue).round()
    cb = (128 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue).round()
    cr = (128 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue).round()
    planes = torch.stack([y, cb, cr], 1)
    # To whole blocks of 16, edges replicated.
    planes = F.pad(planes, (0, -width % 16, 0, -height % 16), mode="replicate")
    bias = torch.tensor([1.0, 2.0], dtype=x.dtype, device=x.device).repeat(planes.shape[-1] // 4 + 1)
    chroma = (F.avg_pool2d(planes[:, 1:], 2) * 4 + bias[: planes.shape[-1] // 2]).div(4).floor()
    y = quantize(planes[:, :1], table(LUMA, quality).to(x))[:, 0, :height, :width]
    chroma = quantize(chroma, table(CHROMA, quality).to(x))[:, :, : math.ceil(height / 2), : math.ceil(width / 2)]
    cb, cr = (upsample(chroma)[..., :height, :width] - 128).unbind(1)
    red = y + (1.402 * cr).round()
    green = y - (0.344136286 * cb + 0.714136286 * cr).round()
    blue = y + (1.772 * cb).round()
    return torch.stack([red, green, blue], 1).clamp(0, 255) / 255


def table(base: list[list[int]], quality: int) -> Float[Tensor, "8 8"]:
    """libjpeg's scaling of the quantization steps."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * percent + 50) // 100).clamp(1, 255).double()


def quantize(planes: Float[Tensor, "B C H W"], steps: Float[Tensor, "8 8"]) -> Float[Tensor, "B C H W"]:
    """Planes after rounding the cosine coefficients of their 8x8 blocks."""
    n = torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * n + 1) * n[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    basis = basis.to(planes)
    batch, channels, height, width = planes.shape
    blocks = (planes - 128).view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    # libjpeg's transform gives integers, eight times the coefficients; halves are rounded away from zero.
    coefficients = (basis @ blocks @ basis.T * 8).round() / 8
    coefficients = coefficients.sign() * (coefficients.abs() / steps + 0.5).floor() * steps
    blocks = (basis.T @ coefficients @ basis + 128).round().clamp(0, 255)
    return blocks.transpose(3, 4).reshape(planes.shape)


def upsample(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
    """Twice the size by libjpeg's triangle filter: 3/4 of the nearer and 1/4 of the farther sample, on both axes."""
    height, width = x.shape[-2:]
    padded = pad(x, 1, 1, "replicate")
    rows = torch.stack([3 * padded[..., 1:-1, :] + padded[..., i : i + height, :] for i in (0, 2)], -2)
    rows = rows.flatten(-3, -2)
    left = (3 * rows[..., 1:-1] + rows[..., :width] + 8).div(16).floor()
    right = (3 * rows[..., 1:-1] + rows[..., 2:] + 7).div(16).floor()
    return torch.stack([left, right], -1).flatten(-2)
