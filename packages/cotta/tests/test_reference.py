"""The fast code equals the paper's algorithm as it is written."""

from __future__ import annotations

import copy

import pytest
import torch
from packages.cotta.tests.models import batches, golden_net

from offprints.cotta import CoTTA, reference

VIEWS = [lambda x: x.flip(-1), lambda x: 0.7 * x, lambda x: (x + 0.1).clamp(0, 1)]


@pytest.mark.parametrize("threshold", [1.0, 0.55, 0.5])
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_adaptation(threshold: float, probability: float) -> None:
    """Answers, students and teachers, while the gate is open or both; restoration of nothing and of everything."""
    calls = iter(range(10**6))
    adapted = CoTTA(
        golden_net().double(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        augmentation=lambda x: VIEWS[next(calls) % 3](x),
        num_augmentations=3,
        confidence_threshold=threshold,
        ema_decay=0.9,
        restore_probability=probability,
        seed=0,
    )
    student = golden_net().double()
    reference.start(student)
    teacher, source = copy.deepcopy(student), copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    masks = [torch.full(p.shape, probability == 1) for p in student.parameters()]
    opened = []
    for x in batches(6):
        options = {"confidence_threshold": threshold, "ema_decay": 0.9}
        expected = reference.step(x.double(), student, teacher, source, optimizer, VIEWS, masks, **options)
        torch.testing.assert_close(adapted(x.double()), expected, rtol=1e-9, atol=1e-11)
        opened.append(adapted.last_augmented)
        for ours, plain in ((adapted.model, student), (adapted.teacher, teacher)):
            for name, value in plain.named_parameters():
                torch.testing.assert_close(ours.get_parameter(name), value, rtol=1e-8, atol=1e-10)
    assert any(opened) or threshold < 0.6
