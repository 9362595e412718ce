"""The experiment through the command line, and the paper's preset on tiny data of the same form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.dis_vs_gen.reproduce.backbones import image_features, image_transform, load_backbone, stored_features
from offprints.shared.testing import check_errors


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("dis-vs-gen", "--preset", "smoke", out=tmp_path)
    assert len(run.claims) == 6
    assert run.figures == {"simulation", "regimes", "assumptions", "bound"}


def write_features(folder: Path, n: int = 400, K: int = 10) -> None:
    """Features as the official extraction stores them."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(K, 16))
    for name, size in (("train", n), ("val", 200)):
        y = generator.permutation(np.arange(size) % K)
        X = centers[y] + generator.normal(size=(size, 16))
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{name}_features.npy", np.concatenate([X, y[:, None]], 1).astype(np.float32))


def test_paper_preset_on_stored_features(paper_run, tmp_path) -> None:
    write_features(tmp_path / "resnet50")
    small = ("--backbones", tmp_path / "resnet50", "--repeats", "3", "--dimensions", "20", "--classes", "2")
    run = paper_run("dis-vs-gen", "--preset", "paper", *small, out=tmp_path / "runs", status=(0, 1))
    assert {"few resnet50", "many resnet50", "plateau resnet50"} <= set(run.claims)
    assert "| 200 |" in (run.folder / "report.md").read_text()


def test_stored_features_are_checked(tmp_path) -> None:
    write_features(tmp_path / "good")
    (X, y), _ = stored_features(tmp_path / "good")
    assert X.shape == (400, 16)
    assert y.unique().tolist() == list(range(10))
    write_features(tmp_path / "half")
    (tmp_path / "half" / "val_features.npy").unlink()
    write_features(tmp_path / "fractions")
    np.save(tmp_path / "fractions" / "train_features.npy", np.full((4, 3), 0.5))
    check_errors(
        [
            (lambda: stored_features(tmp_path / "none"), FileNotFoundError, "train_features.npy"),
            (lambda: stored_features(tmp_path / "half"), FileNotFoundError, "val_features.npy"),
            (lambda: stored_features(tmp_path / "fractions"), ValueError, "labels"),
            (lambda: load_backbone("alexnet"), ValueError, "backbone"),
            (lambda: load_backbone("mae"), ValueError, "checkpoint"),
        ]
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_backbone_and_checkpoint(tmp_path) -> None:
    """A ResNet-50 on two images; its weights under MoCo's names give the same features."""
    from torchvision.datasets import FakeData

    torch.manual_seed(0)
    backbone, layer = load_backbone("resnet50", pretrained=False)
    images = FakeData(size=2, image_size=(3, 32, 32), num_classes=2, transform=image_transform("resnet50"))
    options = {"device": torch.device("cpu"), "amp": False, "workers": 0}
    features, labels = image_features(backbone, layer, images, **options)
    assert features.shape == (2, 2048)
    assert labels.dtype == torch.int64
    state = {f"module.encoder_q.{name}": value for name, value in backbone.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "moco.pth")
    moco, layer = load_backbone("moco_v2", checkpoint=str(tmp_path / "moco.pth"))
    assert torch.equal(image_features(moco, layer, images, **options)[0], features)
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="lacks"):
        load_backbone("moco_v2", checkpoint=str(tmp_path / "empty.pth"))
