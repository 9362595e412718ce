"""The experiment through the command line, and the loops of the larger presets on tiny files of the same format."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.neural_collapse import NCProbe
from offprints.neural_collapse.reproduce import experiment
from offprints.neural_collapse.reproduce.direct import largest_gradient
from offprints.neural_collapse.reproduce.networks import Training, chosen_images, load_images, network, train_network
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes

CLAIMS = {"sgd-gof", "minority-collapses", "deep-ce-below-etf", "network-balanced", "network-imbalanced"}
SMALL = Training(
    source="digits",
    counts=(8, 6, 4),
    depth=2,
    bias=False,
    decay=1e-3,
    decayed=True,
    hidden=12,
    layers=2,
    features=10,
    batch_norm=False,
    steps=30,
    batch_size=0,
    lr=5e-3,
    schedule="cosine",
    evaluations=3,
)


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("neural-collapse", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {*CLAIMS, "gradient"}
    assert run.figures == {"direct", "minority", "cross-entropy", "networks"}
    assert run.claims["gradient"]["measured"] < 1e-12  # at any size of the experiment
    assert all(math.isfinite(claim["measured"]) for claim in run.claims.values())


def test_gradients_for_another_seed() -> None:
    assert largest_gradient(7) < 1e-12


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data"), 120, 20)


def test_medium_on_a_few_images(few_clothes: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="needs the extra vision")
    config = replace(
        experiment.presets["medium"],
        balanced=(6,) * 10,
        imbalanced=(2, 2, 4, 4, 6, 6, 8, 8, 10, 10),
        hidden=16,
        layers=2,
        features=16,
        steps=6,
        imbalanced_steps=6,
        batch_size=20,
        data=few_clothes,
    )
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"]: claim for claim in outcome.result["claims"]}
    assert set(claims) == {"network-balanced", "network-imbalanced"}
    assert all(claim["control_name"] == "no decay" for claim in claims.values())
    report = (outcome.dir / "report.md").read_text()
    for name in ("balanced, 1 layer, bias", "balanced, 3 layers", "imbalanced, 3 layers, no decay"):
        assert name in report


def test_images_and_class_sizes(few_clothes: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="needs the extra vision")
    X, y = load_images("fashion_mnist", few_clothes, False)
    assert X.shape == (120, 784)
    assert X.max() <= 1
    assert (X.view(-1, 28, 28).mean(2).argmax(1) == 2 * y + 4).all()
    X, y = chosen_images(replace(SMALL, source="fashion_mnist", data=few_clothes, counts=(5, 3, 2)), 0)
    assert y.bincount().tolist() == [5, 3, 2]
    with pytest.raises(MissingData, match="fashion_mnist"):
        load_images("fashion_mnist", tmp_path, False)


def test_cifar_is_normalized_as_in_the_official_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images in the files of CIFAR-10; the checksums are those of the whole set."""
    CIFAR10 = pytest.importorskip("torchvision.datasets", reason="needs the extra vision").CIFAR10
    folder = tmp_path / "cifar10" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        content = {"data": pixels.reshape(4, -1), "labels": [3, 1, 0, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({CIFAR10.meta["key"]: list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    X, y = load_images("cifar10", tmp_path, False)
    assert X.shape == (20, 3072)
    assert y[:4].tolist() == [3, 1, 0, 1]
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    expected = (torch.from_numpy(pixels).permute(0, 2, 3, 1) / 255 - mean) / std
    torch.testing.assert_close(X[:4], expected.flatten(1))


def test_networks_and_their_training() -> None:
    model = network(replace(SMALL, batch_norm=True, bias=True), 64)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "LinearHead"]
    assert NCProbe(model, "head.0", num_classes=3).statistics.dim == 10
    unit = train_network(SMALL, 0)
    assert unit["step"] == [0, 10, 20, 30]
    assert unit["nc1"][-1] < unit["nc1"][0]
    assert train_network(SMALL, 0) == unit
    assert train_network(SMALL, 1) != unit
    # Minibatches, the other schedules, heads with bias, no decay.
    others = (
        replace(SMALL, batch_size=5, schedule="step", batch_norm=True),
        replace(SMALL, counts=(6, 6, 6), bias=True, schedule="constant"),
        replace(SMALL, decayed=False),
    )
    for training in others:
        found = train_network(training, 0)
        assert 0 <= found["accuracy"] <= 1
        assert all(math.isfinite(value) for value in found["nc3_wh"])
