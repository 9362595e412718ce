"""One round's state dicts: which clients are accepted, and the weighted sums of their updates.

Every method of this package moves the global weights by `sum_l a_l U_l`, U_l client minus global, with coefficients of
its own for each tensor. Two passes over the clients do it: one for the Gram matrix of each tensor, which also shows
who sent NaN and how long each update is, one for the sum. Both go through the tensors in pieces that stay in the cache,
so that no update is ever stored.
"""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offprints.fedld.principal import to_double
from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_number

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]
# From the Gram matrices [T, m, m] and the names of T tensors, and the clients' shares [m]: coefficients [T, m].
Coefficients = Callable[[Tensor, Sequence[str], Tensor], Tensor]

PIECE = 2**18  # values of all clients together


@dataclass
class AggregationReport:
    """Which clients' results a round used.

    Attributes:
        accepted: Their indices; in Flower the ids of their nodes.
        rejected: The others, each with the reason.

    Example:
        >>> AggregationReport(accepted=[0, 2], rejected={1: "layer.weight is not finite"}).accepted
        [0, 2]
    """

    accepted: list[int]
    rejected: dict[int, str]


@dataclass(frozen=True)
class Combined:
    """The new global state, the report, and the steps that were asked for, flat, by tensor."""

    state: dict[str, Tensor]
    report: AggregationReport
    steps: dict[str, Tensor]


def combine(
    global_state: State,
    client_states: Sequence[State],
    num_examples: Sequence[float] | None,
    coefficients: Coefficients,
    *,
    averaged: Collection[str],
    server_lr: float = 1.0,
    max_update_norm: float | None = None,
    on_bad_update: str = "reject",
    history: State | None = None,
    keep_steps: Collection[str] | None = None,
) -> Combined:
    """Accept clients and combine them; the arguments are left as they are.

    Args:
        global_state, client_states, num_examples: As `PrincipalGradientAggregator.aggregate`.
        coefficients: Of the accepted clients' updates. With `history` the Gram matrices have one more row for it.
        averaged: Names of floating tensors that are averaged by the clients' shares; all others that are not floating
            are averaged too, and rounded.
        server_lr, max_update_norm, on_bad_update: As `PrincipalGradientAggregator`.
        history: A flat tensor for each of some names, zero for the others.
        keep_steps: Names of the steps to return, before `server_lr`; None: of all.

    Raises:
        TypeError, ValueError: As `PrincipalGradientAggregator.aggregate`.
    """
    _check_global(global_state, averaged)
    if isinstance(client_states, (str, bytes, Mapping)) or not isinstance(client_states, Sequence):
        raise TypeError(f"client_states must be a sequence of state dicts, got {type(client_states).__name__}")
    if not client_states:
        raise ValueError("client_states must hold at least one client, got none")
    sizes = _sizes(num_examples, len(client_states))
    moved = [name for name, value in global_state.items() if _is_real(value) and name not in averaged]
    rest = [name for name, value in global_state.items() if not _is_real(value) or name in averaged]

    rejected: dict[int, str] = {}
    for i, (state, size) in enumerate(zip(client_states, sizes, strict=True)):
        fault = (
            _fault_of_size(size) or fault_of_state(state, global_state) or _fault_of_buffers(state, global_state, rest)
        )
        if fault is not None:
            rejected[i] = fault
    sound = [i for i in range(len(client_states)) if i not in rejected]
    gram = _gram_matrices(global_state, [client_states[i] for i in sound], moved, history)
    for i, fault in _faults_of_updates(gram, moved, len(sound), max_update_norm).items():
        rejected[sound[i]] = fault
    accepted = [i for i in sound if i not in rejected]
    _tell(rejected, on_bad_update)
    if not accepted:
        reasons = "; ".join(f"{i}: {reason}" for i, reason in sorted(rejected.items()))
        raise NoValidClientError(
            f"client_states must hold at least one valid client, all are rejected: {reasons}", rejected
        )

    rows = [sound.index(i) for i in accepted] + ([len(sound)] if history is not None else [])
    states = [client_states[i] for i in accepted]
    share = torch.tensor([float(sizes[i]) for i in accepted], dtype=torch.float64, device="cpu")
    share = share / share.max()  # a sum of the largest numbers would overflow
    share = share / share.sum()
    with torch.no_grad(), float32_region(global_state[next(iter(global_state))].device):
        a = coefficients(gram[:, rows][:, :, rows], moved, share)
        new, steps = {}, {}
        for name, row in zip(moved, a, strict=True):
            wanted = keep_steps is None or name in keep_steps
            new[name], step = _move(global_state[name], [state[name] for state in states], row, server_lr, wanted)
            if step is not None:
                steps[name] = step
        for name in rest:
            new[name] = _average(global_state[name], [state[name] for state in states], share)
    report = AggregationReport(accepted, dict(sorted(rejected.items())))
    return Combined({name: new[name] for name in global_state}, report, steps)


class NoValidClientError(ValueError):
    """Every client of a round was rejected; `rejected` has the reasons."""

    def __init__(self, message: str, rejected: dict[int, str]) -> None:
        super().__init__(message)
        self.rejected = rejected


# ---- who is accepted -------------------------------------------------------------------------------------------------


def check_state(state: State, name: str) -> None:
    """Refuse what is not a state dict of dense tensors."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a mapping of names to tensors, got {type(state).__name__}")
    if not state:
        raise ValueError(f"{name} must hold at least one tensor, got none")
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            what = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}[{key!r}] must be a dense torch.Tensor, got {what}")


def _check_global(global_state: State, averaged: Collection[str]) -> None:
    check_state(global_state, "global_state")
    for name, value in global_state.items():
        # Averaged buffers may be masks with -inf: of them only differences matter.
        if _is_real(value) and name not in averaged and not _is_finite(value.detach()):
            raise ValueError(f"global_state must be finite, got NaN or infinity in {name!r}")


def _is_finite(value: Tensor) -> bool:
    # A finite sum has finite terms, and costs a fifth of asking each.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _sizes(num_examples: Sequence[float] | None, count: int) -> list[float]:
    if num_examples is None:
        return [1.0] * count
    if isinstance(num_examples, (str, bytes, Mapping)) or not hasattr(num_examples, "__len__"):
        raise TypeError(f"num_examples must be a sequence of numbers, got {type(num_examples).__name__}")
    if len(num_examples) != count:
        raise ValueError(f"num_examples must have one number for each of {count} clients, got {len(num_examples)}")
    return list(num_examples)


def _fault_of_size(size: object) -> str | None:
    if isinstance(size, Tensor) and size.numel() == 1:
        size = size.item()
    if isinstance(size, bool) or not isinstance(size, numbers.Real):
        return f"num_examples is {size!r}, not a number"
    value = float(size)
    return None if math.isfinite(value) and value > 0 else f"num_examples must be positive and finite, got {size}"


def _kind(value: Tensor) -> str:
    if value.is_floating_point():
        return "floating"
    if value.is_complex():
        return "complex"
    return "boolean" if value.dtype == torch.bool else "integer"


def _is_real(value: Tensor) -> bool:
    """Whether the tensor can be moved by a part of a step; a complex one is two."""
    return value.is_floating_point() or value.is_complex()


def fault_of_state(state: object, global_state: State) -> str | None:
    """Why a client's state does not fit the global one, in words; None where it does."""
    if not isinstance(state, Mapping):
        return f"the state is a {type(state).__name__}, not a mapping"
    missing = sorted(map(str, global_state.keys() - state.keys()))
    extra = sorted(map(str, state.keys() - global_state.keys()))
    if missing or extra:
        told = [f"lacks {', '.join(missing[:3])}" if missing else "", f"has {', '.join(extra[:3])}" if extra else ""]
        return f"keys differ: {' and '.join(filter(None, told))}" + (
            " ..." if max(len(missing), len(extra)) > 3 else ""
        )
    for name, value in global_state.items():
        got = state[name]
        if not isinstance(got, Tensor) or got.layout != torch.strided:
            return f"{name} is not a dense tensor"
        if got.shape != value.shape:
            return f"{name} has shape {tuple(got.shape)}, not {tuple(value.shape)}"
        if _kind(got) != _kind(value):
            return f"{name} is {_kind(got)}, not {_kind(value)}"
    return None


def _fault_of_buffers(state: State, global_state: State, names: Sequence[str]) -> str | None:
    for name in names:
        value = state[name]
        if _is_real(value):
            same = value.to(global_state[name]) == global_state[name]
            if not bool((value.isfinite().to(same.device) | same).all()):
                return f"{name} is not finite"
    return None


def _faults_of_updates(gram: Tensor, names: Sequence[str], count: int, max_update_norm: float | None) -> dict[int, str]:
    squares = gram.diagonal(dim1=1, dim2=2)[:, :count]
    faults = {}
    for i, (finite, total) in enumerate(zip(squares.isfinite().T, squares.sum(0).tolist(), strict=True)):
        if not bool(finite.all()):
            faults[i] = f"{names[int((~finite).nonzero()[0, 0])]} is not finite"
        elif max_update_norm is not None and math.sqrt(total) > max_update_norm:
            faults[i] = f"the norm of the update is {math.sqrt(total):.6g}, above {max_update_norm:g}"
    return faults


def _tell(rejected: Mapping[int, str], on_bad_update: str) -> None:
    for i, reason in sorted(rejected.items()):
        if on_bad_update == "raise":
            raise ValueError(f"client_states[{i}] is refused: {reason}")
        log.warning("client %d is rejected: %s", i, reason)


# ---- sums of updates -------------------------------------------------------------------------------------------------


def _flat(value: Tensor, like: Tensor | None = None) -> Tensor:
    value = value.detach() if like is None else value.detach().to(like.device)
    return (torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).reshape(-1)


def _pieces(base: Tensor, clients: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """The updates of one tensor, `[m, width]` at a time."""
    start_of, values = _flat(base), [_flat(client, base) for client in clients]
    dtype = working_dtype(start_of, *values)
    width = max(1, PIECE // len(clients))
    for start in range(0, start_of.numel(), width):
        part = slice(start, start + width)
        yield part, torch.stack([value[part].to(dtype) for value in values]).sub_(start_of[part].to(dtype))


@torch.no_grad()
def _gram_matrices(base: State, clients: Sequence[State], names: Sequence[str], history: State | None) -> Tensor:
    """`[T, m, m]` in float64 on the CPU; with a history it is the last row and column."""
    size = len(clients) + (history is not None)
    gram = torch.zeros(len(names), size, size, dtype=torch.float64, device="cpu")
    if not clients:
        return gram
    on_device = []
    for name in names:
        total: Tensor | None = None
        for part, updates in _pieces(base[name], [client[name] for client in clients]):
            rows = to_double(updates)
            if history is not None:
                past = history[name][part].to(rows) if name in history else torch.zeros_like(rows[0])
                rows = torch.cat([rows, past.unsqueeze(0)])
            total = rows @ rows.T if total is None else total.addmm_(rows, rows.T)
        on_device.append(gram[0] if total is None else total)
    for i, product in enumerate(on_device):  # what is on an accelerator is waited for here alone
        gram[i] = product
    return gram


def _move(
    base: Tensor, clients: Sequence[Tensor], coefficients: Tensor, server_lr: float, keep: bool
) -> tuple[Tensor, Tensor | None]:
    flat = _flat(base)
    dtype = working_dtype(flat)
    moved = flat.to(dtype, copy=True)
    step = torch.zeros_like(moved) if keep else None
    for part, updates in _pieces(base, clients):
        piece = (coefficients.to(updates) @ updates).to(dtype)
        moved[part] += server_lr * piece
        if step is not None:
            step[part] = piece
    if base.is_complex():
        return torch.view_as_complex(moved.reshape(*base.shape, 2)).to(base.dtype), step
    return moved.reshape(base.shape).to(base.dtype), step


def _average(base: Tensor, clients: Sequence[Tensor], share: Tensor) -> Tensor:
    parts = share.tolist()
    if _is_real(base):
        exact = [_flat(client, base) for client in clients]
        total = sum(part * to_double(value) for part, value in zip(parts, exact, strict=True))
        assert isinstance(total, Tensor)
        total = total.to(base.device, working_dtype(_flat(base)))
        shaped = (
            torch.view_as_complex(total.reshape(*base.shape, 2)) if base.is_complex() else total.reshape(base.shape)
        )
        return shaped.to(base.dtype)
    # Differences, so that large integers which all clients share stay what they are.
    start = base.detach().long()
    change = sum(
        part * to_double(client.detach().to(base.device).long() - start)
        for part, client in zip(parts, clients, strict=True)
    )
    assert isinstance(change, Tensor)
    return (start + change.round().to(start)).to(base.dtype)


def buffer_names_of(state: State, names: Collection[str]) -> frozenset[str]:
    """The names, each of which the state must have."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Collection):
        raise TypeError(f"buffer_names must be a collection of names, got {names!r}")
    if unknown := [name for name in names if name not in state]:
        raise ValueError(f"buffer_names must be keys of global_state, got {unknown[0]!r}")
    return frozenset(names)


def check_max_norm(max_update_norm: float | None) -> None:
    """Refuse a bound that is not positive."""
    if max_update_norm is not None:
        check_number(max_update_norm, "max_update_norm", low=0, open_low=True)
