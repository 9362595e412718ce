"""Few-shot data sets from the files that their users have: miniImageNet, CUB, and Omniglot of torchvision."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from torch.utils.data import Dataset

from offprints.shared.extras import MissingData, require, require_folder
from offprints.shared.validation import check_bool, check_choice

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS = ("train", "val", "test")
TREE = """{root}/
    images/          all pictures, named as in the split files
    train.csv        columns filename,label: the classes to train on
    val.csv          the same for validation
    test.csv         and for the test"""


class _Listed(Dataset[Any]):
    """Pictures in one folder and three lists of them."""

    _source = ""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Split,
        *,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        check_choice(split, "split", SPLITS)
        if check_bool(download, "download"):
            raise ValueError(
                f"download must be False: {self._source} cannot be fetched by program; bring pictures and split files\n"
                + TREE.format(root=root)
            )
        self.transform, self.split = transform, split
        self.root = _root(root)
        tree = TREE.format(root=self.root)
        require_folder(self.root, tree)
        images = require_folder(self.root / "images", tree)
        names, classes = self._read(self.root / f"{split}.csv", tree)
        present = {entry.name for entry in os.scandir(images)}
        missing = [name for name in names if name not in present and not (images / name).is_file()]
        if missing:
            raise MissingData(
                f"{images / missing[0]} does not exist, {len(missing)} of {len(names)} pictures of {split}.csv are "
                f"missing; expected there:\n{tree}"
            )
        self.classes = sorted(set(classes))
        number = {label: i for i, label in enumerate(self.classes)}
        self.paths = [images / name for name in names]
        self.labels = [number[label] for label in classes]

    @staticmethod
    def _read(path: Path, tree: str) -> tuple[list[str], list[str]]:
        if not path.is_file():
            raise MissingData(f"{path} does not exist; expected there:\n{tree}")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark before the first column
                reader = csv.DictReader(file, skipinitialspace=True)
                if not {"filename", "label"} <= set(reader.fieldnames or ()):
                    raise ValueError(f"{path} must have the columns filename,label, got {reader.fieldnames}")
                rows = [(row["filename"], row["label"]) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} must be a CSV file in UTF-8: {error}") from error
        if not rows or any(not name or not label for name, label in rows):
            raise ValueError(f"{path} must list pictures and their labels, got an empty list or an empty field")
        return [name for name, _ in rows], [label for _, label in rows]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Read a picture, in color, and its class; the picture goes through the transform."""
        path = self.paths[index]
        opener = require("PIL.Image", package="susana", extra="vision")
        try:
            with opener.open(path) as file:
                picture = file.convert("RGB")
        except FileNotFoundError as error:
            tree = TREE.format(root=self.root)
            raise MissingData(f"{path} does not exist any more; expected there:\n{tree}") from error
        except (OSError, SyntaxError, ValueError) as error:  # Pillow has no one error for damage
            raise ValueError(f"{path} is not a readable picture: {error}") from error
        return picture if self.transform is None else self.transform(picture), self.labels[index]


def _root(root: str | os.PathLike[str]) -> Path:
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be a path, got {type(root).__name__}")
    return Path(root).expanduser()


class MiniImageNet(_Listed):
    """miniImageNet: 64, 16 and 20 classes of 600 pictures, by the split files that its users have.

    ``root/images`` holds the pictures and ``root/train.csv``, ``val.csv`` and ``test.csv`` the lists of Ravi and
    Larochelle, with the columns ``filename,label``. No split is invented. Needs the extra ``vision``.

    Attributes:
        labels: Class of every picture, 0.. in the order of the classes' names.
        classes: These names.

    Args:
        root: The folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied to each picture, a PIL image in color.
        download: Must be False: nobody may pass the pictures on.

    Raises:
        TypeError: `root` is not a path.
        ValueError: An unknown `split`, `download`, a split file without the two columns.
        MissingData: The folder, a split file or a picture is missing; the message shows the expected tree.

    Example:
        >>> MiniImageNet("no/such/folder", "train")
        Traceback (most recent call last):
        offprints.shared.extras.MissingData: no/such/folder does not exist...
    """

    _source = "miniImageNet"


class CUB(_Listed):
    """CUB-200-2011: birds, 100, 50 and 50 classes in the split that is common, by the split files of its users.

    Files, attributes, arguments and errors are those of `MiniImageNet`.

    Example:
        >>> CUB("no/such/folder", "novel")
        Traceback (most recent call last):
        ValueError: split must be one of 'train', 'val', 'test', got 'novel'
    """

    _source = "CUB-200-2011"


class OmniglotFewShot(Dataset[Any]):
    """Omniglot for few-shot learning: 1028, 172 and 423 characters, each turned by 0, 90, 180 and 270 degrees.

    The characters of torchvision's two parts are pooled and divided by one fixed permutation; every turn of a character
    is a class of its own, with the 20 drawings. Needs the extra ``vision``.

    Attributes:
        labels: Class of every item; 4 c + t for turn t of the split's character c.
        characters: Names of the split's characters, alphabet and number.

    Args:
        root: Folder of torchvision's ``omniglot-py``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied to each picture after it is turned, a PIL image of one channel.
        download: Fetch what is missing.

    Raises:
        TypeError: `root` is not a path.
        ValueError: An unknown `split`.
        MissingData: The data is not there and `download` is off.

    Example:
        >>> OmniglotFewShot("no/such/folder", "train")
        Traceback (most recent call last):
        offprints.shared.extras.MissingData: Omniglot is not in no/such/folder...
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Split,
        *,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        check_choice(split, "split", SPLITS)
        check_bool(download, "download")
        self.transform, self.split = transform, split
        folder = _root(root)
        sets = require("torchvision.datasets", package="susana", extra="vision")
        try:
            parts = [sets.Omniglot(str(folder), background=part, download=download) for part in (True, False)]
        except (RuntimeError, FileNotFoundError) as error:
            if download:
                raise
            raise MissingData(
                f"Omniglot is not in {folder} ({str(error).splitlines()[0]}); fetch it with download=True, or put "
                f"torchvision's files there:\n{folder}/omniglot-py/images_background/<alphabet>/<character>/*.png\n"
                f"{folder}/omniglot-py/images_evaluation/<alphabet>/<character>/*.png"
            ) from error
        drawings: dict[str, list[tuple[int, int]]] = {}
        for number, part in enumerate(parts):
            for index, (_, label) in enumerate(part._flat_character_images):
                drawings.setdefault(Path(part._characters[label]).as_posix(), []).append((number, index))
        self._parts = parts
        self.characters = characters_of(sorted(drawings), split)
        self._items = [
            (number, index, turn) for name in self.characters for turn in range(4) for number, index in drawings[name]
        ]
        self.labels = [
            4 * c + turn for c, name in enumerate(self.characters) for turn in range(4) for _ in drawings[name]
        ]

    def __len__(self) -> int:
        """Number of drawings, those of the turned characters included."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Read a drawing, turned and transformed, and its class."""
        number, where, turn = self._items[index]
        picture = self._parts[number][where][0].rotate(90 * turn)
        return picture if self.transform is None else self.transform(picture), self.labels[index]


def characters_of(names: list[str], split: Split) -> list[str]:
    """The characters of a split: of each in proportion 1028 : 172 : 423, by one fixed permutation."""
    order = np.random.default_rng(1623).permutation(len(names))
    first, second = (round(len(names) * share / 1623) for share in (1028, 1200))
    bounds = {"train": (0, first), "val": (first, second), "test": (second, len(names))}[split]
    return sorted(names[i] for i in order[slice(*bounds)])
