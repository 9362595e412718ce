"""Images, masks and pairs of predictions of the experiment; its loaders on small files of the real formats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label
from skimage.io import imsave

from offprints.betti_matching import betti_numbers
from offprints.betti_matching.reproduce.data import (
    Samples,
    corrupt,
    crossing_digits,
    digit_lines,
    digit_masks,
    membrane_stack,
    panels,
    paper_dataset,
    retina_vessels,
    scale_intensity,
    slashes,
    split,
    without_small,
)
from offprints.betti_matching.reproduce.experiment import judge
from offprints.betti_matching.reproduce.indistinguishable import (
    _SIMPLE,
    _WEIGHTS,
    betti,
    convolve,
    indistinguishable_pair,
)
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_pictures
from offprints.shared.usage import UsageError


def test_digit_masks_have_an_empty_margin() -> None:
    masks = digit_masks(size=24, margin=3)
    assert masks.shape == (1797, 1, 30, 30)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    inside = torch.nn.functional.pad(masks[..., 3:-3, 3:-3], (3,) * 4)
    assert torch.equal(inside, masks)
    assert masks.flatten(1).sum(1).min() > 0


def test_digit_lines_are_thin_and_keep_the_features_of_the_strokes() -> None:
    which = range(0, 1797, 60)
    lines, masks = digit_lines(which), digit_masks()[which]
    assert lines.mean() < 0.6 * masks.mean()
    for line, mask in zip(lines[:, 0].bool().numpy(), masks[:, 0].bool().numpy(), strict=True):
        clean = ~without_small(~without_small(mask, 12), 7)
        # thinning keeps 8-connected pieces, and a line of two pixels is connected by sides
        assert label(line)[1] == label(clean, np.ones((3, 3)))[1]
    assert torch.equal(digit_lines([5, 7])[1:], digit_lines([7]))


def test_without_small() -> None:
    mask = np.array([[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=bool)
    assert without_small(mask, 2).sum() == 4
    assert (without_small(mask, 1) == mask).all()
    assert not without_small(mask, 5).any()


def test_slashes_cross_the_foreground() -> None:
    masks = digit_masks()[:200]
    hit = slashes(masks, count=1, length=16.0, width=4.0, generator=torch.Generator().manual_seed(0))
    used = hit.flatten(1).any(1)
    assert 0.35 < used.float().mean() < 0.65  # one slash or none
    assert (hit & masks.bool()).flatten(1).any(1)[used].all()
    assert 20 < hit[used].flatten(1).sum(1).float().mean() < 90


def test_corruption_is_drawn_from_the_generator_alone() -> None:
    masks = digit_masks()[:4]
    state = torch.get_rng_state()
    look = {"cut_length": 16.0, "cut_width": 4.0, "blur": 1.0}
    first, again, other = (
        corrupt(masks, cuts=2, noise=0.1, generator=torch.Generator().manual_seed(seed), **look) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    # without slashes and noise it is the blurred mask: the mass is kept, as the margin is wider than the blur
    plain = corrupt(masks, cuts=1, noise=0.0, generator=torch.Generator(), cut_length=0.0, cut_width=0.0, blur=0.7)
    torch.testing.assert_close(plain.sum((1, 2, 3)), masks.sum((1, 2, 3)), atol=1.5, rtol=0)


def test_panels_are_four_digits() -> None:
    masks = digit_masks(size=8, margin=1)
    found = panels(masks, seed=3)
    assert len(found) == 449
    assert {panel.shape for panel in found} == {(20, 20)}
    assert sum(int(panel.sum()) for panel in found) == pytest.approx(float(masks.sum()), rel=0.01)
    assert any((found[0] != other).any() for other in panels(masks, seed=4)[:1])


@given(arrays(bool, (7, 7)))
def test_simple_pixels_change_no_feature(mask: np.ndarray) -> None:
    codes = convolve(np.pad(mask, 1).astype(np.int64), _WEIGHTS, mode="constant")[1:-1, 1:-1]
    for place in np.argwhere(_SIMPLE[codes])[:6]:
        changed = mask.copy()
        changed[tuple(place)] ^= True
        assert betti(changed) == betti(mask)


def test_simple_pixels_known_cases() -> None:
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=np.int64)
    end = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=np.int64)
    corner = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=np.int64)
    bridge = np.array([[0, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=np.int64)
    simple = [bool(_SIMPLE[convolve(x, _WEIGHTS, mode="constant")[1, 1]]) for x in (ring, end, corner, bridge)]
    assert simple == [False, True, False, False]


@given(arrays(bool, (9, 8)), st.booleans())
def test_labeled_betti_numbers_are_those_of_the_barcode(mask: np.ndarray, flip: bool) -> None:
    mask = mask.T if flip else mask
    assert betti(mask) == tuple(betti_numbers(mask.astype(float)))


@pytest.mark.parametrize("index", range(6))
def test_pair_differs_in_its_features_alone(index: int) -> None:
    mask = panels(digit_masks(), seed=1)[index]
    before = mask.copy()
    pair = indistinguishable_pair(mask, seed=index)
    assert pair is not None
    assert (mask == before).all()
    for prediction in (pair.right, pair.wrong):
        assert betti(prediction) == betti(mask)
    changes = [((mask & ~p).sum(), (p & ~mask).sum()) for p in (pair.right, pair.wrong)]
    assert changes[0] == changes[1]
    assert min(changes[0]) > 0
    scores = judge([pair.right, pair.wrong], [mask, mask])
    assert scores["dice"][0] == scores["dice"][1] < 1
    assert scores["betti_number_error"].tolist() == [0, 0]
    assert scores["betti_matching_error"][0] == 0
    assert scores["betti_matching_error"][1] >= 2
    again = indistinguishable_pair(mask, seed=index)
    assert again is not None
    assert (again.wrong == pair.wrong).all()
    assert (again.right == pair.right).all()


def test_no_pair_of_a_single_blob() -> None:
    blob = np.zeros((20, 20), dtype=bool)
    blob[8:12, 8:12] = True
    assert indistinguishable_pair(blob, seed=0) is None


def test_retina_vessels() -> None:
    picture, mask = retina_vessels()
    assert picture.shape == (*mask.shape, 3)
    assert picture.dtype == np.uint8
    assert 0.05 < mask.mean() < 0.25
    # vessels are darker than what surrounds them
    assert picture[..., 1][mask].mean() < picture[..., 1][~mask].mean()
    assert indistinguishable_pair(mask, seed=0) is not None


def test_scale_intensity() -> None:
    assert scale_intensity(torch.tensor([[2, 4, 6]], dtype=torch.uint8)).tolist() == [[0.0, 0.5, 1.0]]
    assert scale_intensity(torch.full((1, 2), 7)).tolist() == [[0.0, 0.0]]


# ---- loaders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A membrane stack of five slices."""
    rng = np.random.default_rng(0)
    labels = np.ones((5, 20, 24), dtype=np.uint8)
    labels[:, 10] = 0
    images = (labels * 100 + rng.integers(0, 50, labels.shape)).astype(np.uint8)
    np.savez(tmp_path / "isbi_membrane.npz", images=images, labels=labels)
    return tmp_path / "isbi_membrane.npz"


def test_membrane_stack(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, held_out = membrane_stack(stack, train_images=3, test_images=1)
    assert [len(part.images) for part in (training, held_out)] == [3, 1]
    assert training.images[0].shape == training.masks[0].shape == (1, 20, 24)
    assert training.images[0].min() == 0
    assert training.images[0].max() == 1
    assert training.masks[0][0, 10].all()  # the membrane is the foreground
    assert training.masks[0].sum() == 24
    monkeypatch.setenv("OFFPRINTS_DATA", str(stack.parent))
    found, _ = membrane_stack(None, train_images=3, test_images=1)
    assert torch.equal(found.images[2], training.images[2])


def test_membrane_stack_refuses(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="--data names"):
        membrane_stack(tmp_path / "absent.npz", train_images=1, test_images=1)
    with pytest.raises(UsageError, match="at most 5 images, got 6"):
        membrane_stack(stack, train_images=3, test_images=3)
    np.savez(tmp_path / "other.npz", pictures=np.zeros((2, 4, 4)))
    with pytest.raises(UsageError, match=r"images and labels, got \['pictures'\]"):
        membrane_stack(tmp_path / "other.npz", train_images=1, test_images=1)
    np.savez(tmp_path / "shapes.npz", images=np.zeros((2, 4, 4)), labels=np.zeros((2, 4, 5)))
    with pytest.raises(UsageError, match=r"one shape \[N, H, W\]"):
        membrane_stack(tmp_path / "shapes.npz", train_images=1, test_images=1)


def test_split_takes_both_ends() -> None:
    images = [torch.full((1, 1, 1), float(i)) for i in range(5)]
    training, held_out = split(Samples(images, images), 2, 2)
    assert [int(x) for x in training.images] == [0, 1]
    assert [int(x) for x in held_out.masks] == [3, 4]


def write_folder(folder: Path, count: int, *, channels: int, npy: bool = False) -> None:
    rng = np.random.default_rng(1)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((30, 34), dtype=np.uint8)
        mask[5 : 20 + i, 12] = 1 if npy else 255
        image = rng.integers(0, 200, (30, 34, channels) if channels > 1 else (30, 34)).astype(np.uint8)
        if npy:
            np.save(folder / "images" / f"img_{i}.npy", image)
            np.save(folder / "labels" / f"seg_{i}.npy", mask)
        else:
            imsave(folder / "images" / f"image_{i:04}.png", image, check_contrast=False)
            imsave(folder / "labels" / f"label_{i:04}.png", mask, check_contrast=False)


@pytest.mark.parametrize(
    ("name", "folder", "channels", "npy"),
    [
        ("cremi", "CREMI", 1, False),
        ("roads", "roads", 3, False),
        ("elegans", "elegans_cells", 1, False),
        ("mnist", "mnist", 1, True),
    ],
)
def test_paper_dataset_from_the_archive(tmp_path: Path, name: str, folder: str, channels: int, npy: bool) -> None:
    write_folder(tmp_path / folder, 4, channels=channels, npy=npy)
    training, held_out = paper_dataset(name, root=tmp_path, train_images=2, test_images=1)
    assert [len(part.images) for part in (training, held_out)] == [2, 1]
    assert training.images[0].shape == (channels, 30, 34)
    assert training.images[0].min() == 0
    assert training.images[0].max() == 1
    assert [int(mask.sum()) for mask in (*training.masks, *held_out.masks)] == [15, 16, 18]
    assert set(held_out.masks[0].unique().tolist()) == {0.0, 1.0}


def test_paper_dataset_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cremi/labels/\*\.png[\s\S]*zenodo\.7312139"):
        paper_dataset("cremi", root=tmp_path)
    write_folder(tmp_path / "roads", 3, channels=3)
    with pytest.raises(UsageError, match=r"at most 3 .* got 124"):
        paper_dataset("roads", root=tmp_path)
    (tmp_path / "roads" / "labels" / "label_0001.png").unlink()
    with pytest.raises(UsageError, match="3 images and 2 labels"):
        paper_dataset("roads", root=tmp_path, train_images=1, test_images=1)
    write_folder(tmp_path / "buildings", 2, channels=1)  # these are photographs in color
    with pytest.raises(UsageError, match=r"must be \[H, W, 3\]"):
        paper_dataset("buildings", root=tmp_path, train_images=1, test_images=1)
    with pytest.raises(FileNotFoundError, match="mnist"):
        paper_dataset("mnist", root=tmp_path, train_images=1, test_images=1)


def write_mnist(root: Path, count: int) -> None:
    """The four files of MNIST, with scikit-learn's digits in them."""
    scans = (digit_masks(size=20, margin=4)[:count, 0] * 255).to(torch.uint8).numpy()
    for part in ("train", "test"):
        write_pictures(root, "mnist", part, scans, np.zeros(count))


def test_mnist_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, 12)
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path))
    training, held_out = paper_dataset("mnist", train_images=5, test_images=2, seed=3)
    assert [len(part.images) for part in (training, held_out)] == [5, 2]
    assert training.images[0].shape == training.masks[0].shape == (1, 48, 48)
    assert training.images[0].min() == 0
    assert training.images[0].max() == 1
    again, _ = paper_dataset("mnist", train_images=5, test_images=2, seed=3)
    assert torch.equal(again.images[4], training.images[4])


def test_crossing_digits_show_two_digits() -> None:
    scans = (digit_masks(size=20, margin=4)[:50, 0] * 255).to(torch.uint8)
    samples = crossing_digits(scans, count=20, seed=0)
    sizes = torch.stack(samples.masks).sum((1, 2, 3))
    assert 200 < sizes.mean() < 900
    components = [label(mask[0].numpy())[1] for mask in samples.masks]
    assert max(components) >= 2  # apart
    assert min(components) == 1  # crossing
