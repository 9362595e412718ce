"""The medium preset on a few images in the format of Fashion-MNIST."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes
from offprints.sp2ot.reproduce import experiment
from offprints.sp2ot.reproduce.medium import METHODS, augmented, clothing, draw_unit, network

pytest.importorskip("torchvision", reason="needs the extra vision")
MEDIUM = experiment.presets["medium"]
TINY = replace(
    MEDIUM.medium, draws=1, max_count=30, ratio=0.4, network_images=100, network_steps=4, batch_size=8, width=4, dim=8,
    steps=2, clusterer_steps=3, every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data"), 600, 600, noise=40)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_medium_on_a_few_images(few_clothes: Path, tmp_path: Path) -> None:
    config = replace(MEDIUM, medium=TINY, data=few_clothes)
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"]: claim for claim in outcome.result["claims"]}
    assert set(claims) == {"fashion-clusterer", "fashion-p2ot", "fashion-sp2ot"}
    assert all(claim["control_name"] for claim in claims.values())
    assert {Path(figure).stem for figure in outcome.result["figures"]} == {"groups_fashion", "clusters_fashion"}
    report = (outcome.dir / "report.md").read_text()
    assert all(method in report for method in METHODS)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_image_of_a_draw_is_counted_once(few_clothes: Path) -> None:
    torch.manual_seed(0)
    weights = network(TINY.width, TINY.dim).state_dict()
    found = draw_unit(TINY, few_clothes, False, weights, 3)
    assert found["true sizes"] == [30, 27, 24, 22, 19, 18, 16, 14, 13, 12]
    for method in METHODS:
        counts = found[method]["counts"]
        assert counts.sum(0).tolist() == found["true sizes"], "columns are classes"
        right = float(counts.diagonal().sum() / counts.sum())
        assert right == pytest.approx(found[method]["scores"]["accuracy"])


def test_views_are_crops_of_the_image() -> None:
    torch.manual_seed(0)
    images = torch.full((64, 1, 28, 28), 0.5)
    views = augmented(images)
    assert views.shape == images.shape
    levels = views.mean((1, 2, 3))  # the contrast is between 0.6 and 1.4
    assert 0.29 < levels.min() < levels.max() < 0.71
    assert views.flatten(1).std(1).max() < 0.06, "no border is seen"


def test_without_data(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="fashion_mnist"):
        clothing(tmp_path, False)
