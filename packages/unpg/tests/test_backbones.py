"""The networks: sizes of the paper, shapes, conformance."""

import pytest
import torch
from torch import nn

from offprints.shared.testing import check_arguments, check_module
from offprints.unpg import iresnet


@pytest.mark.parametrize(("depth", "parameters"), [(34, 34_139_328), (50, 43_590_848), (100, 65_156_160)])
def test_numbers_of_parameters(depth, parameters: int) -> None:
    with torch.device("meta"):
        network = iresnet(depth)
    assert sum(p.numel() for p in network.parameters()) == parameters
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.bias is None for conv in convolutions)
    assert sum(conv.kernel_size == (3, 3) for conv in convolutions) == {34: 33, 50: 49, 100: 99}[depth]


def test_every_stage_halves_and_dropout() -> None:
    network = iresnet(34, embedding_size=8, image_size=32, dropout=0.4)
    shapes = []
    for block in network.stages:
        block.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    network.eval()(torch.zeros(1, 3, 32, 32))
    assert list(dict.fromkeys(shapes)) == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.4]
    first = network.stem[0]
    assert first.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # Kaiming-normal, fan out


def test_conformance() -> None:
    torch.manual_seed(0)
    network = iresnet(34, embedding_size=4, image_size=16)
    images = lambda g: (torch.randn(2, 3, 16, 16, generator=g),)  # noqa: E731
    check_module(network, images, skip={"torch.compile": "half a minute of tracing", "arguments": "below"})
    for wrong in (torch.zeros(2, 3, 32, 32), torch.zeros(3, 16, 16)):
        with pytest.raises(ValueError, match="images"):
            network(wrong)
    with pytest.raises(TypeError, match="images"):
        network(torch.zeros(2, 3, 16, 16, dtype=torch.int64))


def test_arguments() -> None:
    defaults = {"depth": 34, "embedding_size": 4, "image_size": 16}
    check_arguments(iresnet, lambda g: defaults, seconds=30, skip={"image_size: huge": "too large for its layers"})
