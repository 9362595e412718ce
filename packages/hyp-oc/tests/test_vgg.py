"""The encoder: shapes and names of VGG-Face, what is trained, weights from files."""

from __future__ import annotations

import pytest
import torch

from offprints.hyp_oc import vgg_face
from offprints.hyp_oc.vgg import VGGFace, load_weights
from offprints.shared.testing import check_errors


def test_shapes_and_names() -> None:
    with torch.device("meta"):
        encoder = vgg_face()
        assert encoder(torch.empty(2, 3, 224, 224)).shape == (2, 4096)
    state = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert len(state) == 28
    assert state["conv1_1.weight"] == (64, 3, 3, 3)
    assert state["conv3_3.weight"] == (256, 256, 3, 3)
    assert state["conv5_3.bias"] == (512,)
    assert state["fc6.weight"] == (4096, 25088)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    layers = ("conv5_1", "conv5_2", "conv5_3", "fc6")
    assert trained == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_trainable_layers_are_whole_names() -> None:
    encoder = VGGFace(width=1, out_features=2)
    encoder.freeze_but(("conv1_1", "conv3"))
    trained = {name.split(".")[0] for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained == {"conv1_1", "conv3_1", "conv3_2", "conv3_3"}
    encoder.freeze_but(())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    check_errors(
        [
            (lambda: encoder.freeze_but(("conv",)), ValueError, "trainable"),
            (lambda: encoder.freeze_but(("fc",)), ValueError, "trainable"),
            (lambda: encoder.freeze_but("conv5"), TypeError, "trainable"),
        ]
    )


def test_forward() -> None:
    torch.manual_seed(0)
    encoder = VGGFace(width=1, out_features=6)
    images = torch.randn(2, 3, 224, 224)
    features = encoder(images)
    assert features.shape == (2, 6)
    assert (features >= 0).all()
    torch.testing.assert_close(encoder(images[1:]), features[1:])
    check_errors(
        [
            (lambda: encoder(images[:, :, :100]), ValueError, "images"),
            (lambda: encoder(images[0]), ValueError, "images"),
            (lambda: encoder(images.byte()), TypeError, "images"),
            (lambda: encoder(images * torch.nan), ValueError, "images"),
        ]
    )


def test_weights_from_a_file(tmp_path) -> None:
    torch.manual_seed(0)
    source, target = VGGFace(width=1, out_features=3), VGGFace(width=1, out_features=3)
    state = {**source.state_dict(), "fc7.weight": torch.zeros(3, 3)}  # what comes after is left out
    torch.save(state, tmp_path / "whole.pth")
    load_weights(target, tmp_path / "whole.pth")
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(target(images), source(images))
    del state["conv2_1.bias"]
    torch.save(state, tmp_path / "lacking.pth")
    torch.save({**source.state_dict(), "fc6.weight": torch.zeros(2, 49)}, tmp_path / "other.pth")
    check_errors(
        [
            (lambda: load_weights(target, tmp_path / "lacking.pth"), ValueError, "conv2_1.bias"),
            (lambda: load_weights(target, tmp_path / "other.pth"), ValueError, "fc6.weight"),
            (lambda: load_weights(target, tmp_path / "none.pth"), FileNotFoundError, "weights"),
        ]
    )


@pytest.mark.slow
def test_the_real_size() -> None:
    assert vgg_face()(torch.zeros(1, 3, 224, 224)).shape == (1, 4096)
