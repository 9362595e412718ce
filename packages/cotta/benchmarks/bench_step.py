"""One adaptation step of a wide residual network (16 layers, factor 2), 64 images of 32x32, 32 views.

Beside it: the official CIFAR step, which always computes the views, and the step that looks at the gate first (as in
mariodoebler/test-time-adaptation), both as plain renderings.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch

from offprints.cotta import CoTTA, ImageAugmentation
from offprints.cotta.reproduce.networks import WideResNet
from offprints.shared.benchmark import Case, compare

sys.path.insert(0, str(Path(__file__).parent))
from plain import PlainCoTTA, view


def view_cases() -> list[Case]:
    augmentation = ImageAugmentation()
    batch = torch.rand(100, 3, 32, 32)
    return [
        Case(
            f"{number} views of 100 images",
            lambda number=number: augmentation(batch, number),
            {"official pipeline": lambda number=number: torch.stack([view(batch) for _ in range(number)])},
        )
        for number in (1, 8)
    ]


def step_case(name: str, threshold: float, images: int) -> Case:
    net = WideResNet(depth=16, widen_factor=2)
    x = torch.rand(images, 3, 32, 32)
    # A student that has learned: as long as it equals the teacher there is no step to time.
    ours = CoTTA(copy.deepcopy(net), confidence_threshold=1.0, num_augmentations=1, seed=0)
    ours(x)
    ours.confidence_threshold, ours.num_augmentations = threshold, 32
    official = PlainCoTTA(copy.deepcopy(net), threshold, gate_first=False)
    peers = {"official step": lambda: official(x)}
    if name == "closed":  # with an open gate it does the same as the official step
        gated = PlainCoTTA(copy.deepcopy(net), threshold, gate_first=True)
        peers["gate first"] = lambda: gated(x)
    return Case(f"step, gate {name}, {images} images", lambda: ours(x), peers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where other work is running")
    parser.add_argument("--only", choices=("views", "closed", "open"))
    options = parser.parse_args()
    torch.manual_seed(0)
    results = Path(__file__).parent / "results"
    for name, threshold in (("views", None), ("closed", 0.0), ("open", 1.0)):
        if options.only not in (None, name):
            continue
        cases = view_cases() if threshold is None else [step_case(name, threshold, options.images)]
        clock = time.process_time if options.clock == "cpu" else None
        compare(cases, results / f"{name}.json", rounds=3, seconds=0.05, threads=1, clock=clock)


if __name__ == "__main__":
    main()
