"""Attacks and training: ball and box, what is left alone, the theorem behind the smooth loss, skipping, AutoAttack."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offprints.comp_sum import (
    adv_comp_sum_loss,
    autoattack_accuracy,
    comp_sum_loss,
    pgd_attack,
    reference,
    rho_margin_comp_sum_loss,
    robust_accuracy,
    smooth_adversarial_comp_sum_loss,
    trades_loss,
)
from offprints.shared.device import make_generator
from offprints.shared.extras import MissingExtra

BALL: dict[str, Any] = {"eps": 0.1, "step_size": 0.03, "steps": 4}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5)
        )
        model(torch.rand(64, 8))  # running statistics of its own
    return model


def batch(rows: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.rand(rows, 2, 4, generator=make_generator(1))
    return x, torch.arange(rows) % 5


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", ["ce", "kl", "delta", "dlr"])
@pytest.mark.parametrize("start", ["uniform", "gaussian", None])
def test_stays_in_ball_and_box(objective: str, norm: str, start: str | None) -> None:
    x, y = batch()
    x[0], x[1] = 0.0, 1.0
    options: dict[str, Any] = {**BALL, "objective": objective, "norm": norm, "random_start": start}
    found = pgd_attack(network(), x, y, generator=make_generator(2), **options)
    moved = (found - x).flatten(1)
    assert (moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert torch.equal(found, pgd_attack(network(), x, y, generator=make_generator(2), **options))
    if objective != "delta" or start is not None:
        assert (found != x).any()
    assert torch.equal(pgd_attack(network(), x, y, **{**options, "eps": 0.0}), x)


@pytest.mark.parametrize("objective", ["ce", "kl", "delta", "dlr"])
def test_raises_its_objective(objective: str) -> None:
    """More than a random point of the ball does, for every sample's sum."""
    model, (x, y) = network().eval(), batch(40)
    generator = make_generator(3)
    start = x + 0.1 * (2 * torch.rand(x.shape, generator=generator) - 1)
    found = pgd_attack(model, x, y, eps=0.1, step_size=0.02, steps=20, objective=objective, x_init=start, clip=None)

    @torch.no_grad()
    def value(at: Tensor) -> float:
        z, clean = model(at).double(), model(x).double()
        if objective == "kl":
            return float(nn.functional.kl_div(z.log_softmax(1), clean.softmax(1), reduction="sum"))
        if objective == "delta":
            shift = z - clean
            return float((shift.gather(1, y[:, None]) - shift).norm(dim=1).sum())
        if objective == "dlr":
            ordered = z.sort(1).values
            others = z.scatter(1, y[:, None], -math.inf).amax(1)
            own = z.gather(1, y[:, None]).squeeze(1)
            return float(((others - own) / (ordered[:, -1] - ordered[:, -3])).sum())
        return float(comp_sum_loss(z, y, reduction="sum"))

    assert value(found) > value(start)
    assert value(found) > value(x)


def test_delta_needs_a_random_start() -> None:
    x, y = batch()
    still = pgd_attack(network(), x, y, objective="delta", random_start=None, **BALL)
    assert torch.equal(still, x)


def test_equals_the_reference() -> None:
    model, (x, y) = network().eval(), batch()
    found = pgd_attack(model, x, y, random_start=None, **BALL)
    expected = reference.attack(lambda at: nn.functional.cross_entropy(model(at), y), x, x, 0.1, 0.03, 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 700.0, 1e5, 1e30])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sure_classifier_is_not_called_robust(scale: float, norm: str) -> None:
    """Scaled scores change no answer. The gradient of cross-entropy is gone from a margin of 17 on as torch computes
    it, and from 104 on in float32 at all; an attack by it would stay where it is.
    """
    slope = torch.tensor([1.0, -2.0, 0.5, 1.5])
    x = 0.3 + 0.4 * torch.rand(30, 4, generator=make_generator(4))
    gap = x @ slope - 0.25
    y = (gap < 0).long()

    def model(at: Tensor) -> Tensor:
        found = scale * (at @ slope - 0.25)
        return torch.stack([found, -found], 1)

    unit = slope.sign() if norm == "linf" else slope / slope.norm()
    found = pgd_attack(model, x, y, eps=0.1, step_size=0.04, steps=4, norm=norm, random_start=None, clip=None)  # type: ignore[arg-type]
    torch.testing.assert_close(found, x + 0.1 * (2 * y[:, None] - 1) * unit)
    robust = float((gap.abs() > 0.1 * (unit @ slope)).double().mean())
    assert 0 < robust < 1
    ball: dict[str, Any] = {"eps": 0.1, "step_size": 0.02, "steps": 8, "norm": norm, "clip": None, "random_start": None}
    assert robust_accuracy(model, x, y, **ball) == (1.0, pytest.approx(robust))


def test_attack_on_cross_entropy_goes_along_its_gradient() -> None:
    """With several classes, in float64, where that gradient has not vanished."""
    model, (x, y) = network().eval().double(), batch()
    leaf = x.double().requires_grad_()
    nn.functional.cross_entropy(20 * model(leaf), y, reduction="sum").backward()
    along = leaf.grad.flatten(1) / leaf.grad.flatten(1).norm(dim=1, keepdim=True)
    options: dict[str, Any] = {"eps": 0.3, "step_size": 0.1, "norm": "l2", "random_start": None, "clip": None}
    found = pgd_attack(lambda at: 20 * model(at), x.double(), y, steps=1, **options)
    torch.testing.assert_close((found - leaf.detach()).flatten(1), 0.1 * along)


def in_place(x: Tensor) -> Tensor:
    return torch.stack([x.sub_(0.5).mul_(4)[:, 0].clone(), -x[:, 1], x.sum(1)], 1)


def test_models_that_work_in_place() -> None:
    """As a first layer `ReLU(inplace=True)` does, and a normalization by `sub_` and `div_`."""
    x, y = torch.rand(10, 3, generator=make_generator(0)), torch.arange(10) % 3
    kept = x.clone()

    def model(at: Tensor) -> Tensor:
        return in_place(at.clone())

    for call in (
        lambda net: pgd_attack(net, x, y, random_start=None, **BALL),
        lambda net: pgd_attack(net, x, y, random_start=None, norm="l2", objective="kl", x_init=kept + 0.01, **BALL),
        lambda net: torch.tensor(robust_accuracy(net, x, y, random_start=None, **BALL)),
        lambda net: trades_loss(net, x, y, x_init=x, **BALL),
        lambda net: adv_comp_sum_loss(net, x, y, x_init=x, **BALL),
    ):
        assert torch.equal(call(in_place), call(model))
        assert torch.equal(x, kept)


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_alone(fails: bool) -> None:
    model, (x, y) = network(), batch()
    model[2].eval()  # a mixture of modes
    model[1].bias.requires_grad_(False)
    model[1].weight.grad = torch.full_like(model[1].weight, 3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = modes(model), [param.requires_grad for param in model.parameters()]
    if fails:
        with pytest.raises(ValueError, match="target"):
            pgd_attack(model, x, y + 1, **BALL)
    else:
        with torch.no_grad():
            pgd_attack(model, x, y, **BALL)
        with torch.inference_mode():
            robust_accuracy(model, x, y, **BALL)
    assert (modes(model), [param.requires_grad for param in model.parameters()]) == expected
    assert torch.equal(model[1].weight.grad, torch.full_like(model[1].weight, 3.0))
    assert model[5].weight.grad is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class Merging(nn.Linear):
    """A layer with a second weight that evaluation mode adds to the first, as adapters of low rank do."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.added = nn.Parameter(torch.full((5, 8), 0.1))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        if self.merged == mode:
            with torch.no_grad():
                self.weight += -self.added if mode else self.added
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight if self.merged else self.weight + self.added, self.bias)


@pytest.mark.parametrize("outer", [True, False])
def test_what_modes_do_besides_is_undone(outer: bool) -> None:
    model, (x, y) = nn.Sequential(nn.Flatten(), Merging()), batch()
    model.training = outer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adv_comp_sum_loss(model, x, y, **BALL).backward()
    robust_accuracy(model, x, y, **BALL)
    assert modes(model) == [outer, True, True]
    assert not model[1].merged
    assert model[1].added.grad.abs().max() > 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning")
def test_attacks_call_no_collective(tmp_path: Path) -> None:
    """A distributed model waits for the other processes in every call, and these may take another number of steps."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        inner, (x, y) = network(), batch()
        # Old releases count the buffers' broadcast before the second call as a change of what the first one saved.
        model = nn.parallel.DistributedDataParallel(inner, broadcast_buffers=False)
        calls = []
        model.register_forward_hook(lambda part, *_: calls.append(part.training))
        robust_accuracy(model, x, y, **BALL)
        pgd_attack(model, x, y, objective="kl", **BALL)
        assert not calls
        inner[4].p = 0.0
        start = x + 0.001
        adv_comp_sum_loss(model, x, y, x_init=start, **BALL).backward()
        assert calls == [True, True]  # the loss's own, whose gradients are exchanged
        assert model.training
        alone = network()
        alone[4].p = 0.0
        adv_comp_sum_loss(alone, x, y, x_init=start, **BALL).backward()
        for ours, expected in zip(inner.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, expected.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_trades_where_shares_have_rounded_to_zero() -> None:
    """Scores of 1000: the gradient is the one of float64 and not NaN."""
    x, y = torch.rand(8, 4, generator=make_generator(0)), torch.arange(8) % 3
    weights = torch.randn(4, 3, generator=make_generator(1))
    found = []
    for kind in (torch.float32, torch.float64):
        slope = weights.to(kind, copy=True).requires_grad_()
        loss = trades_loss(lambda at, slope=slope: 1000 * at @ slope, x.to(kind), y, x_init=x.to(kind) + 0.05, steps=0)
        loss.backward()
        found.append((loss.detach().double(), slope.grad.double()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-2)
    assert found[1][1].abs().max() > 10


@pytest.mark.parametrize("loss", [trades_loss, adv_comp_sum_loss])
@pytest.mark.parametrize("training", [True, False])
def test_losses_run_in_the_callers_mode(loss: Any, training: bool) -> None:
    """The official TRADES leaves the model in training mode whatever it was in."""
    model, (x, y) = network().train(training), batch()
    seen = []
    model[4].register_forward_hook(lambda part, *_: seen.append(part.training))
    value = loss(model, x, y, **BALL)
    assert seen[-2:] == [training, training]
    assert not any(seen[:-2])
    assert len(seen) == 1 + 4 + 2  # the clean scores of the attack, its steps, and the two of the loss
    assert modes(model) == [training] * len(modes(model))
    value.backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in model.parameters())


def test_training_losses_by_hand() -> None:
    model, (x, y) = network().eval(), batch()
    start = x + 0.01
    x_adv = pgd_attack(model, x, y, objective="kl", x_init=start, **BALL)
    clean, adv = model(x), model(x_adv)
    kl = nn.functional.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="batchmean")
    expected = nn.functional.cross_entropy(clean, y) + 3 * kl
    torch.testing.assert_close(trades_loss(model, x, y, beta=3.0, x_init=start, **BALL), expected)
    rows = zip(clean.tolist(), adv.tolist(), y.tolist(), strict=True)
    by_hand = [reference.smooth_adversarial_loss(h, a, label, 1.5, 0.7, 0.4) for h, a, label in rows]
    ours = adv_comp_sum_loss(model, x, y, tau=1.5, rho=0.7, nu=0.4, x_init=start, **BALL)
    assert ours.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    plain = adv_comp_sum_loss(model, x, y, tau=1.5, nu=0.0, **BALL)
    torch.testing.assert_close(plain, comp_sum_loss(clean, y, tau=1.5))


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.0])
def test_smooth_loss_bounds_the_margin_loss(tau: float) -> None:
    """At any x', from nu = sqrt(n - 1) / rho on."""
    generator = make_generator(0)
    z, adv = (2 * torch.randn(500, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.randint(6, (500,), generator=generator)
    for rho in (0.5, 1.0, 2.0):
        options: dict[str, Any] = {"tau": tau, "rho": rho, "reduction": "none"}
        smooth = smooth_adversarial_comp_sum_loss(z, adv, y, nu=5**0.5 / rho, **options)
        assert (smooth >= rho_margin_comp_sum_loss(adv, y, **options) - 1e-12).all()


def test_a_masked_class_is_none() -> None:
    """-inf in both scores: the loss and the gradients of the problem without the class."""
    generator = make_generator(0)
    z, adv = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.arange(6) % 4
    found = []
    for columns in (0, 2):
        mask = torch.full((6, columns), -math.inf, dtype=torch.float64)
        clean, moved = (torch.cat([scores, mask], 1).requires_grad_() for scores in (z, adv))
        loss = smooth_adversarial_comp_sum_loss(clean, moved, y, tau=1.5, rho=0.5, nu=0.4, reduction="none")
        loss.sum().backward()
        found.append((loss.detach(), clean.grad[:, :4], moved.grad[:, :4]))
        assert (moved.grad[:, 4:] == 0).all()
    torch.testing.assert_close(found[0], found[1])


def test_penalty_of_equal_scores_has_the_gradient_zero() -> None:
    z = torch.randn(3, 4, generator=make_generator(0))
    clean, adv = z.clone().requires_grad_(), z.clone().requires_grad_()
    smooth_adversarial_comp_sum_loss(clean, adv, torch.tensor([0, 1, 2]), nu=5.0).backward()
    assert torch.equal(adv.grad, torch.zeros_like(z))
    assert clean.grad.isfinite().all()


def test_robust_accuracy_counts_every_point() -> None:
    """Skipping what has been fooled does not change who is fooled in the end."""
    model, (x, y) = network().eval(), batch(60)
    y = torch.where(torch.arange(60) % 3 == 0, y, model(x).argmax(1))  # some are wrong on x itself
    clean, robust = robust_accuracy(model, x, y, eps=0.05, step_size=0.02, steps=5, random_start=None)
    expected = model(x).argmax(1) == y
    assert clean == pytest.approx(float(expected.double().mean()))
    for steps in range(1, 6):
        found = pgd_attack(model, x, y, eps=0.05, step_size=0.02, steps=steps, random_start=None)
        expected &= model(found).argmax(1) == y
    assert robust == pytest.approx(float(expected.double().mean()))
    assert 0 < robust < clean < 1
    assert robust_accuracy(model, x, y, **BALL, batch_size=7, random_start=None)[0] == pytest.approx(clean)
    more = robust_accuracy(model, x, y, eps=0.05, step_size=0.02, steps=5, restarts=3, generator=make_generator(0))
    assert more[1] <= robust_accuracy(model, x, y, eps=0.05, step_size=0.02, steps=5, generator=make_generator(0))[1]


def test_half_types_and_strided_inputs() -> None:
    model, (x, y) = network().eval(), batch()
    half = pgd_attack(model.bfloat16(), x.bfloat16(), y, **BALL)
    assert half.dtype == torch.bfloat16
    assert (half.float() - x).abs().max() <= 0.1 + 2**-8
    wide = torch.rand(12, 4, 2, generator=make_generator(1)).transpose(1, 2)
    model = network().eval()
    strided = pgd_attack(model, wide, y, random_start=None, **BALL)
    torch.testing.assert_close(strided, pgd_attack(model, wide.contiguous(), y, random_start=None, **BALL))


def test_autoattack_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    x, y = batch(2)
    with pytest.raises(MissingExtra, match=r"offprints-comp-sum\[autoattack\]"):
        autoattack_accuracy(network(), x, y, eps=0.1)


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official attacks with fewer steps: the random search alone takes seconds."""
    official = pytest.importorskip("pyautoattack", reason="needs the extra autoattack")

    class Short(official.AutoAttack):
        def run_standard_evaluation(self, *args: Any, **options: Any) -> Any:
            assert self.square.n_queries == 5000
            self.square.n_queries, self.fab.n_iter = 50, 20
            return super().run_standard_evaluation(*args, **options)

    monkeypatch.setattr(official, "AutoAttack", Short)


@pytest.mark.usefixtures("short_autoattack")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_on_a_model_whose_answer_is_known(norm: str) -> None:
    """A linear model of two classes: robust where the difference of the scores outweighs the dual norm of its slope."""
    slope = torch.tensor([1.0, -2.0, 0.5, 1.5])
    x = 0.3 + 0.4 * torch.rand(30, 1, 2, 2, generator=make_generator(4))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([slope, -slope]))
        model[1].bias.copy_(torch.tensor([-0.25, 0.25]))
    gap = 2 * (x.flatten(1) @ slope - 0.25)
    y = (gap < 0).long()
    y[0] = 1 - y[0]  # one is wrong on x itself
    eps = 0.08
    reach = 2 * eps * float(slope.abs().sum() if norm == "linf" else slope.norm())
    right = torch.arange(30) > 0
    assert (gap.abs() - reach).abs().min() > 1e-3
    before, tracer = torch.random.get_rng_state(), sys.gettrace()
    found = autoattack_accuracy(model.train(), x, y, eps=eps, norm=norm)  # type: ignore[arg-type]
    assert found == pytest.approx(float((right & (gap.abs() > reach)).double().mean()))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sys.gettrace() is tracer
    assert model.training
    assert model[1].weight.grad is None


@pytest.mark.usefixtures("short_autoattack")
def test_autoattack_standard_version_finds_no_less_than_pgd() -> None:
    model, (x, y) = network().eval(), batch(30)
    y = model(x).argmax(1)
    found = autoattack_accuracy(model, x, y, eps=0.02, batch_size=20)
    assert found <= robust_accuracy(model, x, y, eps=0.02, step_size=0.005)[1]
