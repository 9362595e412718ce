"""The experiment through the real command line; the larger presets on tiny data of the real formats."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes
from offprints.shared.testing.runs import interrupted
from offprints.shared.usage import UsageError
from offprints.shrinkmatch.reproduce.clothing import MediumSettings, clothing
from offprints.shrinkmatch.reproduce.experiment import Config, experiment
from offprints.shrinkmatch.reproduce.paper import PaperSettings, WholeRange, load, network, transforms
from offprints.shrinkmatch.reproduce.training import Recipe, in_quarter, right_share

TINY = Recipe(steps=4, batch_size=4, mu=2)


def test_smoke(paper_run, tmp_path: Path) -> None:
    run = paper_run("shrinkmatch", "--preset", "smoke", out=tmp_path, status=(0, 1))
    assert set(run.claims) == {"utilization", "right", "own", "fixmatch", "exact"}
    assert run.claims["exact"]["holds"]
    assert run.figures == {"utilization"}


def test_what_is_counted() -> None:
    """Certain, rescued, right of each: four steps, of which the last three count."""
    counts = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.2, 0.5, 0.1, 0.4], [0.4, 0.5, 0.4, 0.1], [0.6, 0.2, 0.4, 0.1]])
    assert [in_quarter(counts, q, rescued=False) for q in range(4)] == pytest.approx([1.0, 0.2, 0.4, 0.6])
    assert [in_quarter(counts, q, rescued=True) for q in range(4)] == pytest.approx([1.0, 0.7, 0.9, 0.8])
    assert right_share(counts, rescued=True) == pytest.approx(0.5)
    assert right_share(counts, rescued=False) == pytest.approx(0.75)


# ---- Fashion-MNIST ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data"), 200, 200, noise=40)


def test_medium_and_its_resume(few_clothes: Path, tmp_path: Path) -> None:
    """Killed after the second of six checkpoints, and continued: the same result."""
    medium = MediumSettings(labels=(4,), side=7, test_images=50, recipe=TINY, every=2)
    config = Config(medium=medium, data=few_clothes)
    whole = execute(experiment, config, preset="medium", device="cpu", out=tmp_path / "whole")
    assert {claim["id"] for claim in whole.result["claims"]} == {"utilization-4"}
    assert {value["id"] for value in whole.result["values"]} == {"fixmatch-4", "fixmatch-da-4", "accuracy-4"}
    with pytest.raises(KeyboardInterrupt):
        execute(interrupted(experiment, checkpoints=2), config, preset="medium", device="cpu", out=tmp_path / "killed")
    folder = next((tmp_path / "killed" / "shrinkmatch").iterdir())
    resumed = execute(experiment, config, preset="medium", device="cpu", out=tmp_path, resume=folder)
    assert resumed.result["claims"] == whole.result["claims"]
    assert resumed.result["values"] == whole.result["values"]
    assert (folder / "metrics.jsonl").read_text() == (whole.dir / "metrics.jsonl").read_text()


def test_clothing(few_clothes: Path, tmp_path: Path) -> None:
    images, labels = clothing(few_clothes, "test", False, 14)
    assert images.shape == (200, 1, 14, 14)
    assert torch.equal(images[:, 0, :, 0].argmax(1), labels + 2)  # the bright row, halved
    with pytest.raises(MissingData, match="fashion_mnist"):
        clothing(tmp_path, "test", False, 14)


# ---- the paper's sets ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's reader on small files of its format, whose checksums take the place of the real ones."""
    import hashlib

    from torchvision.datasets import CIFAR10

    draws = np.random.default_rng(0)
    folder = tmp_path / "cifar10" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for split, file, count in (("train", "data_batch_1", 60), ("test", "test_batch", 20)):
        labels = (np.arange(count) % 10).tolist()
        data = draws.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": data, "labels": labels}))
        digest = hashlib.md5((folder / file).read_bytes()).hexdigest()
        monkeypatch.setattr(CIFAR10, f"{split}_list", [[file, digest]])
    meta = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": hashlib.md5(meta).hexdigest()})
    return tmp_path


SMALL = PaperSettings(
    sets=("cifar10",), labels=(10,), steps=3, batch_size=4, mu=2, every=2, depth=10, widen=1, workers=0
)


def test_paper_loop_and_its_resume(tiny_cifar: Path, tmp_path: Path) -> None:
    config = Config(paper=SMALL, data=tiny_cifar)
    whole = execute(experiment, config, preset="paper", device="cpu", out=tmp_path / "whole")
    assert {value["id"] for value in whole.result["values"]} == {"cifar10-10", "cifar10-10-fixmatch"}
    with pytest.raises(KeyboardInterrupt):
        execute(interrupted(experiment, checkpoints=5), config, preset="paper", device="cpu", out=tmp_path / "killed")
    folder = next((tmp_path / "killed" / "shrinkmatch").iterdir())
    resumed = execute(experiment, config, preset="paper", device="cpu", out=tmp_path, resume=folder)
    assert resumed.result["values"] == whole.result["values"]
    assert (folder / "metrics.jsonl").read_text() == (whole.dir / "metrics.jsonl").read_text()


def two_ranks(rank: int, data: Path, out: Path) -> tuple[list, list[float]]:
    """torchvision's checks of the files are this process's own: the reader is replaced by plain arrays."""
    from offprints.shrinkmatch.reproduce import paper

    draws = np.random.default_rng(0)
    pictures, labels = draws.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), np.arange(60) % 10
    paper.load = lambda *_: dict.fromkeys(("train", "test", "unlabeled"), (pictures, labels))
    config = Config(paper=replace(SMALL, steps=2), data=data)
    outcome = execute(experiment, config, preset="paper", device="cpu", out=out)
    return outcome.result["values"], [claim["measured"] for claim in outcome.result["claims"]]


def test_two_processes(two_processes, tmp_path: Path) -> None:
    first, second = two_processes(two_ranks, tmp_path, tmp_path / "out", timeout=300)
    assert first == second
    assert len(list((tmp_path / "out" / "shrinkmatch").iterdir())) == 1


def test_cifar_arrays(tiny_cifar: Path) -> None:
    parts = load("cifar10", tiny_cifar, False)
    assert parts["train"][0].shape == (60, 32, 32, 3)
    assert parts["train"][0] is parts["unlabeled"][0]
    assert parts["test"][1].tolist() == [*range(10)] * 2
    with pytest.raises(MissingData, match="cifar100"):
        load("cifar100", tiny_cifar, False)


def test_sets_with_more_unlabeled_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """STL-10's unlabeled pictures and SVHN's extra ones go beside the labeled ones, channels last."""
    from types import SimpleNamespace

    from offprints.shrinkmatch.reproduce import paper

    def found(name: str, split: str, **_: object) -> SimpleNamespace:
        count = {"train": 4, "test": 2, "unlabeled": 6, "extra": 3}[split]
        labels = np.full(count, -1 if split == "unlabeled" else 1)
        return SimpleNamespace(data=np.zeros((count, 3, 8, 9), np.uint8), labels=labels)

    monkeypatch.setattr(paper, "vision_dataset", found)
    sizes = {name: {key: len(x) for key, (x, _) in load(name, None, False).items()} for name in ("stl10", "svhn")}
    assert sizes == {
        "stl10": {"train": 4, "test": 2, "unlabeled": 10},
        "svhn": {"train": 7, "test": 2, "unlabeled": 7},
    }
    assert load("stl10", None, False)["train"][0].shape == (4, 8, 9, 3)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "svhn"])
def test_views_and_networks(name) -> None:
    side = 96 if name == "stl10" else 32
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    for transform in transforms(name):
        assert transform(picture).shape == (3, side, side)
    whole = network(name, PaperSettings(depth=10))
    assert whole.out_dim == {"cifar10": 128, "cifar100": 512, "stl10": 256, "svhn": 128}[name]


def test_strong_views_of_stl10_leave_out_up_to_a_quarter() -> None:
    picture = torch.zeros(3, 40, 40, dtype=torch.uint8)
    torch.manual_seed(0)
    areas = [int((WholeRange()(picture) == 125)[0].sum()) for _ in range(60)]
    assert max(areas) > 200
    assert max(areas) <= 400


def test_float16_is_refused(tiny_cifar: Path, tmp_path: Path) -> None:
    config = Config(paper=SMALL, data=tiny_cifar)
    with pytest.raises(UsageError, match="precision"):
        execute(experiment, config, preset="paper", device="cpu", precision="float16", out=tmp_path)
