"""Source, batch statistics and TENT."""

from __future__ import annotations

import copy

import pytest
import torch
from packages.cotta.tests.models import batches, golden_net
from torch import nn
from torch.nn import functional as F

from offprints.cotta import BNAdapt, Source, Tent, configure_model


def test_source_is_the_model_in_evaluation_mode() -> None:
    x, *_ = batches(1)
    assert torch.equal(Source(golden_net().train())(x), golden_net()(x))
    assert torch.equal(Source(golden_net()).predict(x), golden_net()(x))


def test_batch_statistics() -> None:
    x, *_ = batches(1)
    out = BNAdapt(golden_net())(x)
    torch.testing.assert_close(out, golden_net().train()(x).detach())
    alone = BNAdapt(golden_net())
    alone(x)
    assert torch.equal(alone(x), out), "nothing is learned"


def test_mixed_statistics() -> None:
    x, *_ = batches(1)
    for weight, reference in ((1.0, Source(golden_net())), (1e-12, BNAdapt(golden_net()))):
        torch.testing.assert_close(BNAdapt(golden_net(), source_weight=weight)(x), reference(x), rtol=1e-4, atol=1e-5)
    norm = golden_net().bn1
    mixed = BNAdapt(nn.Sequential(norm), source_weight=0.3)
    maps = torch.rand(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mean = 0.3 * norm.running_mean + 0.7 * maps.mean((0, 2, 3))
    var = 0.3 * norm.running_var + 0.7 * maps.var((0, 2, 3), correction=0)
    expected = F.batch_norm(maps, mean, var, norm.weight, norm.bias, False)
    torch.testing.assert_close(mixed(maps), expected.detach())
    shared = nn.ModuleList([norm, norm])
    replaced = BNAdapt(nn.Sequential(shared[0], shared[1]), source_weight=0.5).model
    assert replaced[0] is replaced[1]
    with pytest.raises(ValueError, match="running statistics"):
        BNAdapt(configure_model(golden_net()), source_weight=0.5)


def test_tent_is_entropy_descent_on_scale_and_shift() -> None:
    x, y = (batch.double() for batch in batches(2))
    adapted = Tent(golden_net().double(), lambda params: torch.optim.SGD(params, lr=0.1))
    plain = configure_model(golden_net().double())
    before = copy.deepcopy(plain)
    scales = [plain.bn1.weight, plain.bn1.bias, plain.bn2.weight, plain.bn2.bias]
    logits = plain(x)
    assert torch.equal(adapted(x), logits.detach())
    log_p = logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    torch.testing.assert_close(adapted.last_loss, entropy.detach())
    for parameter, gradient in zip(scales, torch.autograd.grad(entropy, scales), strict=True):
        parameter.data -= 0.1 * gradient
    torch.testing.assert_close(adapted.predict(y), plain(y).detach())
    assert torch.equal(adapted.model.fc.weight, before.fc.weight)
    assert not adapted.model.fc.weight.requires_grad
    adapted.reset()
    assert torch.equal(adapted(x), logits.detach())


def test_tent_resets_before_every_batch_and_repeats_steps() -> None:
    x, y = batches(2)
    episodic = Tent(golden_net(), episodic=True)
    episodic(y)
    assert torch.equal(episodic(x), Tent(golden_net())(x))
    twice, once = Tent(golden_net(), steps=2), Tent(golden_net())
    once(x)
    assert torch.equal(twice(x), once(x))


def test_an_optimizer_of_all_parameters_unfreezes_none() -> None:
    model = golden_net()
    model.bn1.requires_grad_(False)
    frozen, free = model.bn1.weight.clone(), model.bn2.weight.clone()
    adapted = Tent(model, torch.optim.SGD(model.parameters(), lr=0.5))
    for x in batches(2):
        adapted(x)
    assert not model.bn1.weight.requires_grad
    assert torch.equal(model.bn1.weight, frozen)
    assert not torch.equal(model.bn2.weight, free)
