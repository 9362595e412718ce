"""Units for the tests of parallel processes."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import numpy as np
import torch


def draw(n: int) -> dict[str, Any]:
    """A result that would change with the number of threads and with any other use of the random streams."""
    product = torch.randn(300, 20 * n) @ torch.randn(20 * n, 30)
    matrix = np.random.standard_normal((200, 200))  # noqa: NPY002
    return {
        "sum": product.sum().item(),
        "rows": product[:2].t(),
        "eigenvalues": np.linalg.eigvalsh(matrix + matrix.T),
        "python": random.random(),
        "threads": torch.get_num_threads(),
        "process": os.getpid(),
    }


def fail(n: int) -> dict[str, Any]:
    if n == 0:
        return {"n": n}
    raise ArithmeticError(f"{n} is too many")


def where(n: int) -> dict[str, Any]:
    time.sleep(0.2)
    return {"process": os.getpid()}


def fail_unless(process: int) -> dict[str, Any]:
    time.sleep(0.2)
    if os.getpid() == process:
        return {}
    raise ArithmeticError("this is another process")


def die_unless(process: int) -> dict[str, Any]:
    time.sleep(0.2)
    if os.getpid() == process:
        return {}
    os._exit(7)
