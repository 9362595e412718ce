"""Parameters spread over two processes are projected as one process projects them whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn import Parameter

from offprints.stablemax import CollapseMonitor, OrthoGrad, nlm_alignment, orthogonalize_gradients_

GRANULARITIES: tuple[Any, ...] = ("tensor", "row", "global")
# Even, uneven, empty on the second process, one element a process, a vector, one element.
SHAPES = [(4, 6), (3, 5), (1, 4), (2,), (5,), (1,)]


def params(replicated: bool = True) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in [*SHAPES, *([(), (1,), (7,), (2, 3)] if replicated else [])]:
        param = Parameter(torch.randn(shape, generator=generator))
        param.grad = torch.randn(shape, generator=generator)
        made.append(param)
    return made


def counted(call: Callable[[], None]) -> int:
    """Run ``call`` and say how many collectives it took."""
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        call()
    return all_reduce.call_count


def plain_shards(rank: int) -> dict[str, Any]:
    """Plain tensors split along dimension 0; the last four parameters are replicas. Empty shards have no gradient."""
    results: dict[str, Any] = {}
    for granularity in GRANULARITIES:
        mine = []
        for position, whole in enumerate(params()):
            split = position < len(SHAPES)
            parts = [t.tensor_split(2)[rank] if split else t for t in (whole.detach(), whole.grad)]
            shard = Parameter(parts[0].clone())
            shard.grad = parts[1].clone() if shard.numel() else None
            mine.append(shard)
        optimizer = OrthoGrad(torch.optim.SGD(mine, lr=0.0), granularity=granularity, process_group=dist.group.WORLD)
        calls = counted(optimizer.step)
        empty = [torch.zeros_like(p) if p.grad is None else p.grad for p in mine]
        results[granularity] = (calls, empty)
    return results


def test_plain_shards(two_processes: Callable[..., Any]) -> None:
    first, second = two_processes(plain_shards)
    for granularity in GRANULARITIES:
        whole = params()
        orthogonalize_gradients_(whole, granularity=granularity)
        assert first[granularity][0] == second[granularity][0] == (0 if granularity == "row" else 1)
        for position, param in enumerate(whole):
            a, b = first[granularity][1][position], second[granularity][1][position]
            found = [torch.cat([a, b])] if position < len(SHAPES) else [a, b]
            for grad in found:
                torch.testing.assert_close(grad, param.grad, msg=lambda t, p=position, g=granularity: f"{g} {p}: {t}")


def dtensors(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    mesh, grid, column = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2)), init_device_mesh("cpu", (2, 1))
    placed: dict[str, tuple[Any, list[Any]]] = {
        "rows": (mesh, [Shard(0)]),
        "columns": (mesh, [Shard(1)]),
        "replicated": (mesh, [Replicate()]),
        "hybrid": (grid, [Replicate(), Shard(0)]),
        "hybrid, other axis": (column, [Replicate(), Shard(0)]),
        "two axes": (grid, [Shard(0), Shard(1)]),
    }
    for granularity in GRANULARITIES:
        for name, (where, placements) in placed.items():
            mine: list[Any] = []
            for position, whole in enumerate(params()):
                plain = position >= len(SHAPES) + 2
                fits = whole.ndim > max((p.dim for p in placements if isinstance(p, Shard)), default=-1)
                spot = placements if fits and position < len(SHAPES) else [Replicate()] * where.ndim
                if plain:  # beside the DTensors
                    mine.append(whole)
                    continue
                shard = Parameter(distribute_tensor(whole.detach(), where, spot))
                shard.grad = distribute_tensor(whole.grad, where, spot)  # type: ignore[arg-type]
                mine.append(shard)
            alignment = nlm_alignment(mine)
            calls = counted(lambda mine=mine, kind=granularity: orthogonalize_gradients_(mine, granularity=kind))  # type: ignore[misc]
            full = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in mine]
            results[f"{granularity}, {name}"] = (calls, full, alignment)
    return results


def test_dtensors(two_processes: Callable[..., Any]) -> None:
    first, second = two_processes(dtensors)
    for name, (calls, found, alignment) in first.items():
        assert calls == second[name][0] <= 1, name
        whole = params()
        assert alignment == pytest.approx(nlm_alignment(whole), rel=1e-9)
        orthogonalize_gradients_(whole, granularity=name.split(",")[0])  # type: ignore[arg-type]
        for position, (param, grad, other) in enumerate(zip(whole, found, second[name][1], strict=True)):
            torch.testing.assert_close(grad, param.grad, msg=lambda t, p=position, n=name: f"{n} {p}: {t}")
            assert torch.equal(grad, other)


def missing(rank: int) -> tuple[Tensor, Any]:
    """A gradient that one process alone has, beside parameters whose gradient nobody has."""
    mine = []
    for param in params():
        part = Parameter(param.detach().tensor_split(2)[rank].clone()) if param.ndim else Parameter(param.detach())
        mine.append(part)
    if rank == 0:
        mine[0].grad = params()[0].grad.tensor_split(2)[0].clone()  # type: ignore[union-attr]
    orthogonalize_gradients_(mine, granularity="global", process_group=dist.group.WORLD)
    return mine[0].grad if rank == 0 else torch.zeros_like(mine[0]), [p.grad is None for p in mine]


def test_a_gradient_that_one_process_alone_has(two_processes: Callable[..., Any]) -> None:
    (found, _), (_, absent) = two_processes(missing)
    assert all(absent)
    (whole, *_) = params()
    whole.grad[2:] = 0  # type: ignore[index]
    orthogonalize_gradients_([whole])
    size = whole.grad.norm()  # type: ignore[union-attr]
    assert size > 0
    torch.testing.assert_close(found, whole.grad[:2])  # type: ignore[index]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 7), nn.LayerNorm(7), nn.Linear(7, 1))


def batch() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, granularity: Any, group: Any = None, *, gain: float = 1.0) -> list[float]:
    """Losses of a few steps, and what a monitor saw of the gradient."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer = OrthoGrad(sgd, granularity=granularity, process_group=group)
    losses = []
    labels = torch.zeros(6, dtype=torch.int64)
    with CollapseMonitor(model, None if group else optimizer) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            output = model(batch())
            loss = output.square().mean()
            (gain * loss).backward()
            if group is None:
                monitor.observe(torch.cat([output, output], 1), labels)
            optimizer.step()
            losses.append(float(loss.detach()))
    seen = [record[name] for record in monitor.records for name in ("weights_l2", "nlm_alignment")]
    return losses + seen


def averages() -> bool:
    """Whether processes on CPUs can average. In torch 2.7 they cannot: FSDP2 sums gradients there, HSDP fails."""
    try:
        dist.all_reduce(torch.zeros(1), dist.ReduceOp.AVG)
    except RuntimeError:
        return False
    return True


def fully_sharded(rank: int) -> dict[str, list[float]]:
    results = {}
    can_average = averages()
    mesh = init_device_mesh("cpu", (2,))
    for granularity in GRANULARITIES:
        model = network()
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        results[f"FSDP2 {granularity}"] = trained(model, granularity, gain=1.0 if can_average else 0.5)
        if can_average:
            hybrid = fully_shard(network(), mesh=init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicas", "shards")))
            results[f"HSDP {granularity}"] = trained(hybrid, granularity)
            partial = network()
            fully_shard(partial[2], mesh=mesh)  # the others stay plain, and are the same on both processes
            results[f"mixed {granularity}"] = trained(partial, granularity)
        if granularity != "row":
            flat = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
            results[f"FSDP1 {granularity}"] = trained(flat, granularity, dist.group.WORLD)
    flat = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    flat(batch()).square().mean().backward()
    for options, word in (({"granularity": "row", "process_group": dist.group.WORLD}, "row"), ({}, "process_group")):
        with pytest.raises(ValueError, match=word):
            OrthoGrad(torch.optim.SGD(flat.parameters(), lr=0.1), **options).step()
    return results


def test_networks(two_processes: Callable[..., Any]) -> None:
    first, second = two_processes(fully_sharded)
    assert len(first) == (11 if any(name.startswith("HSDP") for name in first) else 5)
    for name, found in first.items():
        expected = trained(network(), name.split()[1])
        expected = expected[: len(found)]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        assert second[name] == pytest.approx(found, rel=1e-6), name
