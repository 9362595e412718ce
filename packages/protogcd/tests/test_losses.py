"""The losses: common promises, properties, traps, and every path of a call."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from offprints.protogcd import (
    ProtoGCDLoss,
    ProtoGCDOutput,
    dapl_loss,
    dapl_pseudo_labels,
    entropy_regularization,
    info_nce,
    prototype_separation,
    ratio_schedule,
    supervised_contrastive,
)
from offprints.shared.testing import check_arguments, check_loss, check_schedule

NO_GRADIENT = "pseudo-labels carry no gradient: tests here and test_reference compare it"
VIEWS = "rows come in two halves, one a view, and do not change places"


def logits(generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(6, 4, generator=generator).tanh(),)


def rows(generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(6, 5, generator=generator),)


def labeled_rows(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(7, 5, generator=generator), torch.tensor([0, 1, 0, 2, 1, 0, 9])


def test_conformance_of_dapl() -> None:
    skip = dict.fromkeys(("gradcheck", "double backward"), NO_GRADIENT) | {"batch permutation": VIEWS}
    check_loss(partial(dapl_loss, ratio=0.5), logits, skip=skip, special={"ties": lambda g: (torch.zeros(6, 4),)})
    check_arguments(dapl_pseudo_labels, lambda g: {"logits": logits(g)[0], "ratio": 0.5})


def test_conformance_of_the_regularizers() -> None:
    collapsed = {"one class": lambda g: (torch.eye(4)[[0] * 6] * 60,), "ties": lambda g: (torch.zeros(6, 4),)}
    check_loss(entropy_regularization, logits, special=collapsed)
    check_loss(
        prototype_separation,
        rows,
        special={
            "all one": lambda g: (torch.ones(6, 5),),
            "orthogonal": lambda g: (2 * torch.eye(5),),
            "tiny and huge": lambda g: (torch.randn(6, 5, generator=g) * 10.0 ** torch.linspace(-15, 15, 6)[:, None],),
        },
    )


def test_conformance_of_the_contrastive_terms() -> None:
    zero = {"a row of zeros": lambda g: (torch.randn(6, 5, generator=g) * torch.tensor([[0.0]] + 5 * [[1.0]]),)}
    check_loss(info_nce, rows, special=zero, skip={"batch permutation": VIEWS})
    check_loss(
        supervised_contrastive,
        labeled_rows,
        special={
            "no pair": lambda g: (torch.randn(3, 5, generator=g), torch.arange(3)),
            "one row": lambda g: (torch.randn(1, 5, generator=g), torch.zeros(1, dtype=torch.int64)),
            "one class": lambda g: (torch.randn(4, 5, generator=g), torch.zeros(4, dtype=torch.int64)),
        },
        skip={"empty batch": "no rows have the loss 0: test_no_labeled_sample"},
    )


def objective_inputs(generator: torch.Generator, labeled: int = 2) -> tuple[Tensor, ...]:
    prototypes = torch.randn(3, 5, generator=generator)
    cosines = torch.randn(8, 3, generator=generator).tanh()
    return (
        cosines.requires_grad_(),
        torch.randn(8, 6, generator=generator).requires_grad_(),
        prototypes.requires_grad_(),
        torch.tensor([2, 0, -7, 99]),
        torch.arange(4) < labeled,
    )


def test_conformance_of_the_objective() -> None:
    skip = dict.fromkeys(("gradcheck", "double backward"), NO_GRADIENT) | {"batch permutation": VIEWS}
    skip["arguments: labeled_mask: all"] = "then every label has to be a class, and two here are none"
    check_loss(
        ProtoGCDLoss(total_epochs=10),
        objective_inputs,
        kwargs={"epoch": 2},
        special={"no labeled sample": partial(objective_inputs, labeled=0)},
        skip=skip,
    )


def test_schedule() -> None:
    check_schedule(lambda e: ratio_schedule(e, total_epochs=20), 20, start=0.0, end=1.0, monotone="increasing")
    fn = lambda e: ratio_schedule(e, total_epochs=9, wait=2, ramp=3, initial=0.2)  # noqa: E731
    assert [round(fn(epoch), 12) for epoch in range(6)] == [0.0, 0.0, 0.2, 0.6, 1.0, 1.0]
    assert fn(9) == fn(1000) == 1.0  # the official schedule ends with the last epoch
    assert ratio_schedule(0, total_epochs=1) == 1.0
    assert type(ratio_schedule(1, total_epochs=4, initial=1, final=1)) is float


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=25)
def test_number_of_hard_labels(size: int, ratio: float, seed: int) -> None:
    drawn = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed)).tanh()
    labels = dapl_pseudo_labels(drawn, ratio=ratio)
    hard = (labels == 0).sum(1) == 3
    assert int(hard.sum()) == int(size * ratio)
    assert_close(labels.sum(1), torch.ones(size))
    assert torch.equal(labels.argmax(1), drawn.argmax(1))
    if 0 < int(hard.sum()) < size:  # these are the most confident ones
        top = (drawn / 0.05).double().softmax(1).topk(2, 1)[0]
        confidence = top[:, 0] / (top[:, 1] + 1e-6)
        assert confidence[hard].min() >= confidence[~hard].max() * (1 - 1e-4)


def test_a_share_of_samples_is_rounded_down() -> None:
    drawn = torch.randn(31, 4, generator=torch.Generator().manual_seed(0)).tanh()
    assert int(((dapl_pseudo_labels(drawn, ratio=0.37) == 0).sum(1) == 3).sum()) == 11
    ties = torch.tensor([[0.5, 0.4, 0.0]]).repeat(5, 1)
    assert (dapl_pseudo_labels(ties, ratio=0.4) == 1).any(1).tolist() == [True, True, False, False, False]


def test_no_hard_labels_is_sharpened_self_distillation() -> None:
    (drawn,) = logits(torch.Generator().manual_seed(3))
    first, second = (drawn / 0.05).softmax(1).chunk(2)
    log_first, log_second = (drawn / 0.1).log_softmax(1).chunk(2)
    expected = -((first * log_second).sum(1).mean() + (second * log_first).sum(1).mean()) / 2
    assert_close(dapl_loss(drawn, ratio=0.0), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_dapl_is_symmetric_in_the_views(ratio: float) -> None:
    (drawn,) = logits(torch.Generator().manual_seed(4))
    swapped = torch.cat([drawn[3:], drawn[:3]])
    assert_close(dapl_loss(swapped, ratio=ratio), dapl_loss(drawn, ratio=ratio))


def test_more_views_are_all_ordered_pairs() -> None:
    drawn = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).tanh()
    views = drawn.chunk(3)
    pairs = [torch.cat([views[a], views[b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    expected = torch.stack([dapl_loss(pair, ratio=0.5) for pair in pairs]).mean()
    assert_close(dapl_loss(drawn, ratio=0.5, num_views=3), expected)


def test_gradient_of_dapl_is_that_of_fixed_labels() -> None:
    (drawn,) = logits(torch.Generator().manual_seed(5))
    drawn = drawn.double().requires_grad_()
    labels = torch.cat([dapl_pseudo_labels(view, ratio=0.7) for view in drawn.chunk(2)])
    assert not labels.requires_grad
    fixed = -(labels.roll(3, 0) * (drawn / 0.1).log_softmax(1)).sum(1).mean()
    ours = torch.autograd.grad(dapl_loss(drawn, ratio=0.7), drawn)[0]
    assert_close(ours, torch.autograd.grad(fixed, drawn)[0])


@given(st.integers(2, 6), st.integers(0, 20), st.floats(0.02, 2.0))
@settings(max_examples=25)
def test_entropy_lies_between_its_ends(classes: int, seed: int, temperature: float) -> None:
    drawn = torch.randn(8, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert -1e-12 <= float(entropy_regularization(drawn, temperature=temperature)) <= math.log(classes) + 1e-12
    cycled = torch.cat([drawn.roll(shift, 1) for shift in range(classes)])  # whose mean is uniform
    assert abs(float(entropy_regularization(cycled, temperature=temperature))) < 1e-12


def test_entropy_of_a_class_that_nobody_predicts() -> None:
    """A mean probability that underflows has no NaN in its gradient, which the plain formula has."""
    collapsed = torch.tensor([[500.0, 0.0, 0.0]]).repeat(4, 1).requires_grad_()
    loss = entropy_regularization(collapsed)
    loss.backward()
    assert_close(loss, torch.tensor(math.log(3)))
    assert collapsed.grad is not None
    assert bool(collapsed.grad.isfinite().all())


@given(st.integers(2, 6), st.integers(0, 20))
@settings(max_examples=25)
def test_separation_lies_between_its_ends(count: int, seed: int) -> None:
    prototypes = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value = float(prototype_separation(prototypes))
    assert -1 / (0.1 * (count - 1)) - 1e-9 <= value <= 10 + 1e-9
    simplex = torch.eye(count, dtype=torch.float64) - 1 / count
    assert float(prototype_separation(simplex)) == pytest.approx(-1 / (0.1 * (count - 1)))
    assert float(prototype_separation(prototypes[:1].repeat(count, 1))) == pytest.approx(10.0)
    lengths = torch.linspace(0.1, 30, count, dtype=torch.float64)[:, None]
    assert float(prototype_separation(lengths * prototypes)) == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_unit_prototypes_go_in_as_they_are() -> None:
    """Their gradient has a part along the row; that of other rows has none."""
    unit = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).double()
    for scale, along in ((1.0, True), (1.00005, True), (1.01, False)):
        prototypes = (scale * unit).requires_grad_()
        prototype_separation(prototypes).backward()
        radial = (prototypes.grad * unit).sum(1).abs().max()
        assert (float(radial) > 1e-3) is along


def test_info_nce_of_one_sample_is_nothing() -> None:
    assert float(info_nce(torch.randn(2, 3))) == pytest.approx(0.0, abs=1e-6)


def test_contrastive_terms_are_of_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    projections, labels = labeled_rows(generator)
    lengths = 10.0 ** torch.linspace(-20, 18, 7)[:, None]
    assert_close(supervised_contrastive(lengths * projections, labels), supervised_contrastive(projections, labels))
    assert_close(info_nce((lengths * projections)[:6]), info_nce(projections[:6]))


def test_rows_alone_in_their_class_are_left_out() -> None:
    """Of one view a class may have one row, for which the official loss divides 0 by 0."""
    projections = torch.eye(4)[[0, 1, 2]] + 0.1
    labels = torch.tensor([0, 0, 5])
    value = supervised_contrastive(projections, labels)
    z = torch.nn.functional.normalize(projections)
    s = z @ z.T / 0.07
    expected = -torch.stack([s[0, [1, 2]].log_softmax(0)[0], s[1, [0, 2]].log_softmax(0)[0]]).mean()
    assert_close(value, expected)


def test_no_labeled_sample() -> None:
    """The supervised terms are 0, and everything has a gradient."""
    assert float(supervised_contrastive(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))) == 0.0
    inputs = objective_inputs(torch.Generator().manual_seed(0), labeled=0)
    output = ProtoGCDLoss()(*inputs, epoch=0)
    assert output.classification.item() == output.supervised_contrastive.item() == 0.0
    output.loss.backward()
    for x in inputs[:3]:
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert bool((x.grad != 0).any())
    with torch.no_grad():
        expected = 0.65 * (output.dapl + 2 * output.entropy + 0.1 * output.separation + output.contrastive)
    assert_close(output.loss.detach(), expected)


def test_weights_and_options_reach_their_terms() -> None:
    inputs = objective_inputs(torch.Generator().manual_seed(1))
    base = ProtoGCDLoss(total_epochs=10)(*inputs, epoch=3)
    changes: dict[str, tuple[float, set[str]]] = {
        "wait_epochs": (5, {"dapl", "ratio"}),
        "ramp_epochs": (0, {"dapl", "ratio"}),
        "initial_ratio": (1.0, {"dapl", "ratio"}),
        "final_ratio": (0.0, {"dapl", "ratio"}),
        "student_temperature": (0.3, {"dapl", "entropy", "separation", "classification"}),
        "teacher_temperature": (0.5, {"dapl"}),
        "contrastive_temperature": (0.5, {"contrastive"}),
        "supervised_temperature": (0.5, {"supervised_contrastive"}),
        "supervised_weight": (0.5, set()),
        "entropy_weight": (1.0, set()),
        "separation_weight": (1.0, set()),
    }
    for name, (value, terms) in changes.items():
        other = ProtoGCDLoss(total_epochs=10, **{name: value})(*inputs, epoch=3)
        assert {f for f in ProtoGCDOutput._fields if getattr(other, f) != getattr(base, f)} == terms | {"loss"}, name
        assert name in repr(ProtoGCDLoss(total_epochs=10, **{name: value}))


def test_labels_of_unlabeled_samples_do_not_matter() -> None:
    *inputs, labels, labeled = objective_inputs(torch.Generator().manual_seed(2))
    expected = ProtoGCDLoss()(*inputs, labels, labeled, epoch=0).loss
    for other in (0, -1, 2**40):
        changed = torch.where(labeled, labels, other)
        assert torch.equal(ProtoGCDLoss()(*inputs, changed, labeled, epoch=0).loss, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    """Computed in float32, which is also what comes out."""
    *tensors, labels, labeled = objective_inputs(torch.Generator().manual_seed(0))
    half = [x.detach().to(dtype) for x in tensors]
    found = ProtoGCDLoss()(*half, labels, labeled, epoch=50)
    expected = ProtoGCDLoss()(*(x.float() for x in half), labels, labeled, epoch=50)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ProtoGCDLoss()(*tensors, labels, labeled, epoch=50)
    assert_close(inside.loss, ProtoGCDLoss()(*tensors, labels, labeled, epoch=50).loss)
    assert dapl_pseudo_labels(half[0], ratio=0.5).dtype == torch.float32


def test_compiled_as_one_graph_for_every_epoch() -> None:
    """No graph break, and no new graph for a new share of hard labels once the epoch is symbolic."""
    torch._dynamo.reset()
    inputs = objective_inputs(torch.Generator().manual_seed(0))
    criterion = ProtoGCDLoss(total_epochs=10)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for epoch in (0, 1, 9):
        for labeled in (2, 0):
            given = (*inputs[:4], torch.arange(4) < labeled)
            found, expected = compiled(*given, epoch=epoch), criterion(*given, epoch=epoch)
            for a, b in zip(found, expected, strict=True):
                assert_close(a, b)
            for a, b in zip(
                torch.autograd.grad(found.loss, inputs[:3]), torch.autograd.grad(expected.loss, inputs[:3]), strict=True
            ):
                assert_close(a, b)


def test_extreme_logits() -> None:
    for scale in (1e30, 3e38):
        drawn = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) * scale
        for loss in (partial(dapl_loss, ratio=0.5), entropy_regularization):
            assert not bool(loss(drawn).isnan()), (loss, scale)
