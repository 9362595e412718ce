"""Kernels of infinitely wide Myrtle networks: 3 x 3 convolutions, ReLUs and average pools (appendix on kernels)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_number, check_tensor

COUNTS = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}  # convolutions before each group of pools
BLOCK = 2**17  # entries of the kernels of one block of pairs


def myrtle_kernel(
    X1: Float[Tensor, "n1 channels side side"],
    X2: Float[Tensor, "n2 channels side side"] | None = None,
    *,
    depth: int = 5,
    kind: str = "ntk",
    weight_std: float = 1.0,
    batch_size: int | None = None,
) -> Float[Tensor, "n1 n2"]:
    """Kernel of an infinitely wide Myrtle network: the convolutional kernels of the paper's real tasks, without JAX.

    Three blocks of 3 x 3 convolutions (zero padding, stride 1) with ReLUs, a 2 x 2 average pool after the first two,
    pools down to 1 x 1 after the third, a dense read-out; no biases, NTK parametrization. Every pair of images takes
    (side^2)^2 numbers. Computed in the type of the inputs (float32 for half types); float64 is advised for ridges
    near 0. No gradients.

    Args:
        X1: Images, channels first, square, the side a power of two >= 8.
        X2: Others; None: the same, and only half of the pairs are computed.
        depth: 5, 7 or 10 layers.
        kind: "ntk" or "nngp".
        weight_std: Standard deviation of the weights of the convolutions and the read-out, times the square root of
            their fan-in. The paper has 1, not sqrt 2: values halve with every layer.
        batch_size: Pairs of images at a time. Default: by the size of the images.

    Raises:
        TypeError: images that are not floating tensors, a `batch_size` that is not an integer.
        ValueError: images that are not ``[N, C, s, s]``, empty, NaN or infinite, of different shapes, of another side;
            an unknown `depth` or `kind`; `weight_std` <= 0; `batch_size` < 1.

    Example:
        >>> images = torch.randn(4, 3, 8, 8)
        >>> K = myrtle_kernel(images, depth=5)
        >>> K.shape, bool((K == K.T).all())
        (torch.Size([4, 4]), True)
    """
    check_choice(depth, "depth", tuple(COUNTS))
    check_choice(kind, "kind", ("ntk", "nngp"))
    std = check_number(weight_std, "weight_std", low=0, open_low=True)
    if batch_size is not None:
        batch_size = check_number(batch_size, "batch_size", low=1, integer=True)
    check_tensor(X1, "X1", ndim=4)
    side = X1.shape[-1]
    if X1.shape[-2] != side or side < 8 or side & (side - 1):
        raise ValueError(f"X1 must hold square images whose side is a power of two >= 8, got shape {tuple(X1.shape)}")
    if X2 is not None:
        check_tensor(X2, "X2", shape=(None, *X1.shape[1:]))
    dtype = working_dtype(X1) if X2 is None else working_dtype(X1, X2)
    with torch.no_grad():
        # Kernels are proportional to the scale of either image: products neither overflow nor vanish.
        first, scale = _scaled(X1.to(dtype))
        second, other = (None, scale) if X2 is None else _scaled(X2.to(device=X1.device, dtype=dtype))
        network = _Myrtle(side, COUNTS[depth], tangent=kind == "ntk")
        # Every convolution multiplies by the variance, and the read-out does: by std^2 in all.
        exponent = (2 * sum(COUNTS[depth]) + 2) * math.log(std)
        if exponent > 700:
            raise ValueError(f"weight_std is too large for a finite kernel, got {std}")
        variance = math.exp(exponent) if exponent > -700 else 0.0
        size = batch_size or max(1, BLOCK // side**4)
        return network.gram(first, second, size) * (scale * variance) * other


def _scaled(X: Tensor) -> tuple[Tensor, float]:
    largest = float(X.abs().max())
    return (X / largest, largest) if largest > 0 else (X, 1.0)


class _Myrtle:
    """The recursion, with weights of variance 1, over pairs of images and pairs of positions.

    Arrays are laid out ``[B, row, row', column, column']``.
    """

    def __init__(self, side: int, counts: tuple[int, int, int], *, tangent: bool) -> None:
        self.tangent = tangent
        pools = (1, 1, int(math.log2(side)) - 2)
        self.memory: dict[tuple[int, int], Tensor] = {}
        self.layers: list[str] = []
        for count, following in zip(counts, pools, strict=True):
            self.layers += ["relu"] * count + ["pool"] * following

    def gram(self, X1: Tensor, X2: Tensor | None, batch_size: int) -> Tensor:
        """Matrix of the kernels of all pairs."""
        own, diagonal = self.lengths(X1, batch_size)
        other = own if X2 is None else self.lengths(X2, batch_size)[0]
        images = X1 if X2 is None else X2
        result = X1.new_empty(len(X1), len(images))
        if X2 is None:
            result.diagonal().copy_(diagonal)
            rows, columns = torch.triu_indices(len(X1), len(X1), 1, device=X1.device)
        else:
            rows, columns = (
                index.flatten() for index in torch.meshgrid(
                    torch.arange(len(X1), device=X1.device), torch.arange(len(images), device=X1.device), indexing="ij"
                )
            )  # fmt: skip
        for start in range(0, len(rows), batch_size):
            i, j = rows[start : start + batch_size], columns[start : start + batch_size]
            values, _ = self.kernels(X1[i], images[j], [x[i] for x in own], [x[j] for x in other])
            result[i, j] = values
            if X2 is None:
                result[j, i] = values
        return result

    def lengths(self, X: Tensor, batch_size: int) -> tuple[list[Tensor], Tensor]:
        """Of each image alone: the square roots of its variances ``[n, s, s]`` before every ReLU, and its kernel.

        Pools mix positions: the covariances of all pairs of positions of an image are needed for its variances.
        """
        found: list[list[Tensor]] = []
        values = []
        for part in X.split(batch_size):
            value, roots = self.kernels(part, part, None, None)
            found.append(roots)
            values.append(value)
        return [torch.cat(of_layer) for of_layer in zip(*found, strict=True)], torch.cat(values)

    def kernels(
        self, x: Tensor, y: Tensor, of_x: list[Tensor] | None, of_y: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Kernels ``[B]`` of pairs of images; None takes the lengths from the covariances themselves (x is y)."""
        covariance, tangent, spare = self.buffers(x)
        _input_covariance(x, y, covariance)
        roots: list[Tensor] = []
        for layer in self.layers:
            if layer == "pool":
                smaller = self.buffers(x, covariance.shape[1] // 2)
                _pool(covariance, smaller[0])
                if self.tangent:
                    _pool(tangent, smaller[1])
                covariance, tangent, spare = smaller
                continue
            _convolve_(covariance, spare)
            if self.tangent and roots:
                _convolve_(tangent, spare)
                tangent += covariance
            elif self.tangent:
                tangent.copy_(covariance)
            place = len(roots)
            if of_x is None or of_y is None:
                left = right = _variances(covariance).clamp(min=0).sqrt()
            else:
                left, right = of_x[place], of_y[place]
            roots.append(left)
            _rectify_(covariance, tangent if self.tangent else None, spare, left, right, same=of_x is None)
        value = _variances(covariance).mean((1, 2))
        if self.tangent:
            value = value + _variances(tangent).mean((1, 2))
        return value, roots

    def buffers(self, x: Tensor, side: int | None = None) -> Tensor:
        """Memory for covariances, tangent kernels and what is between; the same for every block."""
        side = x.shape[-1] if side is None else side
        key = (len(x), side)
        if key not in self.memory:
            self.memory[key] = x.new_empty(3, len(x), side, side, side, side)
        return self.memory[key]


def _input_covariance(x: Tensor, y: Tensor, out: Tensor) -> None:
    """Mean over the channels of the products of all pairs of positions."""
    batch, channels, side, _ = x.shape
    flat = torch.bmm(x.reshape(batch, channels, -1).transpose(1, 2) / channels, y.reshape(batch, channels, -1))
    out.copy_(flat.view(batch, side, side, side, side).permute(0, 1, 3, 2, 4))


def _variances(K: Tensor) -> Tensor:
    """Entries ``[B, s, s]`` of equal positions."""
    return K.diagonal(dim1=1, dim2=2).diagonal(dim1=1, dim2=2)


def _neighbors(size: int) -> Iterator[tuple[slice, slice]]:
    yield slice(1, size), slice(0, size - 1)
    yield slice(0, size - 1), slice(1, size)


def _convolve_(K: Tensor, spare: Tensor) -> None:
    """Mean of the nine common shifts of both positions, zero outside: three shifts of rows, then three of columns."""
    side = K.shape[1]
    spare.copy_(K)
    for to, of in _neighbors(side):
        spare[:, to, to] += K[:, of, of]
    torch.div(spare, 9, out=K)
    for to, of in _neighbors(side):
        K[:, :, :, to, to].add_(spare[:, :, :, of, of], alpha=1 / 9)


def _pool(K: Tensor, out: Tensor) -> None:
    """Mean over 2 x 2 positions of both images."""
    K = K[:, 0::2] + K[:, 1::2]
    K = K[:, :, 0::2] + K[:, :, 1::2]
    K = K[:, :, :, 0::2] + K[:, :, :, 1::2]
    torch.add(K[..., 0::2], K[..., 1::2], out=out).div_(16)


def _rectify_(K: Tensor, tangent: Tensor | None, spare: Tensor, left: Tensor, right: Tensor, *, same: bool) -> None:
    """What a ReLU makes of covariances and tangent kernels, in place.

    Where a variance is 0 (a dark patch) both kernels are 0, and stay so.
    """
    x, y = left[:, :, None, :, None], right[:, None, :, None, :]
    cosine = K.mul_(torch.where(x > 0, 1 / torch.where(x > 0, x, 1.0), 0.0))
    cosine.mul_(torch.where(y > 0, 1 / torch.where(y > 0, y, 1.0), 0.0)).clamp_(-1, 1)
    if same:
        _variances(cosine).fill_(1.0)  # exactly: the angle is a square root of what is missing
    opposite = torch.neg(cosine, out=spare).acos_()  # pi - t
    if tangent is not None:
        tangent.mul_(opposite).div_(2 * math.pi)
    opposite.mul_(cosine)
    cosine.square_().neg_().add_(1).sqrt_().add_(opposite).mul_(x).mul_(y / (2 * math.pi))
