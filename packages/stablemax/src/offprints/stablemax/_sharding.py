"""Parameters that are spread over processes: what each process holds, and which sums make whole units of it.

How many collectives there are, and of which size, follows from what every process knows alike: the list of parameters,
their placements and granularity. Whether a gradient or a shard is empty here does not change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from offprints.shared.distributed import all_reduce_, world_size
from offprints.stablemax._projection import COUNT, Shard

Group = Any  # a process group of torch.distributed


@dataclass(frozen=True)
class Layout:
    """How the units of a parameter lie.

    Attributes:
        groups: Process groups, one after the other, over which parts of a unit are added up.
        plain: Whether the parameter carries no placements: it may be a shard or a replica.
        size: Elements of a whole unit, None where only all processes together know.
    """

    groups: tuple[Group, ...]
    plain: bool
    size: int | None


def listed(params: Iterable[Parameter]) -> list[Parameter]:
    """The parameters as a list.

    Raises:
        TypeError: a single tensor, no iterable, or something in it that is no tensor.
    """
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"params must be an iterable of parameters, got {type(params).__name__}")
    found = list(params)
    for position, param in enumerate(found):
        if not isinstance(param, Tensor):
            raise TypeError(f"params must hold parameters, got {type(param).__name__} at position {position}")
    return found


def is_distributed(tensor: Tensor) -> bool:
    """Whether this is a DTensor, told without importing torch.distributed.tensor, which takes half a second."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def local(tensor: Any) -> Tensor:
    """The part of this process."""
    result: Tensor = tensor.to_local() if is_distributed(tensor) else tensor
    return result


def layout(param: Any, by_row: bool, process_group: Group) -> Layout:
    """Where the parts of the units of one parameter are.

    Raises:
        TypeError: a parameter that is a partial sum.
        ValueError: a flattened parameter of FullyShardedDataParallel whose units cannot be told.
    """
    size = (param.shape[1:].numel() if by_row else param.numel()) if param.ndim else 1
    if is_distributed(param):
        if any(placement.is_partial() for placement in param.placements):
            raise TypeError(f"params must be sharded or replicated, got placements {param.placements}")
        groups = tuple(
            param.device_mesh.get_group(axis)
            for axis, placement in enumerate(param.placements)
            if not placement.is_replicate() and not (by_row and placement.dim == 0)
        )
        return Layout(groups, plain=False, size=size)
    flattened = getattr(param, "_fsdp_flattened", False)
    if flattened and by_row:
        raise ValueError("granularity 'row' needs the shapes that FullyShardedDataParallel flattens; use fully_shard")
    if flattened and process_group is None and world_size() > 1:
        raise ValueError("process_group must be given for the parameters of FullyShardedDataParallel")
    if process_group is None or by_row:  # plain shards are split along dimension 0: their rows are whole
        return Layout((), plain=True, size=size)
    return Layout((process_group,), plain=True, size=None)


def matrix(param: Parameter, by_row: bool, size: int | None) -> tuple[Shard, Tensor | None]:
    """The shard of a parameter, and the gradient that it is to be copied back to where it is no view of it."""
    weight, grad = local(param.detach()), param.grad
    if grad is not None and is_distributed(param) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = param.grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    mine = None if grad is None else local(grad)
    if weight.ndim > 1 and mine is not None and not mine.is_contiguous():
        # Elements are paired by index. In the order of the gradient's memory it is a view, nothing is copied.
        strides = mine.stride()
        order = sorted(range(by_row, weight.ndim), key=lambda axis: -strides[axis])
        order = [0, *order] if by_row else order
        weight, mine = weight.permute(order), mine.permute(order)
    rows = len(weight) if by_row and weight.ndim else 1
    if by_row and weight.ndim != param.ndim:  # an empty shard may have lost its shape
        rows = 0
    width = weight.numel() // rows if rows else 0
    flat = weight.reshape(rows, width)
    if mine is None:
        return Shard(flat, None, size), None
    view = mine.reshape(rows, width)
    copied = view.numel() > 0 and view.data_ptr() != mine.data_ptr()
    return Shard(flat, view, size), mine if copied else None


def add_up_(totals: Tensor, layouts: Sequence[Layout], starts: Sequence[int]) -> None:
    """Make totals of whole units of those of their parts: one collective for each process group."""
    for group, plain, units in _by_group(layouts, starts, totals.device):
        if not plain:
            part = totals[:, units]
            all_reduce_(part, group=group)
            part[COUNT] = totals[COUNT, units]  # of whole units already
            totals[:, units] = part
            continue
        ranks, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
        everyone = totals.new_zeros(ranks, len(totals), len(units))
        everyone[rank] = totals[:, units]
        all_reduce_(everyone, group=group)
        # What has the same sums, to the last digit, on every process is no shard but a replica: it counts once.
        replica = (everyone == everyone[:1]).all(0).all(0) & (everyone[0, COUNT] > 0)
        totals[:, units] = torch.where(replica, everyone[0], everyone.sum(0))


def maximum_(values: Tensor, asked: Tensor, layouts: Sequence[Layout], starts: Sequence[int]) -> None:
    """Largest value over the parts of each unit, among groups where ``asked`` holds for some unit."""
    for group, _, units in _by_group(layouts, starts, values.device):
        if bool(asked[units].any()):  # whole units are the same everywhere in the group
            part = values[units]
            all_reduce_(part, op="max", group=group)
            values[units] = part


def _by_group(
    layouts: Sequence[Layout], starts: Sequence[int], device: torch.device
) -> list[tuple[Group, bool, Tensor]]:
    """Process groups in the order of the parameters, and the units that each of them adds up."""
    found: dict[tuple[str, bool], tuple[Group, list[int]]] = {}
    for position, one in enumerate(layouts):
        for group in one.groups:
            _, units = found.setdefault((group.group_name, one.plain), (group, []))
            units.extend(range(starts[position], starts[position + 1]))
    return [
        (group, plain, torch.tensor(units, dtype=torch.int64, device=device))
        for (_, plain), (group, units) in found.items()
    ]
