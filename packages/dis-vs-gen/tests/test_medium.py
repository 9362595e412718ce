"""The medium preset on a few images in the format of Fashion-MNIST."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offprints.dis_vs_gen.reproduce import experiment
from offprints.dis_vs_gen.reproduce.medium import PIXELS, clothing, half_unit, network
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes

pytest.importorskip("torchvision", reason="needs the extra vision")
MEDIUM = experiment.presets["medium"]
TINY = replace(MEDIUM.medium, networks=1, epochs=1, batch_size=20, width=2, repeats=2, sizes=(10, 40, 200), many=200)


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data"), 600, 200)


def test_medium_on_a_few_images(few_clothes: Path, tmp_path: Path) -> None:
    config = replace(MEDIUM, medium=TINY, data=few_clothes)
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"]: claim for claim in outcome.result["claims"]}
    assert set(claims) == {"fashion-few", "fashion-many", "fashion-plateau"}
    assert all(claim["control_name"] for claim in claims.values())
    assert claims["fashion-few"]["measured"] == pytest.approx(-claims["fashion-many"]["control"])
    assert claims["fashion-few"]["control"] == pytest.approx(-claims["fashion-many"]["measured"])
    assert {Path(figure).stem for figure in outcome.result["figures"]} == {"regimes", "assumptions"}
    assert "| 200 |" in (outcome.dir / "report.md").read_text()


def test_classes_of_the_network_are_not_those_of_the_comparison(few_clothes: Path) -> None:
    found = half_unit(TINY, few_clothes, False, 1.0, 3)
    assert len(set(found["seen"])) == 5
    assert found["alpha"].shape == (5, 5, 5)
    assert found["variance"].shape == (32,)
    # One bright row tells a class: with 200 labels the pixels do it, where chance errs 0.8.
    assert found[f"{PIXELS} naive Bayes"][:, -1].mean() < 0.3
    again = half_unit(TINY, few_clothes, False, 1.0, 3)
    assert all(torch.equal(again[key], value) for key, value in found.items() if isinstance(value, torch.Tensor))


def test_network_pools_its_features() -> None:
    model = network(2, 5).eval()
    pooled = model[:-1](torch.rand(3, 1, 28, 28))
    assert pooled.shape == (3, 32)
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 5)


def test_without_data(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="fashion_mnist"):
        clothing(tmp_path, "train", False)
