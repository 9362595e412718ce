"""Mixed statistics inside any batch-norm layer, whatever its class adds and whoever listens."""

from __future__ import annotations

import copy

import pytest
import torch
from packages.cotta.tests.models import batches, golden_net
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.cotta import BNAdapt, CoTTA, Source, Tent, configure_model


class NormAct(nn.BatchNorm2d):
    """As in timm: batch norm with an activation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x)) + 1


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.Conv2d(4, 5, 3), NormAct(5), Pool())
    for module in made:
        if isinstance(module, NormAct):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
    return made.eval()


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def plainly(model: nn.Sequential, x: Tensor, weight: float) -> Tensor:
    """The same written out."""
    for module in model:
        if isinstance(module, NormAct):
            mean = weight * module.running_mean + (1 - weight) * x.mean((0, 2, 3))
            var = weight * module.running_var + (1 - weight) * x.var((0, 2, 3), correction=0)
            mean, var, scale, shift = (v.view(1, -1, 1, 1) for v in (mean, var, module.weight, module.bias))
            x = F.silu((x - mean) / (var + module.eps).sqrt() * scale + shift) + 1
        else:
            x = module(x)
    return x


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.9, 1.0])
def test_what_a_subclass_adds_stays(weight: float) -> None:
    x = batches(1)[0].double()
    model = net().double()
    out = BNAdapt(copy.deepcopy(model), source_weight=weight)(x)
    torch.testing.assert_close(out, plainly(model, x, weight).detach(), rtol=1e-9, atol=1e-12)
    if weight == 1:
        assert torch.equal(out, Source(copy.deepcopy(model))(x)), "exactly the source model"


def test_gradients_flow_through_the_batchs_statistics() -> None:
    x = batches(1)[0].double()
    mixed, model = configure_model(net().double(), source_weight=0.4), net().double()
    ours = torch.autograd.grad(mixed(x).square().sum(), list(mixed.parameters()))
    wanted = torch.autograd.grad(plainly(model, x, 0.4).square().sum(), list(model.parameters()))
    torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-10)


def test_hooks_see_the_layers_input_and_output() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    model = net()
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[1].register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    x = batches(1)[0]
    adapted = BNAdapt(model, source_weight=0.5)
    adapted(x)
    ((given, output),) = seen
    torch.testing.assert_close(given, model[0](x) + 1)
    torch.testing.assert_close(output, plainly(nn.Sequential(net()[1]), given, 0.5))


def test_copies_states_and_repeated_configuration() -> None:
    x = batches(1)[0]
    adapted = BNAdapt(net(), source_weight=0.3)
    twin = copy.deepcopy(adapted)
    nn.init.zeros_(adapted.model[1].running_mean)
    torch.testing.assert_close(twin(x), plainly(net(), x, 0.3).detach())
    fresh = BNAdapt(net(), source_weight=0.3)
    fresh.load_state_dict(adapted.state_dict())
    assert torch.equal(fresh(x), adapted(x))
    again = configure_model(configure_model(net(), source_weight=0.3), source_weight=0.8)
    torch.testing.assert_close(again(x), plainly(net(), x, 0.8))
    torch.testing.assert_close(configure_model(again, norm="source")(x), net()(x))


def test_a_forward_of_the_layers_own_comes_back() -> None:
    """One that was put on the instance, as by libraries that wrap single layers."""
    model, x = net(), batches(1)[0]
    plain = model[1].forward
    model[1].forward = lambda x: plain(x) + 3  # type: ignore[method-assign]
    expected = model.eval()(x)
    configure_model(model, source_weight=0.5)
    assert not torch.allclose(model(x), expected)
    configure_model(model, norm="source")
    torch.testing.assert_close(model(x), expected)


def test_without_running_statistics_nothing_is_changed() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)).train()
    with pytest.raises(ValueError, match="running statistics"):
        configure_model(model, source_weight=0.5)
    assert model.training
    assert model[0].training


def test_autocast_and_half() -> None:
    x = batches(1, size=8)[0]
    adapted = BNAdapt(net(), source_weight=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        out = adapted(x)
    torch.testing.assert_close(out.float(), plainly(net(), x, 0.5).detach(), rtol=0.05, atol=0.05)
    half = BNAdapt(net().bfloat16(), source_weight=0.5)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plainly(net(), x, 0.5).detach(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_inside_tent_and_cotta(weight: float) -> None:
    x = batches(1)[0]
    expected = plainly(net(), x, weight).detach()
    torch.testing.assert_close(Tent(net(), source_weight=weight)(x), expected)
    shut = CoTTA(net(), source_weight=weight, seed=0, confidence_threshold=0.0)
    torch.testing.assert_close(shut(x), expected, rtol=1e-4, atol=1e-5)
    results = []
    for size in (1, 3):  # each view has its own share of the mix, also where views share a forward
        opened = CoTTA(
            net(), source_weight=weight, seed=0, num_augmentations=3, confidence_threshold=1.0, augmentation_batch=size
        )
        results.append(opened(x))
    assert all(opened._predict_target.views._exact.values())
    assert torch.equal(*results)


def test_one_image_at_a_time() -> None:
    """Batch statistics of one value do not exist; mixed ones do."""
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    assert Tent(model, source_weight=0.9)(torch.rand(1, 3, 8, 8)).isfinite().all()


def test_frozen_parts_stay_frozen() -> None:
    model = golden_net()
    model.conv1.requires_grad_(False)
    model.bn2.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    adapted = CoTTA(copy.deepcopy(model), seed=0, num_augmentations=2, confidence_threshold=1.0)
    tent = Tent(copy.deepcopy(model))
    for wrapper in (adapted, tent):
        wrapper(batches(1)[0])
        for name in ("conv1.weight", "bn2.weight", "bn2.bias"):
            assert not wrapper.model.get_parameter(name).requires_grad
            assert torch.equal(wrapper.model.get_parameter(name), before[name])
        assert not torch.equal(wrapper.model.bn1.weight, before["bn1.weight"])
    assert not torch.equal(adapted.model.fc.weight, before["fc.weight"])
    assert configure_model(model).conv1.weight.requires_grad is False
    with pytest.raises(ValueError, match="requires_grad_"):
        CoTTA(model.requires_grad_(False))
