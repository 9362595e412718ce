"""The projection and the optimizer around it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import Parameter

from offprints.shared.device import peak_memory_mib, reset_peak_memory
from offprints.shared.testing import check_errors
from offprints.stablemax import OrthoGrad, nlm_alignment, orthogonalize_gradients_

SHAPES = [(6, 4), (4,), (3, 2, 3, 3), (5, 1)]


def params(
    seed: int = 0, dtype: torch.dtype = torch.float32, shapes: list[tuple[int, ...]] = SHAPES
) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        param = Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        param.grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        made.append(param)
    return made


def grads(params: list[Parameter]) -> list[Tensor]:
    return [param.grad.clone() for param in params if param.grad is not None]


def dots(param: Parameter, dim: tuple[int, ...] | None = None) -> Tensor:
    assert param.grad is not None
    w, g = param.detach().double(), param.grad.double()
    return (w * g).sum(dim) / (w.square().sum(dim) * g.square().sum(dim)).sqrt()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_and_of_the_same_norm(dtype: torch.dtype, foreach: bool) -> None:
    made = params(dtype=dtype)
    norms = [grad.norm() for grad in grads(made)]
    orthogonalize_gradients_(made, foreach=foreach)
    for param, norm in zip(made, norms, strict=True):
        assert dots(param).abs() < 1e-6
        assert param.grad is not None
        torch.testing.assert_close(param.grad.norm(), norm, rtol=1e-6, atol=0)
    once = grads(made)
    orthogonalize_gradients_(made, foreach=foreach)
    for grad, again in zip(once, grads(made), strict=True):
        torch.testing.assert_close(again, grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "row", "global"])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_two_implementations_agree(granularity: Any, rescale: bool) -> None:
    loop, batched = params(), params()
    orthogonalize_gradients_(loop, granularity=granularity, rescale=rescale, foreach=False)
    orthogonalize_gradients_(batched, granularity=granularity, rescale=rescale, foreach=True)
    for a, b in zip(grads(loop), grads(batched), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-7)


def test_global_is_the_formula_of_the_paper() -> None:
    made = params(dtype=torch.float64)
    w, g = (torch.cat([t.reshape(-1) for t in ts]) for ts in ([p.detach() for p in made], grads(made)))
    orthogonalize_gradients_(made, granularity="global", rescale=False)
    projected = torch.cat([grad.reshape(-1) for grad in grads(made)])
    torch.testing.assert_close(projected, g - (w @ g) / (w @ w) * w, rtol=1e-12, atol=1e-14)
    assert abs(nlm_alignment(made)) < 1e-14  # type: ignore[arg-type]


def test_rows_are_the_output_units() -> None:
    made = params()
    single = made[3].grad.clone()  # type: ignore[union-attr]
    orthogonalize_gradients_(made, granularity="row")
    assert dots(made[0], (1,)).abs().max() < 1e-6
    assert dots(made[2], (1, 2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(made[3].grad, single)  # rows of one element


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 20))
def test_invariant_to_the_scale_of_the_weights(scale: float, seed: int) -> None:
    one, other = params(seed, torch.float64), params(seed, torch.float64)
    for param in other:
        param.data.mul_(scale)
    orthogonalize_gradients_(one)
    orthogonalize_gradients_(other)
    for a, b in zip(grads(one), grads(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1e-25, 1e-15, 1e15])
def test_tiny_and_huge_gradients_in_float32(size: float) -> None:
    plain, scaled = params(), params()
    for param in scaled:
        param.grad.mul_(size)  # type: ignore[union-attr]
    orthogonalize_gradients_(plain)
    orthogonalize_gradients_(scaled)
    for a, b in zip(grads(plain), grads(scaled), strict=True):
        torch.testing.assert_close(a, b / size, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("foreach", [False, True])
def test_nearly_parallel_gradients(share: float, foreach: bool) -> None:
    (made,) = params(shapes=[(300, 20)])
    made.grad = made.detach() + share * made.grad  # type: ignore[operator]
    orthogonalize_gradients_([made], foreach=foreach)
    assert dots(made).abs() < 1e-6


@pytest.mark.parametrize("foreach", [False, True])
def test_what_nothing_would_remain_of(foreach: bool) -> None:
    parallel, scalar, zero, broken = params(shapes=[(30,), (1,), (4,), (5,)])
    parallel.grad = 3 * parallel.detach()
    zero.data.zero_()
    broken.grad[2] = math.inf  # type: ignore[index]
    kept = [param.grad.clone() for param in (scalar, zero, broken)]  # type: ignore[union-attr]
    unused = Parameter(torch.ones(2))
    orthogonalize_gradients_([parallel, scalar, zero, broken, unused], foreach=foreach)
    assert (parallel.grad == 0).all()
    for param, grad in zip((scalar, zero, broken), kept, strict=True):
        torch.testing.assert_close(param.grad, grad)
    assert unused.grad is None


def test_elements_are_paired_by_index_not_by_memory() -> None:
    plain, strided = params(shapes=[(4, 3, 2, 2)]), params(shapes=[(4, 3, 2, 2)])
    strided[0].data = strided[0].data.contiguous(memory_format=torch.channels_last)
    for foreach in (False, True):
        a, b = copy.deepcopy(plain), copy.deepcopy(strided)
        a[0].grad, b[0].grad = plain[0].grad.clone(), strided[0].grad.clone()  # type: ignore[union-attr]
        orthogonalize_gradients_(a, foreach=foreach)
        orthogonalize_gradients_(b, foreach=foreach)
        torch.testing.assert_close(a[0].grad, b[0].grad)


@pytest.mark.parametrize("granularity", ["tensor", "row", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_in_another_memory_layout_than_the_weights(granularity: Any, dtype: torch.dtype) -> None:
    """Of the shape's order, of another order, and with gaps, as a part of a larger tensor has them."""
    layouts: list[Callable[[Tensor], Tensor]] = [
        torch.clone,
        lambda g: g.transpose(1, 2).contiguous().transpose(1, 2),
        lambda g: torch.stack([g, g], -1)[..., 0],
    ]
    for layout in layouts:
        (plain,), (mixed,) = (params(dtype=dtype, shapes=[(4, 3, 2, 2)]) for _ in range(2))
        mixed.data = mixed.data.contiguous(memory_format=torch.channels_last)
        (before,) = grads([mixed])
        mixed.grad = layout(before)
        orthogonalize_gradients_([plain], granularity=granularity)
        orthogonalize_gradients_([mixed], granularity=granularity)
        assert not torch.equal(mixed.grad, before)
        torch.testing.assert_close(mixed.grad, plain.grad)


@pytest.mark.parametrize("granularity", ["tensor", "row", "global"])
def test_a_single_element_keeps_its_gradient(granularity: Any) -> None:
    single = Parameter(torch.tensor([2.0]))
    single.grad = torch.tensor([3.0])
    orthogonalize_gradients_([single], granularity=granularity)
    assert single.grad == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_whose_elements_share_memory(dtype: torch.dtype) -> None:
    for granularity in ("tensor", "row", "global"):
        one, other = params(dtype=dtype, shapes=[(4, 3)]), params(dtype=dtype, shapes=[(4, 3)])
        one[0].grad = torch.full((1, 1), 0.5, dtype=dtype).expand(4, 3)
        other[0].grad = torch.full((4, 3), 0.5, dtype=dtype)
        orthogonalize_gradients_(one, granularity=granularity)  # type: ignore[arg-type]
        orthogonalize_gradients_(other, granularity=granularity)  # type: ignore[arg-type]
        assert torch.equal(one[0].grad, other[0].grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_reduced_in_float32_or_better(dtype: torch.dtype) -> None:
    half = params(dtype=dtype, shapes=[(200, 200)])
    full = [Parameter(param.detach().float()) for param in half]
    full[0].grad = half[0].grad.float()  # type: ignore[union-attr]
    orthogonalize_gradients_(half)
    orthogonalize_gradients_(full)
    torch.testing.assert_close(half[0].grad.float(), full[0].grad, rtol=1e-2, atol=1e-2)  # type: ignore[union-attr]


def regression(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], steps: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = optimizer_of(model)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def adam(model: nn.Module) -> OrthoGrad:
    return OrthoGrad(torch.optim.Adam(model.parameters(), lr=0.01))


def test_resume_continues_bit_for_bit(tmp_path: Any) -> None:
    model, optimizer = regression(adam, 5)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    advance(model, optimizer, 5)
    again, fresh = regression(adam, 0)
    weights, moments = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    fresh.load_state_dict(moments)
    assert fresh.param_groups is fresh.optimizer.param_groups
    assert fresh.state is fresh.optimizer.state
    advance(again, fresh, 5)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedulers_reach_the_wrapped_optimizer() -> None:
    _, optimizer = regression(adam, 1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    optimizer.step()
    scheduler.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    scheduler.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_a_closure_is_evaluated_before_the_projection() -> None:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    model, optimizer = regression(adam, 0)
    expected, _ = regression(adam, 3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    assert losses[2] < losses[0]
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_group_can_opt_out() -> None:
    made = params()
    before = grads(made)
    groups = [{"params": made[:2]}, {"params": made[2:], "orthograd": False}]
    OrthoGrad(torch.optim.SGD(groups, lr=0.1)).step()
    after = grads(made)
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[2:], after[2:], strict=True))


def test_gradient_scaler_sees_an_overflow() -> None:
    (param,) = params(shapes=[(4, 3)])
    optimizer = OrthoGrad(torch.optim.SGD([param], lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    start = param.detach().clone()
    for value, moved in ((math.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((param * param.detach().flip(0)).sum()).backward()
        param.grad[0, 0] *= value  # type: ignore[index]
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(param, start) is not moved


def test_sgd_keeps_the_norm_to_second_order() -> None:
    (param,) = params(dtype=torch.float64, shapes=[(20, 3)])
    before, size = param.detach().norm() ** 2, param.grad.norm() ** 2  # type: ignore[union-attr]
    OrthoGrad(torch.optim.SGD([param], lr=0.1)).step()
    torch.testing.assert_close(param.detach().norm() ** 2, before + 0.01 * size)


def test_deepcopy_keeps_wrapper_and_wrapped_together() -> None:
    _, optimizer = regression(adam, 2)
    twin = copy.deepcopy(optimizer)
    assert twin.param_groups is twin.optimizer.param_groups
    assert twin.param_groups is not optimizer.param_groups


def test_other_methods_of_the_wrapped_optimizer_are_reached() -> None:
    class Averaging(torch.optim.SGD):
        mode = "eval"

        def train(self) -> None:
            self.mode = "train"

    optimizer = OrthoGrad(Averaging(params(), lr=0.1))
    optimizer.train()
    assert optimizer.mode == optimizer.optimizer.mode == "train"
    with pytest.raises(AttributeError, match="evaluate"):
        optimizer.evaluate()
    assert not hasattr(optimizer, "_step_supports_amp_scaling")  # a scaler is to unscale before the projection


def polyak(base: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A step length from the closure's loss, as Polyak's and ALI-G have it."""

    class Polyak(base):  # type: ignore[misc, valid-type]
        def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
            assert closure is not None
            loss = closure()
            squares = sum(p.grad.square().sum() for group in self.param_groups for p in group["params"])
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.sub_(p.grad, alpha=float(loss / squares))
            return loss

    return Polyak


def test_a_base_that_reads_the_loss_gets_it() -> None:
    target = torch.tensor([1.0, -2.0, 0.5])

    def problem() -> Parameter:
        return Parameter(torch.tensor([0.5, 1.0, 2.0]))

    ours, plain = problem(), problem()
    optimizer = OrthoGrad(polyak(torch.optim.SGD)([ours], lr=1.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (ours - target).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        value = optimizer.step(closure)
        plain.grad = 2 * (plain.detach() - target)
        loss = (plain.detach() - target).square().sum()
        orthogonalize_gradients_([plain])
        plain.data -= loss / plain.grad.square().sum() * plain.grad
        torch.testing.assert_close(value.detach(), loss)
        torch.testing.assert_close(ours, plain)


def test_a_base_that_evaluates_in_the_middle_gets_projected_gradients() -> None:
    class Extragradient(torch.optim.SGD):
        def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
            assert closure is not None
            (p,) = self.param_groups[0]["params"]
            start = p.detach().clone()
            closure()
            p.data.sub_(p.grad, alpha=0.1)
            closure()
            p.data.copy_(start - 0.1 * p.grad)

    def gradient(w: Tensor) -> Tensor:
        g = 2 * (w - torch.tensor([3.0, 1.0]))
        g = g - (w @ g) / (w @ w) * w
        size = 2 * (w - torch.tensor([3.0, 1.0])).norm()
        return g * size / g.norm()

    w = Parameter(torch.tensor([1.0, 2.0]))
    optimizer = OrthoGrad(Extragradient([w], lr=0.1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w - torch.tensor([3.0, 1.0])).square().sum()
        loss.backward()
        return loss

    start = w.detach().clone()
    assert optimizer.step(closure) == (start - torch.tensor([3.0, 1.0])).square().sum()
    torch.testing.assert_close(w.detach(), start - 0.1 * gradient(start - 0.1 * gradient(start)))


def test_a_base_of_two_halves_is_refused() -> None:
    class SAM(torch.optim.SGD):
        def first_step(self) -> None: ...
        def second_step(self) -> None: ...

    with pytest.raises(TypeError, match="SAM"):
        OrthoGrad(SAM(params(), lr=0.1))


def test_hooks_of_the_state_dict_fire_and_the_settings_are_saved() -> None:
    seen: list[str] = []
    optimizer = OrthoGrad(torch.optim.SGD(params(), lr=0.1), granularity="row", rescale=False, eps=1e-20)
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "note": 1})
    saved = optimizer.state_dict()
    assert saved["note"] == 1
    other = OrthoGrad(torch.optim.SGD(params(), lr=0.3))

    def before(o: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("before loading")
        return {**state, "orthograd": {**state["orthograd"], "eps": 1e-10}}

    other.register_load_state_dict_pre_hook(before)
    other.register_load_state_dict_post_hook(lambda o: seen.append(f"after loading {o.granularity}"))
    other.load_state_dict(saved)
    assert seen == ["before saving", "before loading", "after loading row"]
    assert (other.granularity, other.rescale, other.eps) == ("row", False, 1e-10)
    assert other.param_groups[0]["lr"] == 0.1
    base = torch.optim.SGD(params(), lr=0.1)
    base.load_state_dict(saved)  # the wrapped optimizer's own form
    fresh = OrthoGrad(torch.optim.SGD(params(), lr=0.3), granularity="global")
    fresh.load_state_dict(base.state_dict())
    assert (fresh.granularity, fresh.param_groups[0]["lr"]) == ("global", 0.1)
    with pytest.raises(ValueError, match="granularity"):
        fresh.load_state_dict({**saved, "orthograd": {"granularity": "layer"}})


@pytest.mark.parametrize("granularity", ["tensor", "row", "global"])
def test_parallel_gradients_stay_finite(granularity: Any) -> None:
    """Rounding can make the squared norm of what remains negative."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(300):
        w = Parameter(torch.randn(1, 2 + trial % 7, generator=generator, dtype=torch.float64))
        w.grad = w.detach() * float(torch.randn((), generator=generator))
        orthogonalize_gradients_([w], granularity=granularity)
        assert (w.grad == 0).all()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "row", "global"])
def test_a_finite_half_gradient_stays_finite(granularity: Any, rescale: bool) -> None:
    w = Parameter(torch.ones(2, 400, dtype=torch.float16))
    w.data[:, 0] = 3
    w.grad = torch.full_like(w, 6e4)
    w.grad[:, 1] = -6e4
    w.grad[1] /= 8
    wide = Parameter(w.detach().double())
    wide.grad = w.grad.double()
    orthogonalize_gradients_([wide], granularity=granularity, rescale=rescale)
    orthogonalize_gradients_([w], granularity=granularity, rescale=rescale)
    assert wide.grad.abs().max() > 65504
    assert w.grad.abs().max() == 65504
    found, expected = w.grad.double(), wide.grad * (65504 / wide.grad.abs().max())
    if granularity == "row":
        expected[1] = wide.grad[1] * (65504 / wide.grad[1].abs().max()).clamp(max=1)
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-3)


def test_tiny_double_gradients_are_not_lost() -> None:
    (w,) = params(dtype=torch.float64, shapes=[(3, 4)])
    w.grad.mul_(1e-200)  # type: ignore[union-attr]
    before = grads([w])[0]
    orthogonalize_gradients_([w])
    assert torch.equal(w.grad, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("foreach", [None, True])
def test_no_copies_of_everything(foreach: bool | None) -> None:
    made = [Parameter(torch.ones(2048, 1024, dtype=torch.float64)) for _ in range(8)]  # 128 MiB
    for param in made:
        param.grad = torch.randn(2048, 1024, dtype=torch.float64)
    reset_peak_memory()
    before = peak_memory_mib()
    orthogonalize_gradients_(made, foreach=foreach)
    assert peak_memory_mib() - before < 64  # two tensors of 16 MiB and what the allocator of the process adds


def test_bad_input() -> None:
    made = params()
    sgd = torch.optim.SGD(made, lr=0.1)
    sparse = nn.Embedding(4, 2, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    other = Parameter(torch.ones(2, dtype=torch.complex64))
    other.grad = torch.ones(2, dtype=torch.complex64)
    before = grads(made)
    check_errors(
        [
            (lambda: OrthoGrad(made), TypeError, "optimizer"),  # type: ignore[arg-type]
            (lambda: OrthoGrad(torch.optim.LBFGS(made)), TypeError, "LBFGS"),
            (lambda: OrthoGrad(sgd, granularity="layer"), ValueError, "granularity"),  # type: ignore[arg-type]
            (lambda: OrthoGrad(sgd, eps=-1.0), ValueError, "eps"),
            (lambda: orthogonalize_gradients_(made, granularity="layer"), ValueError, "granularity"),  # type: ignore[arg-type]
            (lambda: orthogonalize_gradients_(made, eps=math.nan), ValueError, "eps"),
            (lambda: orthogonalize_gradients_(made, eps=-1.0), ValueError, "eps"),
            (lambda: orthogonalize_gradients_(made, rescale="no"), TypeError, "rescale"),  # type: ignore[arg-type]
            (lambda: orthogonalize_gradients_(made[0]), TypeError, "params"),  # type: ignore[arg-type]
            (lambda: orthogonalize_gradients_(None), TypeError, "params"),  # type: ignore[arg-type]
            (lambda: orthogonalize_gradients_(made, foreach=3), TypeError, "foreach"),  # type: ignore[arg-type]
            (lambda: OrthoGrad(sgd, foreach="yes"), TypeError, "foreach"),  # type: ignore[arg-type]
            (lambda: nlm_alignment(None), TypeError, "params"),  # type: ignore[arg-type]
            (lambda: nlm_alignment(made[0]), TypeError, "params"),  # type: ignore[arg-type]
            (lambda: orthogonalize_gradients_([made[0], *sparse.parameters()]), TypeError, "position 1"),
            (lambda: orthogonalize_gradients_([*made, other]), TypeError, "position 4"),
            (lambda: orthogonalize_gradients_(["weights"]), TypeError, "position 0"),  # type: ignore[list-item]
        ]
    )
    assert all(torch.equal(a, b) for a, b in zip(before, grads(made), strict=True))
