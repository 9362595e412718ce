"""The experiment through the real command line, and the larger presets on tiny data of the same form."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offprints.comp_sum.reproduce import experiment
from offprints.comp_sum.reproduce.data import pictures
from offprints.comp_sum.reproduce.networks import network
from offprints.comp_sum.reproduce.training import Recipe, augmented, train
from offprints.shared.device import make_generator
from offprints.shared.experiment.launch import execute
from offprints.shared.testing.pictures import write_clothes

sets: Any = pytest.importorskip("torchvision.datasets", reason="needs the extra claims")


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("comp-sum", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {"bound-holds", "gradient-lives", "ramp-prevents-collapse", "robust"}
    assert run.claims["bound-holds"]["holds"]
    assert run.claims["gradient-lives"]["holds"]
    assert run.figures == {"bounds", "gradients", "taus", "frontiers"}


def test_medium_on_a_few_pictures(tmp_path: Path) -> None:
    write_clothes(tmp_path, 60, 20)
    medium = experiment.presets["medium"]
    tiny = replace(
        medium,
        sizes=(40, 20),
        taus=(1.0, 2.0),
        betas=(3.0,),
        nus=(0.4,),
        recipe=replace(medium.recipe, epochs=1, batch_size=20),
        probe=replace(medium.probe, steps=2),
        draws=50,
        folder=tmp_path,
    )
    outcome = execute(experiment, tiny, preset="medium", device="cpu", out=tmp_path / "runs")
    assert {claim["id"] for claim in outcome.result["claims"]} >= {"robust", "ramp-prevents-collapse"}


def write_cifar(root: Path, name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """CIFAR-10 or CIFAR-100 of random pixels as torchvision unpacks it, and what it checks the files by; the labels.

    The first pixels of a picture, red at the top left, are its label and its number.
    """
    source = {"cifar10": sets.CIFAR10, "cifar100": sets.CIFAR100}[name]
    key, files = ("labels", ("data_batch_1", "test_batch")) if name == "cifar10" else ("fine_labels", ("train", "test"))
    folder = root / name / source.base_folder
    folder.mkdir(parents=True)

    def write(file: str, content: Any) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    draws, found = np.random.default_rng(0), {}
    for split, file in zip(("train", "test"), files, strict=True):
        data = draws.integers(0, 256, (count, 3072), dtype=np.uint8)
        found[split] = draws.permutation(np.arange(count) % 10).tolist()
        data[:, 0], data[:, 1] = found[split], np.arange(count)
        monkeypatch.setattr(source, f"{split}_list", [[file, write(file, {"data": data, key: found[split]})]])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": write(source.meta["filename"], {source.meta["key"]: []})})
    return found


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_as_it_is_published(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, labels in write_cifar(tmp_path, name, 12, monkeypatch).items():
        x, y = pictures(name, split, tmp_path, False)
        assert x.shape == (12, 3, 32, 32)
        assert y.tolist() == labels
        torch.testing.assert_close(255 * x[:, 0, 0, 0], y.float())
        torch.testing.assert_close(255 * x[:, 0, 0, 1], torch.arange(12.0))


def test_svhn_is_read_as_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures are the last axis, and the digit 0 has the label 10."""
    savemat = pytest.importorskip("scipy.io").savemat
    file = tmp_path / "svhn" / "test_32x32.mat"
    file.parent.mkdir()
    labels = np.arange(1, 11, dtype=np.uint8)
    data = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
    savemat(file, {"X": data, "y": labels[:, None]})
    checksum = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(sets.SVHN, "split_list", {"test": ["", file.name, checksum]})
    x, y = pictures("svhn", "test", tmp_path, False)
    assert y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    torch.testing.assert_close(255 * x, torch.from_numpy(data).permute(3, 2, 0, 1).float())


def test_paper_preset_on_a_few_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, "cifar10", 10, monkeypatch)
    paper = experiment.presets["paper"]
    settings = replace(
        paper.paper,
        datasets=("cifar10",),
        clean="wrn10-1",
        adversarial="wrn10-1",
        clean_epochs=1,
        adversarial_epochs=1,
        clean_batch_size=8,
        batch_size=8,
        images=8,
        taus=(0.0, 1.0, 1.5),
    )
    tiny = replace(paper, folder=tmp_path, paper=settings)
    outcome = execute(experiment, tiny, preset="paper", device="cpu", out=tmp_path / "runs")
    assert [claim["id"] for claim in outcome.result["claims"]] == ["cifar10-logistic", "cifar10-robust"]
    assert all(-1 <= claim["measured"] <= 1 for claim in outcome.result["claims"])
    report = (outcome.dir / "report.md").read_text(encoding="utf-8")
    assert "cifar10: the family without an attack" in report
    rows = [line for line in report.splitlines() if line.startswith(("| TRADES", "| adv-comp-sum", "| comp-sum"))]
    assert len(rows) == 3


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 11.2), ("resnet34", 21.3), ("wrn28-10", 36.5)])
def test_networks_have_the_known_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = network(name)  # type: ignore[arg-type]
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert sum(param.numel() for param in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_augmentation_moves_and_mirrors() -> None:
    x = torch.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32).expand(200, -1, -1, -1)
    found = augmented(x, make_generator(0))
    center = found[:, :, 12:20, 12:20]  # never reached by the border
    steps = center.diff(dim=3)
    assert ((steps == 1).all((1, 2, 3)) | (steps == -1).all((1, 2, 3))).all()
    assert 60 < (steps[:, 0, 0, 0] == -1).sum() < 140
    offsets = center.amin((2, 3))[:, 0]
    assert len(offsets.unique()) > 60


def test_training_by_every_method_learns() -> None:
    y = torch.arange(130) % 2
    x = 0.3 * torch.rand(130, 64, generator=make_generator(0)) + 0.5 * y[:, None]
    for method, strength in (("comp-sum", 0.0), ("TRADES", 1.0), ("adv-comp-sum", 0.1)):
        recipe = Recipe(method=method, strength=strength, epochs=40, eps=0.005, step_size=0.002, steps=2)  # type: ignore[arg-type]
        model = train(x, y, recipe, seed=1)
        assert float((model(x).argmax(1) == y).double().mean()) > 0.9, method
