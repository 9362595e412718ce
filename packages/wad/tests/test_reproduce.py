"""The experiment through the command line; the larger presets' loaders and loops on tiny files of the same form."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offprints.shared.experiment.launch import execute
from offprints.shared.testing.pictures import write_clothes
from offprints.shared.testing.runs import interrupted
from offprints.wad.reproduce import experiment
from offprints.wad.reproduce.digits import DigitsSettings, Shift, draw
from offprints.wad.reproduce.experiment import Config
from offprints.wad.reproduce.networks import resnet18
from offprints.wad.reproduce.paper import CIFAR100_TARGETS, PaperSettings, load
from offprints.wad.reproduce.students import SUPERVISED, TRAINERS, UNWEIGHTED, WAD, moving, train_student


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("wad", "--preset", "smoke", out=tmp_path, status=(0, 1))
    assert set(run.claims) == {"auroc", "invasion", "pseudo-labeling"}
    assert run.figures == {"weights", "accuracy", "errors"}
    assert all(claim["control"] is not None for claim in run.claims.values())
    assert run.claims["invasion"]["control"] == pytest.approx(0.6, abs=0.1)


def test_draws() -> None:
    """Other shares of unknown images change the pool alone; no image is in two parts."""
    few, many = (draw(DigitsSettings(), mismatch, 3) for mismatch in (0.2, 0.6))
    assert torch.equal(few.labeled, many.labeled)
    assert torch.equal(few.test, many.test)
    for rows, share in ((few, 0.2), (many, 0.6)):
        truth = rows.truth[rows.unlabeled]
        assert (truth < 0).double().mean() == pytest.approx(share, abs=0.002)
        assert torch.bincount(rows.truth[rows.labeled]).tolist() == [4] * 5
        assert rows.truth[rows.test].min() == 0
        every = torch.cat([rows.labeled, rows.unlabeled, rows.test])
        assert len(every.unique()) == len(every)


def test_shift() -> None:
    torch.manual_seed(0)
    flat = torch.arange(1.0, 17).repeat(200, 1)
    shift = Shift()
    moved = shift(flat).view(200, 4, 4)
    assert len(moved.unique(dim=0)) == 9
    assert (moved[:, 1:3, 1:3] > 0).all()
    assert torch.equal(shift.eval()(flat), flat)


def test_methods_differ_in_one_thing() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 16, generator=g), torch.arange(12) % 3
    pool, truth = torch.rand(60, 16, generator=g), torch.arange(60) % 4 - 1

    def trained(method: str) -> dict:
        new = lambda: torch.nn.Linear(16, 3)  # noqa: E731
        sets = (x, pool), (x, y), (pool, truth), (x, y)
        return train_student(method, new, *sets, seed=0, rounds=3, steps_per_round=3)

    found = {method: trained(method) for method in TRAINERS}
    assert found[SUPERVISED]["effective weight"] == found[SUPERVISED]["invasion"] == [0.0] * 3
    assert found[UNWEIGHTED]["effective weight"] == [1.0] * 3
    assert found[UNWEIGHTED]["invasion"] == pytest.approx([0.25] * 3)
    assert found["weights permuted"]["effective weight"] == pytest.approx(found[WAD]["effective weight"])
    assert found["weights permuted"]["invasion"] != found[WAD]["invasion"]
    assert found[WAD]["invasion"][0] == found[moving(WAD)]["invasion"][0]


def test_medium_on_tiny_files(paper_run, tmp_path) -> None:
    write_clothes(tmp_path / "data", 400, 400, noise=80)
    options = {
        "mismatches": ("0.6",), "labeled": ("10",), "known": ("50",), "test": ("40",), "teacher-epochs": ("1",),
        "teacher-width": ("2",), "student-width": ("2",), "rounds": ("2",), "steps": ("2",), "dim": ("4",),
    }  # fmt: skip
    flags = [word for name, values in options.items() for word in (f"--medium.{name}", *values)]
    run = paper_run(
        "wad", "--preset", "medium", *flags, "--data", tmp_path / "data", out=tmp_path / "runs", status=(0, 1)
    )
    assert set(run.claims) == {f"fashion-pseudo-labeling-{teacher}" for teacher in ("simclr", "spectral")}
    assert run.figures == {f"{name}_fashionmnist" for name in ("accuracy", "weights", "errors")}


def write_cifar(root: Path, per_class: int = 12) -> None:
    """Random images in the files of CIFAR-10 and CIFAR-100 (whose checksums torchvision wants to see)."""
    rng = np.random.default_rng(0)
    for name, folder, files, key, classes in (
        ("cifar10", "cifar-10-batches-py", {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
         "labels", 10),
        ("cifar100", "cifar-100-python", {"train": ["train"], "test": ["test"]}, "fine_labels", 100),
    ):  # fmt: skip
        target = root / name / folder
        target.mkdir(parents=True)
        for names in files.values():
            every = np.arange(per_class * classes) % classes
            for file, part in zip(names, np.array_split(every, len(names)), strict=True):
                labels = part.tolist()
                pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
                (target / file).write_bytes(pickle.dumps({"data": pixels, key: labels}))
        meta, words = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
        (target / meta).write_bytes(pickle.dumps({words: [str(k) for k in range(classes)]}))


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of tiny data sets that torchvision takes for whole ones."""
    from torchvision.datasets import CIFAR10, CIFAR100

    for kind in (CIFAR10, CIFAR100):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
        monkeypatch.setitem(kind.meta, "md5", None)
    write_cifar(tmp_path / "data")
    return tmp_path / "data"


TINY = PaperSettings(
    sets=("cifar10",), mismatches=(0.5,), labeled=4, teacher_epochs=2, teacher_batch=10, teacher_lr=0.1,
    warmup_epochs=1, teacher_width=2, student_depth=10, student_widen=1, rounds=2, steps=1, every=1,
)  # fmt: skip


def test_benchmarks_of_the_paper(cifar: Path) -> None:
    for name, known in (("cifar10", 2), ("cifar100", 20)):
        settings = PaperSettings(labeled=40) if name == "cifar100" else TINY
        found = load(name, 0.5, settings, cifar, False)  # type: ignore[arg-type]
        assert found.labeled.shape[1:] == (3, 32, 32)
        assert found.labels.unique().tolist() == list(range(known))
        assert len(found.unlabeled) == len(found.truth) == 2 * (12 * known - settings.labeled)
        assert int((found.truth < 0).sum()) == len(found.truth) // 2
        assert len(found.test) == 12 * known
    assert len(set(CIFAR100_TARGETS)) == 20


def test_paper_preset_is_taken_up_again(cifar: Path, tmp_path: Path) -> None:
    """Interrupted in the teacher's training and resumed, it ends as if it had not been."""
    config = Config(paper=TINY, data=cifar)
    options: dict[str, Any] = {"preset": "paper", "device": "cpu"}
    whole = execute(experiment, config, out=tmp_path / "whole", **options).result
    with pytest.raises(KeyboardInterrupt) as stop:
        execute(interrupted(experiment, checkpoints=1), config, out=tmp_path / "parts", **options)
    resumed = execute(experiment, config, resume=stop.value.args[0], **options).result
    assert resumed["claims"] == whole["claims"]
    assert len(whole["claims"]) == 1


def test_resnet18() -> None:
    network, width = resnet18(3)
    assert width == 512
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(11.17e6, rel=0.001)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 512)
