"""CoTTA around small models."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from packages.cotta.tests.models import batches, golden_net
from torch import Tensor, nn

from offprints.cotta import (
    BNAdapt,
    CoTTA,
    ImageAugmentation,
    MultiScaleFlip,
    Source,
    Tent,
    collect_params,
    configure_model,
    source_confidence_threshold,
)


def state(wrapper: nn.Module) -> dict[str, Tensor]:
    return {name: v.clone() for name, v in wrapper.state_dict().items() if isinstance(v, Tensor)}


def run(wrapper: nn.Module, count: int = 3, **options: int) -> list[Tensor]:
    return [wrapper(x) for x in batches(count, **options)]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert all(map(torch.equal, left, right))


@pytest.mark.parametrize(("kind", "average"), [("drawn", "logits"), ("callable", "probabilities")])
def test_augmentation_batch_changes_nothing(kind: str, average: str) -> None:
    """To the last bit, with 1, 3, 5 (of which 7 is no multiple), 7 or more views in a forward."""
    results, states = [], []
    for size in (None, 1, 3, 5, 7, 100):
        augmentation = None if kind == "drawn" else lambda x: (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
        adapted = CoTTA(
            golden_net(),
            seed=3,
            num_augmentations=7,
            confidence_threshold=1.0,
            augmentation_batch=size,
            augmentation=augmentation,
            average=average,
        )
        results.append(run(adapted, 2, size=16, side=16))
        states.append(state(adapted))
        if size is not None and 1 < size <= 7:
            assert all(adapted._predict_target.views._exact.values()), "views did share forwards"
    for result, after in zip(results, states, strict=True):
        assert_same(result, results[0])
        assert all(torch.equal(after[name], value) for name, value in states[0].items())


class Coupled(nn.Module):
    """Couples the samples of a batch in a layer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = golden_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0))


def test_unknown_coupling_of_a_batch_is_found() -> None:
    results = []
    for size in (1, 4):
        adapted = CoTTA(Coupled(), seed=0, num_augmentations=4, confidence_threshold=1.0, augmentation_batch=size)
        results.append(run(adapted))
    assert_same(*results)
    assert not any(adapted._predict_target.views._exact.values())


def test_answer_comes_before_the_update() -> None:
    x, *_ = batches(1)
    adapted = CoTTA(golden_net(), seed=0, confidence_threshold=1.0, num_augmentations=1, augmentation=torch.square)
    before = copy.deepcopy(adapted.teacher)
    torch.testing.assert_close(adapted(x), before(x.square()))
    assert not torch.equal(adapted.model.fc.weight, before.fc.weight)
    assert not torch.equal(adapted.teacher.fc.weight, before.fc.weight)
    assert adapted.last_augmented is True
    assert adapted.last_skipped is False
    torch.testing.assert_close(adapted.predict(x), adapted.teacher(x))


def test_one_plain_view_is_the_closed_gate() -> None:
    settings = {"num_augmentations": 1, "augmentation": lambda x: x, "seed": 0}
    opened = CoTTA(golden_net(), confidence_threshold=1.0, **settings)
    closed = CoTTA(golden_net(), confidence_threshold=0.0, **settings)
    assert_same(run(opened), run(closed))
    assert opened.last_augmented is True
    opened = CoTTA(golden_net(), confidence_threshold=1.0, average="probabilities", **settings)
    for x in batches(2):
        torch.testing.assert_close(opened(x).softmax(1), closed.source(x).softmax(1), atol=0.05, rtol=0)


def test_probabilities_are_averaged() -> None:
    x, *_ = batches(1)
    views = [x, 0.5 * x, x.flip(-1)]
    calls = iter(views)
    adapted = CoTTA(
        golden_net(),
        num_augmentations=3,
        augmentation=lambda _: next(calls),
        average="probabilities",
        confidence_threshold=1.0,
    )
    teacher = copy.deepcopy(adapted.teacher)
    expected = torch.stack([teacher(view).softmax(1) for view in views]).mean(0)
    torch.testing.assert_close(adapted(x).softmax(1), expected)


def test_gate_by_sample() -> None:
    x = batches(1, size=12)[0]
    probe = configure_model(golden_net())
    confidence = probe(x).softmax(1).amax(1).detach()
    threshold = float(confidence.median()) + 1e-6
    settings = {"num_augmentations": 2, "augmentation": lambda x: 0.5 * x, "confidence_threshold": threshold}
    adapted = CoTTA(golden_net(), gate="sample", seed=0, **settings)
    out = adapted(x)
    below = confidence < threshold
    assert 0 < below.sum() < len(x)
    assert torch.equal(adapted.last_augmented, below)
    torch.testing.assert_close(adapted.last_confidence, confidence)
    torch.testing.assert_close(out[~below], probe(x)[~below].detach())
    torch.testing.assert_close(out[below], probe(0.5 * x)[below].detach())


@pytest.mark.parametrize("gate", ["batch", "sample"])
def test_a_confidence_that_meets_the_threshold_is_not_below_it(gate: str) -> None:
    x = batches(1, size=1)[0] if gate == "sample" else batches(1)[0]
    settings = {"num_augmentations": 2, "augmentation": lambda x: 0.5 * x, "gate": gate, "seed": 0}
    probe = CoTTA(golden_net(), confidence_threshold=0.0, **settings)
    answer = probe(x)
    equal = CoTTA(golden_net(), confidence_threshold=float(probe.last_confidence), **settings)
    assert torch.equal(equal(x), answer)
    assert not equal.last_augmented
    above = CoTTA(golden_net(), confidence_threshold=float(probe.last_confidence) + 1e-6, **settings)
    assert not torch.equal(above(x), answer)
    assert above.last_augmented


def test_views_and_restoration_have_streams_of_their_own() -> None:
    def states() -> list[Tensor]:
        adapted = CoTTA(golden_net(), seed=5, confidence_threshold=0.0)
        before = [generator.get_state() for generator in adapted._generators.values()]
        adapted(batches(1)[0])  # no views: the restoration alone draws
        assert torch.equal(adapted.generator.get_state(), before[0])
        assert not torch.equal(adapted._generators["restoration"].get_state(), before[1])
        return before

    views, restoration = states()
    assert not torch.equal(views, restoration)
    assert all(map(torch.equal, states(), [views, restoration]))


def test_batch_permutation() -> None:
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    x, y = (batch.double() for batch in batches(2))
    results = []
    for permute in (False, True):
        adapted = CoTTA(
            golden_net().double(),
            lambda params: torch.optim.SGD(params, lr=0.1),
            augmentation=ImageAugmentation(noise_std=0),
            num_augmentations=3,
            confidence_threshold=1.0,
            seed=0,
        )
        adapted(x[order] if permute else x)
        results.append(adapted(y[order] if permute else y))
    torch.testing.assert_close(results[1], results[0][order], rtol=1e-9, atol=1e-12)


def test_restoration_and_average_follow_the_settings() -> None:
    frozen = CoTTA(golden_net(), ema_decay=1.0, restore_probability=1.0, seed=0)
    run(frozen)
    for name, value in golden_net().named_parameters():
        assert torch.equal(frozen.model.get_parameter(name), value)
        assert torch.equal(frozen.teacher.get_parameter(name), value)
    copied = CoTTA(golden_net(), ema_decay=0.0, restore_probability=0.0, seed=0)
    run(copied)
    for name, value in copied.model.named_parameters():
        assert torch.equal(copied.teacher.get_parameter(name), value)


def test_reset_and_episodic() -> None:
    x, y = batches(2)
    settings = {"num_augmentations": 2, "augmentation": lambda x: 0.9 * x, "confidence_threshold": 1.0, "seed": 0}
    adapted = CoTTA(golden_net(), **settings)
    first = adapted(x)
    adapted(y)
    adapted.reset()
    assert torch.equal(adapted(x), first)
    assert torch.equal(adapted.source.fc.weight, golden_net().fc.weight)
    episodic = CoTTA(golden_net(), episodic=True, **settings)
    episodic(y)
    assert torch.equal(episodic(x), first)
    drawn = CoTTA(golden_net(), episodic=True, seed=0, num_augmentations=2, confidence_threshold=1.0)
    assert not torch.equal(drawn(x), drawn(x)), "the random stream runs on"


@pytest.mark.parametrize("make", [lambda m: CoTTA(m, seed=0, num_augmentations=2), Tent, BNAdapt, Source])
def test_under_no_grad_and_inference_mode(make: Callable[[nn.Module], nn.Module]) -> None:
    expected = run(make(golden_net()))
    for context in (torch.no_grad, torch.inference_mode):
        adapted = make(golden_net())
        with context():
            results = run(adapted)
        assert_same([result.clone() for result in results], expected)
        assert not results[0].requires_grad


class Exploding(nn.Module):
    """Finite logits whose gradient is not, where an image is black."""

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.net, self.in_forward = golden_net(), forward

    def forward(self, x: Tensor) -> Tensor:
        darkest = x.amax((1, 2, 3))[:, None]
        if self.in_forward:
            return self.net(x) / (darkest > 0)
        return self.net(x) + (self.net.fc.bias * darkest).abs().sqrt()


@pytest.mark.parametrize(
    ("make", "forward"),
    [
        (lambda model: CoTTA(model, seed=0, num_augmentations=2), True),
        (lambda model: CoTTA(model, seed=0, num_augmentations=2), False),
        (Tent, True),  # it learns nothing that the other gradient would reach
    ],
)
def test_a_loss_that_is_not_finite_changes_nothing(make: Callable[[nn.Module], nn.Module], forward: bool) -> None:
    adapted = make(Exploding(forward))
    x, y = batches(2)
    adapted(x)
    before, black = state(adapted), torch.cat([x[:3], torch.zeros_like(x[:1])])
    with pytest.raises(FloatingPointError):
        adapted(black)
    assert all(torch.equal(value, before[name]) for name, value in state(adapted).items())
    twin = make(Exploding(forward))
    twin(x)
    assert torch.equal(adapted(y), twin(y))


def test_nan_is_refused_or_survived() -> None:
    bad = torch.full((4, 3, 8, 8), torch.nan)
    adapted = CoTTA(golden_net(), seed=0, validate=False)
    before = state(adapted)
    with pytest.raises(FloatingPointError):
        adapted(bad)
    assert all(torch.equal(value, before[name]) for name, value in state(adapted).items())


def test_a_single_value_per_channel_is_explained() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten())
    one = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match='norm="source"'):
        CoTTA(copy.deepcopy(net))(one)
    configured = configure_model(net, norm="source")
    assert CoTTA(configured, configure=False)(one).shape == (1, 4)


class Viewing(nn.Module):
    """Asks for a view of its feature maps that there is in one memory layout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(len(x), -1))


def test_a_network_that_needs_the_usual_memory_layout() -> None:
    adapted = CoTTA(Viewing(), seed=0, num_augmentations=2, confidence_threshold=1.0)
    x, y = batches(2)
    before = copy.deepcopy(adapted.source)
    out = adapted(x)
    assert out.shape == (6, 3)
    torch.testing.assert_close(adapted.predict(y), adapted.teacher(y))
    torch.testing.assert_close(Source(before)(x), adapted.source(x))
    with pytest.raises(RuntimeError):
        CoTTA(Viewing(), seed=0)(x[:, :, :5])


def test_tied_weights_count_once() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3))
    net[2].weight = net[1].weight
    params, names = collect_params(net)
    assert names == ["1.weight", "1.bias", "2.bias", "3.weight", "3.bias"]
    adapted = CoTTA(net, ema_decay=0.5, restore_probability=0, num_augmentations=1, augmentation=lambda x: x, seed=0)
    assert adapted.teacher[1].weight is adapted.teacher[2].weight
    before = adapted.teacher[1].weight.clone()
    adapted(torch.rand(5, 3, 2, 2))
    torch.testing.assert_close(adapted.teacher[1].weight, 0.5 * before + 0.5 * adapted.model[1].weight)
    assert len(params) == 5


def test_parameters_of_a_transformer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    everything = set(collect_params(layer)[1])
    official = set(collect_params(layer, which="weight_bias")[1])
    assert everything - official == {"self_attn.in_proj_weight", "self_attn.in_proj_bias"}
    assert collect_params(layer, which="norm")[1] == ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]


def test_dropout_follows_the_wrappers_seed() -> None:
    def dropping() -> CoTTA:
        model = nn.Sequential(golden_net(), nn.Dropout(0.5))
        return CoTTA(model, seed=1, train_mode=True, confidence_threshold=0.0)

    torch.manual_seed(0)
    first = run(dropping())
    torch.manual_seed(1)
    assert_same(run(dropping()), first)
    assert (first[0] == 0).any()
    assert not (dropping().predict(batches(1)[0]) == 0).any()


def test_an_optimizer_made_before() -> None:
    net = configure_model(golden_net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    adapted = CoTTA(net, optimizer, configure=False, seed=0)
    assert adapted.optimizer is optimizer
    run(adapted)
    assert not torch.equal(net.fc.weight, golden_net().fc.weight)


def test_bfloat16_autocast() -> None:
    adapted = CoTTA(golden_net(), seed=0, num_augmentations=2, confidence_threshold=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        result = run(adapted)
    plain = run(CoTTA(golden_net(), seed=0, num_augmentations=2, confidence_threshold=1.0))
    torch.testing.assert_close(result[-1].float(), plain[-1], rtol=0.1, atol=0.1)
    assert adapted.model.fc.weight.dtype == torch.float32


def test_threshold_from_source_images() -> None:
    net = golden_net().train()
    net.eval()
    confidence = torch.stack([net(x).softmax(1).amax(1) for x in batches(3)]).detach()
    probe = configure_model(copy.deepcopy(net))
    own = torch.stack([probe(x).softmax(1).amax(1).mean() for x in batches(3)]).detach()
    net.bn1.train()
    for gate, norm, values in (
        ("batch", "source", confidence.mean(1)),
        ("sample", "source", confidence.flatten()),
        ("batch", "batch", own),
    ):
        threshold = source_confidence_threshold(net, batches(3), quantile=0.3, margin=0.1, gate=gate, norm=norm)
        assert threshold == pytest.approx(float(values.quantile(0.3)) - 0.1, abs=1e-6)
    assert net.bn1.training
    assert not net.bn2.training
    assert source_confidence_threshold(net, batches(1), margin=5.0) == 0.0
    gate = CoTTA(
        copy.deepcopy(net), seed=0, num_augmentations=1, confidence_threshold=float(own.sort().values[:2].mean())
    )
    opened = []
    for x in batches(3):
        gate(x)
        gate.reset()
        opened.append(gate.last_augmented)
    assert sum(opened) == 1, "one of three batches is below their median"


def segmenter() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_segmentation(average: str) -> None:
    views = MultiScaleFlip(scales=(0.5, 1.0))
    adapted = CoTTA(segmenter(), augmentation=views, average=average, confidence_threshold=1.0, seed=0)
    teacher = copy.deepcopy(adapted.teacher)
    x = batches(1, side=12)[0]
    out = adapted(x)
    assert out.shape == (6, 4, 12, 12)
    kind = (lambda view: teacher(view)) if average == "logits" else (lambda view: teacher(view).softmax(1))
    expected = views.average_predictions(kind, x)
    torch.testing.assert_close(out if average == "logits" else out.softmax(1), expected)
    Tent(segmenter())(x)
    assert CoTTA(segmenter(), augmentation=views, gate="sample", seed=0)(x).shape == out.shape


def test_mobile_segmentation_network_of_torchvision() -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    net = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    views = MultiScaleFlip(scales=(1.0, 1.5))
    adapted = CoTTA(net, augmentation=views, confidence_threshold=1.0, seed=0)
    for x in batches(2, size=2, side=64):
        assert adapted(x).shape == (2, 3, 64, 64)
    assert adapted.last_loss.isfinite()


def test_deepcopy() -> None:
    adapted = CoTTA(golden_net(), seed=0, num_augmentations=2, confidence_threshold=1.0)
    run(adapted, 2)
    twin = copy.deepcopy(adapted)
    expected = run(adapted, 2, seed=5)
    assert_same(run(twin, 2, seed=5), expected)
