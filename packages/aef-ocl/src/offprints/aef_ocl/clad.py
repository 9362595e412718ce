"""CLAD-C, the paper's data: objects cut out of SODA10M's driving scenes, in chronological order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from offprints.shared.extras import MissingData, require, require_folder
from offprints.shared.validation import check_choice, check_number

CLASSES = {1: "Pedestrian", 2: "Cyclist", 3: "Car", 4: "Truck", 5: "Tram/Bus", 6: "Tricycle"}
PERIODS = (
    ("20191111", "Daytime"),
    ("20191111", "Night"),
    ("20191117", "Daytime"),
    ("20191117", "Night"),
    ("20191120", "Daytime"),
    ("20191121", "Night"),
)
# Misprints of the annotation files, as the benchmark repairs them.
TIMES = {
    "145960": "150000",
    "102360": "102400",
    "1221831": "122131",
    "1420214": "142021",
    "10:00": "100000",
    "12:00": "120000",
    "13:00": "130000",
    "1111523": "111152",
}
DATES = {"201810152": "20181015", "50181015": "20181015"}
TREE = """<root>/SSLAD-2D/labeled/annotations/instance_train.json, instance_val.json, instance_test.json
<root>/SSLAD-2D/labeled/train, val, test (the images)
The images are SODA10M's (labeled part); the annotation files are those of the CLAD benchmark, which have the date
and the time of every image: https://github.com/VerwimpEli/CLAD"""
WIDTH, HEIGHT, LONGEST = 1920, 1080, 539
SMALLEST = 1024  # pixels of a box


class CladC(Dataset[tuple[Any, int]]):
    """CLAD-C, the classification challenge on SODA10M: one object an item, its label ``category_id`` (1 to 6).

    Objects whose box is smaller than 1024 pixels are left out, and those with ``occluded`` equal to 0, as the
    benchmark's code has it. The cut is a square about the middle of the box, shifted into the image, and resized.
    Nothing is downloaded.

    Args:
        root: The folder that has ``SSLAD-2D`` in it.
        split: "train" (six periods in the order of time), "val" or "test".
        period: One of the six periods, 0 to 5, of "train"; None: all in order.
        size: Side of the picture.
        transform: Of the picture, a PIL image; None: a float tensor ``[3, size, size]`` in [0, 1].

    Attributes:
        labels: Labels of all items, int64 ``[N]``.
        periods: Number of the period of every item of "train", int64 ``[N]``; empty for the others.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an unknown split, a ``period`` out of range or of another split, ``size`` < 1, a time that cannot
            be read.
        MissingData: files are missing, or the annotation files have no dates and times.
        MissingExtra: Pillow is not installed (extra ``vision``).

    Example:
        >>> try:
        ...     CladC("no/such/folder", "train")
        ... except FileNotFoundError as error:
        ...     print("SSLAD-2D" in str(error))
        True
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "val", "test"],
        *,
        period: int | None = None,
        size: int = 224,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(root, (str, Path)):
            raise TypeError(f"root must be a path, got {type(root).__name__}")
        check_choice(split, "split", ("train", "val", "test"))
        if period is not None:
            check_number(period, "period", low=0, high=len(PERIODS) - 1, integer=True)
            if split != "train":
                raise ValueError(f"period must be None for split {split!r}, got {period}")
        self.size = check_number(size, "size", low=1, integer=True)
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function or None, got {type(transform).__name__}")
        self.transform = transform
        self.split = split
        labeled = require_folder(Path(root).expanduser() / "SSLAD-2D" / "labeled", TREE)
        self._items: list[tuple[Path, tuple[int, int, int, int]]] = []
        labels: list[int] = []
        periods: list[int] = []
        if split == "train":
            wanted = range(len(PERIODS)) if period is None else [int(period)]
            objects = read(labeled, "val")
            for number in wanted:
                chosen = [one for one in objects if (one["date"], one["period"]) == PERIODS[number]]
                for one in sorted(chosen, key=lambda one: one["key"]):
                    self._items.append(one["item"])
                    labels.append(one["label"])
                    periods.append(number)
        else:
            objects = read(labeled, "test" if split == "test" else "val")
            if split == "val":
                objects = [one for one in objects if not in_training(one)] + read(labeled, "train")
            for one in objects:
                self._items.append(one["item"])
                labels.append(one["label"])
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.periods = torch.tensor(periods, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = require("PIL.Image", package="aef-ocl", extra="vision")
        path, box = self._items[index]
        if not path.is_file():
            raise MissingData(f"{path} is not there; expected:\n{TREE}")
        with image.open(path) as picture:
            cut = picture.convert("RGB").crop(box).resize((self.size, self.size))
        label = int(self.labels[index])
        if self.transform is not None:
            return self.transform(cut), label
        pixels: Tensor = torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32) / 255, label


def read(labeled: Path, part: str) -> list[dict[str, Any]]:
    """The objects of one annotation file, in its order."""
    path = labeled / "annotations" / f"instance_{part}.json"
    if not path.is_file():
        raise MissingData(f"{path} is not there; expected:\n{TREE}")
    record = json.loads(path.read_text(encoding="utf-8"))
    images = {image["id"]: image for image in record["images"]}
    if any("time" not in image or "date" not in image for image in images.values()):
        raise MissingData(f"{path} has no dates and times, as SODA10M's own file; expected:\n{TREE}")
    objects = []
    for note in record["annotations"]:
        if note["area"] < SMALLEST or note["occluded"] == 0:
            continue
        image = images[note["image_id"]]
        date, time = str(image["date"]).strip(), str(image["time"]).strip()
        date, time = DATES.get(date, date), TIMES.get(time, time)
        digits = re.findall(r"\d+", Path(str(image.get("file_name_old", image["file_name"]))).name)
        objects.append(
            {
                "item": (labeled / part / image["file_name"], square(note["bbox"])),
                "label": int(note["category_id"]),
                "date": date,
                "period": image.get("period"),
                "key": (stamp(date, time), *digits[:2]),
            }
        )
    return objects


def stamp(date: str, time: str) -> datetime:
    """The moment of an image."""
    for form in ("%Y%m%d%H%M%S", "%Y-%m-%d%H:%M:%S"):
        try:
            return datetime.strptime(date + time, form)
        except ValueError:
            continue
    raise ValueError(f"annotations must have dates and times as 20191111 and 120000, got {date!r} and {time!r}")


def in_training(one: Mapping[str, Any]) -> bool:
    """Whether the validation set leaves an object out: whole days, but of the last day the night alone."""
    return one["date"] in ("20191111", "20191117", "20191120") or (one["date"], one["period"]) == PERIODS[-1]


def square(box: list[float]) -> tuple[int, int, int, int]:
    """The square about a box ``(x, y, w, h)``, shifted into the image: left, upper, right, lower."""
    x, y, w, h = box
    half = min(max(w, h) // 2 + 5, LONGEST)
    edges = []
    for middle, limit in ((x + w // 2, WIDTH - 1), (y + h // 2, HEIGHT - 1)):
        low, high = middle - half, middle + half
        if low < 0:
            low, high = 0, high - low
        if high > limit:
            low, high = low - (high - limit), limit
        edges.append((int(low), int(high)))
    (left, right), (upper, lower) = edges
    return left, upper, right, lower
