"""One adaptation step of a wide residual network (16 layers, factor 2), 64 images of 32x32, 32 views.

Beside it: the official CIFAR step, which always computes the views, and the step that looks at the gate first (as in
mariodoebler/test-time-adaptation), both as plain renderings.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch

from offprints.cotta import CoTTA, ImageAugmentation
from offprints.cotta._networks import WideResNet
from offprints.shared.benchmark import Case, compare

sys.path.insert(0, str(Path(__file__).parent))
from plain import PlainCoTTA, view


def main() -> None:
    torch.manual_seed(0)
    net = WideResNet(depth=16, widen_factor=2)
    x = torch.rand(64, 3, 32, 32)
    results = Path(__file__).parent / "results"

    augmentation = ImageAugmentation()
    batch = torch.rand(100, 3, 32, 32)
    cases = [
        Case(
            f"{number} views of 100 images",
            lambda number=number: augmentation(batch, number),
            {"official pipeline": lambda number=number: torch.stack([view(batch) for _ in range(number)])},
        )
        for number in (1, 8)
    ]
    compare(cases, results / "augmentation.json", rounds=5, seconds=0.2)

    for name, threshold in (("closed", 0.0), ("open", 1.0)):
        ours = CoTTA(copy.deepcopy(net), confidence_threshold=threshold, seed=0)
        official = PlainCoTTA(copy.deepcopy(net), threshold, gate_first=False)
        peers = {"official step": lambda m=official: m(x)}
        if name == "closed":  # with an open gate it does the same as the official step
            gated = PlainCoTTA(copy.deepcopy(net), threshold, gate_first=True)
            peers["gate first"] = lambda m=gated: m(x)
        case = Case(f"step, gate {name}", lambda m=ours: m(x), peers)
        compare([case], results / f"step_{name}.json", rounds=2, seconds=0.01)


if __name__ == "__main__":
    main()
