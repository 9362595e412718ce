"""The global minimizers: proven by their gradient, by optimization, and by their geometry."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprints.neural_collapse import (
    DeepLinearUFM,
    UFMState,
    ce_etf_solution,
    global_minimizer,
    gof_solution,
    nc_metrics,
)
from offprints.neural_collapse.cross_entropy import ce_polygon_solution
from offprints.shared.testing import check_module

LAYERS = {
    "one layer": ([8], 5e-3, 4e-3),
    "two layers": ([8, 6], [5e-3, 2e-3], 4e-3),
    "three layers": ([8, 7, 9], [2e-3, 5e-3, 1e-3], 3e-3),
    "six layers": ([8] * 6, [2e-3] * 6, 2e-3),
    "a bottleneck": ([8, 2, 6], [2e-3, 2e-3, 3e-3], 2e-3),
    "narrow features": ([1, 6], [2e-3, 2e-3], 2e-3),
}
PROBLEMS = {
    **{f"mse, {name}": ([20, 10, 5, 10], *layers, {}) for name, layers in LAYERS.items()},
    **{f"mse with bias, {name}": ([10] * 4, *layers, {"bias": True}) for name, layers in LAYERS.items()},
    **{
        f"ce, {name}{' with bias' * bias}": ([10] * 4, *LAYERS[name], {"loss": "ce", "bias": bias})
        for name in ("one layer", "two layers", "three layers")
        for bias in (False, True)
    },
    "mse, a class has collapsed": ([200, 100, 3], [6, 6], [5e-3, 5e-3], 5e-3, {}),
    "mse, all have collapsed": ([4, 4, 4], [6, 6], [0.5, 0.5], 0.5, {"bias": True}),
    "ce, all have collapsed": ([4, 4, 4], [6, 6], [0.5, 0.5], 0.5, {"loss": "ce"}),
}


def at_the_minimum(
    counts, dims, weight_decay, feature_decay, seed: int = 0, **options
) -> tuple[DeepLinearUFM, UFMState]:
    given = {"weight_decay": weight_decay, "feature_decay": feature_decay, **options}
    model = DeepLinearUFM(counts, dims, **given)
    state = global_minimizer(counts, dims, **given, seed=seed)
    model.load_state_dict(state.state_dict())
    return model, state


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_is_zero_and_the_loss_is_the_closed_form(name: str) -> None:
    *problem, options = PROBLEMS[name]
    for seed in (0, 1):
        model, state = at_the_minimum(*problem, seed=seed, **options)
        objective = model.objective()
        assert objective.item() == pytest.approx(state.loss, rel=1e-12)
        for gradient in torch.autograd.grad(objective, list(model.parameters())):
            assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("name", [name for name in PROBLEMS if "three layers" in name or "bottleneck" in name])
def test_no_direction_leads_down(name: str) -> None:
    """The Hessian at the minimum has no negative eigenvalue: the second derivatives are right, too."""
    counts, dims, decay, feature_decay, options = PROBLEMS[name]
    counts = [max(1, n // 5) for n in counts]
    dims, decay = ([4] * len(dims), decay) if "bottleneck" not in name else ([4, 2, 3], decay)
    model, _ = at_the_minimum(counts, dims, decay, feature_decay, **options)
    names = [key for key, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def objective(values: torch.Tensor) -> torch.Tensor:
        parts = values.split([math.prod(shape) for shape in shapes])
        state = {key: part.view(shape) for key, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(
            _Objective(model), {f"model.{key}": value for key, value in state.items()}, ()
        )

    hessian = torch.autograd.functional.hessian(objective, flat)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12


class _Objective(torch.nn.Module):
    def __init__(self, model: DeepLinearUFM) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> torch.Tensor:
        return self.model.objective()


def optimized(model: DeepLinearUFM, steps: int = 600) -> float:
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=steps,
        history_size=30,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = model.objective()
        value.backward()
        return value

    optimizer.step(closure)
    return model.objective().item()


@pytest.mark.parametrize(
    "name", ["mse, one layer", "mse, two layers", "mse, a bottleneck", "mse with bias, two layers", "ce, one layer"]
)
def test_optimization_reaches_the_closed_form_and_goes_no_lower(name: str) -> None:
    counts, dims, decay, feature_decay, options = PROBLEMS[name]
    given = {"weight_decay": decay, "feature_decay": feature_decay, **options}
    minimum = global_minimizer(counts, dims, **given).loss
    found = [optimized(DeepLinearUFM(counts, dims, **given, init_std=0.5, seed=seed)) for seed in range(2)]
    assert min(found) >= minimum - 1e-12
    assert min(found) == pytest.approx(minimum, abs=1e-10)


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(1, 5), st.floats(1e-4, 1e-1)), min_size=1, max_size=4),
    st.floats(1e-4, 1e-1),
    st.integers(0, 1000),
)
def test_no_state_is_lower(counts, layers, feature_decay, seed) -> None:
    """The minimum against random states, near to it and far from it."""
    dims, decay = [d for d, _ in layers], [w for _, w in layers]
    model, state = at_the_minimum(counts, dims, decay, feature_decay)
    assert model.objective().item() == pytest.approx(state.loss, rel=1e-10)
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-4, 1e-2, 0.3):
        moved = DeepLinearUFM(counts, dims, weight_decay=decay, feature_decay=feature_decay)
        moved.load_state_dict(state.state_dict())
        with torch.no_grad():
            for p in moved.parameters():
                p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        assert moved.objective().item() >= state.loss - 1e-13


@pytest.mark.parametrize(
    ("name", "geometry"),
    [("mse, three layers", "gof"), ("mse with bias, three layers", "etf"), ("ce, two layers", "etf")],
)
def test_metrics_are_zero_there(name: str, geometry: str) -> None:
    counts, dims, decay, feature_decay, options = PROBLEMS[name]
    model, state = at_the_minimum(counts, dims, decay, feature_decay, **options)
    target = gof_solution(counts, weight_decay=decay, feature_decay=feature_decay) if geometry == "gof" else None
    found = nc_metrics(state.features, state.labels, model.product(), geometry=geometry, target=target)
    assert max(vars(found).values()) < 1e-12, found
    # Not so with another geometry: the classes have different lengths, or there is no bias.
    other = nc_metrics(state.features, state.labels, model.product(), geometry="of")
    assert other.nc2_w > 0.05


def test_a_collapsed_class_in_the_metrics() -> None:
    counts, dims, decay, feature_decay, _ = PROBLEMS["mse, a class has collapsed"]
    model, state = at_the_minimum(counts, dims, decay, feature_decay)
    target = gof_solution(counts, weight_decay=decay, feature_decay=feature_decay)
    assert target.collapsed.tolist() == [False, False, True]
    assert (state.features[state.labels == 2] == 0).all()
    found = nc_metrics(state.features, state.labels, model.product(), geometry="gof", target=target)
    assert max(vars(found).values()) < 1e-12


def test_more_width_lowers_the_loss_until_there_is_room_for_all_classes() -> None:
    given = {"weight_decay": [1e-3, 1e-3], "feature_decay": 1e-3}
    losses = [global_minimizer([9, 9, 6, 6], [d, 8], **given).loss for d in range(1, 7)]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert losses[3] == losses[4] == losses[5]
    with_bias = [global_minimizer([9] * 4, [d, 8], **given, bias=True).loss for d in range(1, 6)]
    assert with_bias[1] > with_bias[2] == with_bias[3]  # K - 1 directions are enough
    without = global_minimizer([9] * 4, [8, 8], **given).loss
    assert with_bias[3] == pytest.approx(0.75 * without, rel=1e-12)


def test_layers_are_balanced() -> None:
    decays = [2e-3, 5e-3, 1e-3]
    _, state = at_the_minimum([20, 10, 5], [8, 7, 9], decays, 3e-3)
    for a, b, x, y in zip(state.weights[:-1], state.weights[1:], decays[:-1], decays[1:], strict=True):
        torch.testing.assert_close(x * a @ a.T, y * b.T @ b, rtol=1e-10, atol=1e-15)


def test_seeds_and_types() -> None:
    given = {"weight_decay": [1e-3, 1e-3], "feature_decay": 1e-3}
    one, two, other = (global_minimizer([6, 4], [5, 5], **given, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.features, two.features)
    assert not torch.allclose(one.features, other.features)
    half = global_minimizer([6, 4], [5, 5], **given, dtype=torch.float32)
    assert half.features.dtype == half.weights[0].dtype == torch.float32
    torch.testing.assert_close(half.features, one.features.float(), rtol=0, atol=0)
    assert global_minimizer([6, 6], [5, 5], **given, bias=True, dtype=torch.float32).bias.dtype == torch.float32


# Cross-entropy


def test_cross_entropy_against_optimization() -> None:
    """What is documented: with one and two layers the ETF is reached, with three there is something lower."""
    given = {"feature_decay": 1e-3, "loss": "ce"}
    for M in (1, 2):
        etf = ce_etf_solution(4, 10, weight_decay=[1e-3] * M, feature_decay=1e-3)[1]
        found = min(
            optimized(DeepLinearUFM([10] * 4, [6] * M, weight_decay=[1e-3] * M, **given, init_std=0.5, seed=seed))
            for seed in range(3)
        )
        assert found == pytest.approx(etf, abs=1e-9)
    etf = ce_etf_solution(4, 10, weight_decay=[1e-3] * 3, feature_decay=1e-3)[1]
    polygon = ce_polygon_solution(4, 10, weight_decay=[1e-3] * 3, feature_decay=1e-3)[1]
    assert (etf, polygon) == pytest.approx((0.030852, 0.028436), abs=5e-7)
    assert polygon < 0.93 * etf
    deep = {"weight_decay": [5e-4] * 6, "feature_decay": 5e-4}
    assert ce_etf_solution(10, 100, **deep)[1] == pytest.approx(0.05787, abs=5e-6)
    assert ce_polygon_solution(10, 100, **deep)[1] == pytest.approx(0.03165, abs=5e-6)


@pytest.mark.parametrize("M", [1, 2, 3, 6])
@pytest.mark.parametrize("K", [2, 3, 10])
def test_the_gap_is_the_global_minimum_on_a_grid(M: int, K: int) -> None:
    grid = torch.linspace(0, 80, 800_001, dtype=torch.float64)
    for decay in (1e-5, 1e-3, 3e-2, 0.3):
        omega, value = ce_etf_solution(K, 7, weight_decay=[decay] * M, feature_decay=2 * decay)
        scale = (2 * decay * decay**M * 7) ** (1 / (M + 1))
        values = ((K - 1) * (-grid).exp()).log1p() + (K - 1) * (M + 1) / 2 * scale * grid ** (2 / (M + 1))
        assert value <= values.min() + 1e-14
        assert value == pytest.approx(values.min().item(), abs=1e-8)
        assert omega == pytest.approx(grid[values.argmin()].item(), abs=2e-4)


def test_the_polygon_is_a_state_of_the_model() -> None:
    """Its objective is that of weights and features that lie in a plane, and with three classes it is the ETF."""
    K, n, decay, M = 5, 8, 1e-3, 3
    amplitude, value = ce_polygon_solution(K, n, weight_decay=[decay] * M, feature_decay=decay)
    angles = 2 * math.pi * torch.arange(K, dtype=torch.float64) / K
    circle = torch.stack([angles.cos(), angles.sin()], 1) * math.sqrt(2 / K)
    logits = amplitude * (angles[:, None] - angles).cos()
    torch.testing.assert_close(circle @ circle.T * amplitude * K / 2, logits)
    size = (amplitude * K / 2 * math.sqrt(n)) ** (1 / (M + 1))  # of each of M + 1 equally penalized factors
    model = DeepLinearUFM([n] * K, [2] * M, weight_decay=[decay] * M, feature_decay=decay, loss="ce")
    with torch.no_grad():
        for W in model.weights[:-1]:
            W.copy_(size * torch.eye(2, dtype=torch.float64))
        model.weights[-1].copy_(size * circle)
        model.features.copy_(size * circle[model.labels] / math.sqrt(n))
    assert model.objective().item() == pytest.approx(value, rel=1e-12)
    for gradient in torch.autograd.grad(model.objective(), list(model.parameters())):
        assert gradient.abs().max() < 1e-12
    triangle = ce_polygon_solution(3, n, weight_decay=[decay] * M, feature_decay=decay)[1]
    assert triangle == pytest.approx(ce_etf_solution(3, n, weight_decay=[decay] * M, feature_decay=decay)[1], rel=1e-12)


# The module


@pytest.mark.parametrize("options", [{}, {"bias": True, "loss": "ce"}])
def test_module(options) -> None:
    model = DeepLinearUFM([5, 3, 2], [6, 4], weight_decay=[1e-2, 2e-2], feature_decay=1e-2, **options)
    check_module(model, lambda generator: ())


def test_objective_under_compile_and_in_other_types() -> None:
    for options in ({}, {"bias": True, "loss": "ce"}):
        model = DeepLinearUFM([5, 3, 2], [6, 4], weight_decay=[1e-2, 2e-2], feature_decay=1e-2, **options)
        expected = torch.autograd.grad(model.objective(), list(model.parameters()))
        compiled = torch.compile(model.objective, backend="aot_eager")()
        for ours, theirs in zip(torch.autograd.grad(compiled, list(model.parameters())), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert model.float().objective().dtype == torch.float32
        assert model.objective().item() == pytest.approx(compiled.item(), rel=1e-5)


def test_products_and_labels() -> None:
    model = DeepLinearUFM([5, 3, 2], [6, 4, 7], weight_decay=[1e-2] * 3, feature_decay=1e-2)
    W = list(model.weights)
    assert [tuple(w.shape) for w in W] == [(4, 6), (7, 4), (3, 7)]
    torch.testing.assert_close(model.product(), W[2] @ W[1] @ W[0])
    torch.testing.assert_close(model.product(1), W[2] @ W[1])
    assert torch.equal(model.product(2), W[2])
    assert model.labels.tolist() == [0] * 5 + [1] * 3 + [2] * 2
    torch.testing.assert_close(model(), model.features @ model.product().T)
    assert model.bias is None
    again = DeepLinearUFM([5, 3, 2], [6, 4, 7], weight_decay=[1e-2] * 3, feature_decay=1e-2, dtype=torch.float32)
    torch.testing.assert_close(again.features, model.features.float())
    big = DeepLinearUFM([500, 500], [40], weight_decay=1e-2, feature_decay=1e-2, init_std=0.3, seed=4)
    assert big.features.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_objective_of_half_types_is_float32(loss: str) -> None:
    """Sums of many squares overflow float16."""
    options = {"weight_decay": [1e-3, 1e-3], "feature_decay": 1e-2, "loss": loss, "init_std": 1.0, "bias": True}
    half = DeepLinearUFM([8000, 4000, 2000], [8, 8], dtype=torch.float16, **options)
    same = DeepLinearUFM([8000, 4000, 2000], [8, 8], **options)
    same.load_state_dict(half.state_dict())
    assert half.objective().dtype == torch.float32
    assert half.objective().item() == pytest.approx(same.objective().item(), rel=1e-5)
    assert half.features.square().sum().isinf()
