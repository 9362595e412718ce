"""Every line of what is never silently accepted; the trainer's and the classifier's are beside their tests."""

from __future__ import annotations

import math

import numpy as np
import torch

from offprints.shared.testing import check_errors
from offprints.wad import (
    WADLoss,
    error_decomposition,
    mismatch_split,
    nt_xent,
    polynomial_decay,
    rectify_labels,
    select_reliable,
    teacher_knowledge,
)

Z, Z_L, Y = torch.randn(8, 4), torch.randn(6, 4), torch.arange(6) % 3
LABELS = np.repeat([0, 1, 2, 3], 10)


def spoiled(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[0] = value
    return x


def without_direction(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[1] = 0
    return x


def test_knowledge() -> None:
    def ask(z: object = Z, z_l: object = Z_L, y: object = Y, **options: object) -> object:
        return teacher_knowledge(z, z_l, y, **{"num_classes": 3, **options})  # type: ignore[arg-type]

    check_errors(
        [
            (lambda: ask(spoiled(Z, math.nan)), ValueError, "z_unlabeled"),
            (lambda: ask(Z, spoiled(Z_L, math.inf)), ValueError, "z_labeled"),
            (lambda: ask(without_direction(Z)), ValueError, "z_unlabeled"),
            (lambda: ask(Z, without_direction(Z_L)), ValueError, "z_labeled"),
            (lambda: ask(Z[:, :3]), ValueError, "z_unlabeled"),
            (lambda: ask(Z[:0]), ValueError, "z_unlabeled"),
            (lambda: ask(Z.long()), TypeError, "z_unlabeled"),
            (lambda: ask(Z.numpy()), TypeError, "z_unlabeled"),
            (lambda: ask(Z.to_sparse()), TypeError, "z_unlabeled"),
            (lambda: ask(Z.to("meta")), ValueError, "z_unlabeled"),
            (lambda: ask(y=Y[:-1]), ValueError, "y_labeled"),
            (lambda: ask(y=Y[:, None]), ValueError, "y_labeled"),
            (lambda: ask(y=Y.float()), TypeError, "y_labeled"),
            (lambda: ask(y=Y - 1), ValueError, "y_labeled"),
            (lambda: ask(y=Y + 1), ValueError, "y_labeled"),
            (lambda: ask(y=Y % 2), ValueError, "class 2"),
            (lambda: ask(y=2 * (Y % 2)), ValueError, "class 1"),
            (lambda: ask(num_classes=4), ValueError, "num_classes"),
            (lambda: ask(y=0 * Y, num_classes=1), ValueError, "num_classes"),
            (lambda: ask(num_classes=3.0), TypeError, "num_classes"),
            (lambda: ask(chunk_size=0), ValueError, "chunk_size"),
            (lambda: ask(reduction="median"), ValueError, "reduction"),
            (lambda: ask(topk=0), ValueError, "topk"),
        ]
    )


def test_loss() -> None:
    x, w = torch.randn(6, 3), torch.rand(6)

    def loss(*change: tuple[int, object]) -> object:
        arguments: list[object] = [x, Y, x, Y, w]
        for place, value in change:
            arguments[place] = value
        return WADLoss()(*arguments)  # type: ignore[arg-type]

    check_errors(
        [
            (lambda: loss((4, w - 2)), ValueError, "weights"),
            (lambda: loss((4, spoiled(w, math.nan))), ValueError, "weights"),
            (lambda: loss((4, w[:-1])), ValueError, "weights"),
            (lambda: loss((4, w.long())), TypeError, "weights"),
            (lambda: loss((0, spoiled(x, math.nan))), ValueError, "logits_x"),
            (lambda: loss((2, spoiled(x, -math.inf))), ValueError, "logits_u"),
            (lambda: loss((2, x[:, :2])), ValueError, "logits_u"),
            (lambda: loss((0, x[:, :1]), (2, x[:, :1])), ValueError, "logits_x"),
            (lambda: loss((0, x[:0]), (1, Y[:0])), ValueError, "logits_x"),
            (lambda: loss((2, x[:0]), (3, Y[:0]), (4, w[:0])), ValueError, "logits_u"),
            (lambda: loss((1, Y - 1)), ValueError, "labels_x"),
            (lambda: loss((3, Y + 1)), ValueError, "pseudo_labels"),
            (lambda: loss((3, Y[:, None])), ValueError, "pseudo_labels"),
            (lambda: loss((1, Y.float())), TypeError, "labels_x"),
            (lambda: loss((4, w.to("meta"))), ValueError, "weights"),
            (lambda: WADLoss(normalize_weights=1), TypeError, "normalize_weights"),  # type: ignore[arg-type]
            (lambda: nt_xent(Z, Z, temperature=0.0), ValueError, "temperature"),
            (lambda: nt_xent(Z, Z, temperature=math.nan), ValueError, "temperature"),
            (lambda: nt_xent(Z, Z[:, :3]), ValueError, "z2"),
            (lambda: nt_xent(Z, without_direction(Z)), ValueError, "z2"),
            (lambda: nt_xent(spoiled(Z, math.inf), Z), ValueError, "z1"),
            (lambda: nt_xent(Z.long(), Z), TypeError, "z1"),
        ]
    )


def test_selection() -> None:
    check_errors(
        [
            (lambda: select_reliable(Z, Y, fraction=0.5), ValueError, "pseudo_labels"),
            (lambda: select_reliable(Z_L, Y, fraction=-0.1), ValueError, "fraction"),
            (lambda: select_reliable(Z_L, Y, fraction=1.1), ValueError, "fraction"),
            (lambda: select_reliable(spoiled(Z_L, math.nan), Y, fraction=0.5), ValueError, "logits_u"),
            (lambda: select_reliable(Z_L, Y + 2, fraction=0.5), ValueError, "pseudo_labels"),
            (lambda: polynomial_decay(-1, 0.1, 5), ValueError, "round"),
            (lambda: polynomial_decay(1, 1.5, 5), ValueError, "alpha"),
            (lambda: polynomial_decay(1, 0.1, -1), ValueError, "total_rounds"),
            (lambda: polynomial_decay(1, 0.1, 5, power=0), ValueError, "power"),
        ]
    )


def test_split() -> None:
    def split(labels: object = LABELS, **change: object) -> object:
        options = {"target_classes": [0, 1], "num_labeled": 4, "mismatch": 0.4, "seed": 0, **change}
        return mismatch_split(labels, **options)  # type: ignore[arg-type]

    check_errors(
        [
            (lambda: split(mismatch=1.0), ValueError, "mismatch"),
            (lambda: split(mismatch=-0.1), ValueError, "mismatch"),
            (lambda: split(mismatch=0.9), ValueError, "mismatch"),
            (lambda: split(target_classes=[0, 7]), ValueError, "target_classes"),
            (lambda: split(target_classes=[0]), ValueError, "target_classes"),
            (lambda: split(target_classes=[0, 0]), ValueError, "target_classes"),
            (lambda: split(target_classes="01"), TypeError, "target_classes"),
            (lambda: split(target_classes=[0.0, 1.0]), TypeError, "target_classes"),
            (lambda: split(num_labeled=21), ValueError, "num_labeled"),
            (lambda: split(num_labeled=1), ValueError, "num_labeled"),
            (lambda: split(num_labeled=5, balanced=True), ValueError, "num_labeled"),
            (lambda: split(np.repeat([0, 1, 2], [2, 20, 9]), num_labeled=10, balanced=True), ValueError, "num_labeled"),
            (lambda: split(seed=-1), ValueError, "seed"),
            (lambda: split(balanced=1), TypeError, "balanced"),
            (lambda: split(LABELS.astype(float)), TypeError, "labels"),
            (lambda: split(LABELS[:, None]), ValueError, "labels"),
            (lambda: split(LABELS[:0]), ValueError, "labels"),
            (lambda: split(np.ma.masked_array(LABELS, mask=LABELS > 2)), ValueError, "labels"),
            (lambda: split(np.array([0, 1, 2**64 - 1], dtype=np.uint64)), ValueError, "labels"),
            (lambda: rectify_labels([0, 1, -1], [0, 1]), ValueError, "labels"),
            (lambda: rectify_labels([0.0, 1.0], [0, 1]), TypeError, "labels"),
            (lambda: rectify_labels([0, 1], 2), TypeError, "target_classes"),  # type: ignore[arg-type]
            (lambda: error_decomposition([0, 1], [1.0, -1.0], [0, 1]), ValueError, "weights"),
            (lambda: error_decomposition([0, 1], [1, 1], [0, 1]), TypeError, "weights"),
            (lambda: error_decomposition([0, 1], [1.0, math.nan], [0, 1]), ValueError, "weights"),
            (lambda: error_decomposition([0, -1], [1.0, 1.0], [0, 1]), ValueError, "pseudo_labels"),
            (lambda: error_decomposition([0, 1], [1.0, 1.0], [0, -2]), ValueError, "true_labels"),
            (lambda: error_decomposition([0, 1], [1.0, 1.0], [0]), ValueError, "true_labels"),
            (lambda: error_decomposition([[0], [1]], [1.0, 1.0], [0, 1]), ValueError, "pseudo_labels"),
        ]
    )
