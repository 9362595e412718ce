"""Averaging and restoring the parameters of a ResNet-50 (25.6 M elements), beside the loops over tensors."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torchvision.models import resnet50

from offprints.cotta import ema_update_, stochastic_restore_
from offprints.shared.benchmark import Case, compare

sys.path.insert(0, str(Path(__file__).parent))
from plain import average, restore


def main() -> None:
    torch.manual_seed(0)
    source = [parameter.detach() for parameter in resnet50().parameters()]
    student = [parameter.clone() for parameter in source]
    teacher = [parameter.clone() for parameter in source]
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        ema_update_(teacher, student, 0.999)
        stochastic_restore_(student, source, 0.01, generator=generator)

    def theirs() -> None:
        average(teacher, student, 0.999)
        restore(student, source, 0.01)

    cases = [
        Case("average and restore", ours, {"loops": theirs}),
        Case(
            "average",
            lambda: ema_update_(teacher, student, 0.999),
            {"loop": lambda: average(teacher, student, 0.999)},
        ),
        Case(
            "restore, p = 0.01",
            lambda: stochastic_restore_(student, source, 0.01, generator=generator),
            {"loop": lambda: restore(student, source, 0.01)},
        ),
    ]
    results = Path(__file__).parent / "results"
    clock = time.process_time if "--clock=cpu" in sys.argv else None
    compare(cases, results / "updates.json", rounds=5, seconds=0.1, threads=1, clock=clock)


if __name__ == "__main__":
    main()
