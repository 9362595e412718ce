"""The experiment through the real command line, and the paper's loaders and loops on tiny data of their format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from packages.cotta.tests.test_datasets import write_acdc, write_cifar_c
from PIL import Image
from torch import nn

from offprints.cotta import CORRUPTIONS, CoTTA, MultiScaleFlip
from offprints.cotta.reproduce.digits import run_source, run_stream
from offprints.cotta.reproduce.experiment import PRESETS, by_corruption
from offprints.cotta.reproduce.fashion import clothing
from offprints.cotta.reproduce.networks import ResNeXt, WideResNet
from offprints.cotta.reproduce.paper import (
    PaperSettings,
    corruption_orders,
    follow_conditions,
    run_segmentation,
    segment_batches,
    segments_of,
    source_model,
)
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_pictures
from offprints.shared.usage import UsageError


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("cotta", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {"shut_is_bn", "averaging"}
    assert run.figures == {"stream-digits-on-photographs", "gains-digits-on-photographs", "confidence", "corruptions"}


def test_paper_on_cifar(paper_run, tmp_path) -> None:
    write_cifar_c(tmp_path / "CIFAR-10-C", list(CORRUPTIONS))
    (tmp_path / "weights/cifar10").mkdir(parents=True)
    state = {f"module.{name}": value for name, value in WideResNet(10, 1).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights/cifar10/Standard.pt")
    tiny = ("--benchmarks", "cifar10-c", "--paper.data", tmp_path, "--paper.depth", 10, "--paper.widen-factor", 1)
    tiny += ("--methods", "source", "cotta", "--paper.images", 2, "--processes", 1)
    claims = paper_run("cotta", "--preset", "paper", *tiny, out=tmp_path / "runs", status=1).claims
    assert claims["cifar10-c_cotta"]["paper_value"] == 16.2
    assert "cifar10-c_beats_source" in claims
    (tmp_path / "weights/cifar10/Standard.pt").unlink()
    with pytest.raises(MissingData, match="RobustBench"):
        source_model("cifar10-c", PaperSettings(data=tmp_path))


def test_orders_and_segments() -> None:
    orders = corruption_orders()
    assert len(orders) == 10
    assert all(sorted(order) == sorted(CORRUPTIONS) for order in orders)
    assert orders[0][:2] == ["brightness", "pixelate"]
    assert segments_of("imagenet-c", 3) == [(name, 5) for name in orders[3]]
    assert len(segments_of("cifar10-c-gradual", 0)) == 131
    assert segments_of("cifar100-c", 0) == [(name, 5) for name in CORRUPTIONS]
    errors = np.array([CORRUPTIONS.index(name) for name in orders[3]], dtype=float)
    assert by_corruption(errors, segments_of("imagenet-c", 3)).tolist() == list(range(15))


def test_imagenet_batches(tmp_path) -> None:
    for label in ("n01", "n02", "n03"):
        folder = tmp_path / "ImageNet-C/fog/5" / label
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (224, 224), (i, 0, 0)).save(folder / f"{i}.png")
    settings = PaperSettings(data=tmp_path, imagenet_images=6, workers=0)
    batches = list(segment_batches("imagenet-c", "fog", 5, settings, 4))
    assert [len(batch.x) for batch in batches] == [4, 2]
    assert torch.cat([batch.y for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2]
    assert batches[0].x.shape == (4, 3, 224, 224)


def test_weights_of_the_other_networks(tmp_path) -> None:
    settings = PaperSettings(weights=tmp_path)
    for benchmark, word in (("cifar100-c", "AugMix"), ("imagenet-c", "resnet50"), ("acdc", "segformer")):
        with pytest.raises(MissingData, match=word):
            source_model(benchmark, settings)  # type: ignore[arg-type]
    (tmp_path / "cifar100").mkdir()
    file = tmp_path / "cifar100/Hendrycks2020AugMix_ResNeXt.pt"
    torch.save({"mu": torch.zeros(3), **ResNeXt().state_dict()}, file)
    assert source_model("cifar100-c", settings)(torch.rand(1, 3, 32, 32)).shape == (1, 100)
    torch.save(nn.Linear(2, 2).state_dict(), file)
    with pytest.raises(UsageError, match="does not hold"):
        source_model("cifar100-c", settings)


def acdc(root: Path) -> PaperSettings:
    for condition in ("fog", "night", "rain", "snow"):
        write_acdc(root / "ACDC", condition, 2)
    return PaperSettings(data=root, rounds=2, images=1, size=(64, 96), workers=0)


def test_rounds_over_driving_scenes(tmp_path) -> None:
    settings = acdc(tmp_path)
    net = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 19, 1))
    adapted = CoTTA(net, augmentation=MultiScaleFlip(scales=(0.5, 1.0)), seed=0)
    rounds = follow_conditions(adapted, settings, "cpu")["iou"]
    assert np.shape(rounds) == (2, 4)
    assert np.isfinite(rounds).all()
    assert (np.array(rounds) < 20).all()


def test_segformer(tmp_path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra segformer")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[4, 4, 4, 8], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
    )
    config.num_labels = 19
    net = transformers.SegformerForSemanticSegmentation(config)
    net.save_pretrained(tmp_path / "weights/segformer-b5-cityscapes")
    settings = acdc(tmp_path)
    assert np.shape(run_segmentation("cotta", 0, settings, "cpu")["iou"]) == (2, 4)


def test_medium_on_fashion_mnist(tmp_path, monkeypatch) -> None:
    pytest.importorskip("torchvision", reason="needs the extra vision")
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path))
    with pytest.raises(MissingData, match="fashion_mnist"):
        clothing()
    pictures = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    for split in ("train", "test"):
        write_pictures(tmp_path, "fashion_mnist", split, pictures, np.arange(60) % 10)
    images, labels = clothing()
    assert images.shape == (120, 1, 32, 32)
    torch.testing.assert_close(images[0, 0, 2:30, 2:30], torch.from_numpy(pictures[0]) / 255)
    assert len(labels) == 120
    medium = PRESETS["medium"].digits
    adaptation = replace(medium.adaptation, num_augmentations=2, batch_size=10)
    tiny = replace(medium, train_images=50, held_out=10, test_images=20, epochs=1, corruptions=2, adaptation=adaptation)
    source = run_source(0, tiny, "cpu")
    assert 0 <= source["clean_open"] <= 1
    errors = {}
    for method in ("bn", "shut", "cotta", "single", "copied"):
        found = run_stream(0, tiny, source, method, "cpu")
        assert found["errors"].shape == (1, 2)
        errors[method] = found["errors"]
    assert torch.equal(errors["bn"], errors["shut"]), "with the gate shut nothing is learned"
