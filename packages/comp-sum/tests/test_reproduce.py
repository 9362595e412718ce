"""The experiment through the real command line, and the larger presets on tiny data of the same form."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.comp_sum.reproduce import experiment
from offprints.comp_sum.reproduce.networks import network
from offprints.comp_sum.reproduce.training import Recipe, augmented, train
from offprints.shared.device import make_generator
from offprints.shared.experiment.launch import execute

pytest.importorskip("torchvision", reason="needs the extra claims")


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("comp-sum", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {"bound-holds", "gradient-lives", "ramp-prevents-collapse", "robust"}
    assert run.claims["bound-holds"]["holds"]
    assert run.claims["gradient-lives"]["holds"]
    assert run.figures == {"bounds", "gradients", "taus", "frontiers"}


def test_medium_on_a_few_pictures(tmp_path: Path) -> None:
    raw = tmp_path / "fashion_mnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 60), ("t10k", 20))):
        draws = np.random.default_rng(seed)
        labels = draws.permutation(np.arange(count, dtype=np.uint8) % 10)
        pictures = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = struct.pack(">iiii", 0x803, count, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, count) + labels.tobytes())
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
