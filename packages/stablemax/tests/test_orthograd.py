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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter

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


def sharded(rank: int) -> dict[str, list[Tensor]]:
    results: dict[str, list[Tensor]] = {}
    for granularity in ("tensor", "global"):
        whole = params(shapes=[(4, 6), (8,), (2, 3)])
        mine = []
        for param in whole:
            shard = Parameter(param.detach().chunk(2)[rank].clone())
            shard.grad = param.grad.chunk(2)[rank].clone()  # type: ignore[union-attr]
            mine.append(shard)
        optimizer = torch.optim.SGD(mine, lr=0.0)
        OrthoGrad(optimizer, granularity=granularity, process_group=torch.distributed.group.WORLD).step()  # type: ignore[arg-type]
        results[f"plain {granularity}"] = grads(mine)
    mesh = init_device_mesh("cpu", (2,))
    for granularity in ("tensor", "row", "global"):
        mine = []
        for param in params(shapes=[(4, 6), (8,), (2, 3)]):
            shard = Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)]))
            shard.grad = distribute_tensor(param.grad, mesh, [Shard(0)])  # type: ignore[arg-type]
            mine.append(shard)
        orthogonalize_gradients_(mine, granularity=granularity)  # type: ignore[arg-type]
        results[f"DTensor {granularity}"] = [param.grad.to_local() for param in mine]  # type: ignore[union-attr]
    return results


def test_shards_are_projected_as_whole(two_processes: Callable[..., Any]) -> None:
    first, second = two_processes(sharded)
    for name in first:
        whole = params(shapes=[(4, 6), (8,), (2, 3)])
        orthogonalize_gradients_(whole, granularity=name.split()[1], foreach=True)
        for grad, a, b in zip(grads(whole), first[name], second[name], strict=True):
            torch.testing.assert_close(torch.cat([a, b]), grad, rtol=0, atol=1e-6, msg=name)


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
            (lambda: orthogonalize_gradients_([made[0], *sparse.parameters()]), TypeError, "position 1"),
            (lambda: orthogonalize_gradients_([*made, other]), TypeError, "position 4"),
            (lambda: orthogonalize_gradients_(["weights"]), TypeError, "position 0"),  # type: ignore[list-item]
        ]
    )
    assert all(torch.equal(a, b) for a, b in zip(before, grads(made), strict=True))
