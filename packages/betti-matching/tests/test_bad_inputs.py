"""Every wrong argument gets the right error, which names it, before anything is computed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from offprints.betti_matching import (
    BettiMatchingLoss,
    BettiMatchingMetric,
    DiceBettiMatchingLoss,
    betti_matching_error,
    betti_matching_loss,
    betti_number_error,
    betti_numbers,
    compute_barcode,
    compute_matching,
    compute_matching_batch,
    plot_barcodes,
    plot_matching,
    representative_cycles,
)
from offprints.betti_matching.baselines import cldice_loss, wasserstein_loss
from offprints.shared.testing import check_errors

IMAGE = np.random.default_rng(0).random((5, 6))
BATCH = torch.from_numpy(IMAGE)[None, None]
MATCHING = compute_matching(IMAGE, IMAGE[::-1])
Case = tuple[Callable[[], object], type[Exception], str]


def spoiled(image: Any, value: float) -> Any:
    """A copy with one value in the middle replaced."""
    copy = image.clone() if isinstance(image, torch.Tensor) else image.copy()
    copy[..., 2, 3] = value
    return copy


NAN, INF = spoiled(IMAGE, np.nan), spoiled(BATCH, np.inf)


def cases_of_images(call: Callable[..., object], name: str) -> list[Case]:
    """What every function of one image refuses, in the argument of this name."""
    return [
        (lambda: call(np.float64(1.0)), ValueError, name),
        (lambda: call(np.zeros((2, 2, 2, 2))), ValueError, name),
        (lambda: call(np.zeros((3, 0))), ValueError, name),
        (lambda: call(np.zeros(0)), ValueError, name),
        (lambda: call(NAN), ValueError, name),
        (lambda: call(torch.from_numpy(NAN)), ValueError, name),
        (lambda: call(spoiled(torch.zeros(4, 5, dtype=torch.bfloat16), np.nan)), ValueError, name),
        (lambda: call(IMAGE.astype(complex)), TypeError, name),
        (lambda: call(torch.zeros(3, 3, dtype=torch.complex64)), TypeError, name),
        (lambda: call(IMAGE.astype(object)), TypeError, name),
        (lambda: call(np.array([["a", "b"]])), TypeError, name),
        (lambda: call([[0.1, 0.2], [0.3]]), ValueError, name),
        (lambda: call(torch.zeros(3, 3, device="meta")), TypeError, name),
        (lambda: call(torch.zeros(3, 3).to_sparse()), TypeError, name),
        (lambda: call(torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)])), TypeError, name),
        (lambda: call(torch.ops.aten.quantize_per_tensor(torch.zeros(3, 3), 0.1, 0, torch.qint8)), TypeError, name),
    ]


def cases_of_options(call: Callable[..., object], *names: str) -> list[Case]:
    wrong: dict[str, Any] = {
        "filtration": "levels",
        "construction": "W",
        "comparison": "difference",
        "reduction": "average",
        "threshold": np.nan,
    }
    cases: list[Case] = [(lambda n=n: call(**{n: wrong[n]}), ValueError, n) for n in names]  # type: ignore[misc]
    cases += [(lambda n=n: call(**{n: ["V"]}), ValueError, n) for n in names if n != "threshold"]  # type: ignore[misc]
    if "threshold" in names:
        cases += [
            (lambda: call(threshold=np.inf), ValueError, "threshold"),
            (lambda: call(threshold="half"), TypeError, "threshold"),
        ]
    return cases


def cases_of_dims(call: Callable[..., object]) -> list[Case]:
    return [
        (lambda: call(dims=()), ValueError, "dims"),
        (lambda: call(dims=(0, 0)), ValueError, "dims"),
        (lambda: call(dims=(2,)), ValueError, "dims"),
        (lambda: call(dims=(-1,)), ValueError, "dims"),
        (lambda: call(dims=(0.0,)), TypeError, "dims"),
        (lambda: call(dims=(True,)), TypeError, "dims"),
        (lambda: call(dims=1), TypeError, "dims"),
    ]


def cases_of_batches(call: Callable[..., object], pred: str, target: str) -> list[Case]:
    """What every function of two batches refuses."""
    return [
        (lambda: call(BATCH, BATCH[..., :-1]), ValueError, target),
        (lambda: call(BATCH, BATCH.expand(2, -1, -1, -1)), ValueError, target),
        (lambda: call(BATCH[0], BATCH[0, 0]), ValueError, target),
        (lambda: call(BATCH[0, 0], BATCH[0, 0]), ValueError, pred),
        (lambda: call(BATCH[None, None], BATCH[None, None]), ValueError, pred),
        (lambda: call(BATCH[:0], BATCH[:0]), ValueError, pred),
        (lambda: call(BATCH[:, :0], BATCH[:, :0]), ValueError, pred),
        (lambda: call(BATCH[..., :0], BATCH[..., :0]), ValueError, pred),
        (lambda: call(BATCH, BATCH.to("meta")), ValueError, target),
        (lambda: call(BATCH.to("meta"), BATCH.to("meta")), TypeError, pred),
        (lambda: call(BATCH.to_sparse(), BATCH), TypeError, pred),
        (lambda: call(torch.nested.nested_tensor([BATCH[0], BATCH[0]]), BATCH), TypeError, pred),
        (lambda: call(BATCH.numpy(), BATCH), TypeError, pred),
        (lambda: call(BATCH, BATCH.numpy()), TypeError, target),
        (lambda: call(BATCH.to(torch.complex128), BATCH), TypeError, pred),
        (lambda: call(BATCH, BATCH.to(torch.complex128)), TypeError, target),
    ]


def cases_of_values(call: Callable[..., object], pred: str, target: str, *, infinite: bool) -> list[Case]:
    cases: list[Case] = [
        (lambda: call(spoiled(BATCH, np.nan), BATCH), ValueError, pred),
        (lambda: call(BATCH, spoiled(BATCH, np.nan)), ValueError, target),
    ]
    if infinite:
        cases += [
            (lambda: call(INF, BATCH), ValueError, pred),
            (lambda: call(-INF, BATCH), ValueError, pred),
            (lambda: call(BATCH, INF), ValueError, target),
        ]
    return cases


def test_functions_of_one_image() -> None:
    pairs = compute_barcode(IMAGE)[1]
    check_errors(
        [
            *cases_of_images(compute_barcode, "image"),
            *cases_of_images(betti_numbers, "image"),
            *cases_of_images(lambda image: representative_cycles(image, pairs, dim=1), "image"),
            *cases_of_options(lambda **o: compute_barcode(IMAGE, **o), "filtration", "construction"),
            *cases_of_options(lambda **o: betti_numbers(IMAGE, **o), "filtration", "construction", "threshold"),
            *cases_of_options(
                lambda **o: representative_cycles(IMAGE, pairs, dim=1, **o), "filtration", "construction"
            ),
            (lambda: representative_cycles(IMAGE, pairs, dim=2), ValueError, "dim"),
            (lambda: representative_cycles(IMAGE, pairs, dim=-1), ValueError, "dim"),
            (lambda: representative_cycles(IMAGE, pairs, dim=1.0), TypeError, "dim"),  # type: ignore[arg-type]
        ]
    )


def test_matching() -> None:
    names = ("filtration", "construction", "comparison")
    check_errors(
        [
            *cases_of_images(lambda image: compute_matching(image, image), "pred"),
            *cases_of_options(lambda **o: compute_matching(IMAGE, IMAGE, **o), *names),
            *cases_of_options(lambda **o: compute_matching_batch([IMAGE], [IMAGE], **o), *names),
            (lambda: compute_matching(IMAGE, IMAGE.T), ValueError, "target"),
            (lambda: compute_matching(IMAGE, IMAGE[0]), ValueError, "target"),
            (lambda: compute_matching(IMAGE, NAN), ValueError, "target"),
            (lambda: compute_matching(IMAGE, IMAGE.astype(object)), TypeError, "target"),
            (lambda: compute_matching_batch([], []), ValueError, "preds"),
            (lambda: compute_matching_batch([IMAGE], [IMAGE, IMAGE]), ValueError, "targets"),
            (lambda: compute_matching_batch([IMAGE], [IMAGE.T]), ValueError, "target"),
            (lambda: compute_matching_batch([IMAGE, NAN], [IMAGE, IMAGE]), ValueError, "pred"),
            (lambda: compute_matching_batch([IMAGE], [IMAGE], num_workers=0), ValueError, "num_workers"),
            (lambda: compute_matching_batch([IMAGE], [IMAGE], num_workers=1.5), TypeError, "num_workers"),  # type: ignore[arg-type]
        ]
    )


@pytest.mark.parametrize("loss", [betti_matching_loss, wasserstein_loss, cldice_loss])
def test_loss_functions(loss: Any) -> None:
    cases = [
        *cases_of_batches(loss, "pred", "target"),
        *cases_of_options(lambda **o: loss(BATCH, BATCH, **o), "reduction"),
        (lambda: loss(BATCH.long(), BATCH), TypeError, "pred"),
        (lambda: loss(BATCH > 0.5, BATCH), TypeError, "pred"),
    ]
    if loss is cldice_loss:
        cases += [
            (lambda: loss(BATCH, BATCH, iterations=-1), ValueError, "iterations"),
            (lambda: loss(BATCH, BATCH, smooth=-1.0), ValueError, "smooth"),
        ]
    else:
        cases += cases_of_values(loss, "pred", "target", infinite=True)
        cases += cases_of_dims(lambda **o: loss(BATCH, BATCH, **o))
        cases += cases_of_options(lambda **o: loss(BATCH, BATCH, **o), "filtration", "construction")
    check_errors(cases)


def test_comparison_of_the_loss() -> None:
    check_errors(cases_of_options(lambda **o: betti_matching_loss(BATCH, BATCH, **o), "comparison"))


@pytest.mark.parametrize("module", [BettiMatchingLoss, DiceBettiMatchingLoss])
@pytest.mark.parametrize("from_logits", [True, False])
def test_loss_modules(module: Any, from_logits: bool) -> None:
    loss = module(from_logits=from_logits)
    names = ("filtration", "construction", "comparison", "reduction")
    check_errors(
        [
            *cases_of_batches(loss, "input", "target"),
            *cases_of_values(loss, "input", "target", infinite=True),
            *cases_of_options(module, *names),
            *cases_of_dims(lambda **o: module(**o)(BATCH, BATCH)),
            (lambda: module(dims=(3,)), ValueError, "dims"),  # out of range for every image
            (lambda: loss(BATCH.int(), BATCH), TypeError, "input"),
        ]
    )


@pytest.mark.parametrize("call", [lambda **o: betti_matching_loss(BATCH, BATCH, **o), BettiMatchingLoss])
def test_weights_of_bars(call: Any) -> None:
    check_errors(
        [
            (lambda: call(weights=0.5), TypeError, "weights must be two numbers"),
            (lambda: call(weights="12"), TypeError, "weights must be two numbers"),
            (lambda: call(weights=(1.0,)), ValueError, "weights must be two numbers"),
            (lambda: call(weights=(1.0, 1.0, 1.0)), ValueError, "weights must be two numbers"),
            (lambda: call(weights=(1.0, -0.5)), ValueError, "weights"),
            (lambda: call(weights=(1.0, float("nan"))), ValueError, "weights"),
            (lambda: call(min_persistence=-0.1), ValueError, "min_persistence"),
            (lambda: call(unmatched="edge"), ValueError, "unmatched"),
            (lambda: call(nonfinite="ignore"), ValueError, "nonfinite"),
        ]
    )


def test_alpha() -> None:
    check_errors(
        [
            (lambda: DiceBettiMatchingLoss(alpha=-0.1), ValueError, "alpha"),
            (lambda: DiceBettiMatchingLoss(alpha=float("nan")), ValueError, "alpha"),
            (lambda: DiceBettiMatchingLoss(alpha=float("inf")), ValueError, "alpha"),
            (lambda: DiceBettiMatchingLoss(alpha="0.5"), TypeError, "alpha"),  # type: ignore[arg-type]
        ]
    )


@pytest.mark.parametrize("error", [betti_matching_error, betti_number_error])
def test_errors(error: Any) -> None:
    names = ["filtration", "construction", "threshold", "reduction"]
    check_errors(
        [
            *cases_of_batches(error, "pred", "target"),
            *cases_of_values(error, "pred", "target", infinite=False),
            *cases_of_options(lambda **o: error(BATCH, BATCH, **o), *names),
            *cases_of_dims(lambda **o: error(BATCH, BATCH, **o)),
        ]
    )


def test_comparison_of_the_error() -> None:
    check_errors(cases_of_options(lambda **o: betti_matching_error(BATCH, BATCH, **o), "comparison"))


def test_metric() -> None:
    names = ("filtration", "construction", "comparison", "threshold")
    check_errors(
        [
            *cases_of_batches(lambda *x: BettiMatchingMetric().update(*x), "pred", "target"),
            *cases_of_values(lambda *x: BettiMatchingMetric().update(*x), "pred", "target", infinite=False),
            *cases_of_options(BettiMatchingMetric, *names),
            *cases_of_dims(lambda **o: BettiMatchingMetric(**o).update(BATCH, BATCH)),
        ]
    )


def test_plots() -> None:
    flipped = IMAGE[::-1]
    check_errors(
        [
            *cases_of_images(lambda image: plot_matching(image, flipped, MATCHING), "pred"),
            (lambda: plot_matching(IMAGE[:-1], flipped, MATCHING), ValueError, "pred"),
            (lambda: plot_matching(IMAGE, flipped.T, MATCHING), ValueError, "target"),
            (lambda: plot_matching(IMAGE, flipped, MATCHING, dim=2), ValueError, "dim"),
            (lambda: plot_matching(IMAGE, flipped, MATCHING, max_pairs=-1), ValueError, "max_pairs"),
            (lambda: plot_matching(IMAGE, IMAGE, MATCHING), ValueError, "pairs"),
            (lambda: plot_barcodes(MATCHING, dim=-1), ValueError, "dim"),
        ]
    )


@pytest.mark.gpu
@pytest.mark.parametrize("call", [betti_matching_loss, betti_matching_error, betti_number_error])
def test_devices_must_agree(call: Any) -> None:
    check_errors([(lambda: call(BATCH.cuda(), BATCH), ValueError, "target")])
