"""The experiment through the real command line, and the image sets' loaders and loops on tiny files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offprints.lr_perceptron import separate
from offprints.lr_perceptron.reproduce import setups
from offprints.lr_perceptron.reproduce.digits import few_against_all
from offprints.lr_perceptron.reproduce.images import load_images, search_unit, two_classes
from offprints.lr_perceptron.reproduce.setups import Setup, plausible_setups, samples_of
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_pictures

GENERATOR = np.random.default_rng(0)
CLASSES = GENERATOR.integers(0, 3, 90).astype(np.uint8)
IMAGES = GENERATOR.integers(0, 200, (90, 28, 28), dtype=np.uint8)
IMAGES[np.arange(90), CLASSES] = 255  # one bright row tells the class


def write_clothing(root: Path) -> Path:
    for split in ("train", "test"):
        write_pictures(root, "fashion_mnist", split, IMAGES, CLASSES)
    return root


def test_smoke(paper_run: Any, tmp_path: Path) -> None:
    run = paper_run("lr-perceptron", "--preset", "smoke", out=tmp_path)
    ids = {"large-steps", "loss-misleads", "step-size-matters-less", "normalized-imbalanced"}
    assert ids | {"worst-batch", "limit", "bounds"} == set(run.claims)
    assert all(run.claims[id]["control_name"] for id in ids)
    assert run.figures == {"trajectories", "limit", "batch_perceptrons"}


def test_image_sets(paper_run: Any, tmp_path: Path) -> None:
    data = write_clothing(tmp_path / "data")
    flags = ("--data", data, "--images.samples", "20", "--images.few", "3", "--images.max-iter", "300")
    run = paper_run("lr-perceptron", "--preset", "medium", *flags, out=tmp_path / "runs", status=(0, 1))
    assert set(run.claims) == {"images-imbalanced"}
    assert run.figures == {"images"}
    report = (run.folder / "report.md").read_text()
    assert "fashion_mnist, classes 0 and 1: updates" in report


def test_loads_the_files(tmp_path: Path) -> None:
    data = write_clothing(tmp_path)
    images, classes = load_images("fashion_mnist", (0, 2), data, download=False)
    kept = np.flatnonzero(CLASSES != 1)
    torch.testing.assert_close(images, torch.from_numpy(IMAGES[kept]).flatten(1).double() / 255)
    X, y = two_classes(images, classes, (0, 2), (3, 7), 5)
    assert sorted(y.tolist()) == [-1] * 3 + [1] * 7
    again, _ = two_classes(images, classes, (0, 2), (3, 7), 5)
    assert torch.equal(X, again)
    assert not torch.equal(X, two_classes(images, classes, (0, 2), (3, 7), 6)[0])
    with pytest.raises(ValueError, match="samples"):
        two_classes(images, classes, (0, 2), (300, 7), 5)
    with pytest.raises(MissingData, match="fashion_mnist"):
        load_images("fashion_mnist", (0, 1), tmp_path / "nowhere", download=False)


def test_readings_of_the_set_up() -> None:
    images, classes = torch.from_numpy(IMAGES).flatten(1), torch.from_numpy(CLASSES).long()
    zero, one = np.flatnonzero(CLASSES == 0), np.flatnonzero(CLASSES == 1)
    X, y = samples_of(Setup((0, 1), (4, 6)), images, classes)
    rows = np.sort(np.r_[zero[:4], one[:6]])
    torch.testing.assert_close(X, images[rows].double() / 255)
    assert y.tolist() == np.where(CLASSES[rows] == 1, 1, -1).tolist()
    both = np.sort(np.r_[zero, one])
    X, _ = samples_of(Setup((0, 1), 12, "bytes", intercept=True), images, classes)
    assert X.shape == (12, 785)
    assert torch.equal(X[:, :-1], images[both[:12]].double())
    for scaling, mean, deviation in (("centered", None, None), ("standardized", 0.0, 1.0), ("lengths", None, None)):
        X, _ = samples_of(Setup((0, 1), 12, scaling), images, classes)
        if mean is not None:
            assert float(X.mean()) == pytest.approx(mean, abs=1e-9)
            assert float(X.std(0, correction=0).max()) == pytest.approx(deviation)
        elif scaling == "lengths":
            torch.testing.assert_close(X.norm(dim=1), torch.ones(12).double())
        else:
            assert float(X.abs().max()) == 1
    assert len(samples_of(Setup((0, 1), 10**6, window=20), images, classes)[1]) == int((CLASSES[:20] < 2).sum())
    for kind in setups.PRINTED:
        found = plausible_setups(kind)
        assert len({setup.name for setup in found}) == len(found) > 500
    with pytest.raises(ValueError, match="counts"):
        samples_of(Setup((0, 1), (400, 6)), images, classes)


def test_search_finds_what_was_counted_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed counts replaced by those of one reading: that reading, and no other of these, has them."""
    data = write_clothing(tmp_path)
    images, classes = torch.from_numpy(IMAGES).flatten(1), torch.from_numpy(CLASSES).long()
    readings = [Setup((0, 1), 40), Setup((0, 2), 40), Setup((1, 2), (10, 20))]
    X, y = samples_of(readings[1], images, classes)
    keys = setups.PRINTED["balanced"]
    counts = {key: separate(X, y, method=key[0], step_size=key[1]).n_iter for key in keys}
    monkeypatch.setitem(setups.PRINTED, "balanced", counts)
    monkeypatch.setattr("offprints.lr_perceptron.reproduce.images.plausible_setups", lambda kind: readings)
    found = search_unit("balanced", 0, 3, (data, False))
    assert found["tried"] == 3
    assert readings[1].name in found["right"]
    assert found["first right"] >= 1
    assert search_unit("balanced", 0, 1, (data, False))["tried"] == 1


def test_few_against_all() -> None:
    """The counts of the full sets in the file's order with the first draw."""
    for digit, plain, normalized in ((3, 189, 50), (0, 117, 24)):
        X, y = few_against_all(digit, 10, 0, permute=False)
        assert int((y > 0).sum()) == 10
        assert separate(X, y, method="batch_perceptron").n_iter == plain
        assert separate(X, y, method="normalized_batch_perceptron").n_iter == normalized
