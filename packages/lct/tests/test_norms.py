"""Non-scaling LayerNorm and the conversion of existing networks."""

from __future__ import annotations

import copy
import subprocess
import sys

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


def unet_of_diffusers() -> nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
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


def test_a_unet_of_diffusers() -> None:
    unet = unet_of_diffusers()
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


class ActivatedInside(nn.GroupNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(super().forward(x))


class ActivatedByPart(nn.GroupNorm):
    """As timm's GroupNormAct: the function of torch, then submodules."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels)
        self.drop = nn.Dropout(0.5)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return self.act(self.drop(x))


class GroupNorm32(nn.GroupNorm):
    """As openai's: computed in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).type(x.dtype)


class ChannelsFirst(nn.LayerNorm):
    """As timm's and torchvision's LayerNorm2d of ConvNeXt."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2 + 1


def scrambled(norm: nn.Module) -> nn.Module:
    for i, p in enumerate(norm.parameters()):
        nn.init.normal_(p, 0.5, 1.0, generator=torch.Generator().manual_seed(i))
    return norm


@pytest.mark.parametrize("example", [torch.zeros(1, 6, 4, 4), normal(2, 6, 4, 4)])
def test_what_a_subclass_adds_is_kept(example: torch.Tensor) -> None:
    x = normal(3, 6, 4, 4)
    activated = nn.functional.layer_norm(x, x.shape[1:]).relu()
    for norm in (ActivatedInside(3, 6), ActivatedByPart(3, 6)):
        network = replace_norms(nn.Sequential(scrambled(norm)), example).eval()
        assert_close(network(x), activated)
        assert [name for name, _ in network.named_parameters()] == ["0.bias"]
        assert_close(copy.deepcopy(network)(x), activated)
        network.train()(x).sum().backward()
        assert network[0].bias.grad is not None
    assert isinstance(network[0], NonScalingLayerNorm)
    assert network[0].act.training
    assert not torch.equal(network(x), network(x))  # the dropout is still there


@pytest.mark.parametrize("width", [4, 6])  # also where the channels are as many as the columns
def test_a_layer_norm_over_channels_stays_over_channels(width: int) -> None:
    torchvision = pytest.importorskip("torchvision.models.convnext")
    x = normal(3, 6, 4, width)
    for kind in (ChannelsFirst, torchvision.LayerNorm2d):
        norm = replace_norms(nn.Sequential(scrambled(kind(6))), torch.zeros(1, 6, 4, width))[0]
        assert isinstance(norm, NonScalingLayerNorm)
        assert norm.bias.shape == (6,)
        assert_close(norm(x), ChannelsFirst(6)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_in_float32_is_replaced(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(2, 8, 1).to(dtype), scrambled(GroupNorm32(2, 8)))
    replace_norms(network, torch.zeros(1, 2, 4, 4, dtype=dtype))
    assert type(network[1]) is NonScalingLayerNorm
    assert network[1].bias.shape == (8, 4, 4)
    x = normal(3, 8, 4, 4).to(dtype)
    assert network[1](x).dtype == dtype
    assert_close(network[1](x).float(), nn.functional.layer_norm(x.float(), (8, 4, 4)), rtol=1e-2, atol=1e-2)


def test_a_subclass_that_cannot_be_kept_is_refused() -> None:
    class Shifted(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, self.normalized_shape) * (1 + self.weight)

    class OwnGroups(nn.GroupNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.group_norm(x, 3, self.weight, self.bias).relu()

    for norm in (Shifted(4), OwnGroups(3, 6)):
        network = nn.Sequential(nn.GroupNorm(1, 6), scrambled(norm))
        before = copy.deepcopy(network.state_dict())
        with pytest.raises(ValueError, match=f"'?1'? \\({type(norm).__name__}\\)"):
            replace_norms(network, torch.zeros(1, 6, 4, 4))
        assert type(network[0]) is nn.GroupNorm
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name])
        assert getattr(network[1], "num_groups", 3) == 3


def test_the_nature_of_a_norm_is_kept() -> None:
    x = normal(2, 4, 3)
    frozen = nn.LayerNorm(3).requires_grad_(False)
    free, unbiased = nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm(3, bias=False)
    group = nn.GroupNorm(2, 4, affine=False)
    network = replace_norms(nn.Sequential(frozen, free, unbiased, group, nn.LayerNorm(3)), x)
    assert all(type(norm) is NonScalingLayerNorm for norm in network)
    assert not network[0].bias.requires_grad
    assert [norm.bias is None for norm in network] == [False, True, True, True, False]
    assert network[4].bias.requires_grad


def test_hooks_stay() -> None:
    norm, seen = nn.GroupNorm(1, 4), []
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    network = replace_norms(nn.Sequential(norm), torch.zeros(2, 4, 3))
    assert network[0] is not norm
    seen.clear()
    network(torch.zeros(2, 4, 3))
    assert seen == [(2, 4, 3)]
    handle.remove()
    network(torch.zeros(2, 4, 3))
    assert len(seen) == 1


def test_a_transformer_layer_in_both_modes() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = replace_norms(nn.TransformerEncoder(layer, 2), normal(2, 5, 8))
    assert sum(isinstance(module, NonScalingLayerNorm) for module in network.modules()) == 4
    x = normal(2, 5, 8)
    with torch.no_grad():
        nn.init.normal_(network.layers[0].norm1.bias)
        trained, evaluated = network.train()(x), network.eval()(x)
    assert_close(evaluated, trained, rtol=1e-4, atol=1e-5)
    assert torch.equal(network.layers[0].norm1.weight, torch.ones(8))
    assert "layers.0.norm1.weight" not in network.state_dict()


def test_a_root_mean_square_norm_keeps_its_axes() -> None:
    x = normal(2, 5, 6)
    for eps in (None, 1e-3):
        network = nn.Sequential(nn.GroupNorm(1, 5), nn.RMSNorm(6, eps=eps))
        replace_norms(network, x, types=(nn.GroupNorm, nn.RMSNorm))
        assert network[1].normalized_shape == (6,)
        assert network[1].eps == (torch.finfo(torch.float32).eps if eps is None else eps)


def test_the_example_stays_as_it_is() -> None:
    x = normal(1, 4, 3)
    replace_norms(nn.Sequential(nn.ReLU(inplace=True), nn.GroupNorm(1, 4)), x)
    assert torch.equal(x, normal(1, 4, 3))


def test_modes_of_parts_stay() -> None:
    norm = ActivatedByPart(3, 6)
    norm.drop.eval()
    network = replace_norms(nn.Sequential(norm), normal(1, 6, 4, 4))
    assert network[0].training
    assert not network[0].drop.training


LOAD = """
import sys, torch, safetensors.torch
from diffusers import UNet2DModel
from offprints.lct import replace_norms
folder = sys.argv[1]
given = safetensors.torch.load_file(f"{folder}/given.safetensors")
x, t = given["x"], given["t"]
network = replace_norms(UNet2DModel.from_config(UNet2DModel.load_config(folder)), x[:1], t[:1])
network.load_state_dict(safetensors.torch.load_file(f"{folder}/diffusion_pytorch_model.safetensors"))
with torch.no_grad():
    safetensors.torch.save_file({"y": network.eval()(x, t).sample}, f"{folder}/found.safetensors")
"""


def test_a_converted_unet_of_diffusers_is_loaded_in_a_fresh_process(tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    network = unet_of_diffusers()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 70.0])
    replace_norms(network, x[:1], t[:1])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, NonScalingLayerNorm):
                module.bias.normal_()  # biases that are trained
        expected = network.eval()(x, t).sample
    network.save_pretrained(tmp_path)
    safetensors.save_file({"x": x, "t": t}, tmp_path / "given.safetensors")
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, timeout=300)
    assert torch.equal(safetensors.load_file(tmp_path / "found.safetensors")["y"], expected)
