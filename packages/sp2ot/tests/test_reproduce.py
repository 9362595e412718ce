"""The experiment through the real command line, and the paper's training on tiny data of the real formats."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.shared.experiment.launch import Outcome, execute
from offprints.shared.testing.runs import interrupted
from offprints.shared.usage import UsageError
from offprints.sp2ot import long_tailed_counts
from offprints.sp2ot.reproduce.experiment import Config, experiment
from offprints.sp2ot.reproduce.images import Views, evaluation_transform, load_images, training_transform

TINY = replace(
    experiment.presets["paper"],
    backbone="test_vit",
    pretrained=False,
    image_size=32,
    epochs=2,
    batch_size=6,
    n_heads=2,
    n_neighbors=3,
    semantic_weight=2.0,
    workers=0,
)


def test_smoke(paper_run, tmp_path: Path) -> None:
    run = paper_run("sp2ot", "--preset", "smoke", out=tmp_path)
    claims = run.claims
    assert set(claims) == {
        "semantic-labels",
        "exact",
        "imbalance",
        "p2ot-clusters",
    }
    assert claims["exact"]["holds"], claims["exact"]  # exact at any size
    assert run.figures == {"schedule", "pseudo_labels", "sizes_pixels", "groups_pixels"}


# ---- the paper's data --------------------------------------------------------------------------------------------


def picture(rng: np.random.Generator, class_: int, side: int = 36) -> np.ndarray:
    pixels = rng.integers(0, 60, (side, side, 3))
    pixels[:, :, class_ % 3] += 120
    return pixels.astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """inature100 with three classes of 4, 9 and 6 training images, two test images each."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (4, 9, 6)), ("test", (2, 2, 2))):
        for class_, count in enumerate(counts):
            folder = tmp_path / "inature100" / split / f"species_{class_}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(rng, class_)).save(folder / f"{i}.png")
    return tmp_path


def launch(config: Config, out: Path, **options: object) -> Outcome:
    return execute(experiment, config, preset="paper", device="cpu", out=out, **options)  # type: ignore[arg-type]


def test_folders_are_ordered_by_size(folders: Path) -> None:
    images = load_images("inature100", root=folders, ratio=0.01, download=False)
    assert images.num_classes == 3
    assert images.train_labels.bincount().tolist() == [9, 6, 4]
    assert images.test_labels.bincount().tolist() == [2, 2, 2]
    largest = images.train_index[images.train_labels == 0]
    assert all("species_1" in images.train.samples[i][0] for i in largest)
    views, number = Views(images.train, largest, training_transform(32), 2)[3]
    assert views.shape == (2, 3, 32, 32)
    assert not torch.equal(*views)
    assert number == 3
    once = Views(images.train, largest, evaluation_transform(32), 1)
    assert torch.equal(once[3][0], once[3][0])


def test_test_classes_must_be_known(folders: Path) -> None:
    extra = folders / "inature100" / "test" / "unknown"
    extra.mkdir()
    Image.new("RGB", (8, 8)).save(extra / "0.png")
    with pytest.raises(ValueError, match="unknown"):
        load_images("inature100", root=folders, ratio=0.01, download=False)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="imagenet-r/train"):
        load_images("imagenet-r", root=tmp_path, ratio=0.01, download=False)


def test_cifar100_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's reader on small files of its format, whose checksums take the place of the real ones."""
    from torchvision.datasets import CIFAR100

    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar100" / CIFAR100.base_folder
    folder.mkdir(parents=True)
    for split, per_class in (("train", 5), ("test", 1)):
        labels = np.repeat(np.arange(100), per_class).tolist()
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        (folder / split).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}))
        digest = hashlib.md5((folder / split).read_bytes()).hexdigest()
        monkeypatch.setattr(CIFAR100, f"{split}_list", [[split, digest]])
    meta = pickle.dumps({"fine_label_names": [str(i) for i in range(100)]})
    (folder / "meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": hashlib.md5(meta).hexdigest()})
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path))
    images = load_images("cifar100", root=None, ratio=0.2, download=False)
    assert images.train_labels.bincount().tolist() == long_tailed_counts(5, 100, ratio=0.2)
    assert len(images.test_labels) == 100
    assert Views(images.train, images.train_index, evaluation_transform(32), 1)[0][0].shape == (1, 3, 32, 32)


# ---- the paper's training --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:semantic", "ignore:partial", "ignore:Number of distinct clusters")
def test_training_and_resume(folders: Path, tmp_path: Path) -> None:
    """Killed after the third of six epochs (three methods of two), and continued: the same result."""
    config = replace(TINY, collections=("inature100",), data=folders)
    whole = launch(config, tmp_path / "whole")
    assert {claim["id"] for claim in whole.result["claims"]} == {"inature100-train", "inature100-test"}
    mortal = interrupted(experiment, checkpoints=3)
    with pytest.raises(KeyboardInterrupt):
        execute(mortal, config, preset="paper", device="cpu", out=tmp_path / "killed")
    folder = next((tmp_path / "killed" / "sp2ot").iterdir())
    resumed = launch(config, tmp_path, resume=folder)
    assert resumed.result["claims"] == whole.result["claims"]
    assert (folder / "metrics.jsonl").read_text() == (whole.dir / "metrics.jsonl").read_text()
    assert (folder / "figures/groups_inature100-test.png").exists()


def test_weights_are_not_fetched_unasked(folders: Path, tmp_path: Path) -> None:
    config = replace(TINY, collections=("inature100",), data=folders, pretrained=True)
    with pytest.raises(UsageError, match="--weights"):
        launch(config, tmp_path)


def two_ranks(rank: int, folders: Path, out: Path) -> dict:
    import warnings

    warnings.simplefilter("ignore")
    config = replace(TINY, collections=("inature100",), data=folders, n_heads=1, epochs=1)
    return launch(config, out).result["claims"][0]


def test_two_processes(two_processes, folders: Path, tmp_path: Path) -> None:
    first, second = two_processes(two_ranks, folders, tmp_path, timeout=400)
    assert first == second
    assert len(list((tmp_path / "sp2ot").iterdir())) == 1
