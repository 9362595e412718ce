"""The loop: look, then update, for all problems until each is separated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offprints.lr_perceptron._descent.problems import Problems

CHECK_EVERY = 16  # updates between two looks at an accelerator's results


@dataclass
class Outcome:
    """Last iterates ``[B, d]``, updates performed ``[B]`` and whether each problem is separated ``[B]``."""

    theta: Tensor
    n_iter: Tensor
    separated: Tensor


def descend(
    problems: Problems,
    max_iter: int,
    *,
    stop: bool = True,
    watch: Callable[[int], None] | None = None,
    check_every: int | None = None,
) -> Outcome:
    """Update the problems until each is separated; ``n_iter`` is the smallest t at which it is.

    The look comes before the update. An accelerator is asked for its counts every `CHECK_EVERY` updates only: the
    iterates since the last look are kept, and a problem that was separated in between ends at the iterate that did it.

    Args:
        problems: The problems; changed.
        max_iter: Most updates.
        stop: Whether to stop at separation.
        watch: Called with t for every iterate, which is then in ``problems``; perhaps for a few beyond the last one.
        check_every: Updates between two looks; default: 1 on the CPU.
    """
    if not stop:
        for t in range(max_iter):
            if watch is not None:
                watch(t)
            problems.update(t)
        if watch is not None:
            watch(max_iter)
        n_iter = torch.full((len(problems.theta),), max_iter)
        return Outcome(problems.theta, n_iter, problems.n_misclassified().cpu() == 0)

    every = check_every or (1 if problems.X.device.type == "cpu" else CHECK_EVERY)
    found = Outcome(
        torch.empty_like(problems.theta),
        torch.full((len(problems.theta),), max_iter),
        torch.zeros(len(problems.theta), dtype=torch.bool),
    )
    alive = torch.arange(len(problems.theta))
    kept: list[Tensor] = []  # iterates since the last look, and their counts
    counts: list[Tensor] = []
    for t in range(max_iter + 1):
        if watch is not None:
            watch(t)
        counts.append(problems.n_misclassified())
        kept.append(problems.theta.clone() if every > 1 else problems.theta)
        if len(kept) == every or t == max_iter:
            zero = torch.stack(counts).cpu() == 0
            done = zero.any(0)
            for column in done.nonzero().squeeze(1).tolist():
                place = int(zero[:, column].to(torch.uint8).argmax())  # the first
                found.theta[alive[column]] = kept[place][column]
                found.n_iter[alive[column]] = t + 1 - len(kept) + place
            found.separated[alive[done]] = True
            if bool(done.any()):
                left = (~done).nonzero().squeeze(1)
                alive = alive[left]
                problems.keep(left.to(problems.X.device))
            if t == max_iter:
                found.theta[alive.to(problems.X.device)] = problems.theta
            if len(alive) == 0:
                break
            kept, counts = [], []
        if t < max_iter:
            problems.update(t)
    return found
