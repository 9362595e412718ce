"""The corruption generator and its streams."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from offprints.cotta import CORRUPTIONS, VALIDATION_CORRUPTIONS, CorruptionStream, corrupt, severity_schedule
from offprints.cotta.corruptions.kinds import Setting, glass_blur
from offprints.cotta.corruptions.pixels import Draws, border_index, motion_blur

EXACT = {"brightness", "contrast", "defocus_blur", "zoom_blur", "pixelate", "jpeg_compression"}
EXACT |= {"gaussian_blur", "saturate"}


def images(count: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def made(x: Tensor, name: str, severity: int, seed: int = 0, **options: object) -> Tensor:
    return corrupt(x, name, severity, generator=torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CORRUPTIONS + VALIDATION_CORRUPTIONS)
def test_every_corruption(name: str) -> None:
    """Shape, type, range, seed, non-square and tiny images, both sets of constants."""
    x = images()
    levels = (x * 255).to(torch.uint8)
    assert made(levels, name, 5).dtype == torch.uint8
    assert made(x.double(), name, 1).dtype == torch.float64
    before = x.clone()
    for severity in (1, 5):
        for scale in ("cifar", "imagenet"):
            result = made(x, name, severity, scale=scale)
            assert result.shape == x.shape
            assert 0 <= result.min() <= result.max() <= 1
            assert torch.equal(result, made(x, name, severity, scale=scale))
            if name not in EXACT and (name, scale, severity) != ("glass_blur", "cifar", 1):
                assert not torch.equal(result, made(x, name, severity, seed=1, scale=scale))
    assert torch.equal(x, before)
    assert made(images(2, 9, 21), name, 3).shape == (2, 3, 9, 21)
    assert made(images(1, 96, 70), name, 4).shape == (1, 3, 96, 70)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(made(strided, name, 3), made(x, name, 3))
    assert (made(x, name, 5) - x).abs().mean() > 0.002, "something happens"


@given(st.sampled_from(sorted(EXACT)), st.integers(1, 5), st.integers(0, 100))
@settings(max_examples=25)
def test_an_image_does_not_depend_on_the_others(name: str, severity: int, seed: int) -> None:
    x = images(3, seed=seed)
    torch.testing.assert_close(made(x, name, severity)[1:2], made(x[1:2], name, severity))


def test_contrast_keeps_the_channel_means() -> None:
    x = images()
    for severity in range(1, 6):
        torch.testing.assert_close(corrupt(x, "contrast", severity).mean((2, 3)), x.mean((2, 3)))


def test_brightness_of_black_and_of_color() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 0.2, 0.4, 0.1]).view(2, 3, 1, 1)
    result = corrupt(x, "brightness", 3, scale="cifar")
    torch.testing.assert_close(result[0].flatten(), torch.full((3,), 0.15))
    torch.testing.assert_close(result[1].flatten(), x[1].flatten() * 0.55 / 0.4)


@pytest.mark.parametrize(("delta", "iterations"), [(1, 1), (1, 2), (3, 2)])
def test_glass_blur_is_the_scan(delta: int, iterations: int) -> None:
    """Following chains at once equals visiting pixel after pixel."""
    x = (images(2, 14, 17, seed=1) * 255).round() / 255
    generator = torch.Generator().manual_seed(0)
    offsets = [Draws(generator, x).integers(-delta, delta, 2, 2, 14, 17).unbind(1) for _ in range(iterations)]
    plain = x.clone()
    for dx, dy in offsets:
        for h in range(14 - delta, delta, -1):
            for w in range(17 - delta, delta, -1):
                for b in range(2):
                    plain[b, :, h, w] = plain[b, :, h + int(dy[b, h, w]), w + int(dx[b, h, w])]
    draws = Draws(torch.Generator().manual_seed(0), x)
    result = glass_blur(x, Setting((0.05, delta, iterations), draws, True, False, None))
    torch.testing.assert_close(result, plain)


def test_motion_blur_is_a_one_sided_line() -> None:
    x = torch.zeros(3, 1, 9, 9)
    x[:, :, 4, 4] = 1
    angles = torch.tensor([0.0, 90.0, 45.0])
    result = motion_blur(x, 1, 1.0, angles)
    weights = np.exp(-0.5 * np.arange(3) ** 2.0)
    weights /= weights.sum()
    for b, (dy, dx) in enumerate([(0, 1), (1, 0)]):
        for tap, weight in enumerate(weights):
            assert result[b, 0, 4 - tap * dy, 4 - tap * dx] == pytest.approx(weight)
    assert result[2, 0, 3, 3] == pytest.approx(weights[1] + weights[2]), "both of these taps round to one pixel"
    torch.testing.assert_close(motion_blur(torch.ones(1, 1, 5, 5), 4, 2.0, angles[:1]), torch.ones(1, 1, 5, 5))


def test_borders() -> None:
    assert border_index(3, 4, 4, "mirror", torch.device("cpu")).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert border_index(3, 4, 4, "symmetric", torch.device("cpu")).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]
    assert border_index(1, 2, 2, "mirror", torch.device("cpu")).tolist() == [0] * 5


def test_frost_of_given_photographs() -> None:
    """The crop is of one of the first five, at a fifth of the size for small images."""
    textures = torch.full((7, 3, 170, 200), 255, dtype=torch.uint8)
    textures[:5] = 51
    x = torch.full((40, 3, 32, 32), 0.5)
    result = made(x, "frost", 5, frost_textures=textures)
    torch.testing.assert_close(result, torch.full_like(x, 0.75 * 0.5 + 0.45 * 0.2))
    assert made(images(2, 100, 100), "frost", 1, frost_textures=textures).shape == (2, 3, 100, 100)
    with pytest.raises(ValueError, match="frost_textures"):
        made(x, "frost", 5, frost_textures=textures[..., :150, :150])


def test_fog_brightens_dark_images_and_keeps_the_brightest_value() -> None:
    x = images(4)
    result = made(x, "fog", 5)
    assert (result.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()
    assert result.std() < x.std()


def test_schedules() -> None:
    assert severity_schedule(severity=3) == [(name, 3) for name in CORRUPTIONS]
    gradual = severity_schedule(gradual=True)
    assert len(gradual) == 131
    assert gradual[:6] == [("gaussian_noise", s) for s in (5, 4, 3, 2, 1)] + [("shot_noise", 1)]
    assert [s for _, s in gradual[5:14]] == [1, 2, 3, 4, 5, 4, 3, 2, 1]


def test_stream() -> None:
    x, y = (images(10) * 255).to(torch.uint8), torch.arange(10) % 3
    stream = CorruptionStream(x, y, corruptions=["fog", "contrast"], repeats=2, batch_size=4, seed=1)
    first, again = list(stream), list(stream)
    assert len(first) == len(stream) == 12
    assert [len(batch.x) for batch in first[:3]] == [4, 4, 2]
    assert [(batch.corruption, batch.severity) for batch in first[::3]] == [("fog", 5), ("contrast", 5)] * 2
    for a, b, c in zip(first, again, first[6:] + first[:6], strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.x, c.x), "a repeated pass shows the same images"
        assert a.x.dtype == torch.float32
    assert torch.equal(torch.cat([batch.y for batch in first[:3]]), y)
    torch.testing.assert_close(first[3].x, corrupt(x[:4], "contrast", 5).float() / 255)
    other = CorruptionStream(x, y, corruptions=["fog"], batch_size=4, seed=2)
    assert not torch.equal(next(iter(other)).x, first[0].x)
    floats = next(iter(CorruptionStream(x / 255, y, corruptions=["contrast"])))
    assert (floats.x - corrupt(x, "contrast", 5) / 255).abs().max() < 1 / 255


@pytest.mark.parametrize("name", CORRUPTIONS + VALIDATION_CORRUPTIONS)
def test_an_images_corruption_does_not_depend_on_the_batches(name: str) -> None:
    x, y = images(7), torch.arange(7)
    results = []
    for size in (1, 3, 7, 100):
        stream = CorruptionStream(x, y, corruptions=[name], batch_size=size, seed=3, severity=4)
        results.append(torch.cat([batch.x for batch in stream]))
        torch.testing.assert_close(results[-1], results[0], rtol=0, atol=1e-6)
    fewer = next(iter(CorruptionStream(x[:4], y[:4], corruptions=[name], seed=3, severity=4)))
    torch.testing.assert_close(fewer.x, results[0][:4], rtol=0, atol=1e-6)
    if name not in EXACT:
        copies = CorruptionStream(x[:1].expand(2, -1, -1, -1), y[:2], corruptions=[name], severity=4)[0].x
        assert not torch.equal(copies[0], copies[1]), "two places have draws of their own"


def test_stream_as_a_sequence() -> None:
    x, y = (images(5) * 255).to(torch.uint8), torch.arange(5)
    stream = CorruptionStream(x, y, corruptions=["fog", "snow"], repeats=2, batch_size=2, seed=1)
    listed = list(stream)
    assert len(listed) == len(stream) == 12
    for loaded in (
        [stream[i] for i in range(12)],
        [stream[i - 12] for i in range(12)],
        list(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1)),
    ):
        for a, b in zip(loaded, listed, strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)
            assert (a.corruption, a.severity) == (b.corruption, b.severity)
    for index in (12, -13):
        with pytest.raises(IndexError, match="index"):
            stream[index]
    with pytest.raises(TypeError):
        stream["fog"]


def test_stream_with_scale_and_textures() -> None:
    x, y = torch.full((2, 3, 32, 32), 0.5), torch.zeros(2, dtype=torch.int64)
    textures = torch.full((6, 3, 200, 200), 0.2)
    textures[5] = 1
    frost = CorruptionStream(x, y, corruptions=["frost"], frost_textures=textures)[0].x
    torch.testing.assert_close(frost, torch.full_like(x, 0.75 * 0.5 + 0.45 * 0.2))
    large = CorruptionStream(x, y, corruptions=["frost"], frost_textures=textures, scale="imagenet")[0].x
    torch.testing.assert_close(large, torch.full_like(x, 0.6 * 0.5 + 0.75 * 0.2))
    with pytest.raises(ValueError, match="scale"):
        CorruptionStream(x, y, scale="small")
    with pytest.raises(ValueError, match="frost_textures"):
        CorruptionStream(x, y, frost_textures=textures[:, :1])


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) | set(VALIDATION_CORRUPTIONS)))
def test_gray_images(name: str) -> None:
    """As colored ones of three equal channels, where nothing is drawn for each channel."""
    gray = images(2)[:, :1]
    result = made(gray, name, 4)
    assert result.shape == gray.shape
    if name not in (
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "speckle_noise",
        "frost",
        "jpeg_compression",
        "saturate",
    ):
        colored = made(gray.expand(-1, 3, -1, -1), name, 4)
        torch.testing.assert_close(result, colored[:, :1], rtol=0, atol=1e-5)
    if name == "jpeg_compression":  # its chroma is rounded
        colored = made(gray.expand(-1, 3, -1, -1), name, 4)
        assert (result - colored.mean(1, keepdim=True)).abs().max() <= 2.5 / 255
    assert next(iter(CorruptionStream(gray, torch.zeros(2).long(), corruptions=[name]))).x.shape == gray.shape


def test_constants_follow_the_shorter_side() -> None:
    for height, width, scale in ((64, 80, "cifar"), (80, 64, "cifar"), (65, 65, "imagenet")):
        x = images(1, height, width)
        assert torch.equal(made(x, "brightness", 3), made(x, "brightness", 3, scale=scale))
        assert not torch.equal(made(x, "brightness", 3, scale="cifar"), made(x, "brightness", 3, scale="imagenet"))


def test_halves_of_quantization_steps_are_rounded_as_by_pillow() -> None:
    """A constant block has one coefficient, a multiple of half a step at quality 50."""
    levels = torch.arange(90, 170, dtype=torch.uint8)
    blocks = levels.view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    ours = corrupt(blocks, "jpeg_compression", 4, scale="cifar")
    for block, mine in zip(blocks, ours, strict=True):
        stored = io.BytesIO()
        Image.fromarray(block[0].numpy()).save(stored, "JPEG", quality=50)
        assert np.array_equal(np.asarray(Image.open(stored)), mine[0].numpy()), int(block[0, 0, 0])


def test_validation_corruptions() -> None:
    x = images(4)
    half = torch.full((8, 3, 32, 32), 0.5)
    assert float((made(half, "speckle_noise", 3) - half).std()) == pytest.approx(0.5 * 0.12, rel=0.03)
    dark = made(0.2 * torch.ones_like(half), "speckle_noise", 3)
    assert float(dark.std()) == pytest.approx(0.2 * 0.12, rel=0.03), "it grows with the value"
    skimage = pytest.importorskip("skimage", reason="needs scikit-image")
    from skimage import color, filters

    assert skimage is not None
    for severity, (factor, added) in enumerate([(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)], 1):
        hsv = color.rgb2hsv(x.permute(0, 2, 3, 1).double().numpy())
        hsv[..., 1] = np.clip(hsv[..., 1] * factor + added, 0, 1)
        expected = torch.from_numpy(color.hsv2rgb(hsv)).permute(0, 3, 1, 2)
        torch.testing.assert_close(corrupt(x.double(), "saturate", severity), expected, rtol=0, atol=1e-6)
    for severity, sigma in enumerate([0.4, 0.6, 0.7, 0.8, 1], 1):
        expected = filters.gaussian(x[0, 0].double().numpy(), sigma=sigma)
        np.testing.assert_allclose(corrupt(x.double(), "gaussian_blur", severity)[0, 0], expected, atol=1e-9)
    gray = torch.full((1, 3, 4, 4), 0.5)  # a gray pixel has the hue of red
    torch.testing.assert_close(corrupt(gray, "saturate", 5)[0, :, 0, 0], torch.tensor([0.5, 0.4, 0.4]))
