"""Prototypes and episodes beside easyfsl; results go to benchmarks/results/prototypes.json."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from easyfsl.methods.utils import compute_prototypes as easyfsl_prototypes
from easyfsl.samplers import TaskSampler

from offprints.shared.benchmark import Case, compare
from offprints.susana import EpisodeSampler, compute_prototypes


class Tasks(TaskSampler):
    """easyfsl's sampler: its constructor passes torch's an argument that torch no longer takes; the drawing is its."""

    def __init__(self, labels: list[int], n_way: int, n_shot: int, n_query: int, n_tasks: int) -> None:
        self.n_way, self.n_shot, self.n_query, self.n_tasks = n_way, n_shot, n_query, n_tasks
        self.items_per_label: dict[int, list[int]] = {}
        for item, label in enumerate(labels):
            self.items_per_label.setdefault(label, []).append(item)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="try the script in a second; nothing is written")
    tiny = parser.parse_args().tiny
    torch.manual_seed(0)
    way, shot, d = (3, 2, 4) if tiny else (20, 5, 640)
    x, y = torch.randn(way * shot, d), torch.arange(way).repeat_interleave(shot)
    n, episodes = (60, 3) if tiny else (60_000, 100)
    labels = (torch.arange(n) % (n // 20)).tolist() if tiny else (torch.arange(n) % 100).tolist()
    ours = EpisodeSampler(labels, n_way=way, n_shot=shot, n_query=3, n_episodes=episodes)
    theirs = Tasks(labels, n_way=way, n_shot=shot, n_query=3, n_tasks=episodes)
    cases = [
        Case(
            f"compute_prototypes, {way}-way {shot}-shot, D = {d}",
            ours=partial(compute_prototypes, x, y, n_way=way),
            peers={"easyfsl": partial(easyfsl_prototypes, x, y)},
            agree=torch.testing.assert_close,
        ),
        Case(
            f"{episodes} episodes of {n} items, {way}-way",
            ours=lambda: list(ours),
            peers={"easyfsl": lambda: list(theirs)},
        ),
    ]
    output = None if tiny else Path(__file__).parent / "results" / "prototypes.json"
    compare(cases, output, threads=1, **({"rounds": 1, "seconds": 0.01} if tiny else {"rounds": 5}))


if __name__ == "__main__":
    main()
