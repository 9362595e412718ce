"""The experiment through the command line, and the larger presets on tiny data of the same form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.aef_ocl.reproduce import experiment
from offprints.aef_ocl.reproduce.baselines import Means, SGDHead, best
from offprints.aef_ocl.reproduce.data import clothing, load_backbone, network
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes

pytest.importorskip("torchvision", reason="needs the extra vision")


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("aef-ocl", "--preset", "smoke", out=tmp_path)
    assert {"balance", "sgd"} <= set(run.claims)
    assert run.figures == {"stream", "classes", "exactness"}


def test_sgd_head_follows_the_gradient() -> None:
    torch.manual_seed(0)
    phi, y = torch.randn(20, 5).double(), torch.arange(20) % 3
    head = SGDHead(5, 3, 0.3)
    layer = torch.nn.Linear(5, 3).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for x, labels in zip(phi.split(4), y.split(4), strict=True):
        head.batch(x, labels)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), labels).backward()
        optimizer.step()
    torch.testing.assert_close(head.weight, layer.weight.T)
    torch.testing.assert_close(head.scores(phi), layer(phi))
    curves = [(0.1, torch.tensor([[0.9, 0.1]])), (0.2, torch.tensor([[0.1, 0.3]]))]
    assert best(curves)[0] == 0.2


def test_means_are_linear_discriminant_analysis() -> None:
    """The pooled covariance of scikit-learn's, and the nearest of its means."""
    from sklearn.neighbors import NearestCentroid

    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 4).double() @ torch.randn(4, 4).double() + y[:, None]
    means = Means(4, 3, shrinkage=0.0)
    for rows, labels in zip(x.split(7), y.split(7), strict=True):
        means.batch(rows, labels)
    scatter = sum((x[y == c] - x[y == c].mean(0)).T @ (x[y == c] - x[y == c].mean(0)) for c in range(3))
    torch.testing.assert_close(means.scatter, scatter)
    precision = torch.linalg.inv(scatter / 60)
    centers = torch.stack([x[y == c].mean(0) for c in range(3)])
    distance = torch.stack([((x - m) @ precision * (x - m)).sum(1) for m in centers], 1)
    assert torch.equal(means.lda(x).argmax(1), distance.argmin(1))
    nearest = NearestCentroid().fit(x.numpy(), y.numpy()).predict(x.numpy())
    assert means.nearest_mean(x).argmax(1).tolist() == nearest.tolist()


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data"), 600, 200)


def test_medium_on_a_few_images(few_clothes: Path, tmp_path: Path) -> None:
    medium = experiment.presets["medium"]
    config = replace(
        medium, folder=few_clothes, streams=1, buffer_size=32, max_count=20, width=2, epochs=1, points=2, rates=(0.1,)
    )
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"]: claim for claim in outcome.result["claims"]}
    assert all(claims[name]["control_name"] for name in ("balance", "sgd"))
    assert {Path(figure).stem for figure in outcome.result["figures"]} == {"stream", "classes"}
    assert "nearest class mean" in (outcome.dir / "report.md").read_text()


def test_clothing_is_streamed_from_images_the_network_has_not_seen(few_clothes: Path, tmp_path: Path) -> None:
    found = clothing(few_clothes, 3, width=2, epochs=1, download=False)
    assert found.train[0].shape == (300, 16)
    assert found.test[0].shape == (200, 16)
    again = clothing(few_clothes, 3, width=2, epochs=1, download=False)
    assert torch.equal(again.train[0], found.train[0])
    with pytest.raises(MissingData, match="fashion_mnist"):
        clothing(tmp_path, 3, width=2, epochs=1, download=False)
    assert network(2, 5)(torch.rand(3, 1, 28, 28)).shape == (3, 5)


def test_paper_on_a_few_pictures(tmp_path: Path) -> None:
    """CLAD-C's files, a small backbone with random weights: six periods, the mean class accuracy after each."""
    labeled = tmp_path / "SSLAD-2D" / "labeled"
    (labeled / "annotations").mkdir(parents=True)
    moments = [("20191111", "Daytime"), ("20191111", "Night"), ("20191120", "Daytime")]
    for part in ("val", "test"):
        (labeled / part).mkdir()
        images, notes = [], []
        for number, (date, period) in enumerate(moments):
            draws = np.random.default_rng(number)
            file = labeled / part / f"{number}.png"
            Image.fromarray(draws.integers(0, 255, (108, 192, 3), dtype=np.uint8)).resize((1920, 1080)).save(file)
            images.append(
                {"id": number, "file_name": file.name, "file_name_old": "v1_s1", "date": date, "period": period}
                | {"time": "120000"}
            )
            notes += [
                {"id": 9 * number + i, "image_id": number, "category_id": 1 + i % 3, "area": 2000, "occluded": 1}
                | {"bbox": [200 * i, 100, 60, 60]}
                for i in range(4)
            ]
        record = {"images": images, "annotations": notes}
        (labeled / "annotations" / f"instance_{part}.json").write_text(json.dumps(record))
    small = {"backbone": "resnet18", "weights": "", "size": 32, "workers": 0, "buffer_size": 32}
    config = replace(experiment.presets["paper"], folder=tmp_path, **small)
    outcome = execute(experiment, config, preset="paper", device="cpu", out=tmp_path / "runs")
    (claim,) = outcome.result["claims"]
    assert claim["id"] == "amca"
    assert 0 <= claim["measured"] <= 100
    assert claim["control_name"] == "without pseudo-features"


def test_backbone_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingData, match="--download"):
        load_backbone("vit_l_16", "IMAGENET1K_SWAG_LINEAR_V1", download=False)
