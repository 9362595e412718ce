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

# The integer transform's, by their names in libjpeg.
NAMES = "0.298631336 0.390180644 0.541196100 0.765366865 0.899976223 1.175875602 1.501321110 1.847759065 1.961570560"
CONSTANTS = {name: float(name) for name in f"{NAMES} 2.053119869 2.562915447 3.072711026".split()}


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
    exact = blocks if blocks.device.type == "mps" else blocks.double()  # integers up to 2**28
    coefficients = forward_transform(exact).to(planes) / 8
    # Halves are rounded away from zero.
    coefficients = coefficients.sign() * (coefficients.abs() / steps + 0.5).floor() * steps
    blocks = (basis.T @ coefficients @ basis + 128).round().clamp(0, 255)
    return blocks.transpose(3, 4).reshape(planes.shape)


def forward_transform(blocks: Float[Tensor, "*N 8 8"]) -> Float[Tensor, "*N 8 8"]:
    """Eight times the cosine coefficients of blocks of integers, as integers rounded where libjpeg's transform rounds.

    Its accurate integer method (Loeffler, Ligtenberg and Moschytz, 1989) multiplies by constants of 13 bits, the rows
    first, whose results keep 2 more bits than the columns'. Each output is one row of a matrix of integers.
    """
    matrix = integer_transform().to(blocks)
    rows = (blocks @ matrix.T / 2**11 + 0.5).floor()
    return (matrix @ rows / 2**15 + 0.5).floor()


def integer_transform() -> Float[Tensor, "8 8"]:
    """The transform of the unit vectors, times 2**13."""
    c = {name: round(value * 2**13) for name, value in CONSTANTS.items()}
    x = torch.eye(8, dtype=torch.float64)
    total, apart = x[:4] + x[4:].flip(0), x[:4] - x[4:].flip(0)  # mirrored pairs
    outer, inner = total[0] + total[3], total[1] + total[2]
    far, near = total[0] - total[3], total[1] - total[2]
    shared = (far + near) * c["0.541196100"]
    rows: dict[int, Tensor] = {0: (outer + inner) * 2**13, 4: (outer - inner) * 2**13}
    rows[2] = shared + far * c["0.765366865"]
    rows[6] = shared - near * c["1.847759065"]
    t4, t5, t6, t7 = apart[3], apart[2], apart[1], apart[0]
    z5 = (t4 + t6 + t5 + t7) * c["1.175875602"]
    z1, z2 = -(t4 + t7) * c["0.899976223"], -(t5 + t6) * c["2.562915447"]
    z3, z4 = z5 - (t4 + t6) * c["1.961570560"], z5 - (t5 + t7) * c["0.390180644"]
    rows[7] = t4 * c["0.298631336"] + z1 + z3
    rows[5] = t5 * c["2.053119869"] + z2 + z4
    rows[3] = t6 * c["3.072711026"] + z2 + z3
    rows[1] = t7 * c["1.501321110"] + z1 + z4
    return torch.stack([rows[i] for i in range(8)])


def upsample(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
    """Twice the size by libjpeg's triangle filter: 3/4 of the nearer and 1/4 of the farther sample, on both axes."""
    height, width = x.shape[-2:]
    padded = pad(x, 1, 1, "replicate")
    rows = torch.stack([3 * padded[..., 1:-1, :] + padded[..., i : i + height, :] for i in (0, 2)], -2)
    rows = rows.flatten(-3, -2)
    left = (3 * rows[..., 1:-1] + rows[..., :width] + 8).div(16).floor()
    right = (3 * rows[..., 1:-1] + rows[..., 2:] + 7).div(16).floor()
    return torch.stack([left, right], -1).flatten(-2)
