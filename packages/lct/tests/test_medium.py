"""The medium preset on a few images in the format of Fashion-MNIST."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offprints.lct.reproduce import experiment
from offprints.lct.reproduce.medium import SmallAutoencoder, clothing, latents_of
from offprints.lct.reproduce.recipes import RECIPES
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes

pytest.importorskip("torchvision", reason="needs the extra vision")
MEDIUM = experiment.presets["medium"]
TINY = replace(
    MEDIUM.medium,
    images=150,
    test_images=40,
    autoencoder_steps=4,
    width=4,
    training=replace(MEDIUM.medium.training, steps=4, batch_size=16, width=16, blocks=1, final_scales=10),
)


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data"), 200, 50)


def test_medium_on_a_few_images(few_clothes: Path, tmp_path: Path) -> None:
    config = replace(MEDIUM, medium=TINY, data=few_clothes)
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"]: claim for claim in outcome.result["claims"]}
    names = {"fashion-impulses", "fashion-full", "fashion-early", "fashion-two-steps"}
    assert {id for id, claim in claims.items() if claim["kind"] == "claim"} == names
    assert claims["fashion-coupling"]["kind"] == "check"
    assert claims["fashion-coupling"]["holds"]
    assert all(claims[name]["control_name"] for name in names)
    figures = {Path(figure).stem for figure in outcome.result["figures"]}
    assert figures == {"fashion", "fashion-scores", "impulses"}
    report = (outcome.dir / "report.md").read_text()
    assert all(f"| {name} |" in report for name in RECIPES)


def test_latents_are_standardized_by_position(few_clothes: Path) -> None:
    torch.manual_seed(0)
    weights = SmallAutoencoder(4).state_dict()
    train, test, normalizer = latents_of(TINY, few_clothes, weights, 3)
    assert train.shape == (150, 196)
    assert test.shape == (40, 196)
    torch.testing.assert_close(train.mean(0), torch.zeros(196), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0), torch.full((196,), 0.5), atol=1e-4, rtol=0)
    again, _, _ = latents_of(TINY, few_clothes, weights, 3)
    assert torch.equal(again, train)
    model = SmallAutoencoder(4)
    assert model.decoder(normalizer.inverse(test).view(-1, 4, 7, 7)).shape == (40, 1, 28, 28)


def test_without_data(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="fashion_mnist"):
        clothing(tmp_path, "train", 10, False)
