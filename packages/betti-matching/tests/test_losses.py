"""The Betti matching loss and its sum with Dice, beyond the golden data and the conformance suite."""

import copy
import pickle
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offprints.betti_matching import (
    BettiMatchingLoss,
    DiceBettiMatchingLoss,
    PairList,
    betti_matching_error,
    betti_matching_loss,
    betti_number_error,
    compute_matching,
)
from offprints.betti_matching.baselines import wasserstein_loss
from offprints.betti_matching.losses import dice_loss

SHAPES = {1: (17,), 2: (8, 9), 3: (4, 3, 4)}


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.rand(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return pred, target


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_image_of_a_batch_is_one_loss(ndim: int, construction: str, relative: bool, oracle: ModuleType) -> None:
    pred, target = images(2, 3, *SHAPES[ndim], seed=ndim)
    opts: dict[str, Any] = {"construction": construction, "relative": relative, "filtration": "sublevel"}
    losses = betti_matching_loss(pred, target, reduction="none", **opts)
    expected = [
        oracle.oracle_loss(f, g, **opts).sum() for f, g in zip(pred.flatten(0, 1), target.flatten(0, 1), strict=True)
    ]
    torch.testing.assert_close(losses, torch.tensor(expected).view(2, 3))
    torch.testing.assert_close(betti_matching_loss(pred, target, reduction="sum", **opts), losses.sum())
    torch.testing.assert_close(betti_matching_loss(pred, target, **opts), losses.mean())


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("relative", [False, True])
def test_bothlevel_is_the_sum_of_both_filtrations(ndim: int, relative: bool) -> None:
    pred, target = images(1, 2, *SHAPES[ndim])
    pred.requires_grad_()
    values = [
        betti_matching_loss(pred, target, filtration=filtration, relative=relative)
        for filtration in ("bothlevel", "superlevel", "sublevel")
    ]
    torch.testing.assert_close(values[0], values[1] + values[2])
    gradients = [torch.autograd.grad(value, pred)[0] for value in values]
    torch.testing.assert_close(gradients[0], gradients[1] + gradients[2])


def test_dims_select_terms_of_the_sum() -> None:
    pred, target = images(2, 1, 5, 5, 4)
    parts = [betti_matching_loss(pred, target, dims=[k]) for k in range(3)]
    torch.testing.assert_close(betti_matching_loss(pred, target), sum(parts))
    torch.testing.assert_close(betti_matching_loss(pred, target, dims=(2, 0)), parts[0] + parts[2])


@pytest.mark.parametrize(("filtration", "extreme"), [("superlevel", torch.amax), ("sublevel", torch.amin)])
def test_reduced_drops_the_essential_bar(filtration: Any, extreme: Any) -> None:
    pred, target = images(1, 1, 7, 7)
    whole = betti_matching_loss(pred, target, filtration=filtration)
    rest = betti_matching_loss(pred, target, filtration=filtration, reduced=True)
    torch.testing.assert_close(whole - rest, 2 * (extreme(pred) - extreme(target)).square())


def test_equal_images_have_no_loss_and_no_gradient() -> None:
    pred = images(2, 2, 9, 9)[0].requires_grad_()
    loss = betti_matching_loss(pred, pred.detach().clone(), filtration="bothlevel")
    loss.backward()
    assert loss.item() == 0
    assert pred.grad is not None
    assert not pred.grad.any()


@pytest.mark.parametrize("relative", [False, True])
def test_a_constant_prediction_feels_the_essential_bar_only(relative: bool) -> None:
    target = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    target[..., 1:4, 1:4] = 1
    target[..., 2, 2] = 0
    target[..., 6:8, 6:8] = 1
    pred = torch.full_like(target, 0.25, requires_grad=True)
    loss = betti_matching_loss(pred, target, relative=relative)
    loss.backward()
    # The target has two components and a loop; the frame is a third component and closes another loop around them.
    unmatched = 4 if relative else 2
    assert loss.item() == pytest.approx(unmatched * 1.0 + 2 * 0.75**2)
    expected = torch.zeros_like(target)
    if relative:  # the frame, which all voxels share
        expected[:] = 4 * (0.25 - 1) / 81
    else:  # the first voxel
        expected[..., 0, 0] = 4 * (0.25 - 1)
    torch.testing.assert_close(pred.grad, expected)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradient_is_that_of_central_differences(ndim: int, relative: bool) -> None:
    # distinct values, far further apart than the differences
    shape = {1: (9,), 2: (4, 5), 3: (3, 3, 3)}[ndim]
    generator = torch.Generator().manual_seed(ndim)
    values = torch.randperm(2 * int(np.prod(shape)), generator=generator).double() / 100
    pred, target = values.view(2, 1, 1, *shape)
    pred.requires_grad_()
    target.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, g: betti_matching_loss(f, g, filtration="bothlevel", relative=relative), (pred, target)
    )


def test_target_gets_a_gradient_only_if_it_asks() -> None:
    pred, target = images(1, 1, 6, 6)
    betti_matching_loss(pred.requires_grad_(), target).backward()
    assert target.grad is None
    assert not betti_matching_loss(pred.detach(), target).requires_grad
    betti_matching_loss(pred.detach(), target.requires_grad_()).backward()
    assert target.grad is not None
    assert target.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    pred, target = images(2, 1, 12, 12, dtype=dtype)
    pred.requires_grad_()
    loss = betti_matching_loss(pred, target)
    loss.backward()
    assert loss.dtype == dtype
    assert pred.grad is not None
    assert pred.grad.dtype == dtype
    exact = betti_matching_loss(pred.detach().float(), target.float())
    assert exact.dtype == torch.float32
    assert loss == exact.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(betti_matching_loss(pred, target), exact)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_masks_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    pred, target = images(2, 1, 8, 8)
    mask = target > 0.5
    expected = betti_matching_loss(pred, mask.double())
    torch.testing.assert_close(betti_matching_loss(pred, mask.to(dtype)), expected, rtol=0, atol=0)


def test_modules_apply_the_sigmoid() -> None:
    logits, target = images(2, 2, 8, 8)
    logits = 4 * (logits - 0.5)
    expected = betti_matching_loss(logits.sigmoid(), target, comparison="intersection", dims=(1,))
    module = BettiMatchingLoss(comparison="intersection", dims=(1,))
    torch.testing.assert_close(module(logits, target), expected)
    module = BettiMatchingLoss(comparison="intersection", dims=(1,), from_logits=False)
    torch.testing.assert_close(module(logits.sigmoid(), target), expected)
    assert "intersection" in repr(module)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_dice_betti_is_the_weighted_sum(reduction: Any) -> None:
    logits, target = images(2, 3, 8, 8)
    target = (target > 0.5).double()
    loss = DiceBettiMatchingLoss(alpha=0.3, reduction=reduction)
    assert np.isnan(loss.last_dice)
    assert np.isnan(loss.last_betti)
    value = loss(logits, target)

    p = logits.sigmoid()
    axes = (2, 3)
    dice = 1 - (2 * (p * target).sum(axes) + 1e-5) / (p.sum(axes) + target.sum(axes) + 1e-5)
    betti = betti_matching_loss(p, target, reduction="none")
    each = dice + 0.3 * betti
    torch.testing.assert_close(value, {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction])
    torch.testing.assert_close(dice_loss(p, target, reduction="none"), dice)
    scale = 6 if reduction == "sum" else 1
    assert isinstance(loss.last_dice, float)
    assert loss.last_dice == pytest.approx(scale * dice.mean().item())
    assert loss.last_betti == pytest.approx(scale * betti.mean().item())


def test_alpha_may_change_during_training() -> None:
    logits, target = images(1, 1, 8, 8)
    loss = DiceBettiMatchingLoss(alpha=0.0)
    alone = loss(logits, target)
    assert alone.item() == pytest.approx(loss.last_dice)
    assert np.isnan(loss.last_betti)
    loss.alpha = 2.0
    assert loss(logits, target).item() == pytest.approx(loss.last_dice + 2 * loss.last_betti)
    loss.alpha = -1.0
    with pytest.raises(ValueError, match="alpha"):
        loss(logits, target)


def test_modules_survive_copies_and_pickles_after_use() -> None:
    logits, target = images(1, 1, 8, 8)
    loss = DiceBettiMatchingLoss(relative=True)
    value = loss(logits.requires_grad_(), target)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.last_betti == loss.last_betti
        assert torch.equal(twin(logits, target), value)


def test_a_compiled_training_step_has_no_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 1, 3, padding=1)
    loss = DiceBettiMatchingLoss(relative=True, filtration="bothlevel")

    def step(x: Tensor, mask: Tensor) -> Tensor:
        return loss(model(x), mask)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    if torch.__version__ < (2, 15):  # older ones break where an output's size depends on values
        monkeypatch.setattr(torch._dynamo.config, "capture_dynamic_output_shape_ops", True)
    for seed in range(3):  # another number of bars each time
        x, mask = images(2, 1, 10, 10, seed=seed, dtype=torch.float32)
        results = []
        for function in (step, compiled):
            model.zero_grad()
            value = function(x, mask > 0.5)
            value.backward()
            assert model.weight.grad is not None
            results.append((value.detach(), model.weight.grad.clone(), loss.last_betti))
        torch.testing.assert_close(results[1], results[0])


def test_gradient_descent_on_pixels_repairs_a_broken_ring() -> None:
    axis = torch.arange(24) - 11.5
    radius = (axis[:, None].square() + axis.square()).sqrt()
    ring = ((radius > 6) & (radius < 9)).double()[None, None]
    broken = 0.1 + 0.8 * ring
    broken[..., 11:13, :] -= 0.6 * ring[..., 11:13, :]  # two gaps, where the ring is faint
    assert betti_matching_error(broken, ring).item() == 2  # a component too many, no loop
    pixels = nn.Parameter(broken)
    optimizer = torch.optim.Adam([pixels], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        betti_matching_loss(pixels, ring).backward()
        optimizer.step()
    assert betti_matching_error(pixels.detach(), ring).item() == 0


# ---- scales, masks and classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [255, 7])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_masks_on_another_scale_are_refused(scale: int, dtype: torch.dtype) -> None:
    pred, target = images(2, 1, 8, 8, dtype=torch.float32)
    mask = ((target > 0.5) * scale).to(dtype)
    losses = (
        betti_matching_loss,
        dice_loss,
        BettiMatchingLoss(),
        DiceBettiMatchingLoss(),
        DiceBettiMatchingLoss(alpha=0.0),
    )
    for loss in losses:
        with pytest.raises(ValueError, match=r"target must lie in \[0, 1\].*target > 0"):
            loss(pred, mask)


def test_class_labels_are_refused_with_the_remedy_or_taken() -> None:
    logits = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.randint(4, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    onehot = nn.functional.one_hot(labels, 4).movedim(-1, 1)
    for loss in (BettiMatchingLoss(), DiceBettiMatchingLoss()):
        for target in (labels, labels[:, None]):
            with pytest.raises(ValueError, match="one_hot"):
                loss(logits, target)
        with pytest.raises(ValueError, match="unsqueeze"):
            loss(logits[:, :1], labels)
    for loss_class in (BettiMatchingLoss, DiceBettiMatchingLoss):
        expected = loss_class(from_logits=False)(logits.softmax(1)[:, 1:], onehot[:, 1:])
        taken = loss_class(softmax=True, to_onehot=True, include_background=False)
        torch.testing.assert_close(taken(logits, labels), expected)
        torch.testing.assert_close(taken(logits, labels[:, None].to(torch.uint8)), expected)
        with pytest.raises(ValueError, match="target"):
            taken(logits, labels + 1)
        with pytest.raises(TypeError, match="target"):
            taken(logits, labels.double())
        with pytest.raises(ValueError, match="include_background"):
            loss_class(include_background=False)(logits[:, :1], onehot[:, :1])
    with pytest.raises(ValueError, match="softmax"):
        BettiMatchingLoss(softmax=True, from_logits=False)


def test_ignored_voxels_do_not_count() -> None:
    logits, target = images(2, 2, 8, 12)
    mask = (target > 0.5).double()
    ignore = torch.zeros(2, 1, 8, 12, dtype=torch.bool)
    ignore[..., 8:] = True
    spoiled, strange = logits.clone(), mask.clone()
    spoiled[..., 9] = torch.nan
    strange[..., 10] = 255
    strange[..., 11] = 0.6  # soft values are kept
    spoiled.requires_grad_()
    loss = DiceBettiMatchingLoss(relative=True)
    value = loss(spoiled, strange, ignore)
    value.backward()
    assert spoiled.grad is not None
    assert not spoiled.grad[..., 8:].any()
    assert spoiled.grad[..., :8].any()
    assert spoiled.grad.isfinite().all()
    p, t = logits.sigmoid(), strange.where(strange <= 1, 0.0)
    p = torch.where(ignore, t, p)
    expected = dice_loss(p[..., :8], t[..., :8]) + 0.5 * betti_matching_loss(p, t, relative=True)
    torch.testing.assert_close(value.detach(), expected)
    direct = betti_matching_loss(
        spoiled.detach().sigmoid(), strange, ignore=ignore.expand(-1, 2, -1, -1), relative=True
    )
    torch.testing.assert_close(direct, betti_matching_loss(p, t, relative=True))
    classes = BettiMatchingLoss(softmax=True, to_onehot=True, relative=True)
    labels = mask[:, 0].long()
    for strange_label in (255, -1):
        marked = labels.masked_fill(ignore[:, 0], strange_label)
        torch.testing.assert_close(classes(logits, marked, ignore), classes(logits, labels * ~ignore[:, 0], ignore))
        with pytest.raises(ValueError, match="target"):
            classes(logits, marked)
    with pytest.raises(ValueError, match=r"ignore must have shape \(2, 1, 8, 12\), got \(2, 8, 12\)"):
        loss(logits[:, :1], mask[:, :1], ignore[:, 0])
    for wrong, error in ((ignore.int(), TypeError), (ignore[..., 1:], ValueError), (ignore.to("meta"), ValueError)):
        with pytest.raises(error, match="ignore"):
            loss(logits, mask, wrong)


# ---- weights of bars -------------------------------------------------------------------------------------------------


def test_weights_scale_the_terms_of_matched_and_unmatched_bars() -> None:
    pred, target = images(2, 1, 9, 9)
    matched = betti_matching_loss(pred, target, weights=(1, 0))
    unmatched = betti_matching_loss(pred, target, weights=(0, 1))
    assert matched > 0
    assert unmatched > 0
    torch.testing.assert_close(betti_matching_loss(pred, target), matched + unmatched)
    torch.testing.assert_close(betti_matching_loss(pred, target, weights=(0.5, 3.0)), 0.5 * matched + 3 * unmatched)


@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("relative", [False, True])
def test_bars_that_are_too_short_are_left_out(filtration: Any, relative: bool) -> None:
    pred, target = images(1, 1, 9, 9)
    least = 0.3
    matching = compute_matching(pred[0, 0], target[0, 0], filtration=filtration, relative=relative)

    def lengths(pairs: PairList) -> np.ndarray:
        return abs(pairs.birth_values - pairs.death_values)

    expected = 0.0
    for k in range(2):
        f, g = matching.matched_pred[k], matching.matched_target[k]
        keep = np.maximum(lengths(f), lengths(g)) >= least
        births = (f.birth_values - g.birth_values) ** 2
        finite = np.isfinite(f.death_values)
        deaths = np.zeros(len(f))
        deaths[finite] = (f.death_values[finite] - g.death_values[finite]) ** 2
        expected += float(2 * (births + deaths)[keep].sum())
        for pairs in (matching.unmatched_pred[k], matching.unmatched_target[k]):
            expected += float((lengths(pairs) ** 2)[lengths(pairs) >= least].sum())
    loss = betti_matching_loss(pred, target, filtration=filtration, relative=relative, min_persistence=least)
    assert loss.item() == pytest.approx(expected)
    assert loss < betti_matching_loss(pred, target, filtration=filtration, relative=relative)


@pytest.mark.parametrize(("filtration", "corner"), [("superlevel", (1, 0)), ("sublevel", (0, 1))])
def test_unmatched_bars_may_be_pushed_to_the_corner(filtration: Any, corner: tuple[int, int]) -> None:
    pred, target = images(1, 1, 9, 9)
    matching = compute_matching(pred[0, 0], target[0, 0], filtration=filtration)
    change = 0.0
    for pairs in matching.unmatched_pred:
        change += float(((pairs.birth_values - corner[0]) ** 2 + (pairs.death_values - corner[1]) ** 2).sum())
        change -= float(((pairs.birth_values - pairs.death_values) ** 2).sum())
    plain = betti_matching_loss(pred, target, filtration=filtration)
    loss = betti_matching_loss(pred, target, filtration=filtration, unmatched="corner")
    assert loss.item() == pytest.approx(plain.item() + change)


def test_the_base_loss_may_be_the_users_own() -> None:
    logits, target = images(2, 1, 8, 8)
    mask = (target > 0.5).double()
    bce = nn.BCEWithLogitsLoss()
    loss = DiceBettiMatchingLoss(alpha=0.2, base_loss=bce)
    value = loss(logits, mask)
    torch.testing.assert_close(value, bce(logits, mask) + 0.2 * BettiMatchingLoss()(logits, mask))
    assert loss.last_dice == pytest.approx(bce(logits, mask).item())
    with pytest.raises(ValueError, match="base_loss"):
        DiceBettiMatchingLoss(base_loss=nn.BCEWithLogitsLoss(reduction="none"))(logits, mask)
    with pytest.raises(TypeError, match="base_loss"):
        DiceBettiMatchingLoss(base_loss="bce")  # type: ignore[arg-type]


# ---- mixed precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_float16_cannot_hold_is_returned_in_float32(reduction: Any) -> None:
    pred, target = images(1, 1, 1024, 1024, dtype=torch.float16)
    target = (target > 0.5).half()
    pred.requires_grad_()
    loss = betti_matching_loss(pred, target, reduction=reduction)
    assert loss.dtype == torch.float32
    exact = betti_matching_loss(pred.detach().float(), target.float(), reduction=reduction)
    assert (exact > torch.finfo(torch.float16).max).all()
    torch.testing.assert_close(loss.detach(), exact)
    loss.sum().backward()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_scaler_skips_the_step_of_a_logit_that_is_not_finite(value: float, dtype: torch.dtype) -> None:
    model = nn.Conv2d(1, 1, 1)
    before = model.weight.detach().clone()
    images_, target = images(2, 1, 8, 8, dtype=torch.float32)
    for loss in (BettiMatchingLoss(relative=True), DiceBettiMatchingLoss()):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        optimizer.zero_grad()
        logits = model(images_)
        logits = torch.where(torch.arange(8) == 3, logits * value, logits).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            total = loss(logits, target > 0.5)
        assert total.isnan()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.weight, before)
        assert scaler.get_scale() == 2.0
    good, bad = torch.zeros(8, 8), torch.full((8, 8), value)
    each = BettiMatchingLoss(reduction="none", nonfinite="propagate")(
        torch.stack((good, bad))[None], target[:1].expand(1, 2, 8, 8)
    )
    assert each.isnan().tolist() == [[False, True]]
    with pytest.raises(ValueError, match="input must be finite"):
        BettiMatchingLoss(nonfinite="raise")(bad[None, None].half(), target[:1])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_nothing_is_matched_where_alpha_is_zero(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = images(2, 1, 8, 8)
    mask = (target > 0.5).double()
    logits[0, 0, 0, 0] = value
    loss = DiceBettiMatchingLoss(alpha=0.0)
    monkeypatch.setattr("offprints.betti_matching.bars.match_voxels", None)
    torch.testing.assert_close(loss(logits, mask), dice_loss(logits.sigmoid(), mask))
    assert np.isnan(loss.last_betti)


def test_what_cannot_be_transformed_says_so() -> None:
    pred, target = images(3, 2, 1, 6, 6)
    calls = (betti_matching_error, betti_number_error, wasserstein_loss)
    for call in calls:
        with pytest.raises(TypeError, match=r"pred must be an ordinary tensor.*part of the batch"):
            torch.vmap(call)(pred, target)
    with pytest.raises(TypeError, match="pred must be an ordinary tensor"):
        torch.vmap(lambda f, g: compute_matching(f, g).shape)(pred[:, 0, 0], target[:, 0, 0])
    mapped = torch.vmap(DiceBettiMatchingLoss(reduction="none"), in_dims=(1, None))(pred.movedim(0, 1), target[0])
    torch.testing.assert_close(
        mapped, torch.stack([DiceBettiMatchingLoss(reduction="none")(x, target[0]) for x in pred])
    )


def test_the_first_loss_of_a_process_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch, offprints.betti_matching as b;"
        "x = torch.rand(2, 1, 1, 6, 6, requires_grad=True);"
        "b.betti_matching_loss(*x).backward();"
        "print([m for m in ('torch._dynamo', 'torch._inductor', 'sympy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.gpu
@pytest.mark.parametrize("relative", [False, True])
def test_the_device_gives_what_the_host_gives(relative: bool) -> None:
    logits, target = images(4, 2, 24, 24)
    results = []
    for device in ("cpu", "cuda"):
        x = logits.detach().to(device).requires_grad_()
        loss = DiceBettiMatchingLoss(relative=relative)
        value = loss(x, (target > 0.5).to(device))
        value.backward()
        assert x.grad is not None
        assert value.device.type == device
        results.append((value.detach().cpu(), x.grad.cpu()))
    torch.testing.assert_close(results[1], results[0])
