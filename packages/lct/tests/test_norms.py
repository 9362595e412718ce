"""Non-scaling LayerNorm and the conversion of existing networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from offprints.lct import LatentConsistencyModel, NonScalingLayerNorm, replace_norms


@pytest.mark.parametrize("shape", [(6,), (3, 4, 4)])
def test_equal_to_layer_norm_of_scale_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = NonScalingLayerNorm(shape), nn.LayerNorm(shape)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict({"bias": theirs.bias.detach()})
    assert [name for name, _ in ours.named_parameters()] == ["bias"]
    assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)  # the kernels add in another order
    assert torch.equal(NonScalingLayerNorm(shape, bias=False)(x), nn.LayerNorm(shape, elementwise_affine=False)(x))


def test_channel_bias_works_at_any_resolution() -> None:
    norm = NonScalingLayerNorm((3, 4, 4), channel_bias=True)
    assert norm.bias.shape == (3, 1, 1)
    with torch.no_grad():
        norm.bias.copy_(torch.arange(3.0).view(3, 1, 1))
    for side in (4, 7):
        x = torch.randn(2, 3, side, side)
        expected = nn.functional.layer_norm(x, x.shape[1:]) + torch.arange(3.0).view(3, 1, 1)
        assert torch.equal(norm(x), expected)


def small_network() -> nn.Module:
    shared = nn.GroupNorm(2, 4, eps=1e-3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        shared,
        nn.Dropout(0.5),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), shared),
        nn.Flatten(2),
        nn.LayerNorm(25, eps=1e-6),
    ).double()


def test_replace_norms() -> None:
    network = small_network()
    network[3].eval()
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    before = torch.get_rng_state()
    assert replace_norms(network, x) is network
    assert torch.equal(before, torch.get_rng_state())
    first, second, last = network[1], network[3][1], network[5]
    assert first is second
    assert isinstance(first, NonScalingLayerNorm)
    assert (first.normalized_shape, first.eps) == ((4, 5, 5), 1e-3)
    assert (last.normalized_shape, last.eps) == ((25,), 1e-6)
    assert first.bias.dtype == torch.float64
    assert network.training
    assert not network[3].training
    y = network.eval()(x)
    assert_close(y.mean(2), torch.zeros(3, 4, dtype=torch.float64), rtol=0, atol=1e-9)
    y.sum().backward()
    assert first.bias.grad is not None


def test_only_the_types_asked_for() -> None:
    network = replace_norms(small_network(), torch.randn(1, 2, 5, 5).double(), types=(nn.LayerNorm,))
    assert isinstance(network[1], nn.GroupNorm)
    assert isinstance(network[5], NonScalingLayerNorm)
    assert isinstance(replace_norms(nn.LayerNorm(4), torch.ones(2, 4)), NonScalingLayerNorm)


def test_norms_that_cannot_be_replaced() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x[..., ::2]) + self.norm(x)[..., ::2]

    class Idle(Twice):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    for network, word in ((Twice(), "two shapes"), (Idle(), "does not reach")):
        with pytest.raises(ValueError, match=word):
            replace_norms(network, torch.ones(1, 2, 4, 4))
        assert isinstance(network.norm, nn.GroupNorm)
        assert not network.norm._forward_pre_hooks


def test_a_unet_of_diffusers() -> None:
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    replace_norms(unet, x, torch.ones(2))
    assert not any(isinstance(module, nn.GroupNorm | nn.LayerNorm) for module in unet.modules())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.unet(x, t).sample

    model = LatentConsistencyModel(Network(), noise_scale=250)
    model(x, torch.tensor([0.1, 3.0])).square().sum().backward()
    assert all(p.grad is not None for p in unet.parameters())
