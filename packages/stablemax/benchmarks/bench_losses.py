"""The losses beside F.cross_entropy and the paper's formula, forward and backward, in time and memory (one thread).

The formula, log(s / sum s) in float64, is that of `reference.py`. The fused linear losses stand beside the same loss of
materialized logits, that of softmax beside torch's own F.linear_cross_entropy (from torch 2.13 on) too, at 4096
tokens, 512 features and 50304 classes; an argument divides tokens and classes. `--only` measures peak memory, the
losses or the fused losses alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.benchmark import Case, compare, machine
from offprints.shared.device import peak_memory_mib, reset_peak_memory
from offprints.stablemax import (
    exact_cross_entropy,
    linear_exact_cross_entropy,
    linear_stablemax_cross_entropy,
    reference,
    stablemax_cross_entropy,
)

RESULTS = Path(__file__).parent / "results"
SHAPES = ((128, 10), (5107, 113), (1024, 8192))
Loss = Callable[..., Tensor]
Result = tuple[str, Tensor, tuple[Tensor, ...]]


def float64_formula(logits: Tensor, target: Tensor) -> Tensor:
    return reference.cross_entropy(reference.stablemax(logits.double()), target)


def materialized(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return stablemax_cross_entropy(F.linear(hidden, weight), target)


def materialized_softmax(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target)


LOSSES: dict[str, tuple[Loss, str]] = {
    "stablemax_cross_entropy": (stablemax_cross_entropy, "stablemax"),
    "the paper's formula, float64": (float64_formula, "stablemax"),
    "exact_cross_entropy": (exact_cross_entropy, "softmax"),
    "F.cross_entropy": (F.cross_entropy, "softmax"),
    "linear_stablemax_cross_entropy": (linear_stablemax_cross_entropy, "stablemax"),
    "materialized logits": (materialized, "stablemax"),
    "linear_exact_cross_entropy": (linear_exact_cross_entropy, "softmax"),
    "F.cross_entropy of materialized logits": (materialized_softmax, "softmax"),
}
if hasattr(nn, "LinearCrossEntropyOptions"):  # without options it holds whole logits, as the loss before this one
    in_chunks = partial(F.linear_cross_entropy, options=nn.LinearCrossEntropyOptions())
    LOSSES["F.linear_cross_entropy in chunks"] = (in_chunks, "softmax")


def logits_inputs(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(rows, classes, generator=generator)).requires_grad_()
    return logits, torch.randint(classes, (rows,), generator=generator)


def linear_inputs(divisor: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens, classes = 4096 // divisor, 50304 // divisor
    hidden = torch.randn(tokens, 512, generator=generator).requires_grad_()
    weight = (0.05 * torch.randn(classes, 512, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(classes, (tokens,), generator=generator)


def forward_backward(name: str, *inputs: Tensor) -> Result:
    loss_fn, kind = LOSSES[name]
    loss = loss_fn(*inputs)
    return kind, loss.detach(), torch.autograd.grad(loss, [x for x in inputs if x.requires_grad])


def agree(ours: Result, theirs: Result) -> None:
    if ours[0] == theirs[0]:  # F.cross_entropy beside StableMax is another function
        torch.testing.assert_close(ours[1], theirs[1].to(ours[1].dtype), rtol=1e-5, atol=0)
        torch.testing.assert_close(ours[2], theirs[2], rtol=1e-3, atol=1e-8)


def extra_memory(name: str, make: Callable[[], tuple[Tensor, ...]]) -> float:
    """Peak MiB of one forward and backward beyond its inputs; to be called in a fresh process."""
    torch.set_num_threads(1)
    warm = linear_inputs(64) if name in list(LOSSES)[4:] else logits_inputs(8, 4)
    forward_backward(name, *warm)
    inputs = make()
    reset_peak_memory()
    before = peak_memory_mib()
    forward_backward(name, *inputs)
    return peak_memory_mib() - before


def memory(divisor: int) -> None:
    works = {"(1024, 8192)": (partial(logits_inputs, 1024, 8192), list(LOSSES)[:4])}
    works[f"fused, sizes divided by {divisor}"] = (partial(linear_inputs, divisor), list(LOSSES)[4:])
    record: dict[str, dict[str, float]] = {}
    for work, (make, names) in works.items():
        for name in names:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                record.setdefault(work, {})[name] = pool.submit(extra_memory, name, make).result()
            print(f"{work:30} {name:32} {record[work][name]:8.1f} MiB beyond its inputs")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": "losses_memory", "machine": machine(), "peak_mib": record}, indent=2)
    (RESULTS / "losses_memory.json").write_text(text + "\n", encoding="utf-8")


def time_losses() -> None:
    cases = []
    for shape in SHAPES:
        inputs = logits_inputs(*shape)
        for ours, peers in (
            ("stablemax_cross_entropy", ("the paper's formula, float64", "F.cross_entropy")),
            ("exact_cross_entropy", ("F.cross_entropy",)),
        ):
            calls = {name: partial(forward_backward, name, *inputs) for name in peers}
            cases.append(Case(f"{ours} {shape}", partial(forward_backward, ours, *inputs), calls, agree))
    compare(cases, RESULTS / "losses.json", rounds=5, seconds=0.1, threads=1)


def time_fused(divisor: int) -> None:
    inputs = linear_inputs(divisor)
    stable, whole, exact, *torchs = list(LOSSES)[4:]
    cases = []
    for ours, peers in ((stable, [whole]), (exact, torchs)):
        name = f"{ours}, {len(inputs[0])} tokens, {len(inputs[1])} classes"
        calls = {peer: partial(forward_backward, peer, *inputs) for peer in peers}
        cases.append(Case(name, partial(forward_backward, ours, *inputs), calls, agree))
    compare(cases, RESULTS / "losses_fused.json", rounds=3, seconds=0.1, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--divisor", type=int, default=1, help="divides the tokens and classes of the fused loss")
    parser.add_argument("--only", choices=("memory", "losses", "fused"), help="a part of it alone")
    options = parser.parse_args()
    if options.only in (None, "memory"):
        memory(options.divisor)
    if options.only in (None, "losses"):
        time_losses()
    if options.only in (None, "fused"):
        time_fused(options.divisor)


if __name__ == "__main__":
    main()
