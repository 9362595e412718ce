"""The errors as a metric of torchmetrics: inside a collection, saved, by class, and on two processes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy

from offprints.betti_matching import BettiMatchingMetric, betti_matching_error
from offprints.betti_matching.torchmetrics import BettiErrors
from offprints.shared.testing.errors import check_errors


def batches(channels: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.rand(2, n, channels, 9, 8, generator=generator) for n in (1, 3, 2)]
    return [(pred, target) for pred, target in draws]


def test_it_is_the_plain_metric() -> None:
    options: dict[str, Any] = {"relative": True, "filtration": "sublevel", "threshold": 0.4}
    ours, plain = BettiErrors(**options), BettiMatchingMetric(**options)
    for pred, target in batches():
        ours.update(pred, target)
        plain.update(pred, target)
    assert {name: value.item() for name, value in ours.compute().items()} == pytest.approx(plain.compute())


def test_values_by_class() -> None:
    metric = BettiErrors(num_classes=2, per_class=True)
    pred, target = (torch.cat(side) for side in zip(*batches(), strict=True))
    for one in batches():
        metric.update(*one)
    expected = betti_matching_error(pred, target, reduction="none").mean(0)
    torch.testing.assert_close(metric.compute()["betti_matching_error"], expected, check_dtype=False)
    check_errors(
        [
            (lambda: metric.update(pred[:, :1], target[:, :1]), ValueError, "num_classes"),
            (lambda: metric.update(pred[..., None], target[..., None]), ValueError, "pred"),
            (lambda: metric.update(pred, target[:1]), ValueError, "target"),
            (lambda: BettiErrors(per_class="yes"), TypeError, "per_class"),  # type: ignore[arg-type]
            (lambda: BettiErrors().compute(), RuntimeError, "update"),
        ]
    )


def test_in_a_collection_and_saved() -> None:
    def make() -> MetricCollection:
        collection = MetricCollection({"topology": BettiErrors(), "accuracy": BinaryAccuracy()})
        collection.persistent(True)
        return collection

    whole, first, second = make(), make(), make()
    data = [(pred, target > 0.5) for pred, target in batches(1)]
    for pred, target in data:
        whole.update(pred, target)
    first.update(*data[0])
    second.load_state_dict(first.state_dict())
    for one in data[1:]:
        second.update(*one)
    found, expected = second.compute(), whole.compute()
    assert found["betti_matching_error"] == expected["betti_matching_error"]
    assert found.keys() >= {"accuracy", "dice", "betti_number_error_1"}


def _of_rank(rank: int) -> float:
    metric = BettiErrors()
    for one in batches()[rank::2]:
        metric.update(*one)
    return float(metric.compute()["betti_matching_error"])


def test_two_processes(two_processes: Any) -> None:
    metric = BettiErrors()
    for one in batches():
        metric.update(*one)
    assert list(two_processes(_of_rank)) == pytest.approx([float(metric.compute()["betti_matching_error"])] * 2)
