"""The teacher's knowledge beside the method's loops, plain tensor code and FAISS; results/knowledge.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from offprints.shared.benchmark import Case, compare
from offprints.wad import teacher_knowledge

RESULTS = Path(__file__).parent / "results" / "knowledge.json"


def plain_loops(z_unlabeled: Tensor, z_labeled: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A sorted list of cosines for every unlabeled sample and class, its first taken."""
    unlabeled = z_unlabeled / z_unlabeled.norm(dim=1, keepdim=True)
    labeled = z_labeled / z_labeled.norm(dim=1, keepdim=True)
    scores = torch.empty(len(unlabeled), num_classes)
    groups = [labeled[y == k] for k in range(num_classes)]
    for i in range(len(unlabeled)):
        for k, group in enumerate(groups):
            scores[i, k] = (group * unlabeled[i]).sum(1).sort(descending=True).values[0]
    top = scores.topk(2, dim=1)
    return scores, top.indices[:, 0], top.values[:, 0] - top.values[:, 1]


def all_at_once(z_unlabeled: Tensor, z_labeled: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """What one would write in a notebook: all cosines in one product, and the largest of the columns of each class."""
    cosines = torch.nn.functional.normalize(z_unlabeled) @ torch.nn.functional.normalize(z_labeled).T
    scores = torch.stack([cosines[:, y == k].amax(1) for k in range(num_classes)], 1)
    top = scores.topk(2, dim=1)
    return scores, top.indices[:, 0], top.values[:, 0] - top.values[:, 1]


def faiss_search(num_classes: int, z_unlabeled: Tensor, z_labeled: Tensor, y: Tensor) -> Callable[[], Any]:
    """One exact inner-product index a class, built beforehand; searched for the nearest alone."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    labeled = torch.nn.functional.normalize(z_labeled)
    indexes = []
    for k in range(num_classes):
        index = faiss.IndexFlatIP(labeled.shape[1])
        index.add(labeled[y == k].numpy())
        indexes.append(index)

    def search() -> tuple[Tensor, Tensor, Tensor]:
        queries = torch.nn.functional.normalize(z_unlabeled).numpy()
        scores = torch.stack([torch.from_numpy(index.search(queries, 1)[0][:, 0]) for index in indexes], 1)
        top = scores.topk(2, dim=1)
        return scores, top.indices[:, 0], top.values[:, 0] - top.values[:, 1]

    return search


def same(ours: Any, theirs: Any) -> None:
    assert_close(ours[0], theirs[0], rtol=0, atol=2e-6)
    assert_close(ours[2], theirs[2], rtol=0, atol=4e-6)


def cases(sizes: list[tuple[int, int, int, int, bool]]) -> list[Case]:
    found = []
    for unlabeled, labeled, dim, classes, loops in sizes:
        g = torch.Generator().manual_seed(0)
        z_u, z_l = torch.randn(unlabeled, dim, generator=g), torch.randn(labeled, dim, generator=g)
        y = torch.arange(labeled) % classes
        given = (z_u, z_l, y, classes)
        peers: dict[str, Callable[[], Any]] = {"faiss-cpu": faiss_search(classes, z_u, z_l, y)}
        if unlabeled * labeled <= 5e7:  # beyond that they fill a gigabyte
            peers["torch, all cosines at once"] = partial(all_at_once, *given)
        if loops:
            peers["plain loops"] = partial(plain_loops, *given)
        found.append(
            Case(
                f"knowledge, {unlabeled} unlabeled, {labeled} labeled, {dim} wide, {classes} classes",
                ours=partial(teacher_knowledge, z_u, z_l, y, num_classes=classes),
                peers=peers,
                agree=same,
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.small:
        compare(cases([(40, 12, 8, 3, True)]), rounds=1, seconds=0.01, threads=1)
    else:
        sizes = [(3000, 800, 128, 20, True), (50_000, 5000, 128, 20, False), (50_000, 800, 128, 2, False)]
        compare(cases(sizes), RESULTS, rounds=3, threads=1)


if __name__ == "__main__":
    main()
