from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from offprints.shared.testing import check_errors
from offprints.stablemax import (
    CollapseMonitor,
    GrokMLP,
    OrthoGrad,
    exact_cross_entropy,
    nlm_alignment,
    softmax_collapse_fraction,
    zero_gradient_fraction,
    zero_loss_fraction,
)

MARGINS = torch.tensor([1.0, 8.0, 12.0, 20.0, 40.0])
LOGITS = torch.stack([MARGINS, torch.zeros(5), torch.zeros(5)], 1)
TARGET = torch.zeros(5, dtype=torch.int64)


def test_fractions_grow_as_precision_falls() -> None:
    half, single, double = ({"dtype": dtype} for dtype in (torch.float16, torch.float32, torch.float64))
    assert [softmax_collapse_fraction(LOGITS, **d) for d in (half, single, double)] == [0.6, 0.4, 0.2]
    assert [zero_loss_fraction(LOGITS, TARGET, **d) for d in (half, single, double)] == [0.6, 0.4, 0.2]
    assert zero_loss_fraction(LOGITS, TARGET, loss="stablemax") == 0
    assert zero_gradient_fraction(LOGITS, TARGET) >= zero_gradient_fraction(LOGITS, TARGET, which="all")
    assert softmax_collapse_fraction(LOGITS) == softmax_collapse_fraction(LOGITS, **single)


def test_wrong_classes_can_keep_a_gradient_that_the_right_one_lost() -> None:
    collapsed = LOGITS[3:4]
    assert zero_gradient_fraction(collapsed, TARGET[:1]) == 1
    assert zero_gradient_fraction(collapsed, TARGET[:1], which="all") == 0


@pytest.mark.parametrize("bad", [[math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0], [-math.inf] * 3])
def test_what_has_no_softmax_is_not_called_uncollapsed(bad: list[float]) -> None:
    logits, target = torch.tensor([[1.0, 0.0, 2.0], bad]), torch.tensor([0, 0])
    assert math.isnan(softmax_collapse_fraction(logits))
    assert math.isnan(zero_loss_fraction(logits, target))
    for which in ("target", "all"):
        assert math.isnan(zero_gradient_fraction(logits, target, which=which))  # type: ignore[arg-type]
    assert math.isnan(zero_loss_fraction(torch.tensor([[1.0, math.nan]]), target[:1], loss="stablemax"))
    ignored = torch.tensor([0, -100])
    assert zero_loss_fraction(logits, ignored) == zero_gradient_fraction(logits, ignored) == 0


def test_masked_classes_are_not_a_collapse() -> None:
    logits = torch.tensor([[1.0, -math.inf, 2.0]])
    assert softmax_collapse_fraction(logits) == 0
    assert zero_loss_fraction(logits, torch.tensor([0])) == zero_gradient_fraction(logits, torch.tensor([0])) == 0


def test_labels_to_ignore_and_more_axes() -> None:
    target = torch.tensor([0, 0, -1, 0, -1])
    kept = target >= 0
    for measure in (zero_loss_fraction, zero_gradient_fraction):
        assert measure(LOGITS, target, ignore_index=-1) == measure(LOGITS[kept], target[kept]) == pytest.approx(1 / 3)
        assert math.isnan(measure(LOGITS, torch.full((5,), -1), ignore_index=-1))
    maps, labels = torch.stack([LOGITS, LOGITS.flip(0)]).transpose(1, 2), torch.zeros(2, 5, dtype=torch.int64)
    assert softmax_collapse_fraction(maps) == zero_loss_fraction(maps, labels) == 0.4
    with CollapseMonitor(nn.Linear(2, 2), ignore_index=-1) as monitor:
        monitor.observe(maps, torch.stack([target, torch.full((5,), -1)]))
        monitor.observe(LOGITS, torch.full((5,), -1))
    first, second = monitor.records
    assert first["collapse"] == first["zero_loss"] == pytest.approx(1 / 3)
    assert all(math.isnan(second[name]) for name in ("collapse", "zero_loss", "zero_gradient"))


def test_alignment_of_nothing_is_zero() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    w.grad = torch.zeros(2)
    assert nlm_alignment([w]) == 0
    assert nlm_alignment([w], per_tensor=True) == [0]


def test_alignment() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    v = nn.Parameter(torch.zeros(2))
    skipped = nn.Parameter(torch.ones(1))
    w.grad, v.grad = -2 * w.detach(), torch.ones(2)
    assert nlm_alignment([w, skipped]) == pytest.approx(1)
    assert nlm_alignment([w, v], per_tensor=True) == pytest.approx([1, 0])
    assert nlm_alignment(x for x in (w, v)) == pytest.approx(50 / (5 * math.sqrt(102)))


def test_logits_that_scale_are_naive_loss_minimization() -> None:
    """One step of scaling the weights of a homogeneous network up changes no prediction but lowers the loss."""
    torch.manual_seed(0)
    model = GrokMLP(6, 3, hidden=(16,))
    x = torch.randn(20, 6)
    target = model(x).argmax(1)
    loss = exact_cross_entropy(model(x), target)
    loss.backward()
    assert nlm_alignment(model.parameters()) > 0  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        scaled = model(x)
    assert torch.equal(scaled.argmax(1), target)
    assert exact_cross_entropy(scaled, target) < loss


@pytest.mark.parametrize("wrapped", [False, True])
def test_monitor_in_a_training_loop(wrapped: bool) -> None:
    torch.manual_seed(0)
    model = GrokMLP(6, 3, hidden=(16,))
    x, target = torch.randn(20, 6), torch.randint(3, (20,))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = OrthoGrad(optimizer) if wrapped else optimizer
    with CollapseMonitor(model, optimizer, every=2) as monitor:
        with pytest.raises(RuntimeError, match="no record"):
            monitor.latest()
        for _ in range(5):
            logits = model(x)
            optimizer.zero_grad()
            exact_cross_entropy(logits, target).backward()
            monitor.observe(logits, target)
            expected = nlm_alignment(model.parameters())  # before a projection
            optimizer.step()
    assert [record["step"] for record in monitor.records] == [0, 2, 4]
    assert monitor.latest()["nlm_alignment"] == pytest.approx(expected)
    assert set(monitor.latest()) == {"step", "collapse", "zero_loss", "zero_gradient", "weights_l2", "nlm_alignment"}
    optimizer.step()
    assert len(monitor.records) == 3
    monitor.remove()


def test_leaving_takes_the_hook_off_between_observe_and_step() -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with CollapseMonitor(model, optimizer) as monitor:
        logits = model(torch.randn(4, 3))
        exact_cross_entropy(logits, torch.zeros(4, dtype=torch.int64)).backward()
        monitor.observe(logits, torch.zeros(4, dtype=torch.int64))
    optimizer.step()
    assert "nlm_alignment" not in monitor.latest()
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("every", [1, 2, 3])
def test_monitor_with_accumulated_gradients(every: int) -> None:
    """Two batches a step: every record gets the alignment of the gradient that was stepped with."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with CollapseMonitor(model, optimizer, every=every) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                logits, target = model(torch.randn(8, 4)), torch.randint(3, (8,))
                exact_cross_entropy(logits, target).backward()
                monitor.observe(logits, target)
            expected += [nlm_alignment(model.parameters())] * 2
            optimizer.step()
    assert [record["step"] for record in monitor.records] == list(range(0, 6, every))
    assert [record["nlm_alignment"] for record in monitor.records] == pytest.approx(expected[::every])


def test_monitor_skips_parameters_without_a_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logits, target = model(torch.randn(8, 4)), torch.randint(3, (8,))
    with CollapseMonitor(model, optimizer) as monitor:
        monitor.observe(logits, target)
        optimizer.step()
        assert "nlm_alignment" not in monitor.latest()
        monitor.observe(logits, target)
        size = float(nn.utils.parameters_to_vector(model.parameters()).detach().norm())
        exact_cross_entropy(logits, target).backward()
        expected = nlm_alignment(model[1].parameters())
        optimizer.step()
    assert monitor.latest()["nlm_alignment"] == pytest.approx(expected)
    assert monitor.latest()["weights_l2"] == pytest.approx(size)  # of all weights


class Delegating(torch.optim.Optimizer):
    """As accelerate wraps optimizers: no set-up of its own, whole steps of the inner one, or none."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.accumulating = False

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if not self.accumulating:
            self.optimizer.step()


@pytest.mark.parametrize("projected", [False, True])
def test_monitor_looks_inside_of_delegating_wrappers(projected: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    inner: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Delegating(OrthoGrad(inner) if projected else inner)
    logits, target = model(torch.randn(8, 4)), torch.randint(3, (8,))
    exact_cross_entropy(logits, target).backward()
    expected = nlm_alignment(model.parameters())
    with CollapseMonitor(model, optimizer) as monitor:
        monitor.observe(logits, target)
        optimizer.accumulating = True
        optimizer.step()
        assert "nlm_alignment" not in monitor.latest()
        optimizer.accumulating = False
        optimizer.step()
        assert monitor.latest()["nlm_alignment"] == pytest.approx(expected)


def test_monitor_reports_the_precision_in_use() -> None:
    with CollapseMonitor(nn.Linear(2, 2), dtype=torch.float16) as monitor:
        monitor.observe(LOGITS, TARGET)
    assert monitor.latest()["collapse"] == 0.6
    assert "nlm_alignment" not in monitor.latest()


def test_bad_input() -> None:
    model = nn.Linear(2, 2)
    check_errors(
        [
            (lambda: softmax_collapse_fraction(LOGITS.long()), TypeError, "logits"),
            (lambda: softmax_collapse_fraction(LOGITS[0]), ValueError, "logits"),
            (lambda: softmax_collapse_fraction(LOGITS, dtype=torch.int32), ValueError, "dtype"),
            (lambda: zero_loss_fraction(LOGITS, TARGET + 3), ValueError, "target"),
            (lambda: zero_loss_fraction(LOGITS, TARGET, loss="hinge"), ValueError, "loss"),  # type: ignore[arg-type]
            (lambda: zero_gradient_fraction(LOGITS, TARGET[:2]), ValueError, "target"),
            (lambda: zero_gradient_fraction(LOGITS, TARGET.unsqueeze(1)), ValueError, "target"),
            (lambda: zero_loss_fraction(LOGITS, TARGET.unsqueeze(1)), ValueError, "target"),
            (lambda: zero_loss_fraction(LOGITS, TARGET, ignore_index=0.5), TypeError, "ignore_index"),  # type: ignore[arg-type]
            (lambda: zero_loss_fraction(LOGITS, None), TypeError, "target"),  # type: ignore[arg-type]
            (lambda: softmax_collapse_fraction(None), TypeError, "logits"),  # type: ignore[arg-type]
            (lambda: softmax_collapse_fraction(LOGITS, dtype="float16"), TypeError, "dtype"),  # type: ignore[arg-type]
            (lambda: nlm_alignment(["weights"]), TypeError, "position 0"),  # type: ignore[list-item]
            (lambda: zero_gradient_fraction(LOGITS, TARGET, which="some"), ValueError, "which"),  # type: ignore[arg-type]
            (lambda: nlm_alignment([]), ValueError, "params"),
            (lambda: nlm_alignment(model.parameters()), ValueError, "params"),
            (lambda: CollapseMonitor("model"), TypeError, "model"),  # type: ignore[arg-type]
            (lambda: CollapseMonitor(model, "optimizer"), TypeError, "optimizer"),  # type: ignore[arg-type]
            (lambda: CollapseMonitor(model, every=0), ValueError, "every"),
            (lambda: CollapseMonitor(model, dtype=torch.int64), ValueError, "dtype"),
        ]
    )
