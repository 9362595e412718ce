"""What has to stay as it was: the source model, the caller's batch, everything after a batch that fails."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from packages.cotta.tests.models import batches, golden_net
from torch import Tensor, nn

from offprints.cotta import BNAdapt, CoTTA, MultiScaleFlip, Source, Tent, source_confidence_threshold

OPEN = {"seed": 0, "num_augmentations": 2, "confidence_threshold": 1.0}


def everything(wrapper: nn.Module) -> dict[str, Any]:
    """All tensors: parameters, buffers of any kind, moments."""
    found = {f"p.{n}": p.detach().clone() for n, p in wrapper.named_parameters()}
    found |= {f"b.{n}": b.clone() for n, b in wrapper.named_buffers()}
    for i, (parameter, state) in enumerate(wrapper.optimizer.state.items()):
        del parameter
        found |= {f"o.{i}.{n}": torch.as_tensor(v).clone() for n, v in state.items()}
    return found


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


class Remembering(nn.Module):
    """Changes buffers in its forward: one in place, one replaced, one that no state has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = golden_net()
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
        self.instance = nn.InstanceNorm2d(3, track_running_stats=True)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(5))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.hidden += 2
        logits = self.norm(self.net(self.instance(x)))
        self.last = logits.detach().mean(0)
        return logits + 0.01 * self.calls


@pytest.mark.parametrize("train_mode", [False, True])
def test_buffers_that_a_forward_changes(train_mode: bool) -> None:
    adapted = CoTTA(Remembering(), train_mode=train_mode, **OPEN)
    initial = everything(adapted)
    for x in batches(3):
        adapted(x)
    after = everything(adapted)
    for name in initial:
        if ".source." in name:
            assert torch.equal(initial[name], after[name]), name
    assert after["b.model.calls"] == 3
    adapted.reset()
    assert_equal(everything(adapted), initial)
    before = everything(adapted)
    adapted.predict(batches(1)[0])
    assert_equal(everything(adapted), before)


def test_tent_and_source_put_buffers_back_too() -> None:
    tent, source = Tent(Remembering()), Source(Remembering())
    initial = everything(tent)
    for x in batches(2):
        tent(x)
        source(x)
    assert source.model.calls == 0
    tent.reset()
    assert_equal(everything(tent), initial)


class FailingLater(nn.Module):
    """Fails at the call of this number, when asked to."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.net, self.at, self.calls = golden_net(), at, -(10**9)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("out of memory")
        return self.net(x)


@pytest.mark.parametrize(
    "settings", [{"steps": 3}, {"episodic": True}, {"reset_every": 2}, {"steps": 2, "episodic": True}]
)
@pytest.mark.parametrize("make", [lambda m, **s: CoTTA(m, **OPEN, **s), Tent])
def test_a_batch_that_fails_in_a_later_step_changes_nothing(make: Callable[..., nn.Module], settings: dict) -> None:
    x, y, z = batches(3)
    adapted, twin = make(FailingLater(settings.get("steps", 1)), **settings), make(FailingLater(1), **settings)
    for batch in (x, y):
        assert torch.equal(adapted(batch), twin(batch))
    before, loss = everything(adapted), adapted.last_loss
    adapted.model.calls = 0
    with pytest.raises(RuntimeError, match="memory"):
        adapted(z)
    adapted.model.calls = -(10**9)
    assert_equal(everything(adapted), before)
    assert adapted.last_loss is loss
    for batch in (z, x):
        assert torch.equal(adapted(batch), twin(batch))
    assert_equal(everything(adapted), everything(twin))


class RememberingAndFailing(Remembering):
    """Fails when asked to, at the end of its forward, when its buffers have changed."""

    failing = False

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.failing:
            raise RuntimeError("out of memory")
        return logits


@pytest.mark.parametrize("make", [lambda m: CoTTA(m, **OPEN), Tent])
def test_a_batch_that_fails_leaves_the_buffers(make: Callable[..., nn.Module]) -> None:
    x, y = batches(2)
    adapted = make(RememberingAndFailing())
    adapted(x)
    before = everything(adapted)
    adapted.model.failing = True  # the student alone
    with pytest.raises(RuntimeError, match="memory"):
        adapted(y)
    assert_equal(everything(adapted), before)


def test_reset_every() -> None:
    first, second, third = batches(3)
    cotta = partial(CoTTA, augmentation=partial(torch.mul, 0.5), **OPEN)
    for make in (cotta, Tent):
        adapted, plain = make(golden_net(), reset_every=2), make(golden_net())
        for x in (first, second):
            assert torch.equal(adapted(x), plain(x))
        plain.reset()
        assert torch.equal(adapted(third), plain(third))
        fresh = make(golden_net(), reset_every=2)
        fresh.load_state_dict(adapted.state_dict())
        for x in (first, second):  # the count is part of the state
            assert torch.equal(fresh(x), adapted(x))


class InPlace(nn.Module):
    """Normalizes the caller's tensor in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = golden_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.5).div_(0.25))


class OutOfPlace(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - 0.5) / 0.25)


@pytest.mark.parametrize(
    "make",
    [lambda m: CoTTA(m, **OPEN), lambda m: CoTTA(m, augmentation=lambda x: x.mul_(0.9), **OPEN), Tent, BNAdapt, Source],
)
def test_a_network_that_works_in_place(make: Callable[[nn.Module], nn.Module]) -> None:
    spoiling, careful = make(InPlace()), make(OutOfPlace())
    for x in batches(2):
        before = x.clone()
        torch.testing.assert_close(spoiling(x), careful(x))
        torch.testing.assert_close(spoiling.predict(x), careful.predict(x))
        assert torch.equal(x, before)


def test_views_of_a_network_that_works_in_place() -> None:
    x = batches(1)[0]
    views = MultiScaleFlip(scales=(1.0, 2.0))
    result = views.average_predictions(lambda view: view.mul_(2), x.clone())
    torch.testing.assert_close(result, views.average_predictions(lambda view: 2 * view, x))


def test_views_of_a_network_that_reuses_its_output() -> None:
    buffer = torch.empty(6, 3, 2, 2)

    def reusing(view: Tensor) -> Tensor:
        return buffer.copy_(nn.functional.adaptive_avg_pool2d(view, 2))

    x, views = batches(1)[0], MultiScaleFlip(scales=(2.0, 1.0))
    expected = views.average_predictions(lambda view: nn.functional.adaptive_avg_pool2d(view, 2), x)
    torch.testing.assert_close(views.average_predictions(reusing, x), expected)


class Caching(nn.Module):
    """As timm's LeViT: keeps a function of its weights in evaluation mode, drops it when trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.bias, self.cache = golden_net(), nn.Parameter(torch.zeros(5)), None

    def train(self, mode: bool = True) -> Caching:
        super().train(mode)
        if mode:
            self.cache = None
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.cache is None:
            self.cache = self.bias.exp()
        return self.net(x) + self.cache


class Plain(Caching):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.bias.exp()


@pytest.mark.parametrize("make", [lambda m: CoTTA(m, ema_decay=0.5, **OPEN), Tent])
def test_networks_that_cache_functions_of_their_weights(make: Callable[[nn.Module], nn.Module]) -> None:
    model = Caching().eval()
    model(batches(1)[0])  # the cache holds a graph, which cannot be copied
    caching, plain = make(model), make(Plain())
    for x in batches(4):
        assert torch.equal(caching(x), plain(x))
        assert torch.equal(caching.predict(x), plain.predict(x))
    modes = [module.training for module in caching.model.modules()]
    assert not any(modes)
    copy.deepcopy(caching)
    caching.reset()
    plain.reset()
    assert torch.equal(caching.predict(x), plain.predict(x))
    caching(x), plain(x)
    fresh = make(Caching())
    fresh.predict(x)
    fresh.load_state_dict(caching.state_dict())
    assert torch.equal(fresh.predict(x), plain.predict(x))


def test_the_teacher_of_a_half_precision_model_moves() -> None:
    """The average of steps below half a unit in the last place: 1.0 towards 1.5 is at 1.4751 after 3000."""
    adapted = CoTTA(golden_net().bfloat16(), restore_probability=0.0, **OPEN)
    adapted(batches(1)[0].bfloat16())
    with torch.no_grad():
        for model, value in ((adapted.teacher, 1.0), (adapted.model, 1.5)):
            for parameter in model.parameters():
                parameter.fill_(value)
    adapted._average.start()
    for _ in range(3000):
        adapted._average.update_(adapted.model, 0.999)
    expected = 1.5 - 0.5 * 0.999**3000
    for copied in adapted._average.copies.values():
        assert float(copied.flatten()[0]) == pytest.approx(expected, abs=1e-4)
    assert {float(p.flatten()[0]) for p in adapted.teacher.parameters()} == {
        1.4765625
    }  # 1.4751 to the nearest bfloat16
    fresh = CoTTA(golden_net().bfloat16(), **OPEN)
    stored = io.BytesIO()
    torch.save(adapted.state_dict(), stored)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    assert float(fresh._average.copies[0].flatten()[0]) == pytest.approx(expected, abs=1e-4)
    fresh.reset()
    assert torch.equal(fresh._average.copies[0], next(iter(fresh.source.parameters())).float())


def test_a_loaded_state_is_no_alias() -> None:
    x = batches(1)[0]
    one = CoTTA(golden_net(), **OPEN)
    one(x)
    state = one.state_dict()
    two = CoTTA(golden_net(), **OPEN)
    two.load_state_dict(state)
    before = everything(one)
    two(x)
    assert_equal(everything(one), before)


def test_a_loaded_average_of_a_half_precision_model_is_no_alias() -> None:
    x = batches(1)[0].bfloat16()
    one, two = (CoTTA(golden_net().bfloat16(), ema_decay=0.5, **OPEN) for _ in range(2))
    one(x)
    two.load_state_dict(one.state_dict())
    before = {i: value.clone() for i, value in one._average.copies.items()}
    two(x)
    assert all(torch.equal(one._average.copies[i], value) for i, value in before.items())
    assert any(not torch.equal(two._average.copies[i], value) for i, value in before.items())


def test_tent_goes_back_to_the_beginning_that_it_has_loaded() -> None:
    other = golden_net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    x, y = batches(2)
    one, two = Tent(golden_net()), Tent(other)
    one(x)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(y), one(y))
    one.reset()
    two.reset()
    assert torch.equal(two(x), one(x))
    assert torch.equal(two.model.fc.weight, golden_net().fc.weight)


class Lazy(nn.Module):
    """Makes a buffer at its first forward, which grows with every other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = golden_net()
        self.register_buffer("seen", None)

    def forward(self, x: Tensor) -> Tensor:
        row = x.detach().mean().view(1)
        self.seen = row if self.seen is None else torch.cat([self.seen, row])
        return self.net(x)


@pytest.mark.parametrize("make", [lambda m: CoTTA(m, **OPEN), Tent])
def test_buffers_that_a_forward_makes(make: Callable[[nn.Module], nn.Module]) -> None:
    adapted = make(Lazy())
    x, y = batches(2)
    adapted(x)
    assert adapted.model.seen.shape == (1,)
    adapted(y)
    assert adapted.model.seen.shape == (2,)
    adapted.reset()
    assert adapted.model.seen is None
    grown = Lazy()
    grown(x)
    again = make(grown)
    again(y)
    again.reset()
    assert torch.equal(again.model.seen, x.mean().view(1))


def test_the_threshold_leaves_the_model_as_it_is() -> None:
    model = Remembering()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    source_confidence_threshold(model, batches(3))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("make", [lambda m: CoTTA(m, **OPEN), Tent])
def test_a_wrapper_made_in_inference_mode(make: Callable[[nn.Module], nn.Module]) -> None:
    outside = make(golden_net())
    model = golden_net()
    with torch.inference_mode():
        inside = make(model)
        with pytest.raises(ValueError, match="inference_mode"):
            make(golden_net())
    for x in batches(2):
        assert torch.equal(inside(x), outside(x))
    inside.reset()
    outside.reset()
    assert torch.equal(inside(x), outside(x))
