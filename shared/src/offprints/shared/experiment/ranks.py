"""The run's processes under torchrun: one group, one voice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

# Ranks wait for one another as long as one unit of work takes; torchrun ends all when one dies.
PATIENCE = timedelta(hours=2)


def launched() -> bool:
    """Whether torchrun or accelerate started several processes of this command."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def group(device: str) -> Iterator[None]:
    """The process group of a launched run, for as long as the block takes; nothing in one process.

    ``device`` is the one asked for: an accelerator gets NCCL, and gloo beside it for plain values.
    """
    import torch
    import torch.distributed as dist

    if not launched() or dist.is_initialized():
        yield
        return
    on_cuda = torch.cuda.is_available() and not device.startswith("cpu")
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
    yield
    # Not in a finally: after an error the other ranks are elsewhere, and torchrun ends them.
    dist.destroy_process_group()


def share(value: T) -> T:
    """Rank 0's value on every rank."""
    import torch.distributed as dist

    from offprints.shared.distributed import world_size

    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(value: T) -> list[T]:
    """Every rank's value, on every rank, in the order of the ranks."""
    import torch.distributed as dist

    from offprints.shared.distributed import world_size

    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], T]) -> T:
    """What ``function`` returns or raises on rank 0, returned or raised on every rank."""
    from offprints.shared.distributed import is_main, world_size

    if world_size() == 1:
        return function()
    result: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = share((result, error))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # set wherever there is no error
