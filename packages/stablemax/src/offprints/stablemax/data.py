"""Algorithmic data on which networks grok: modular arithmetic and sparse parity."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.validation import check_choice, check_number

Operation = Literal["add", "subtract", "multiply", "divide", "square_sum"]
Encoding = Literal["one_hot", "index", "binary"]


def modular_arithmetic(
    p: int = 113,
    operation: Operation = "add",
    *,
    encoding: Encoding = "one_hot",
    device: torch.device | str | None = None,
) -> tuple[Shaped[Tensor, "pairs features"], Int[Tensor, " pairs"]]:
    """All ordered pairs (x, y) of integers modulo ``p`` in row order (x slowest) and the result of the operation.

    ``divide`` is x times the inverse of y for prime ``p``; its pairs leave out y = 0. ``square_sum`` is x^2 + y^2.

    Returns:
        Inputs: ``[P, 2p]`` float32 one-hot codes of x and y side by side, or ``[P, 2]`` int64 for ``"index"``, or
        ``[P, 2b]`` float32 for ``"binary"``, b = bit length of p - 1, most significant bit first. Labels: ``[P]``
        int64. P is p^2, or p (p - 1) to divide.

    Raises:
        ValueError: `p` < 2, an unknown operation or encoding, division with composite `p`.

    Example:
        >>> inputs, labels = modular_arithmetic(7, "multiply", encoding="index")
        >>> inputs[17], labels[17]  # 2 * 3
        (tensor([2, 3]), tensor(6))
    """
    check_number(p, "p", low=2, integer=True)
    check_choice(operation, "operation", ("add", "subtract", "multiply", "divide", "square_sum"))
    check_choice(encoding, "encoding", ("one_hot", "index", "binary"))
    if operation == "divide" and any(p % divisor == 0 for divisor in range(2, int(p**0.5) + 1)):
        raise ValueError(f"p must be prime to divide, got {p}")
    numbers = torch.arange(p)
    pairs = torch.cartesian_prod(numbers, numbers[1:] if operation == "divide" else numbers)
    x, y = pairs.unbind(1)
    match operation:
        case "add":
            labels = (x + y) % p
        case "subtract":
            labels = (x - y) % p
        case "multiply":
            labels = x * y % p
        case "divide":
            inverse = torch.tensor([0, *(pow(number, -1, p) for number in range(1, p))])
            labels = x * inverse[y] % p
        case "square_sum":
            labels = (x * x + y * y) % p
    match encoding:
        case "one_hot":
            inputs = F.one_hot(pairs, p).flatten(1).float()
        case "index":
            inputs = pairs
        case "binary":
            shifts = torch.arange((p - 1).bit_length() - 1, -1, -1)
            inputs = (pairs.unsqueeze(2) >> shifts & 1).flatten(1).float()
    return inputs.to(device), labels.to(device)


def sparse_parity(
    num_samples: int, *, num_parity: int = 3, num_noise: int = 40, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "samples bits"], Int[Tensor, " samples"]]:
    """Distinct random bit rows; the label is the parity of the first ``num_parity`` bits, the others are noise.

    Returns:
        Rows ``[num_samples, num_parity + num_noise]`` float32 of zeros and ones, labels ``[num_samples]``
        int64 in {0, 1}.

    Raises:
        ValueError: ``num_samples`` < 1 or more than there are distinct rows, ``num_parity`` < 1, ``num_noise`` < 0, or
            more than 62 bits.

    Example:
        >>> rows, labels = sparse_parity(100, num_parity=2, num_noise=8)
        >>> rows.shape
        torch.Size([100, 10])
        >>> torch.equal(rows[:, :2].sum(1) % 2, labels.float())
        True
    """
    check_number(num_parity, "num_parity", low=1, integer=True)
    check_number(num_noise, "num_noise", low=0, integer=True)
    bits = num_parity + num_noise
    if bits > 62:
        raise ValueError(f"num_parity + num_noise must be at most 62, got {bits}")
    check_number(num_samples, "num_samples", low=1, high=2**bits, integer=True)
    if num_samples * 2 > 2**bits:  # a large share of few rows: a permutation, drawing again would hardly end
        codes = torch.randperm(2**bits, generator=generator)[:num_samples]
    else:
        codes = torch.empty(0, dtype=torch.int64)
        while len(codes) < num_samples:
            draw = torch.randint(2**bits, (num_samples,), generator=generator)
            seen, first = torch.cat([codes, draw]).unique(return_inverse=True)
            order = torch.full_like(seen, 2 * num_samples + len(codes))
            order.scatter_reduce_(0, first, torch.arange(len(first)), "amin")
            codes = torch.cat([codes, draw])[order.sort().values][:num_samples]
    rows = (codes.unsqueeze(1) >> torch.arange(bits - 1, -1, -1) & 1).float()
    return rows, rows[:, :num_parity].sum(1).long() % 2
