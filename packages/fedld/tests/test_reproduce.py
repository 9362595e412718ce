"""The experiment through the real command line; the larger presets on tiny data in the real formats."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offprints.fedld.reproduce.digits import METHODS
from offprints.fedld.reproduce.experiment import Config, experiment
from offprints.fedld.reproduce.medium import METHODS as OF_MEDIUM
from offprints.fedld.reproduce.medium import MediumSettings
from offprints.fedld.reproduce.paper import PaperSettings, load_collection
from offprints.shared.experiment.launch import Outcome, execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes
from offprints.shared.testing.runs import interrupted

NOTHING = replace(experiment.presets["quick"].digits, draws=0)


def launch(config: Config, out: Path, **options: object) -> Outcome:
    return execute(experiment, config, preset="paper", device="cpu", out=out, **options)  # type: ignore[arg-type]


def test_smoke(paper_run, tmp_path: Path) -> None:
    run = paper_run("fedld", "--preset", "smoke", out=tmp_path, status=(0, 1))
    assert set(run.claims) == {
        "margin-accuracy",
        "margin-shift",
        "bad-client",
        "telescopes",
        "closed-form",
        "rejections",
    }
    for name in ("telescopes", "closed-form", "rejections"):  # exact at any size
        assert run.claims[name]["holds"], run.claims[name]
    assert run.figures == {"terms", "accuracy", "clients"}


def test_medium_on_tiny_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFPRINTS_WORKERS", "1")
    settings = MediumSettings(alphas=(0.5,), clients=3, rounds=2, hidden=4, eval_every=1)
    config = Config(digits=NOTHING, medium=settings, data=write_clothes(tmp_path, 400, 60))
    outcome = launch(config, tmp_path / "runs")
    result = outcome.result
    assert [claim["id"] for claim in result["claims"]] == ["margin-accuracy-0.5"]
    assert len(result["values"]) == len(OF_MEDIUM)
    assert all(0 <= value["value"] <= 100 for value in result["values"])
    assert {Path(figure).stem for figure in result["figures"]} == {"accuracy_0.5", "clients_0.5"}


def test_methods_of_the_tables_are_all_of_the_packages() -> None:
    assert {options["method"] for options in METHODS.values()} == {"fedld", "fedavg", "fedprox", "fedgh", "local"}
    assert {options["method"] for options in OF_MEDIUM.values()} > {"fedbn", "fedld", "local"}


# ---- the paper's data ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Retina with two clients in its first split, COVID-FL with three; pictures and arrays."""
    rng = np.random.default_rng(0)
    for name, clients, classes in (("retina", 2, 2), ("covid-fl", 3, 3)):
        folder = tmp_path / name
        for part in ("train", "test", "split_1"):
            (folder / part).mkdir(parents=True)
        lines, number = [], 0
        for client in (*range(1, clients + 1), "test"):
            names = []
            for _ in range(3):
                class_, number = number % classes, number + 1
                pixels = (rng.integers(0, 60, (20, 24, 3)) + 90 * (np.arange(3) == class_)).astype(np.uint8)
                file = f"{number}.npy" if number % 2 else f"{number}.png"
                path = folder / ("test" if client == "test" else "train") / file
                np.save(path, pixels) if number % 2 else Image.fromarray(pixels).save(path)
                names.append(file)
                lines.append(f"{file},{class_}.0")
            target = folder / "test.csv" if client == "test" else folder / "split_1" / f"client_{client}.csv"
            target.write_text("\n".join(names) + "\n")
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def tiny(folders: Path, *, rounds: int = 2) -> Config:
    paper = PaperSettings(
        collections=("retina-1",), rounds=rounds, batch_size=3, image_size=32, pretrained=False, every=1
    )
    return Config(digits=NOTHING, paper=paper, data=folders)


def test_collections_are_read(folders: Path) -> None:
    clients, test, classes = load_collection("covid-fl", folders, 16)
    assert (len(clients), len(test), classes) == (3, 3, 3)
    image, label = clients[0][1]
    assert image.shape == (3, 16, 16)
    assert int(label) == 1
    assert image[1].mean() > image[0].mean()  # the class colors a channel, as it does in the file
    assert (len(load_collection("retina-1", folders, 16)[0]), load_collection("retina-1", folders, 16)[2]) == (2, 2)
    with pytest.raises(FileNotFoundError, match="split_2"):
        load_collection("retina-2", folders, 16)
    (folders / "retina" / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.csv"):
        load_collection("retina-1", folders, 16)


def test_paper_resumes_to_the_same_result(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network of ResNet's kind but of one layer: what is tried is the loop."""
    from torch import nn

    from offprints.fedld.reproduce import paper

    def small(classes: int, *, pretrained: bool, seed: int) -> nn.Module:
        import torch

        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
        )

    monkeypatch.setattr(paper, "network", small)
    whole = launch(tiny(folders), tmp_path / "whole").result
    with pytest.raises(KeyboardInterrupt):
        execute(
            interrupted(experiment, checkpoints=3), tiny(folders), preset="paper", device="cpu", out=tmp_path / "cut"
        )
    (folder,) = (tmp_path / "cut" / "fedld").iterdir()
    resumed = execute(
        experiment, tiny(folders), preset="paper", device="cpu", out=tmp_path / "cut", resume=folder
    ).result
    assert [claim["measured"] for claim in resumed["claims"]] == [claim["measured"] for claim in whole["claims"]]
    assert resumed["values"] == whole["values"]
    assert len(whole["values"]) == 5


def test_network_is_resnet50_with_a_new_head() -> None:
    from offprints.fedld.reproduce.paper import network

    model = network(3, pretrained=False, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 23_508_032 + 3 * 2048 + 3


def test_missing_data_and_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingData, match=r"labels\.csv"):
        launch(tiny(tmp_path), tmp_path / "runs")
    config = replace(tiny(tmp_path), paper=PaperSettings(collections=("covid-fl",)))
    with pytest.raises(MissingData, match="--download"):
        launch(config, tmp_path / "runs")
