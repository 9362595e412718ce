"""The experiment through the real command line; the medium and the paper preset on tiny data in their formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.protogcd.reproduce import experiment
from offprints.protogcd.reproduce.clothing import view
from offprints.protogcd.reproduce.digits import problem
from offprints.protogcd.reproduce.paper import PaperSettings, load_images
from offprints.protogcd.reproduce.photos import pixels
from offprints.protogcd.reproduce.training import HARD, OURS, SIMGCD, TrainingSettings, criterion, train
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes
from offprints.shared.usage import UsageError

pytest.importorskip("torchvision", reason="needs the extra vision")
SHORT = TrainingSettings(epochs=2, batch_size=64, widths=(16, 8))


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("protogcd", "--preset", "smoke", out=tmp_path)
    assert run.result["preset"] == "smoke"
    assert {"kmeans", "labels", "separation", "hard", "simplex"} <= set(run.claims)
    assert run.claims["hard"]["holds"]
    assert run.claims["simplex"]["holds"]
    assert run.figures == {"accuracies", "ramp", "prototypes", "count", "outliers"}


def test_problem() -> None:
    x, true, given = problem(3)
    known = given >= 0
    assert x.shape == (1797, 64)
    assert torch.equal(true[known], given[known])
    assert set(given[known].tolist()) == set(range(5))
    assert int(known.sum()) == int((true < 5).sum()) // 2
    assert float(x.square().mean()) == pytest.approx(1.0, rel=1e-5)
    assert not torch.equal(problem(4)[1], true)


def test_what_is_switched_off() -> None:
    whole = TrainingSettings(epochs=20)
    assert [criterion(OURS, whole, 0).ratio(epoch) for epoch in (0, 9, 19)] == [0.0, 1.0, 1.0]
    assert {criterion(HARD, whole, 0).ratio(epoch) for epoch in range(20)} == {1.0}
    assert {criterion(SIMGCD, whole, 0).ratio(epoch) for epoch in range(20)} == {0.0}
    sharpened = [criterion(SIMGCD, whole, epoch).teacher_temperature for epoch in (0, 3, 19)]
    assert sharpened == pytest.approx([0.07, 0.04, 0.04])
    assert criterion(SIMGCD, whole, 0).separation_weight == 0.0


def test_training_is_measured_on_unlabeled_samples() -> None:
    x, true, given = problem(0)
    x, true, given = x[:200], true[:200], given[:200]
    torch.manual_seed(0)
    found = train(OURS, x, given, true, 5, 10, SHORT, x[:7])
    unlabeled = given < 0
    share = float((true[unlabeled] < 5).float().mean())
    assert found["all"] == pytest.approx(share * found["old"] + (1 - share) * found["new"])
    assert found["curve"][-1, 1] == found["all"]
    assert 0 <= found["named"] <= 1
    assert found["logits"].shape == (int(unlabeled.sum()), 10)
    assert found["outliers"].shape == (7, 10)
    torch.testing.assert_close(found["similarity"].diagonal(), torch.ones(10))


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, told by the rows that are bright; photographs too."""
    folder = write_clothes(tmp_path_factory.mktemp("data"), 160, 160, noise=40)
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(160) % 10)
    photos = rng.integers(0, 40, (160, 32, 32, 3), dtype=np.uint8)
    photos[np.arange(160), 2 * labels + 4] += 200
    np.savez(folder / "cifar10_subset.npz", x_train=photos, y_train=labels)
    return folder


def test_medium_on_a_few_images(few_clothes: Path, tmp_path: Path) -> None:
    preset = experiment.presets["medium"]
    tiny = replace(
        preset.medium, splits=1, images=60, photos=50, network_images=100, network_steps=4, batch_size=8, width=4,
        dim=8, every=2, max_classes=6, training=replace(SHORT, batch_size=30),
    )  # fmt: skip
    config = replace(preset, medium=tiny, data=few_clothes)
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"]: claim for claim in outcome.result["claims"]}
    assert set(claims) == {"fashion-kmeans"}
    assert claims["fashion-kmeans"]["control_name"] == "no entropy term"
    assert {Path(figure).stem for figure in outcome.result["figures"]} == {"accuracies_fashion", "count"}
    report = (outcome.dir / "report.md").read_text()
    assert all(name in report for name in ("k-means", "SimGCD-like", "pixels", "CIFAR-10"))
    shown = {value["id"] for value in outcome.result["values"]}
    assert {"photos-0", "photos-1", "fashion-pixels", "fashion-count"} <= shown


def test_photos(few_clothes: Path, tmp_path: Path) -> None:
    x, true, given = pixels(40, few_clothes, False, 0)
    assert x.shape == (40, 3072)
    assert float(x.square().mean()) == pytest.approx(1.0, rel=1e-5)
    known = given >= 0
    assert torch.equal(true[known], given[known])
    assert int(known.sum()) == int((true < 5).sum()) // 2
    brightest = x.view(40, 32, 96).mean(2).argmax(1)  # the row that tells the class
    assert len(set(zip(brightest.tolist(), true.tolist(), strict=True))) == len(set(true.tolist()))
    with pytest.raises(MissingData, match="cifar10"):
        pixels(40, tmp_path, False, 0)


def test_views_are_crops_of_the_image() -> None:
    torch.manual_seed(0)
    made = view(torch.full((64, 1, 28, 28), 0.5))
    levels = made.mean((1, 2, 3))
    assert 0.29 < float(levels.min()) < float(levels.max()) < 0.71
    assert float(made.flatten(1).std(1).max()) < 0.06  # no border is seen


@pytest.fixture(scope="module")
def few_birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of pictures, and which of them are old: not the first ones."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for number, name in enumerate(("auk", "bee-eater", "crow")):
            place = folder / "cub" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(place / f"{i}.png")
    (folder / "cub" / "old_classes.txt").write_text("crow\nbee-eater\n")
    return folder


TINY = PaperSettings(
    dataset="cub", backbone="vit_tiny_patch16_224", pretrained=False, image_size=32, hidden=16, epochs=2, batch_size=6,
    workers=0,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_paper_on_a_few_images(few_birds: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    config = replace(experiment.presets["paper"], paper=TINY, data=few_birds)
    outcome = execute(experiment, config, preset="paper", device="cpu", out=tmp_path)
    values = {value["id"]: value["value"] for value in outcome.result["values"]}
    assert set(values) == {f"{images}-{score}" for images in ("unlabeled", "test") for score in ("all", "old", "new")}
    # 8 of 16 pictures of old classes are unlabeled, and all 8 of the new class; 6 and 3 are there to test.
    assert values["unlabeled-all"] == pytest.approx((values["unlabeled-old"] + values["unlabeled-new"]) / 2)
    assert values["test-all"] == pytest.approx((2 * values["test-old"] + values["test-new"]) / 3)
    log = (outcome.dir / "metrics.jsonl").read_text().splitlines()
    assert len(log) == 2


def test_old_classes_come_first(few_birds: Path) -> None:
    images = load_images(TINY, few_birds, False)
    assert (images.old, images.classes) == (2, 3)
    names = np.array(images.train.classes)[images.train.targets]
    assert {(name, int(label)) for name, label in zip(names, images.train_labels, strict=True)} == {
        ("crow", 0), ("bee-eater", 1), ("auk", 2),
    }  # fmt: skip
    assert load_images(replace(TINY, old_classes=1), few_birds, False).old == 1
    with pytest.raises(UsageError, match="old-classes"):
        load_images(replace(TINY, old_classes=3), few_birds, False)


def test_missing_data_and_weights(few_birds: Path, few_clothes: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="scars/train"):
        load_images(replace(TINY, dataset="scars"), few_birds, False)
    with pytest.raises(MissingData, match="cifar100"):
        load_images(PaperSettings(dataset="cifar100"), tmp_path, False)
    (few_birds / "cub" / "old_classes.txt").rename(few_birds / "listed")
    try:
        with pytest.raises(UsageError, match="old_classes"):
            load_images(TINY, few_birds, False)
    finally:
        (few_birds / "listed").rename(few_birds / "cub" / "old_classes.txt")


def test_weights_are_not_fetched_unasked(few_birds: Path, tmp_path: Path) -> None:
    config = replace(experiment.presets["paper"], paper=replace(TINY, pretrained=True), data=few_birds)
    with pytest.raises(Exception, match="--download") as error:
        execute(experiment, config, preset="paper", device="cpu", out=tmp_path)
    assert isinstance(error.value, UsageError) or isinstance(error.value.__cause__, UsageError)
