"""Every bad input gets an error that names the argument. REPLACE."""

import torch

from offprints.fedld import PseudoHuberLoss, pseudo_huber_loss
from offprints.shared.testing import check_errors


def test_bad_inputs() -> None:
    x = torch.zeros(3, 2)
    check_errors(
        [
            (lambda: pseudo_huber_loss([0.0], x), TypeError, "preds"),  # type: ignore[arg-type]
            (lambda: pseudo_huber_loss(x, x.long()), TypeError, "targets"),
            (lambda: pseudo_huber_loss(x, x[:2]), ValueError, "targets"),
            (lambda: pseudo_huber_loss(x[:0], x[:0]), ValueError, "preds"),
            (lambda: pseudo_huber_loss(x + float("nan"), x), ValueError, "preds"),
            (lambda: pseudo_huber_loss(x, x, scale=0.0), ValueError, "scale"),
            (lambda: pseudo_huber_loss(x, x, reduction="max"), ValueError, "reduction"),  # type: ignore[arg-type]
            (lambda: PseudoHuberLoss(scale=-1.0), ValueError, "scale"),
        ]
    )
