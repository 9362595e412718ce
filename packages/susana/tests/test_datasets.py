"""Data sets on small files in the real layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.shared.extras import MissingData
from offprints.susana import CUB, MiniImageNet, OmniglotFewShot
from offprints.susana.datasets import characters_of
from offprints.susana.reproduce import data as reproduce_data


def listed(root: Path) -> Path:
    """A folder as of miniImageNet: two pictures of each of two classes a split."""
    (root / "images" / "deep").mkdir(parents=True)
    for split, classes in (("train", "n2 n1"), ("val", "n3 n4"), ("test", "n5 n6")):
        lines = ["filename,label"]
        for number, label in enumerate(classes.split()):
            for i in range(2):
                name = f"deep/{label}_{i}.png" if i else f"{label}_{i}.png"
                Image.fromarray(np.full((4, 5), 60 * number + i, np.uint8)).save(root / "images" / name)
                lines.append(f"{name},{label}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("kind", [MiniImageNet, CUB])
def test_listed_pictures(kind, tmp_path: Path) -> None:
    root = listed(tmp_path)
    data = kind(root, "train", transform=np.asarray)
    assert len(data) == 4
    assert data.labels == [1, 1, 0, 0]  # in the order of the names
    assert data.classes == ["n1", "n2"]
    picture, label = data[2]
    assert picture.shape == (4, 5, 3)  # in color
    assert picture[0, 0].tolist() == [60] * 3
    assert label == 0
    assert kind(str(root), "val")[1][0].size == (5, 4)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = listed(tmp_path)
    (root / "images" / "n5_0.png").unlink()
    (root / "val.csv").unlink()
    (root / "images" / "n1_0.png").write_bytes(b"no picture")
    with pytest.raises(
        MissingData, match=r"n5_0.png does not exist, 1 of 4 pictures of test.csv.*(?s:.)*columns filename,label"
    ):
        MiniImageNet(root, "test")
    with pytest.raises(MissingData, match=r"val.csv does not exist(?s:.)*images/"):
        MiniImageNet(root, "val")
    with pytest.raises(ValueError, match=r"n1_0.png is not a readable picture"):
        MiniImageNet(root, "train")[2]
    with pytest.raises(MissingData, match="images"):
        CUB(tmp_path / "images" / "deep", "train")
    with pytest.raises(ValueError, match="download"):
        CUB(root, "train", download=True)
    (root / "train.csv").write_text("file,class\na,b\n")
    with pytest.raises(ValueError, match="columns filename,label"):
        MiniImageNet(root, "train")


def test_split_files_as_programs_save_them(tmp_path: Path) -> None:
    """A byte order mark, spaces after commas, line ends of Windows, another order of columns, further ones."""
    root = listed(tmp_path)
    expected = MiniImageNet(root, "train")
    rows = [row.split(",") for row in (root / "train.csv").read_text().split()[1:]]
    for text in (
        "\ufefffilename,label\n" + "".join(f"{a},{b}\n" for a, b in rows),
        "filename, label\n" + "".join(f"{a}, {b}\n" for a, b in rows),
        "label,number,filename\r\n" + "".join(f"{b},3,{a}\r\n" for a, b in rows) + "\r\n",
    ):
        (root / "train.csv").write_bytes(text.encode())
        found = MiniImageNet(root, "train")
        assert (found.paths, found.labels, found.classes) == (expected.paths, expected.labels, expected.classes)
    for content in ("filename,label\na,\xe9\n".encode("latin-1"), "filename,label\n".encode("utf-16")):
        (root / "train.csv").write_bytes(content)
        with pytest.raises(ValueError, match=r"train.csv must be a CSV file in UTF-8"):
            MiniImageNet(root, "train")


def omniglot(root: Path) -> Path:
    """Torchvision's layout: nine characters of two drawings, one dark row at the top of each."""
    for part, alphabets in (("images_background", "Ab Cd"), ("images_evaluation", "Ef")):
        for alphabet in alphabets.split():
            for number in range(3):
                folder = root / "omniglot-py" / part / alphabet / f"character{number:02}"
                folder.mkdir(parents=True)
                for i in range(2):
                    pixels = np.full((105, 105), 255, np.uint8)
                    pixels[:10] = 0
                    Image.fromarray(pixels).convert("1").save(folder / f"{number:04}_{i:02}.png")
    return root


def test_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets.Omniglot, "_check_integrity", lambda self: True)
    root = omniglot(tmp_path)
    splits = {split: OmniglotFewShot(root, split, transform=np.asarray) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    names = [name for data in splits.values() for name in data.characters]
    assert len(names) == len(set(names)) == 9
    assert [len(data.characters) for data in splits.values()] == [6, 1, 2]
    data = splits["test"]
    assert len(data) == 2 * 4 * 2
    assert data.labels == [label for label in range(8) for _ in range(2)]
    for index, edge in ((0, np.s_[:10]), (2, np.s_[:, :10]), (4, np.s_[-10:]), (6, np.s_[:, -10:])):
        picture, label = data[index]
        assert label == index // 2
        assert not picture[edge].any()  # the dark row has turned
        assert picture.astype(bool).sum() == 105 * 95


def test_pixels_of_the_medium_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ink is 1 and paper 0 whatever torchvision's pictures count in."""
    import torchvision

    monkeypatch.setattr(torchvision.datasets.Omniglot, "_check_integrity", lambda self: True)
    omniglot(tmp_path / "omniglot")
    images = reproduce_data.omniglot("test", data=tmp_path, download=False)
    assert torch.bincount(images.y).tolist() == [2] * 8
    upright, turned = images.x[images.y == 0][0, 0], images.x[images.y == 2][0, 0]
    assert upright[:2].min() == 1
    assert upright[3:].abs().max() == 0
    torch.testing.assert_close(turned, upright.rot90(2))


def test_the_split_of_characters() -> None:
    names = [f"{i:04}" for i in range(1623)]
    parts = [characters_of(names, split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert [len(part) for part in parts] == [1028, 172, 423]
    assert sorted(name for part in parts for name in part) == names
