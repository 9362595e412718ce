"""The split of the labeled few, the schedule, and the transforms."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from offprints.shared.testing import check_arguments, check_errors, check_schedule, check_split
from offprints.shrinkmatch import cosine_factor, split_labels, strong_transform, weak_transform
from offprints.shrinkmatch.transforms import OPERATIONS, Cutout, RandAugment

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 12))
RGB = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def test_split_conformance() -> None:
    everything = dict.fromkeys(range(4), 12)
    few = dict.fromkeys(range(4), 3)
    check_split(partial(split_labels, per_class=3), LABELS, disjoint=False, counts=[few, everything])
    rest = dict.fromkeys(range(4), 9)
    check_split(partial(split_labels, per_class=3, include_labeled=False), LABELS, counts=[few, rest])
    check_arguments(split_labels, lambda g: {"labels": torch.tensor(LABELS), "per_class": 2, "seed": 0})


def test_split_of_any_labels() -> None:
    """Text, other numbers and other containers: the same samples, for the classes are in the same order."""
    labeled, _ = split_labels(LABELS, 3, seed=0)
    names = np.array(["ant", "bee", "cat", "dog"])[LABELS]
    for labels in (names, names.astype(object), names.tolist(), pd.Series(names), pd.Series(LABELS, index=LABELS)):
        assert np.array_equal(split_labels(labels, 3, seed=0)[0], labeled)
    assert np.array_equal(split_labels((100 * LABELS + 7).astype(np.uint16), 3, seed=0)[0], labeled)
    with pytest.raises(ValueError, match="of class cat"):
        split_labels([*names, *["ant", "bee", "dog"]], 13, seed=0)


def test_split_errors() -> None:
    check_errors(
        [
            (lambda: split_labels(LABELS, 13, seed=0), ValueError, "per_class"),
            (lambda: split_labels(LABELS, 0, seed=0), ValueError, "per_class"),
            (lambda: split_labels(LABELS - 1, 2, seed=0), ValueError, "labels"),
            (lambda: split_labels(LABELS / 2, 2, seed=0), TypeError, "labels"),
            (lambda: split_labels(np.ma.masked_equal(LABELS, 3), 2, seed=0), ValueError, "labels"),
            (lambda: split_labels(LABELS, 2, seed=-1), ValueError, "seed"),
        ]
    )


def test_schedule() -> None:
    end = np.cos(7 * np.pi / 16)
    check_schedule(lambda step: cosine_factor(step, 50), 50, start=1.0, end=end, monotone="decreasing")
    check_schedule(lambda step: cosine_factor(step, 50, cycles=0.5, warmup=7), 50, start=0.0, end=0.0)
    check_arguments(cosine_factor, lambda g: {"step": 3, "total_steps": 9, "cycles": 0.5, "warmup": 1})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.03)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_factor(step, 4))
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.03 * np.cos(7 * np.pi / 16)])


# ---- transforms ------------------------------------------------------------------------------------------------------


def picture(channels: int = 3, size: int = 32) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
    return pixels if channels == 3 else pixels[..., 0]


def kinds(pixels: np.ndarray) -> list:
    tensor = torch.from_numpy(pixels)
    return [Image.fromarray(pixels), pixels, tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor[None]]


def test_weak_views_are_shifts_and_flips() -> None:
    """Of every kind of picture the same; each view is one of 2 x 9 x 9 windows of the reflected picture."""
    pixels = picture()
    transform = weak_transform(32, **RGB)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    mean, std = (np.array(RGB[name], np.float32) for name in ("mean", "std"))
    windows = [padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    mirrored = np.pad(pixels[:, ::-1], ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows += [mirrored[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    for seed in range(3):
        views = []
        for image in kinds(pixels):
            torch.manual_seed(seed)
            views.append(transform(image))
        assert torch.equal(views[0], views[1])
        assert torch.equal(views[1], views[2])
        found = np.rint((views[0].movedim(0, -1).numpy() * std + mean) * 255).astype(np.uint8)
        assert any(np.array_equal(found, window) for window in windows)
    assert type(views[0]) is torch.Tensor
    assert views[0].dtype == torch.float32


def test_no_flips_where_there_should_be_none() -> None:
    """A picture that grows to the right still does."""
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    for seed in range(8):
        torch.manual_seed(seed)
        view = weak_transform(32, mean=(0.5,), std=(0.5,), flip=False)(ramp)
        assert view[0, 0, 25] > view[0, 0, 6]


@pytest.mark.parametrize("channels", [1, 3])
def test_strong_views(channels: int) -> None:
    """A gray square of 16 pixels, clamped at the left upper corner, is in every view; other pixels differ from it."""
    pixels = np.full((32, 32, 3), 200, np.uint8) if channels == 3 else np.full((32, 32), 200, np.uint8)
    transform = strong_transform(32, mean=(0.0,) * channels, std=(1.0,) * channels, n=0)
    for image in kinds(pixels):
        sizes = set()
        for seed in range(30):
            torch.manual_seed(seed)
            view = transform(image)
            gray = (view * 255).round() == 127
            rows, columns = gray[0].any(1).nonzero(), gray[0].any(0).nonzero()
            height, width = (int(x.max() - x.min() + 1) for x in (rows, columns))
            assert gray.sum() == channels * height * width
            assert all(side == 16 or int(x.max()) == 31 for side, x in ((height, rows), (width, columns)))
            sizes.add((height, width))
        assert max(sizes) == (16, 16)
        assert len(sizes) > 1


def test_cutout_of_small_pictures() -> None:
    """At most half of the shorter side, at any size."""
    for size, side in ((8, 4), (20, 10), (96, 16)):
        torch.manual_seed(0)
        cut = Cutout()(torch.zeros(1, size, size, dtype=torch.uint8))
        assert (cut == 127).any(1).sum(-1).max() <= side
        areas = [int((Cutout()(torch.zeros(1, size, size, dtype=torch.uint8)) == 127).sum()) for _ in range(40)]
        assert max(areas) == side * side


def test_pool() -> None:
    assert len(OPERATIONS) == 14
    for pixels in (picture(), picture(1)):
        for image in kinds(pixels)[::2]:
            for name, operation in OPERATIONS.items():
                for strength in (0.1, 0.9, 1.0):
                    torch.manual_seed(0)
                    made = operation(image, strength)
                    assert type(made) is type(image), name
                    shown = np.asarray(made) if not isinstance(made, torch.Tensor) else made.squeeze(0).numpy()
                    assert shown.dtype == np.uint8
                    assert sorted(shown.shape) == sorted(pixels.shape)


def test_strengths() -> None:
    """Values of the pool at a strength of one half."""
    image = Image.fromarray(picture())
    pixels = np.asarray(image).astype(int)
    posterized = np.asarray(OPERATIONS["Posterize"](image, 0.5))
    assert np.array_equal(posterized, pixels & ~0b11)  # 4 + int(4 s) = 6 bits
    solarized = np.asarray(OPERATIONS["Solarize"](image, 0.5))
    assert np.array_equal(solarized, np.where(pixels >= 128, 255 - pixels, pixels))
    bright = np.asarray(OPERATIONS["Brightness"](image, 0.5)).astype(int)
    assert np.abs(bright - pixels * 0.5).max() <= 1  # 0.05 + 0.9 s
    for axis, name in ((1, "TranslateX"), (0, "TranslateY")):
        moved = np.asarray(OPERATIONS[name](image, 0.5))  # int(0.3 s 32) = 4 pixels
        assert any(np.array_equal(np.roll(pixels, shift, axis)[6:-6, 6:-6], moved[6:-6, 6:-6]) for shift in (-4, 4))
    sheared = [np.asarray(OPERATIONS["ShearX"](image, 0.5)) for _ in range(8)]
    wanted = [
        np.asarray(image.transform(image.size, Image.Transform.AFFINE, (1, slope, 0, 0, 1, 0)))
        for slope in (0.15, -0.15)
    ]
    assert all(min(float((made != w).mean()) for w in wanted) < 0.05 for made in sheared)
    turned = np.asarray(OPERATIONS["Rotate"](image, 0.5))
    assert any(np.array_equal(turned, np.asarray(image.rotate(angle))) for angle in (-15, 15))


def test_half_of_the_chosen_operations_are_applied() -> None:
    """Two draws with replacement: each operation but the identity is applied with probability 1/2."""
    image = torch.from_numpy(picture()).movedim(-1, 0)
    torch.manual_seed(0)
    unchanged = np.mean([torch.equal(RandAugment(1, 10)(image), image) for _ in range(400)])
    # Identity, and AutoContrast of a picture that uses all values, change nothing; neither does a chosen one half the
    # time, nor a turn, shear or shift by a fraction of a pixel.
    assert 0.5 + 0.5 / 14 < unchanged < 0.68


def test_magnitudes(monkeypatch: pytest.MonkeyPatch) -> None:
    """v in 1..m-1, the strength v/10."""
    seen = set()
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, s: (image, seen.add(s))[0])
    torch.manual_seed(0)
    RandAugment(200, 4)(None)
    assert seen == {0.1, 0.2, 0.3}


def test_transforms_are_stored_and_follow_the_global_stream() -> None:
    transform = pickle.loads(pickle.dumps(strong_transform(32, **RGB)))
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(transform(picture()))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_transform_errors() -> None:
    weak = weak_transform(32, **RGB)
    check_errors(
        [
            (lambda: weak(picture().astype(np.float32)), TypeError, "image"),
            (lambda: weak(torch.rand(3, 32, 32)), TypeError, "image"),
            (lambda: weak("x.png"), TypeError, "image"),
            (lambda: weak(Image.fromarray(picture()).convert("RGBA")), ValueError, "image"),
            (lambda: weak(torch.zeros(2, 32, 32, dtype=torch.uint8)), ValueError, "image"),
            (lambda: weak(picture(1)), ValueError, "mean"),
            (lambda: weak_transform(32, mean=(0.5, 0.5), std=(0.2,)), ValueError, "std"),
            (lambda: weak_transform(32, mean=0.5, std=(0.2,)), TypeError, "mean"),
            (lambda: weak_transform(32, mean=(0.5,), std=(0.0,)), ValueError, "std"),
            (lambda: strong_transform(32, **RGB, m=1), ValueError, "m must"),
            (lambda: strong_transform(32, **RGB, m=11), ValueError, "m must"),
        ]
    )
    check_arguments(weak_transform, lambda g: {"size": 32, **RGB})
    check_arguments(strong_transform, lambda g: {"size": 32, **RGB})
