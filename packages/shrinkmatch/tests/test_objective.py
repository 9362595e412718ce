"""The whole loss: its parts, its state, and every way of calling it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from offprints.shared.testing import check_arguments, check_loss
from offprints.shared.testing.processes import fresh_process
from offprints.shrinkmatch import ShrinkMatchLoss, ShrinkMatchOutput, shrink_loss


def inputs(generator: torch.Generator, scale: float = 4.0) -> tuple[Tensor, ...]:
    """Logits of 3 labeled and 7 unlabeled samples, in float64."""
    drawn = [scale * torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (3, 7, 7, 7)]
    labels = torch.randint(5, (3,), generator=generator)
    x, weak, strong, aux = drawn
    return x.requires_grad_(), labels, weak, strong.requires_grad_(), aux.requires_grad_()


def step(criterion: ShrinkMatchLoss, seed: int, dtype: torch.dtype = torch.float32) -> ShrinkMatchOutput:
    x, labels, *others = inputs(torch.Generator().manual_seed(seed))
    return criterion(x.to(dtype), labels, *(z.to(dtype) for z in others))


def certain(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, labels, weak, strong, aux = inputs(generator)
    weak = torch.full_like(weak, -9.0)
    weak[:, 0] = 9.0
    return x, labels, weak, strong, aux


def tied(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, labels, weak, strong, aux = inputs(generator)
    return x, labels, torch.zeros_like(weak), strong, aux


def test_conformance() -> None:
    """In evaluation mode, after some updates: in training mode a second call is another step."""
    criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8)
    for seed in range(3):
        step(criterion, seed)
    check_loss(criterion.eval(), inputs, special={"all certain": certain, "ties": tied})


def test_constructor() -> None:
    check_arguments(ShrinkMatchLoss, lambda g: {"num_classes": 5, "threshold": 0.9})
    assert "pseudo_label='soft'" in repr(ShrinkMatchLoss(num_classes=5))


def test_a_refused_call_changes_nothing() -> None:
    check_arguments(ShrinkMatchLoss(num_classes=5), lambda g: tuple(z.detach() for z in inputs(g)))


def test_parts() -> None:
    criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8, align=None, unlabeled_weight=3.0)
    x, labels, weak, strong, aux = inputs(torch.Generator().manual_seed(0))
    out = criterion(x, labels, weak, strong, aux)
    probs = weak.softmax(1)
    mask = probs.max(1).values >= 0.8
    assert 0 < mask.sum() < 7
    assert_close(out.supervised, F.cross_entropy(x, labels))
    assert_close(out.certain, (mask * -(probs * strong.log_softmax(1)).sum(1)).mean())
    assert_close(out.shrink, shrink_loss(aux, probs, threshold=0.8))
    assert_close(out.mask_ratio, mask.double().mean())
    assert_close(out.certain_ratio.float(), mask.float().mean())
    assert_close(out.loss, out.supervised + 3 * (out.certain + out.certain_ratio * out.shrink))
    space = criterion.shrunk_space(weak)
    removed = (space.first_kept - 1)[space.uncertain].double().mean()
    assert_close(out.mean_removed, removed)
    assert not any(z.requires_grad for z in out[4:])


def test_principles_can_be_left_out() -> None:
    for options in ({"reweight_sample": False}, {"reweight_ratio": False}):
        criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8, align=None, **options)
        _, _, weak, _, aux = inputs(torch.Generator().manual_seed(0))
        out = step(criterion, 0, torch.float64)
        ratio = 1.0 if "reweight_ratio" in options else out.certain_ratio
        expected = shrink_loss(aux, weak.softmax(1), threshold=0.8, reweight="reweight_sample" not in options)
        assert_close(out.shrink, expected)
        assert_close(out.loss, out.supervised + out.certain + ratio * out.shrink)
        assert 0 < out.certain_ratio < 1


def test_hard_and_soft_pseudo_labels() -> None:
    x, labels, weak, strong, _ = inputs(torch.Generator().manual_seed(0))
    mask = weak.softmax(1).max(1).values >= 0.8
    out = ShrinkMatchLoss(num_classes=5, threshold=0.8, align=None, pseudo_label="hard")(x, labels, weak, strong)
    assert_close(out.certain, (mask * F.cross_entropy(strong, weak.argmax(1), reduction="none")).mean())


def test_without_auxiliary_logits_the_main_head_is_asked() -> None:
    x, labels, weak, strong, _ = inputs(torch.Generator().manual_seed(0))
    one = ShrinkMatchLoss(num_classes=5)(x, labels, weak, strong)
    two = ShrinkMatchLoss(num_classes=5)(x, labels, weak, strong, strong)
    assert torch.equal(one.loss, two.loss)


def test_where_gradients_go() -> None:
    """Each part reaches its own logits: supervised, strong, auxiliary; none reaches the weak ones."""
    x, labels, weak, strong, aux = inputs(torch.Generator().manual_seed(0))
    weak.requires_grad_()
    out = ShrinkMatchLoss(num_classes=5, threshold=0.8)(x, labels, weak, strong, aux)
    for part, of in ((out.supervised, x), (out.certain, strong), (out.shrink, aux)):
        found = torch.autograd.grad(part, [x, strong, aux], allow_unused=True, retain_graph=True)
        assert [g is not None and bool(g.any()) for g in found] == [z is of for z in (x, strong, aux)]
    out.loss.backward()
    assert weak.grad is None


def test_all_certain_keeps_the_graph() -> None:
    """Every head has a gradient in every step, as replicas of several processes need it."""
    x, labels, weak, strong, aux = certain(torch.Generator().manual_seed(0))
    out = ShrinkMatchLoss(num_classes=5, align=None)(x, labels, weak, strong, aux)
    assert out.mask_ratio == 1
    assert (out.shrink, out.mean_removed) == (0, 0)
    out.loss.backward()
    assert torch.equal(aux.grad, torch.zeros_like(aux))


def test_two_classes_have_no_shrunk_loss() -> None:
    criterion = ShrinkMatchLoss(num_classes=2, align=None)
    weak = torch.tensor([[0.1, 0.0], [9.0, 0.0]])
    strong = torch.randn(2, 2, requires_grad=True)
    out = criterion(torch.zeros(1, 2), torch.tensor([1]), weak, strong)
    assert out.shrink == 0
    assert out.mean_removed == 1  # the shrunk space is the top class alone
    out.loss.backward()
    assert strong.grad[1].any()
    assert not strong.grad[0].any()


def test_infinite_certain_losses_of_uncertain_samples() -> None:
    big = torch.finfo(torch.float32).max
    strong = torch.tensor([[-big, big, big]], requires_grad=True)
    out = ShrinkMatchLoss(num_classes=3, align=None)(
        torch.zeros(1, 3), torch.tensor([0]), torch.tensor([[0.3, 0.2, 0.1]]), strong, torch.zeros(1, 3)
    )
    out.loss.backward()
    assert out.loss.isfinite()
    assert torch.equal(strong.grad, torch.zeros(1, 3))


# ---- the running ratio -----------------------------------------------------------------------------------------------


def test_ratio_persists_and_is_stored() -> None:
    """It goes on over epochs, which the official CIFAR code begins with None, and over a saved state."""
    whole = ShrinkMatchLoss(num_classes=5, threshold=0.8, ratio_momentum=0.9)
    first, second = (ShrinkMatchLoss(num_classes=5, threshold=0.8, ratio_momentum=0.9) for _ in range(2))
    outs = [step(whole, seed) for seed in range(6)]
    for seed in range(3):
        step(first, seed)
    second.load_state_dict(first.state_dict())
    for seed in range(3, 6):
        assert torch.equal(step(second, seed).loss, outs[seed].loss)
    ratio = outs[0].mask_ratio.item()
    for out in outs[1:]:
        ratio = 0.9 * ratio + 0.1 * out.mask_ratio.item()
    assert whole.certain_ratio.item() == pytest.approx(ratio, rel=1e-6)
    assert outs[0].certain_ratio == outs[0].mask_ratio, "an earlier output is not changed by later steps"


def test_a_state_from_another_process() -> None:
    criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8)
    for seed in range(3):
        step(criterion, seed)
    state = {name: value.tolist() for name, value in criterion.state_dict().items()}

    def over_there() -> float:
        there = ShrinkMatchLoss(num_classes=5, threshold=0.8)
        there.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        return step(there, 3).loss.item()

    assert fresh_process(over_there) == step(criterion, 3).loss.item()


def test_evaluation_changes_nothing() -> None:
    criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8).eval()
    out = step(criterion, 0)
    assert out.certain_ratio == out.mask_ratio
    assert not any(value.any() for value in criterion.state_dict().values())
    criterion.train()
    step(criterion, 0)
    state = copy.deepcopy(criterion.state_dict())
    assert step(criterion.eval(), 1).certain_ratio == state["certain_ratio"]
    assert all(torch.equal(value, state[name]) for name, value in criterion.state_dict().items())


def test_shrunk_space_is_that_of_the_step() -> None:
    """Certain, rescued and dropped samples of the last step, and how many classes were removed."""
    for align in ("queue", "ema", None):
        criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8, align=align)
        step(criterion, 0)
        weak = inputs(torch.Generator().manual_seed(1))[2].float()
        out = step(criterion, 1)
        state = copy.deepcopy(criterion.state_dict())
        space = criterion.shrunk_space(weak)
        assert_close((~space.uncertain).float().mean(), out.mask_ratio)
        assert_close((space.first_kept - 1)[space.uncertain].float().mean(), out.mean_removed)
        assert all(torch.equal(value, state[name]) for name, value in criterion.state_dict().items())


# ---- ways of calling -------------------------------------------------------------------------------------------------


def test_half_types() -> None:
    """Computed in float32; the state does not become half, in which it would not move."""
    criterion, wide = ShrinkMatchLoss(num_classes=5).bfloat16(), ShrinkMatchLoss(num_classes=5)
    assert criterion.certain_ratio.dtype == torch.float32
    x, labels, *others = inputs(torch.Generator().manual_seed(0))
    out = criterion(x.bfloat16(), labels, *(z.bfloat16() for z in others))
    rounded = wide(x.bfloat16().float(), labels, *(z.bfloat16().float() for z in others))
    assert {value.dtype for value in out} == {torch.float32}
    assert_close(out.loss, rounded.loss)


def test_default_type_does_not_matter() -> None:
    expected = step(ShrinkMatchLoss(num_classes=5), 0)
    torch.set_default_dtype(torch.float64)
    try:
        found = step(ShrinkMatchLoss(num_classes=5), 0)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


def test_default_device_does_not_matter() -> None:
    x, labels, *others = inputs(torch.Generator().manual_seed(0))
    expected = ShrinkMatchLoss(num_classes=5)(x, labels, *others)
    criterion, again = ShrinkMatchLoss(num_classes=5), shrink_loss(others[2], others[0].softmax(1))
    with torch.device("meta"):
        found = criterion(x, labels, *others)
        assert torch.equal(shrink_loss(others[2], others[0].softmax(1)), again)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_and_inference_mode_change_nothing() -> None:
    expected = step(ShrinkMatchLoss(num_classes=5), 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(step(ShrinkMatchLoss(num_classes=5), 0).loss, expected.loss)
    criterion = ShrinkMatchLoss(num_classes=5)
    with torch.inference_mode():
        assert torch.equal(step(criterion, 0).loss, expected.loss)
    step(criterion, 1).loss.backward()  # the state is not one of inference mode


def test_compiles_as_one_graph_with_its_updates() -> None:
    eager, compiled = (ShrinkMatchLoss(num_classes=5, threshold=0.8) for _ in range(2))
    call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        x, labels, *others = inputs(torch.Generator().manual_seed(seed))
        x, others = x.detach().float(), [z.detach().float().requires_grad_() for z in others]
        found, expected = call(x, labels, *others), step(eager, seed)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)
        found.loss.backward()
        assert others[2].grad is not None
    for a, b in zip(compiled.state_dict().values(), eager.state_dict().values(), strict=True):
        assert_close(a, b)


def of_rank(rank: int) -> tuple[list[float], list[Tensor], float]:
    """Three common steps: what the ratio was, and the state after them. Then what a process does alone."""
    criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8, ratio_momentum=0.5)
    ratios = []
    for number in range(3):
        out = step(criterion, 10 * number + rank)
        out.loss.backward()
        ratios.append(out.mask_ratio.item())
    state = [value.clone() for value in criterion.state_dict().values()]
    if rank == 0:
        step(criterion.eval(), 0)
    own = ShrinkMatchLoss(num_classes=5, threshold=0.8, across_processes=False)
    for seed in range(2 + rank):
        out = step(own, seed)
    return ratios, state, out.loss.item()


def test_two_processes(two_processes) -> None:
    """Both see the mean of both: the same ratios, the same alignment. Evaluation, and networks of their own, do not."""
    (ratios, state, first), (others, state_there, second) = two_processes(of_rank)
    assert ratios == others
    assert all(torch.equal(a, b) for a, b in zip(state, state_there, strict=True))
    single = ShrinkMatchLoss(num_classes=5, threshold=0.8, ratio_momentum=0.5)
    for number in range(3):
        pairs = zip(*(inputs(torch.Generator().manual_seed(10 * number + rank)) for rank in range(2)), strict=True)
        x, labels, *logits = (torch.cat(pair) for pair in pairs)
        out = single(x.float(), labels, *(z.float() for z in logits))
        assert out.mask_ratio.item() == pytest.approx(ratios[number])
    assert_close(list(single.state_dict().values()), state)
    own = ShrinkMatchLoss(num_classes=5, threshold=0.8)
    assert [first, second] == [step(own, seed).loss.item() for seed in range(3)][1:]


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8).cuda()
    x, labels, *others = (z.cuda() for z in inputs(torch.Generator().manual_seed(0)))
    criterion(x, labels, *others)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = criterion(x, labels, *others)
        out.loss.backward()
        criterion.shrunk_space(others[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(out.loss.cpu(), step(step_twice(), 0, torch.float64).loss.detach())


def step_twice() -> ShrinkMatchLoss:
    criterion = ShrinkMatchLoss(num_classes=5, threshold=0.8)
    step(criterion, 0, torch.float64)
    return criterion
