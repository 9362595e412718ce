"""The package's fast code is the paper's algorithm, step by step."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from offprints.wad import WADLoss, WADTrainer, nt_xent, reference, teacher_knowledge


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_nt_xent() -> None:
    first, second = draw(0, 6, 3), draw(1, 6, 3)
    for temperature in (0.5, 0.05):
        expected = reference.nt_xent(first.tolist(), second.tolist(), temperature)
        assert float(nt_xent(first, second, temperature=temperature)) == pytest.approx(expected, rel=1e-12)


def test_knowledge() -> None:
    unlabeled, labeled, y = draw(2, 20, 4), draw(3, 9, 4), torch.arange(9) % 3
    scores, pseudo_labels, weights = reference.knowledge(unlabeled.tolist(), labeled.tolist(), y.tolist(), 3)
    found = teacher_knowledge(unlabeled, labeled, y, num_classes=3)
    assert_close(found.scores, torch.tensor(scores, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.pseudo_labels.tolist() == pseudo_labels
    assert_close(found.weights, torch.tensor(weights, dtype=torch.float64), rtol=0, atol=1e-12)


def test_student_loss() -> None:
    logits_x, logits_u, weights = draw(4, 5, 3), draw(5, 7, 3), draw(6, 7).abs()
    labels_x, pseudo = torch.arange(5) % 3, torch.arange(7) % 3
    expected = reference.student_loss(
        logits_x.tolist(), labels_x.tolist(), logits_u.tolist(), pseudo.tolist(), weights.tolist()
    )
    assert float(WADLoss()(logits_x, labels_x, logits_u, pseudo, weights).loss) == pytest.approx(expected, rel=1e-12)


class _Recorder(torch.nn.Module):
    """A student that is a fixed linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x)


@pytest.mark.parametrize(("alpha", "rounds"), [(0.5, 4), (0.0, 2), (1.0, 1), (1.0, 3)])
def test_rounds(alpha: float, rounds: int) -> None:
    """Which samples move, in which order, after which round; the anchors grow alike."""
    unlabeled, labeled, y = draw(7, 30, 4), draw(8, 6, 4), torch.arange(6) % 3
    student = _Recorder()
    asked = []
    expected = reference.rounds(
        unlabeled.tolist(),
        labeled.tolist(),
        y.tolist(),
        3,
        lambda positions, pseudo_labels, weights, moved: asked.append((positions, pseudo_labels, weights)),
        lambda position: student(unlabeled[position]).tolist(),
        alpha=alpha,
        split=rounds - 1,
    )
    options = {"rounds": rounds, "alpha": alpha, "steps_per_round": 1, "lr": 1e-15, "seed": 0}
    trainer = WADTrainer(student, (labeled, unlabeled), **options).fit(labeled, y, unlabeled)
    assert {r: moved.tolist() for r, moved in trainer.selected_.items()} == expected
    for found, (positions, pseudo_labels, weights) in zip(trainer.knowledge_, asked, strict=True):
        assert found["positions"].tolist() == positions
        assert found["pseudo_labels"].tolist() == pseudo_labels
        assert_close(found["weights"], torch.tensor(weights, dtype=torch.float64), rtol=0, atol=1e-12)
