"""Equal to the official implementation on its golden data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from packages.cotta.tests.models import GoldenNet
from torch import Tensor

from offprints.cotta import AugmentationParams, CoTTA, ImageAugmentation, collect_params, configure_model, corrupt

Golden = Callable[[str], dict[str, Tensor]]
SGD = partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True)


class Cycle:
    """The stub in place of the official augmentation: four views in turn."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        view = (x, x.flip(-1), 0.8 * x, (x + 0.05).clamp(0, 1))[self.calls % 4]
        self.calls += 1
        return view


def parts(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in data.items() if name.startswith(prefix)}


def network(data: dict[str, Tensor]) -> GoldenNet:
    initial = parts(data, "init.")
    net = GoldenNet(len(initial["fc.bias"])).double()
    net.load_state_dict(initial, strict=False)
    return net


CASES = {
    "core_augmented": {"optimizer": partial(torch.optim.Adam, lr=1e-2), "ema_decay": 0.99, "confidence_threshold": 1.0},
    "core_gated": {"optimizer": partial(torch.optim.Adam, lr=1e-3), "confidence_threshold": 0.0},
    "core_restore_all": {
        "optimizer": partial(torch.optim.Adam, lr=1e-2),
        "ema_decay": 0.9,
        "confidence_threshold": 1.0,
        "restore_probability": 1.0,
    },
    "core_symmetric": {"optimizer": SGD, "confidence_threshold": 0.1, "symmetric": True},
}


@pytest.mark.parametrize("augmentation_batch", [None, 5, 32])
@pytest.mark.parametrize("name", CASES)
def test_adaptation(golden: Golden, name: str, augmentation_batch: int | None) -> None:
    data = golden(name)
    settings = {"restore_probability": 0.0, "params": "weight_bias", **CASES[name]}
    adapted = CoTTA(network(data), augmentation=Cycle(), seed=0, augmentation_batch=augmentation_batch, **settings)
    assert collect_params(adapted.model, which="weight_bias")[1] == list(data["names"])
    for x, out, confidence in zip(data["x"], data["out"], data["anchor_conf"], strict=True):
        tolerance = 1e-8 if name == "core_gated" else 1e-9
        torch.testing.assert_close(adapted(x), out, rtol=0, atol=tolerance)
        torch.testing.assert_close(adapted.last_confidence, confidence, rtol=0, atol=1e-9)
    if name == "core_gated":  # the exact gradient is zero, Adam amplifies rounding noise
        return
    for prefix, model in (("student.", adapted.model), ("teacher.", adapted.teacher)):
        state = model.state_dict()
        for key, value in parts(data, prefix).items():
            if key != "conv2.bias":  # its exact gradient is zero too: batch norm follows
                torch.testing.assert_close(state[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "soft"), [("augment_32", False), ("augment_soft_24", True)])
def test_augmentation(golden: Golden, name: str, soft: bool) -> None:
    data = golden(name)
    params = AugmentationParams(**{key: value for key, value in data.items() if key not in ("x", "out")})
    views = ImageAugmentation(soft=soft)(data["x"], params=params)
    torch.testing.assert_close(views, data["out"], rtol=0, atol=1e-5)
    wide = ImageAugmentation(soft=soft)(data["x"].double(), params=params)
    torch.testing.assert_close(wide.float(), data["out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "defocus_blur", "zoom_blur", "pixelate", "jpeg_compression"]
)
def test_cifar_corruptions(golden: Golden, name: str) -> None:
    data = golden("corruptions_cifar")
    x = data["x"].permute(0, 3, 1, 2)
    for severity in range(1, 6):
        made = corrupt(x, name, severity).permute(0, 2, 3, 1)
        difference = (made.float() - data[name][severity - 1].float()).abs().mean()
        assert difference <= {"pixelate": 0.0, "jpeg_compression": 0.06}.get(name, 0.1), (severity, difference)


@pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur", "pixelate"])
def test_imagenet_corruptions(golden: Golden, name: str) -> None:
    data = golden("corruptions_imagenet")
    made = corrupt(data["x"].permute(0, 3, 1, 2), name, 3).permute(0, 2, 3, 1)[:, 64:160, 64:160]
    assert (made.float() - data[name][0].float()).abs().mean() <= 0.05


def test_noise_moments(golden: Golden) -> None:
    gray = torch.full((4, 3, 160, 160), 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for key, moments in golden("noise_moments").items():
        scale, name = key.split(".")
        for severity in range(1, 6):
            made = corrupt(gray, name, severity, scale=scale, generator=generator).double() / 255  # type: ignore[arg-type]
            for value, expected in zip((made.mean(), made.std()), moments[severity - 1], strict=True):
                # The reference is one sample of one small image.
                assert abs(value / expected - 1) <= 0.05, (key, severity)


def test_the_models_of_the_golden_data_are_in_evaluation_mode_here() -> None:
    """The official code trains in train mode: the same for networks without dropout."""
    net = configure_model(GoldenNet())
    assert not net.training
    assert net.bn1.running_mean is None
