"""The backbones' sizes, and the network around them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from offprints.susana import PrototypicalNetwork, compute_prototypes, conv4, prototypical_logits, resnet12


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_sizes_of_the_paper() -> None:
    assert size(conv4()) == 113_088
    assert size(resnet12()) == 12_424_320
    assert resnet12(channels=(64, 128, 256, 512)).eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 512)
    assert conv4(pool="flatten")(torch.zeros(2, 3, 84, 84)).shape == (2, 1600)
    assert conv4(in_channels=1, hidden=8)(torch.zeros(2, 1, 28, 28)).shape == (2, 8)
    assert sum(isinstance(m, nn.Conv2d) and m.bias is not None for m in conv4().modules()) == 4
    assert not any(isinstance(m, nn.Conv2d) and m.bias is not None for m in resnet12(channels=(1,) * 4).modules())


def test_blocks_are_dropped_in_training_alone() -> None:
    x = torch.rand(2, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = resnet12(channels=(2, 2, 4, 4), drop_block=0.3)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
    plain = resnet12(channels=(2, 2, 4, 4))
    plain.load_state_dict(network.state_dict())  # no state of its own
    assert torch.equal(plain.eval()(x), network(x))


def test_support_and_query_go_through_as_one_batch() -> None:
    torch.manual_seed(0)
    backbone = conv4(hidden=4)
    x = torch.rand(9, 3, 16, 16)
    ys = torch.tensor([1, 0, 1, 0])
    network = PrototypicalNetwork(backbone, metric="euclidean", temperature=3.0).train()
    found = network(x[:4], ys, x[4:])
    features = backbone(x)  # batch normalization of all nine
    expected = prototypical_logits(
        features[4:], compute_prototypes(features[:4], ys), metric="euclidean", temperature=3
    )
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="query"):
        network(x[:4], ys, x[4:, :, :8])
