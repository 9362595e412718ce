"""The probe: any model by layer name, hooks that go, and what it refuses."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.neural_collapse import LinearHead, NCProbe, nc_metrics
from offprints.shared.testing import check_wrapper


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def data(count: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [9, 6, 11, 3, 8][:count]
    return [(torch.randn(n, 5, generator=generator), torch.arange(n) % 3) for n in sizes]


def together(batches) -> tuple[Tensor, Tensor]:
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def close(ours, theirs, rel: float = 1e-5) -> bool:
    return vars(ours) == pytest.approx(vars(theirs), rel=rel)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_default_is_the_last_linear_layer() -> None:
    model, batches = mlp(), data()
    with NCProbe(model, num_classes=3) as probe:
        assert probe.layer == "4"
        for x, y in batches:
            model(x)
            probe.update(y)
    x, y = together(batches)
    assert close(probe.compute(), nc_metrics(model[:4](x).detach(), y, model[4].weight))
    assert close(probe.compute(geometry="of"), nc_metrics(model[:4](x).detach(), y, model[4].weight, geometry="of"))
    assert hooks(model) == 0


def test_conformance() -> None:
    def step(probe: NCProbe, batch) -> tuple[Tensor, ...]:
        probe.model(batch[0])
        probe.update(batch[1])
        stats = probe.statistics
        return stats.counts, stats.means, stats.within_covariance

    check_wrapper(lambda model: NCProbe(model, num_classes=3), mlp(), data(), step=step)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_any_layer_of_a_deep_head(start: int) -> None:
    """The classifier is the product from the layer on; a bias of the last layer changes nothing of it."""
    torch.manual_seed(0)
    head = LinearHead(8, 3, depth=3, width=3, bias=True)  # a width that equals the number of classes
    nn.init.normal_(head[2].bias)
    model, batches = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), head).eval(), data()
    probe = NCProbe(model, f"2.{start}", num_classes=3).run(batches)
    x, y = together(batches)
    features = head[:start](model[:2](x)).detach() if start else model[:2](x).detach()
    assert close(probe.compute(), nc_metrics(features, y, head.product(start)))


def test_run_is_the_with_block() -> None:
    model, batches = mlp(), data()
    probe = NCProbe(model, num_classes=3)
    assert probe.run(batches, device="cpu") is probe
    assert hooks(model) == 0
    with NCProbe(model, num_classes=3) as other:
        other.run(batches[:2]).run(batches[2:])
        assert hooks(model) > 0
    assert hooks(model) == 0
    assert probe.compute() == other.compute()
    named = NCProbe(Named(model), num_classes=3).run([({"x": x}, y) for x, y in batches])
    assert named.compute() == probe.compute()


class Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x).log_softmax(-1)}


def test_hooks_go_after_an_error_and_mode_and_gradients_stay() -> None:
    model = mlp().train()
    probe = NCProbe(model, num_classes=3)
    with pytest.raises(ZeroDivisionError), probe:
        raise ZeroDivisionError
    assert hooks(model) == 0
    with pytest.raises(ValueError, match="labels"):
        probe.run([(torch.randn(4, 5), torch.tensor([0, 1, 2]))])
    assert hooks(model) == 0
    assert probe.statistics.counts.sum() == 0
    with probe:
        x, y = data()[0]
        loss = F.cross_entropy(model(x), y)
        probe.update(y)
        loss.backward()  # training goes on beside it
    assert model.training
    assert all(p.grad is not None for p in model.parameters())


def test_merge_and_layers_with_more_axes() -> None:
    model, batches = mlp(), data()
    whole = NCProbe(model, num_classes=3).run(batches)
    half, rest = (NCProbe(model, num_classes=3).run(part) for part in (batches[:2], batches[2:]))
    half.statistics.merge(rest.statistics)
    assert close(half.compute(), whole.compute())
    x, y = torch.randn(4, 6, 5), torch.arange(24).view(4, 6) % 3
    tokens = NCProbe(model, num_classes=3).run([(x, y)])
    assert close(tokens.compute(), NCProbe(model, num_classes=3).run([(x.flatten(0, 1), y.flatten())]).compute())
    with pytest.raises(ValueError, match="labels"):
        NCProbe(model, num_classes=3).run([(x, y.flatten())])


class Changing(nn.Module):
    """Changes what the layer saw, after the layer saw it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        out = self.fc(x)
        x.zero_()
        out.mul_(2)
        return out


def test_what_is_changed_in_place_later() -> None:
    model, batches = Changing().eval(), data()
    x, y = together(batches)
    with torch.no_grad():
        probe = NCProbe(model, num_classes=3).run(batches)
    assert close(probe.compute(), nc_metrics(x, y, model.fc.weight))


class Unused(nn.Module):
    """A linear layer after the classifier that a forward call does not use, as the auxiliary heads of some networks."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.body, self.fc, self.extra = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(3, 3)
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc(self.body(x).relu())
        return self.extra(out) if self.used else out


@pytest.mark.parametrize("used", [True, False])
def test_layers_after_it_count_when_they_are_called(used: bool) -> None:
    torch.manual_seed(0)
    model, batches = Unused(used).eval(), data()
    x, y = together(batches)
    weight = model.extra.weight @ model.fc.weight if used else model.fc.weight
    probe = NCProbe(model, "fc", num_classes=3).run(batches)
    assert close(probe.compute(), nc_metrics(model.body(x).relu().detach(), y, weight))


class Scaled(nn.Linear):
    """A linear layer that does something else, too."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


def test_what_is_not_linear_is_refused() -> None:
    torch.manual_seed(0)
    square = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)).eval()  # the widths chain, the layers do not
    cases = {
        "a ReLU between": (square, "0"),
        "a ReLU in place between": (nn.Sequential(nn.Linear(5, 3), nn.ReLU(inplace=True), nn.Linear(3, 3)), "0"),
        "a layer of another kind": (nn.Sequential(nn.Linear(5, 8), Scaled(8, 3)), None),
    }
    for model, layer in cases.values():
        probe = NCProbe(model, layer, num_classes=3)
        with pytest.raises(ValueError, match="layer"):
            probe.run(data())
        assert probe.statistics.counts.sum() == 0
    NCProbe(square, "2", num_classes=3).run(data()).compute()


def test_parametrized_weights_and_half_types() -> None:
    torch.manual_seed(0)
    model, batches = mlp(), data()
    expected = NCProbe(model, num_classes=3).run(batches).compute()
    nn.utils.parametrizations.weight_norm(model[4])
    assert close(NCProbe(model, num_classes=3).run(batches).compute(), expected, rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert close(NCProbe(model, num_classes=3).run(batches).compute(), expected, rel=0.05)
    half = copy.deepcopy(mlp()).bfloat16()
    assert close(
        NCProbe(half, num_classes=3).run([(x.bfloat16(), y) for x, y in batches]).compute(), expected, rel=0.05
    )


def test_order_of_calls() -> None:
    model = mlp()
    probe = NCProbe(model, num_classes=3)
    with pytest.raises(RuntimeError, match="forward"):
        probe.update(torch.tensor([0]))
    with probe:
        x, y = data()[0]
        model(torch.randn(2, 5))
        model(x)  # the latest call counts
        probe.update(y)
        with pytest.raises(RuntimeError, match="forward"):
            probe.update(y)
        with pytest.raises(RuntimeError, match="entered"):
            probe.__enter__()
    assert probe.statistics.counts.sum() == 9


def test_compiled_model() -> None:
    model, batches = mlp(), data()
    expected = NCProbe(model, num_classes=3).run(batches).compute()
    compiled = torch.compile(mlp(), backend="eager")
    assert close(NCProbe(compiled, num_classes=3).run(batches).compute(), expected)


def test_part_of_an_adapter_is_refused() -> None:
    """The logits of an adapted layer are not those of its parts."""
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.ModuleDict({"base_layer": nn.Linear(8, 3)}))
    model[2]["lora_A"], model[2]["lora_B"] = nn.Linear(8, 2, bias=False), nn.Linear(2, 3, bias=False)
    for layer in (None, "2.base_layer", "2.lora_A", "2.lora_B"):
        with pytest.raises(ValueError, match="layer must not be part of an adapter"):
            NCProbe(model, layer, num_classes=3)


def test_model_compiled_before() -> None:
    """Hooks that are set after the first call of a compiled model are seen by the probe of that model."""
    model, batches = mlp(), data()
    compiled = torch.compile(model, backend="eager")
    compiled(batches[0][0])
    x, y = together(batches)
    expected = nc_metrics(model[:4](x).detach(), y, model[4].weight)
    assert close(NCProbe(compiled, num_classes=3).run(batches).compute(), expected)
