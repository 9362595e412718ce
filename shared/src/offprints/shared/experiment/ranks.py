"""The run's processes under torchrun: one group, one voice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

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
