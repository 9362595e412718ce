"""The random views of an image batch that the teacher averages over (supplement of the paper; values of the code)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from offprints.cotta.augmentation.color import COLOR_OPERATIONS
from offprints.cotta.augmentation.warp import warp
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_number, check_tensor, should_check

# brightness, contrast, saturation, hue (turns), gamma, angle (degrees), scale, blur: low and high
RANGES = {
    "brightness": (0.6, 1.4),
    "contrast": (0.7, 1.3),
    "saturation": (0.5, 1.5),
    "hue": (-0.06, 0.06),
    "gamma": (0.7, 1.3),
    "angle": (-15.0, 15.0),
    "scale": (0.9, 1.1),
    "blur_sigma": (0.001, 0.5),
}
SOFT_RANGES = {
    "brightness": (0.8, 1.2),
    "contrast": (0.85, 1.15),
    "saturation": (0.75, 1.25),
    "hue": (-0.03, 0.03),
    "gamma": (0.85, 1.15),
    "angle": (-8.0, 8.0),
    "scale": (0.95, 1.05),
    "blur_sigma": (0.001, 0.25),
}


@dataclass
class AugmentationParams:
    """What is drawn for V views of a batch; each view has one value for all its images.

    Attributes:
        order: Order of the color operations, a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue, 4 gamma.
        brightness: Factor.
        contrast: Factor.
        saturation: Factor.
        hue: Shift in turns.
        gamma: Exponent.
        angle: Degrees.
        scale: Factor.
        blur_sigma: Of the 5x5 Gaussian, in pixels.
        translate: Shift in x and y, in pixels.
        flip: Whether the view is mirrored left to right.
        noise: What is added at the end, or None.

    Example:
        >>> images = torch.rand(4, 3, 32, 32)
        >>> params = ImageAugmentation(flip_probability=0).sample_params(3, images)
        >>> params.flip
        tensor([False, False, False])
    """

    order: Int[Tensor, "V 5"]
    brightness: Float[Tensor, " V"]
    contrast: Float[Tensor, " V"]
    saturation: Float[Tensor, " V"]
    hue: Float[Tensor, " V"]
    gamma: Float[Tensor, " V"]
    angle: Float[Tensor, " V"]
    scale: Float[Tensor, " V"]
    blur_sigma: Float[Tensor, " V"]
    translate: Int[Tensor, "V 2"]
    flip: Bool[Tensor, " V"]
    noise: Float[Tensor, "V B C H W"] | None = None


class ImageAugmentation(nn.Module):
    """Random views of images in [0, 1]: color jitter, affine map, blur, flip and noise, one draw per view and batch.

    In this order: clamp to [0, 1]; brightness, contrast, saturation, hue and gamma in a random order; rotation,
    translation and scaling about the center of the image padded by half its side (edges replicated); 5x5 Gaussian blur;
    flip; noise; clamp. Equal to the official pipeline to rounding (float32: about 1e-5). The model has to hold its own
    normalization.

    Args:
        noise_std: Standard deviation of the noise.
        soft: The official narrower ranges.
        flip_probability: Of mirroring a view; 0 for digits, text and signs.

    Raises:
        ValueError: ``noise_std`` is negative or ``flip_probability`` outside [0, 1].

    Example:
        >>> images = torch.rand(4, 3, 32, 32)
        >>> ImageAugmentation(flip_probability=0)(images, 8).shape
        torch.Size([8, 4, 3, 32, 32])
    """

    def __init__(self, *, noise_std: float = 0.005, soft: bool = False, flip_probability: float = 0.5) -> None:
        super().__init__()
        check_number(noise_std, "noise_std", low=0)
        check_number(flip_probability, "flip_probability", low=0, high=1)
        self.noise_std = noise_std
        self.soft = check_bool(soft, "soft")
        self.flip_probability = flip_probability

    def sample_params(
        self, num_views: int, x: Float[Tensor, "B C H W"], *, generator: torch.Generator | None = None
    ) -> AugmentationParams:
        """Draw the parameters of ``num_views`` views of ``x``; the noise is on the device of ``x``.

        Args:
            num_views: V.
            x: The images; only their shape, type and device matter.
            generator: On any device; default: torch's global one.

        Raises:
            ValueError: ``num_views`` < 1, or ``x`` is not a batch of images with 1 or 3 channels.
        """
        check_images(x)
        check_generator(generator)
        params = self.sample_scalars(num_views, x, generator)
        if self.noise_std > 0:
            noises = [self._noise(x, generator) for _ in range(num_views)]
            params = replace(params, noise=torch.stack(noises))
        return params

    def sample_scalars(self, num_views: int, x: Tensor, generator: torch.Generator | None) -> AugmentationParams:
        """Everything but the noise, on the CPU, from one draw."""
        check_number(num_views, "num_views", low=1, integer=True)
        device = "cpu" if generator is None else generator.device
        ranges = SOFT_RANGES if self.soft else RANGES
        draws = torch.rand(num_views, 8 + len(ranges), generator=generator, device=device).cpu()
        values = {name: low + (high - low) * draws[:, 8 + i] for i, (name, (low, high)) in enumerate(ranges.items())}
        # A sixteenth of the padded side, which is n + 2 (n // 2).
        sides = torch.tensor([side + 2 * (side // 2) for side in (x.shape[3], x.shape[2])])
        translate = ((2 * draws[:, 5:7] - 1) * sides / 16).round().long()
        flip = draws[:, 7] < self.flip_probability
        return AugmentationParams(order=draws[:, :5].argsort(1), translate=translate, flip=flip, **values)

    def _noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        device = x.device if generator is None else generator.device
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        noise = torch.randn(x.shape, generator=generator, device=device, dtype=dtype)
        return noise.mul_(self.noise_std).to(x)

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        num_views: int = 32,
        *,
        generator: torch.Generator | None = None,
        params: AugmentationParams | None = None,
    ) -> Float[Tensor, "V B C H W"]:
        """Views of a batch of images.

        Args:
            x: Images in [0, 1], with 1 or 3 channels; what lies outside is clamped.
            num_views: How many are drawn where ``params`` is not given.
            generator: As in `sample_params`.
            params: What to apply instead of a draw.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: ``x`` is not a batch of images with 1 or 3 channels, or ``params`` do not fit it.
        """
        check_images(x)
        check_generator(generator)
        check_number(num_views, "num_views", low=1, integer=True)
        if params is None:
            views = list(self.views(x, self.sample_scalars(num_views, x, generator), generator=generator, noise=True))
        else:
            check_params(params, x)
            views = list(self.views(x, params))
        return views[0] if len(views) == 1 else torch.cat(views)

    def views(
        self,
        x: Tensor,
        params: AugmentationParams,
        *,
        generator: torch.Generator | None = None,
        noise: bool = False,
    ) -> Iterator[Float[Tensor, "v B C H W"]]:
        """The views in order, some at a time; ``noise`` draws it now, view by view, in place of that of ``params``.

        How many at a time depends on the device and the size of ``x`` alone: a kernel's vector and scalar loops may
        round differently, so that the same view, made in another company, need not be the same to the last bit.
        """
        dtype = x.dtype
        x = x.to(working_dtype(dtype)).clamp(0, 1)
        # On a CPU a view at a time stays in the cache; elsewhere 2**26 values bound the temporaries.
        chunk = 1 if x.device.type == "cpu" else max(1, 2**26 // x.numel())
        for start in range(0, len(params.order), chunk):
            part = select(params, slice(start, start + chunk))
            if noise and self.noise_std > 0:
                part = replace(part, noise=torch.stack([self._noise(x, generator) for _ in part.order]))
            yield augment(x, part).to(dtype)

    def each_view(
        self, x: Tensor, num_views: int, generator: torch.Generator | None
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """The views that `forward` would draw, one after the other."""
        check_images(x)
        params = self.sample_scalars(num_views, x, generator)
        for views in self.views(x, params, generator=generator, noise=True):
            yield from views


def check_images(x: Tensor) -> None:
    """A batch of images with 1 or 3 channels."""
    check_tensor(x, "x", ndim=4, finite=False)
    if x.shape[1] not in (1, 3):
        raise ValueError(f"x must have 1 or 3 channels, got shape {tuple(x.shape)}")


def check_generator(generator: torch.Generator | None) -> None:
    """A generator, or none."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")


def check_unit_range(x: Tensor, validate: bool | None) -> None:
    """Images that views can be made of, before any is made: 1 or 3 channels, values in [0, 1], with room for what
    resampling leaves outside."""
    try:
        check_images(x)
    except ValueError as error:
        raise ValueError(f"{error}; give an augmentation= of your own for other inputs") from None
    if should_check(x, validate=validate):
        low, high = (value.item() for value in x.detach().aminmax())
        if low < -0.05 or high > 1.05:
            raise ValueError(
                f"x must hold images in [0, 1], as views are clamped to that, got values from {low:.3g} to {high:.3g};"
                " leave the normalization to normalize=(mean, std), or give an augmentation= of your own"
            )


def check_params(params: AugmentationParams, x: Tensor) -> None:
    """Parameters of as many views each, and noise of the shape of ``x``."""
    if not isinstance(params, AugmentationParams):
        raise TypeError(f"params must be AugmentationParams, got {type(params).__name__}")
    order = check_tensor(params.order, "params.order", ndim=2, floating=False)
    count = len(order)
    shapes: dict[str, tuple[int, ...]] = {"order": (count, 5), "translate": (count, 2), "noise": (count, *x.shape)}
    for field in fields(params):
        value = getattr(params, field.name)
        if field.name == "noise" and value is None:
            continue
        check_tensor(value, f"params.{field.name}", shape=shapes.get(field.name, (count,)), floating=False)
    if not torch.equal(params.order.cpu().sort(1).values, torch.arange(5).expand(count, 5)):
        raise ValueError(f"params.order must hold permutations of 0..4, got {params.order.tolist()}")


def select(params: AugmentationParams, part: slice) -> AugmentationParams:
    """The parameters of some views."""
    values: dict[str, Any] = {field.name: getattr(params, field.name) for field in fields(params)}
    values = {name: None if value is None else value[part] for name, value in values.items()}
    return AugmentationParams(**values)


def augment(x: Float[Tensor, "B C H W"], params: AugmentationParams) -> Float[Tensor, "V B C H W"]:
    """All views of clamped images at once."""
    views = jitter(x, params)
    views = warp(views, params.angle, params.scale, params.translate, params.flip, params.blur_sigma)
    if params.noise is not None:
        views += params.noise.to(views)
    return views.clamp_(0, 1)


def jitter(x: Float[Tensor, "B C H W"], params: AugmentationParams) -> Float[Tensor, "V B C H W"]:
    """The color operations, each view's in its own order: five passes over the views, whatever the orders."""
    count = len(params.order)
    views = x.expand(count, *x.shape).clone(memory_format=torch.contiguous_format)
    factors = {name: getattr(params, name).to(x).view(-1, 1, 1, 1, 1) for name, _ in COLOR_OPERATIONS}
    for place in range(len(COLOR_OPERATIONS)):
        chosen = params.order[:, place].tolist()
        for number in sorted(set(chosen)):
            name, operation = COLOR_OPERATIONS[number]
            if len(set(chosen)) == 1:
                views = operation(views, factors[name])
            else:
                rows = torch.tensor([i for i, other in enumerate(chosen) if other == number], device=x.device)
                views[rows] = operation(views[rows], factors[name][rows])
    return views
