"""CLAD-C on a few made pictures in SODA10M's files: which objects, in which order, cut where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.aef_ocl import CladC
from offprints.aef_ocl.clad import square
from offprints.shared.extras import MissingData
from offprints.shared.testing import check_errors

Picture = tuple[str, str, str, str]  # file, date, time, period


def write(root: Path, part: str, pictures: list[Picture], notes: list[dict[str, Any]]) -> None:
    """An annotation file; every picture is gray but for one red pixel at (100, 200)."""
    labeled = root / "SSLAD-2D" / "labeled"
    (labeled / "annotations").mkdir(parents=True, exist_ok=True)
    (labeled / part).mkdir(exist_ok=True)
    images = []
    for number, (file, date, time, period) in enumerate(pictures, start=1):
        name = f"{part}_{number}.png"
        old = {"file_name_old": f"somewhere/{file}"} if file else {}
        images.append({"id": number, "file_name": name, "date": date, "time": time, "period": period, **old})
        pixels = np.full((1080, 1920, 3), 100, dtype=np.uint8)
        pixels[200, 100] = (255, 0, 0)
        Image.fromarray(pixels).save(labeled / part / name, compress_level=1)
    plain = {"area": 5000, "occluded": 1, "bbox": [90, 190, 20, 20], "category_id": 3}
    record = {"images": images, "annotations": [plain | {"id": i} | note for i, note in enumerate(notes)]}
    (labeled / "annotations" / f"instance_{part}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clad")
    write(
        folder,
        "val",
        [
            ("v2_s1.jpg", "20191111", "120000", "Daytime"),
            ("v1_s2.jpg", "20191111", "120000", "Daytime"),
            ("v1_s1.jpg", " 20191111", "10:00 ", "Daytime"),
            ("v1_s1.jpg", "20191111", "230000", "Night"),
            ("v1_s1.jpg", "20191121", "010000", "Night"),
            ("v1_s1.jpg", "20191121", "110000", "Daytime"),
            ("v1_s1.jpg", "2018-10-15", "12:00:00", "Daytime"),
        ],
        [
            {"image_id": 1, "category_id": 1},
            {"image_id": 2, "category_id": 2},
            {"image_id": 3, "category_id": 3},
            {"image_id": 3, "category_id": 4, "area": 1023},
            {"image_id": 3, "category_id": 5, "occluded": 0},
            {"image_id": 4, "category_id": 4},
            {"image_id": 5, "category_id": 5},
            {"image_id": 6, "category_id": 6},
            {"image_id": 7, "category_id": 2, "area": 1024},
        ],
    )
    write(folder, "train", [("", "50181015", "145960", "Daytime")], [{"image_id": 1, "category_id": 1}])
    write(folder, "test", [("x1_y1.jpg", "20200101", "120000", "Night")], [{"image_id": 1, "category_id": 6}])
    return folder


def test_training_is_in_the_order_of_time(root) -> None:
    """10:00 comes before 12:00; equal times by video, then sequence; day before night of one date."""
    train = CladC(root, "train")
    assert train.labels.tolist() == [3, 2, 1, 4, 5]
    assert train.periods.tolist() == [0, 0, 0, 1, 5]
    assert len(train) == 5
    assert CladC(root, "train", period=1).labels.tolist() == [4]
    assert CladC(root, "train", period=2).labels.tolist() == []


def test_validation_and_test(root) -> None:
    """Validation: what training does not use (of 20191121 the night alone), and all of the other file."""
    assert CladC(root, "val").labels.tolist() == [6, 2, 1]
    assert CladC(root, "test").labels.tolist() == [6]


def test_pictures(root) -> None:
    picture, label = CladC(root, "test", size=30)[0]  # half side 15 about (100, 200): 30 pixels as they are
    assert label == 6
    assert picture.shape == (3, 30, 30)
    assert picture.dtype == torch.float32
    assert picture[:, 15, 15].tolist() == [1, 0, 0]
    assert float(picture[:, 0, 0].max()) == pytest.approx(100 / 255)
    assert CladC(root, "test")[0][0].shape == (3, 224, 224)
    image, _ = CladC(root, "test", size=8, transform=lambda image: image)[0]
    assert image.size == (8, 8)
    with pytest.raises(IndexError):
        CladC(root, "test")[1]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([90, 190, 20, 10], (85, 180, 115, 210)),  # the longer side counts
        ([0, 0, 20, 20], (0, 0, 30, 30)),  # shifted into the image
        ([1900, 1060, 20, 20], (1889, 1049, 1919, 1079)),
        ([0, 0, 1900, 1080], (411, 1, 1489, 1079)),  # at most 539 about the middle
    ],
)
def test_cuts(box, expected) -> None:
    left, upper, right, lower = square(box)
    assert (left, upper, right, lower) == expected
    assert right - left == lower - upper


def test_bad_inputs(root, tmp_path) -> None:
    write(tmp_path / "plain", "val", [("v1_s1.jpg", "20191111", "120000", "Daytime")], [{"image_id": 1}])
    path = tmp_path / "plain" / "SSLAD-2D" / "labeled" / "annotations" / "instance_val.json"
    record = json.loads(path.read_text())
    del record["images"][0]["time"]
    path.write_text(json.dumps(record))
    write(tmp_path / "odd", "val", [("v1_s1.jpg", "20191111", "noon", "Daytime")], [{"image_id": 1}])
    write(tmp_path / "lost", "test", [("v1_s1.jpg", "20191111", "120000", "Day")], [{"image_id": 1}])
    (tmp_path / "lost" / "SSLAD-2D" / "labeled" / "test" / "test_1.png").unlink()
    check_errors(
        [
            (lambda: CladC(3, "train"), TypeError, "root"),  # type: ignore[arg-type]
            (lambda: CladC(root, "all"), ValueError, "split"),  # type: ignore[arg-type]
            (lambda: CladC(root, "train", period=6), ValueError, "period"),
            (lambda: CladC(root, "train", period=True), TypeError, "period"),
            (lambda: CladC(root, "test", period=0), ValueError, "period"),
            (lambda: CladC(root, "test", size=0), ValueError, "size"),
            (lambda: CladC(root, "test", transform=3), TypeError, "transform"),  # type: ignore[arg-type]
            (lambda: CladC(tmp_path / "none", "test"), MissingData, "SSLAD-2D/labeled/annotations"),
            (lambda: CladC(tmp_path / "plain", "train"), MissingData, "dates and times"),
            (lambda: CladC(tmp_path / "plain", "test"), MissingData, "instance_test.json"),
            (lambda: CladC(tmp_path / "odd", "train"), ValueError, "dates and times"),
            (lambda: CladC(tmp_path / "lost", "test")[0], MissingData, "test_1.png"),
        ]
    )
