from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.shared.datasets import (
    Name,
    class_subset,
    data_root,
    digits,
    image_folder,
    pictures,
    tensor_batches,
    vision_dataset,
)
from offprints.shared.extras import require_folder
from offprints.shared.testing import check_split
from offprints.shared.testing.pictures import write_clothes, write_pictures


def test_digits() -> None:
    images, labels = digits()
    assert images.shape == (1797, 64)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))
    scaled, _ = digits(layout="image", value_range=(1, -1), dtype=torch.float64)
    assert scaled.shape == (1797, 1, 8, 8)
    torch.testing.assert_close(scaled.flatten(1), 1 - 2 * images.double())
    large, _ = digits(layout="image", size=32)
    torch.testing.assert_close(
        large, torch.nn.functional.interpolate(images.view(-1, 1, 8, 8), (32, 32), mode="bilinear")
    )
    for options, word in (
        ({"layout": "rows"}, "layout"),
        ({"size": 0}, "size"),
        ({"value_range": (1, 1)}, "value_range"),
    ):
        with pytest.raises(ValueError, match=word):
            digits(**options)


def test_pictures() -> None:
    loaded = pictures(["retina", "horse", "camera", "astronaut"])
    assert list(loaded) == ["retina", "horse", "camera", "astronaut"]
    assert loaded["camera"].shape == (1, 512, 512)
    assert loaded["astronaut"].shape == (3, 512, 512)
    assert all(picture.dtype == torch.uint8 and picture.float().std() > 1 for picture in loaded.values())
    assert all(len(picture) in (1, 3) for picture in loaded.values())
    with pytest.raises(ValueError, match="'astronaut'"):
        pictures(["eagle"])
    with pytest.raises(TypeError, match="retina"):
        pictures("retina")


def test_every_picture_of_the_documentation_is_in_the_wheel() -> None:
    text = " ".join((pictures.__doc__ or "").split())
    names = re.search(r"Photographs and scans: (.*?)\. Drawings: (.*?)\.", text)
    assert names is not None
    listed = re.sub(r"\(.*?\)|,| and ", " ", " ".join(names.groups())).split()
    loaded = pictures(listed)
    assert len(loaded) == 26
    with pytest.raises(ValueError, match="names must be one of") as caught:
        pictures(["none"])
    assert sorted(re.findall(r"'(\w+)'", str(caught.value))) == sorted([*listed, "none"])


def test_class_subset() -> None:
    labels = np.arange(60) % 3

    def split(values: object, *, seed: int) -> list[np.ndarray]:
        return [class_subset(values, {0: 5, 2: 1}, seed=seed)]

    check_split(split, labels, cover=False, counts=[{0: 5, 2: 1}])


def test_class_subset_counts() -> None:
    labels = torch.arange(60) % 3
    chosen = class_subset(labels, [4, 0, 20], seed=1)
    assert np.bincount(labels[chosen]).tolist() == [4, 0, 20]
    assert len(set(chosen.tolist())) == 24
    np.testing.assert_array_equal(chosen, np.sort(chosen))
    assert np.bincount(labels[class_subset(labels, 2, seed=1)]).tolist() == [2, 2, 2]
    assert class_subset(labels, 2, seed=1).tolist() != class_subset(labels, 2, seed=2).tolist()
    assert set(class_subset(labels, 2, seed=1)) < set(class_subset(labels, 5, seed=1))
    np.testing.assert_array_equal(
        class_subset(labels, {2: 3, 0: 4}, seed=1), class_subset(labels, {0: 4, 2: 3}, seed=1)
    )
    assert class_subset(np.array([-1, 1, 1, -1]), {-1: 2}, seed=0).tolist() == [0, 3]
    for call, error, word in (
        (lambda: class_subset(labels, 2.0, seed=0), TypeError, "counts"),  # type: ignore[arg-type]
        (lambda: class_subset(labels, 21, seed=0), ValueError, "21 samples of class 0, labels has 20"),
        (lambda: class_subset(labels, {7: 1}, seed=0), ValueError, "class 7"),
        (lambda: class_subset(labels, [-1], seed=0), ValueError, "counts"),
        (lambda: class_subset(labels.float(), 1, seed=0), TypeError, "float32"),
        (lambda: class_subset(labels.view(2, 30), 1, seed=0), ValueError, "one-dimensional"),
    ):
        with pytest.raises(error, match=word):
            call()


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path))
    assert data_root("mnist") == tmp_path / "mnist"
    monkeypatch.delenv("OFFPRINTS_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    assert data_root("mnist") == tmp_path / "cache" / "offprints" / "mnist"


def test_require_folder(tmp_path: Path) -> None:
    assert require_folder(tmp_path, "layout") == tmp_path
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(FileNotFoundError, match=r"images/<number>\.png"):
            require_folder(tmp_path / name, "images/<number>.png")


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_vision_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: Name, folder: str) -> None:
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="download=True"):
        vision_dataset(name, "train")
    images, labels = np.arange(3 * 784, dtype=np.uint8).reshape(3, 28, 28), np.array([7, 0, 1], dtype=np.uint8)
    for split, pixels in (("train", images), ("test", images[::-1])):
        write_pictures(tmp_path, name, split, pixels, labels)
    for prefix in ("train", "t10k"):
        (tmp_path / name / folder / "raw" / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b""))
    for split, expected in (("train", images[0]), ("test", images[2])):
        picture, label = vision_dataset(name, split, transform=np.asarray)[0]
        np.testing.assert_array_equal(picture, expected)
        assert label == 7
    monkeypatch.delenv("OFFPRINTS_DATA")
    assert len(vision_dataset(name, "train", root=tmp_path)) == 3  # type: ignore[arg-type]


def test_few_clothes(tmp_path: Path) -> None:
    """As many of each class, the row that is bright tells which: a nearest mean knows all."""
    write_clothes(tmp_path, 100, 30)
    sets = [vision_dataset("fashion_mnist", split, root=tmp_path) for split in ("train", "test")]
    (x, y), (other, expected) = [(found.data.flatten(1).double(), found.targets) for found in sets]  # type: ignore[attr-defined]
    assert y.bincount().tolist() == [10] * 10
    assert expected.bincount().tolist() == [3] * 10
    means = torch.stack([x[y == label].mean(0) for label in range(10)])
    assert torch.equal(torch.cdist(other, means).argmin(1), expected)
    assert not torch.equal(x[:30], other)


def test_vision_dataset_without_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path))
    for name in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / f"{name}_1.jpg")
    picture, label = vision_dataset("eurosat", "all", transform=np.asarray)[1]
    assert picture.shape == (64, 64, 3)
    assert label == 1


@pytest.mark.parametrize("name", get_args(Name))
def test_vision_dataset_downloads_nothing_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: Name) -> None:
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="split must be one of") as caught:
        vision_dataset(name, "validation")
    for split in re.findall(r"'([a-z0-9+]+)'", str(caught.value).partition(", got")[0]):
        with pytest.raises(FileNotFoundError, match=f"data set '{name}' is not in"):
            vision_dataset(name, split)
    assert not list(tmp_path.rglob("*.*"))


def test_vision_dataset_unknown() -> None:
    with pytest.raises(ValueError, match="'cifar10'"):
        vision_dataset("imagenet", "train")  # type: ignore[arg-type]


def test_image_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 5), color=(1, 2, 3)).save(tmp_path / name / "picture.png")
    dataset = image_folder(tmp_path, transform=np.asarray)
    picture, label = dataset[1]
    assert picture.shape == (5, 4, 3)
    assert label == 1
    whole = (tmp_path / "b" / "picture.png").read_bytes()
    for damaged in (b"not a picture", whole[:50], whole[:40] + b"?" + whole[41:]):
        (tmp_path / "b" / "picture.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"b/picture\.png is not a readable image"):
            dataset[1]
    with pytest.raises(FileNotFoundError, match="one subfolder a class"):
        image_folder(tmp_path / "missing")


def test_tensor_batches() -> None:
    x, y = torch.arange(10), torch.arange(10) * 2
    batches = list(tensor_batches(x, y, batch_size=4))
    assert [len(batch[0]) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), x)
    generator = torch.Generator().manual_seed(0)
    first, second = (list(tensor_batches(x, y, batch_size=4, generator=generator, drop_last=True)) for _ in range(2))
    assert [len(batch[0]) for batch in first] == [4, 4]
    assert all(torch.equal(batch[0] * 2, batch[1]) for batch in first)
    assert not torch.equal(first[0][0], second[0][0])
    shuffled = list(tensor_batches(x, batch_size=4, generator=generator))
    assert torch.cat([batch[0] for batch in shuffled]).sort()[0].tolist() == x.tolist()
    before = torch.get_rng_state()
    list(tensor_batches(x, batch_size=3, generator=generator))
    assert torch.equal(before, torch.get_rng_state())
    for call, word in (
        (lambda: tensor_batches(batch_size=1), "at least one tensor"),
        (lambda: tensor_batches(x, y[:3], batch_size=1), "length"),
        (lambda: tensor_batches(x, batch_size=0), "batch_size"),
        (lambda: tensor_batches(x, batch_size=11, drop_last=True), "at least one batch"),
        (lambda: tensor_batches(x[:0], batch_size=1), "at least one batch"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
