"""Every bad input gets an error that names the argument."""

import numpy as np
import pytest
import torch

from offprints.shared.testing import check_errors
from offprints.unpg import (
    ArcFaceHead,
    CosFaceHead,
    MagFaceHead,
    MarginLoss,
    ShardedMarginHead,
    UNPGLoss,
    iqr_bounds,
    iqr_filter,
    iresnet,
    pair_similarities,
    similarity_gap,
    tar_at_far,
    template_features,
    unified_cross_entropy,
    verification_accuracy,
)

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
NAN, INF = float("nan"), float("inf")
BAD_ROWS = [
    (X[0], ValueError),
    (X[None], ValueError),
    (X[:0], ValueError),
    (X[:, :0], ValueError),
    (X * NAN, ValueError),
    (X + INF, ValueError),
    (X.numpy(), TypeError),
    (X.tolist(), TypeError),
    (X.long(), TypeError),
    (X > 0, TypeError),
]
BAD_LABELS = [
    (Y[:5], ValueError),
    (Y[:, None], ValueError),
    (Y[:0], ValueError),
    (Y.float(), TypeError),
    (Y > 0, TypeError),
    (Y.tolist(), TypeError),
]


def of_batches() -> dict[str, object]:
    heads = {"head": CosFaceHead(4, 3), "sharded": ShardedMarginHead(ArcFaceHead, 4, 3)}
    losses = {
        f"{kind.__name__} {chunk}": kind(heads["head"], class_chunk=chunk)
        for kind in (UNPGLoss, MarginLoss)
        for chunk in (None, 2)
    }
    return heads | losses


@pytest.mark.parametrize("name", of_batches())
def test_batches(name: str) -> None:
    call = of_batches()[name]
    cases = [(lambda x=x: call(x, Y), error, "embeddings") for x, error in BAD_ROWS]
    cases += [(lambda y=y: call(X, y), error, "labels") for y, error in BAD_LABELS]
    check_errors(
        [
            *cases,
            (lambda: call(X[:, :3], Y), ValueError, "embeddings"),
            (lambda: call(X, Y - 1), ValueError, "labels"),
            (lambda: call(X, Y + 1), ValueError, "labels"),
        ]
    )


@pytest.mark.parametrize("call", [pair_similarities, similarity_gap])
def test_pairs(call) -> None:
    cases = [(lambda x=x: call(x, Y), error, "embeddings") for x, error in BAD_ROWS]
    cases += [(lambda y=y: call(X, y), error, "labels") for y, error in BAD_LABELS]
    check_errors(cases)


def test_labels_without_a_pair_of_either_kind() -> None:
    check_errors(
        [
            (lambda: similarity_gap(X, torch.arange(6)), ValueError, "labels"),
            (lambda: similarity_gap(X, torch.zeros_like(Y)), ValueError, "labels"),
            (lambda: similarity_gap(X[:1], Y[:1]), ValueError, "labels"),
            (lambda: similarity_gap(X, Y, quantile=0.5), ValueError, "quantile"),
            (lambda: similarity_gap(X, Y, quantile=-0.1), ValueError, "quantile"),
            (lambda: similarity_gap(X, Y, chunk_size=0), ValueError, "chunk_size"),
        ]
    )


def test_constructors() -> None:
    head = CosFaceHead(4, 3)
    check_errors(
        [
            *(
                (lambda kind=kind, o=options: kind(*o.pop("sizes", (4, 3)), **o), ValueError, name)
                for kind in (CosFaceHead, ArcFaceHead, MagFaceHead)
                for name, options in (
                    ("scale", {"scale": 0.0}),
                    ("scale", {"scale": -1.0}),
                    ("num_classes", {"sizes": (4, 1)}),
                    ("in_features", {"sizes": (0, 3)}),
                )
            ),
            (lambda: MagFaceHead(4, 3, l_a=110.0), ValueError, "u_a"),
            (lambda: MagFaceHead(4, 3, l_a=50.0, u_a=20.0), ValueError, "l_a"),
            (lambda: MagFaceHead(4, 3, l_a=0.0), ValueError, "l_a"),
            (lambda: MagFaceHead(4, 3, u_margin=0.1), ValueError, "u_margin"),
            (lambda: MagFaceHead(4, 3, lambda_g=-1.0), ValueError, "lambda_g"),
            (lambda: ArcFaceHead(4, 3, margin=4.0), ValueError, "margin"),
            (lambda: CosFaceHead(4, 3, margin=-0.1), ValueError, "margin"),
            (lambda: UNPGLoss(head, whisker=-0.1), ValueError, "whisker"),
            (lambda: UNPGLoss(head, whisker=INF), ValueError, "whisker"),
            (lambda: UNPGLoss(head, gather="yes"), TypeError, "gather"),  # type: ignore[arg-type]
            (lambda: UNPGLoss(head, class_chunk=0), ValueError, "class_chunk"),
            (lambda: MarginLoss(head, class_chunk=0), ValueError, "class_chunk"),
            (lambda: MarginLoss(torch.nn.Linear(4, 3)), TypeError, "head"),  # type: ignore[arg-type]
            (lambda: ShardedMarginHead(ArcFaceHead, 4, 1), ValueError, "num_classes"),
            (lambda: ShardedMarginHead(ArcFaceHead, 4, 3, scale=0.0), ValueError, "scale"),
            (lambda: ShardedMarginHead(ArcFaceHead, 4, 3, temperature=1.0), TypeError, "temperature"),
        ]
    )


def test_values() -> None:
    values = torch.randn(5)
    for call in (iqr_bounds, iqr_filter):
        check_errors(
            [
                (lambda c=call: c(values[:0]), ValueError, "values"),
                (lambda c=call: c(values[None]), ValueError, "values"),
                (lambda c=call: c(values * NAN), ValueError, "values"),
                (lambda c=call: c(values + INF), ValueError, "values"),
                (lambda c=call: c(values.long()), TypeError, "values"),
                (lambda c=call: c(values, whisker=-1.0), ValueError, "whisker"),
            ]
        )
    logits = torch.randn(6, 3)
    check_errors(
        [
            (lambda: unified_cross_entropy(logits[0], Y), ValueError, "logits"),
            (lambda: unified_cross_entropy(logits * NAN, Y), ValueError, "logits"),
            (lambda: unified_cross_entropy(logits.long(), Y), TypeError, "logits"),
            (lambda: unified_cross_entropy(logits, Y + 1), ValueError, "labels"),
            (lambda: unified_cross_entropy(logits, Y, values[None]), ValueError, "extra_negatives"),
            (lambda: unified_cross_entropy(logits, Y, values + INF), ValueError, "extra_negatives"),
            (lambda: unified_cross_entropy(logits, Y, values.long()), TypeError, "extra_negatives"),
            (lambda: unified_cross_entropy(logits, Y, reduction="max"), ValueError, "reduction"),  # type: ignore[arg-type]
        ]
    )


def test_verification() -> None:
    scores, same = np.linspace(0, 1, 8), np.arange(8) % 2
    for call in (verification_accuracy, tar_at_far):
        check_errors(
            [
                (lambda c=call: c(scores[:5], same), ValueError, "similarities"),
                (lambda c=call: c(scores, same[:5]), ValueError, "same"),
                (lambda c=call: c(scores[:0], same[:0]), ValueError, "similarities"),
                (lambda c=call: c(scores[None], same), ValueError, "similarities"),
                (lambda c=call: c(scores * NAN, same), ValueError, "similarities"),
                (lambda c=call: c(scores + INF, same), ValueError, "similarities"),
                (lambda c=call: c(same, same), TypeError, "similarities"),
                (lambda c=call: c(scores.astype(str), same), TypeError, "similarities"),
                (lambda c=call: c(scores, same.astype(float)), TypeError, "same"),
                (lambda c=call: c(scores, same + 1), ValueError, "same"),
                (lambda c=call: c(scores, np.ones(8, dtype=int)), ValueError, "same"),
                (lambda c=call: c(scores, np.zeros(8, dtype=bool)), ValueError, "same"),
                (lambda c=call: c(np.ma.masked_greater(scores, 0.5), same), ValueError, "similarities"),
                (lambda c=call: c(scores, np.ma.masked_equal(same, 1)), ValueError, "same"),
                (lambda c=call: c(scores, same, method="median"), ValueError, "method"),
            ]
        )
    check_errors(
        [
            (lambda: verification_accuracy(scores, same, folds=1), ValueError, "folds"),
            (lambda: verification_accuracy(scores, same, folds=9), ValueError, "folds"),
            *(
                (lambda f=f: tar_at_far(scores, same, far=f), ValueError, "far")
                for f in (0.0, 1.0, [0.1, 2.0], [], NAN)
            ),
            *((lambda f=f: tar_at_far(scores, same, far=f), TypeError, "far") for f in ("0.1", None, True)),
            (lambda: template_features(X.long(), Y, Y), TypeError, "features"),
            (lambda: template_features(X * NAN, Y, Y), ValueError, "features"),
            (lambda: template_features(X, Y[:5], Y), ValueError, "templates"),
            (lambda: template_features(X, Y, Y.float()), TypeError, "media"),
            (lambda: template_features(X, Y, Y[:, None]), ValueError, "media"),
            (lambda: iresnet(18), ValueError, "depth"),  # type: ignore[arg-type]
            (lambda: iresnet(34, dropout=1.0), ValueError, "dropout"),
            (lambda: iresnet(34, image_size=100), ValueError, "image_size"),
            (lambda: iresnet(34, embedding_size=0), ValueError, "embedding_size"),
        ]
    )
