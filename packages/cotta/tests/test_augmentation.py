"""The views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.cotta import ImageAugmentation, MultiScaleFlip
from offprints.cotta.augmentation.views import RANGES, SOFT_RANGES, augment, select


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(2, 3, 9, 14), (3, 1, 8, 8), (1, 3, 5, 24)])
def test_views_at_once_or_one_by_one(shape: tuple[int, ...]) -> None:
    """Views of different orders together take the branches that one view alone does not."""
    augmentation = ImageAugmentation()
    x = images(*shape)
    params = augmentation.sample_params(7, x, generator=generator())
    together = augment(x, params)
    alone = torch.cat([augment(x, select(params, slice(i, i + 1))) for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert torch.equal(augmentation(x, params=params), alone)


def test_a_draw_is_its_parameters() -> None:
    augmentation = ImageAugmentation()
    x = images(2, 3, 16, 16)
    params = augmentation.sample_params(3, x, generator=generator(5))
    assert torch.equal(augmentation(x, 3, generator=generator(5)), augmentation(x, params=params))
    each = torch.stack(list(augmentation.each_view(x, 3, generator(5))))
    assert torch.equal(each, augmentation(x, params=params))


@pytest.mark.parametrize("soft", [False, True])
def test_ranges(soft: bool) -> None:
    params = ImageAugmentation(soft=soft).sample_params(4000, images(1, 3, 32, 48), generator=generator())
    for name, (low, high) in (SOFT_RANGES if soft else RANGES).items():
        values = getattr(params, name)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    assert params.translate.abs().amax(0).tolist() == [6, 4]  # 1/16 of 96 and of 64
    assert abs(float(params.flip.double().mean()) - 0.5) < 0.04
    first = torch.bincount(params.order[:, 0], minlength=5)
    assert (first > 700).all()
    assert params.noise is not None
    assert params.noise.std() == pytest.approx(0.005, rel=0.01)
    never = ImageAugmentation(flip_probability=0, noise_std=0).sample_params(50, images(1, 3, 8, 8))
    assert not never.flip.any()
    assert never.noise is None


def test_identity() -> None:
    augmentation = ImageAugmentation(noise_std=0, flip_probability=0)
    x = images(2, 3, 12, 17)
    params = augmentation.sample_params(2, x, generator=generator())
    ones, zeros = torch.ones(2), torch.zeros(2)
    neutral = {"brightness": ones, "contrast": ones, "saturation": ones, "hue": zeros, "gamma": ones}
    still = {"angle": zeros, "scale": ones, "blur_sigma": 0.001 * ones, "translate": torch.zeros(2, 2).long()}
    params = replace(params, **neutral, **still)
    torch.testing.assert_close(augmentation(x, params=params), x.expand(2, -1, -1, -1, -1), rtol=0, atol=2e-6)
    flipped = replace(params, flip=torch.tensor([True, False]))
    torch.testing.assert_close(augmentation(x, params=flipped)[0], x.flip(-1), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("factor", "shapes"), [(1.0, [(24, 40), (17, 32), (6, 6), (13, 9)]), (0.5, [(24, 40), (17, 32)])]
)
def test_padding_affine_and_crop_are_one_sampling(factor: float, shapes: list[tuple[int, int]]) -> None:
    """Against the plain way, torchvision's; views that are scaled down leave the padded area, outside of which is 0."""
    transforms = pytest.importorskip("torchvision.transforms.functional")
    augmentation = ImageAugmentation(noise_std=0)
    for height, width in shapes:
        x = images(1, 3, height, width)
        params = augmentation.sample_params(6, x, generator=generator(height))
        ones = torch.ones(6)
        neutral = {"brightness": ones, "contrast": ones, "saturation": ones, "hue": 0 * ones, "gamma": ones}
        params = replace(params, **neutral, scale=factor * params.scale)
        views = augmentation(x, params=params)
        assert (views == 0).any() == (factor < 1)
        for i, view in enumerate(views):
            padded = F.pad(x, (width // 2,) * 2 + (height // 2,) * 2, mode="replicate")
            moved = transforms.affine(
                padded,
                float(params.angle[i]),
                params.translate[i].tolist(),
                float(params.scale[i]),
                [0.0, 0.0],
                transforms.InterpolationMode.BILINEAR,
                fill=[0.0],
            )
            blurred = transforms.gaussian_blur(moved, [5, 5], [float(params.blur_sigma[i])] * 2)
            plain = transforms.center_crop(blurred, [height, width])
            plain = plain.flip(-1) if params.flip[i] else plain
            torch.testing.assert_close(view, plain, rtol=0, atol=2e-5)


def test_half_types_are_computed_in_float32() -> None:
    augmentation = ImageAugmentation()
    x = images(2, 3, 16, 16).bfloat16()
    params = augmentation.sample_params(2, x, generator=generator())
    views = augmentation(x, params=params)
    assert views.dtype == torch.bfloat16
    assert torch.equal(views, augmentation(x.float(), params=params).bfloat16())


def test_constant_images_stay_constant_under_the_geometry() -> None:
    x = torch.full((1, 3, 32, 32), 0.5)
    views = ImageAugmentation(noise_std=0)(x, 5, generator=generator())
    assert (views.amax((-1, -2)) - views.amin((-1, -2))).max() < 1e-5


def pointwise(x: Tensor) -> Tensor:
    return torch.stack([x.sum(1), x[:, 0] * 2], 1)


def test_multiscale_of_a_constant_image_is_the_plain_prediction() -> None:
    x = torch.full((2, 3, 9, 7), 0.3)
    torch.testing.assert_close(MultiScaleFlip().average_predictions(pointwise, x), pointwise(x))


def test_multiscale_brings_views_back() -> None:
    x = images(2, 3, 8, 6)
    calls = []

    def predict(view: Tensor) -> Tensor:
        calls.append(tuple(view.shape[2:]))
        return view[..., ::2, ::2]  # half the size, as many networks

    mean = MultiScaleFlip(scales=(1.0, 2.0), flip=False).average_predictions(predict, x)
    assert MultiScaleFlip(np.array([1.0, 2.0])).scales == MultiScaleFlip(torch.tensor([1, 2])).scales == (1.0, 2.0)
    large = F.interpolate(x, size=(16, 12), mode="bilinear", align_corners=False)[..., ::2, ::2]
    expected = (x[..., ::2, ::2] + F.interpolate(large, size=(4, 3), mode="bilinear", align_corners=False)) / 2
    torch.testing.assert_close(mean, expected)
    assert calls == [(8, 6), (16, 12)]
    flips = MultiScaleFlip(scales=(1.0,)).average_predictions(lambda view: view.cumsum(-1), x)
    torch.testing.assert_close(flips, (x.cumsum(-1) + x.flip(-1).cumsum(-1).flip(-1)) / 2)
