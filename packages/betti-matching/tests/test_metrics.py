"""Betti matching error, Betti number error and their accumulation."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import generate_binary_structure, label
from torch import Tensor

from offprints.betti_matching import (
    BettiMatchingMetric,
    betti_matching_error,
    betti_matching_loss,
    betti_number_error,
    betti_numbers,
)

SHAPES = {1: (23,), 2: (9, 8), 3: (6, 5, 6)}
OPTIONS = [
    {"filtration": filtration, "construction": construction, "relative": relative}
    for filtration in ("superlevel", "sublevel")
    for construction in ("V", "T")
    for relative in (False, True)
]


def images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images on levels that include the threshold; the first prediction is dark, the last one bright."""
    generator = torch.Generator().manual_seed(seed)
    pred, target = (torch.randint(0, 9, (2, *shape), generator=generator) / 8).unbind()
    pred[0, 0] *= 0.4
    pred[-1, -1] = 0.6 + 0.4 * pred[-1, -1]
    return pred, target


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_matching_error_is_the_loss_of_the_masks(ndim: int, options: dict[str, Any]) -> None:
    pred, target = images(3, 2, *SHAPES[ndim])
    sublevel = options["filtration"] == "sublevel"  # the foreground, <= 0.5, is 0 there
    masks = [(image > 0.5 if sublevel else image >= 0.5).double() for image in (pred, target)]
    for dims in (None, *((k,) for k in range(ndim))):
        error = betti_matching_error(pred, target, dims=dims, reduction="none", **options)
        assert error.dtype == torch.float32
        loss = betti_matching_loss(*masks, dims=dims, reduction="none", **options)
        torch.testing.assert_close(error.double(), loss, rtol=0, atol=0)


def betti_by_labels(mask: np.ndarray, *, full: bool) -> np.ndarray:
    """Betti numbers of a mask whose foreground is fully or directly connected."""
    d = mask.ndim
    structures = [generate_binary_structure(d, n) for n in (1, d)]
    components = label(mask, structures[full])[1]
    if d == 1:
        return np.array([components])
    holes = label(np.pad(~mask, 1, constant_values=True), structures[not full])[1] - 1
    if d == 2:
        return np.array([components, holes])
    return np.array([components, components + holes - euler(mask, full=full), holes])


def euler(mask: np.ndarray, *, full: bool) -> int:
    """Euler characteristic of the union of closed voxels (full) or of the complex with voxels as vertices."""
    total = 0
    for odd in np.ndindex(*[2] * mask.ndim):
        cells = np.pad(mask, 1) if full else mask
        for axis in range(mask.ndim):
            lines = np.moveaxis(cells, axis, 0)
            if full:  # a cell between two voxels belongs to either
                lines = lines[1:-1] if odd[axis] else lines[1:] | lines[:-1]
            elif odd[axis]:  # an edge needs both of its ends
                lines = lines[1:] & lines[:-1]
            cells = np.moveaxis(lines, 0, axis)
        total += (-1) ** sum(odd) * int(cells.sum())
    return total


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_number_error_counts_labels(ndim: int, options: dict[str, Any]) -> None:
    pred, target = images(3, 2, *SHAPES[ndim])
    numbers = []
    for image in (pred, target):
        masks = image >= 0.5 if options["filtration"] == "superlevel" else image <= 0.5
        padded = [
            np.pad(mask.numpy(), int(options["relative"]), constant_values=bool(mask.any()))
            for mask in masks.flatten(0, 1)
        ]
        numbers.append(np.stack([betti_by_labels(mask, full=options["construction"] == "T") for mask in padded]))
    expected = torch.from_numpy(abs(numbers[0] - numbers[1])).float()
    for k in range(ndim):
        error = betti_number_error(pred, target, dims=[k], reduction="none", **options)
        torch.testing.assert_close(error.flatten(), expected[:, k])
    torch.testing.assert_close(betti_number_error(pred, target, **options), expected.sum(1).mean())


def test_equal_betti_numbers_hide_what_the_matching_sees() -> None:
    target = torch.zeros(1, 1, 9, 20)
    target[..., 2:7, 2:7] = 1
    target[..., 3:6, 3:6] = 0
    pred = target.flip(-1)
    assert betti_number_error(pred, target).item() == 0
    assert betti_matching_error(pred, target).item() == 2  # both loops; the components are matched as essential


@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
def test_a_missing_foreground_costs_two(filtration: Any) -> None:
    target = torch.zeros(1, 1, 6, 6)
    target[..., 2:4, 2:4] = 1
    if filtration == "sublevel":
        target = 1 - target
    nothing = torch.zeros_like(target) if filtration == "superlevel" else torch.ones_like(target)
    assert betti_matching_error(nothing, target, filtration=filtration).item() == 2
    assert betti_matching_error(nothing, nothing, filtration=filtration).item() == 0
    assert betti_number_error(nothing, target, filtration=filtration).item() == 1


def test_thresholds_types_and_reductions() -> None:
    pred, target = images(2, 3, 8, 8)
    each = betti_matching_error(pred, target, threshold=0.7, reduction="none")
    assert each.shape == (2, 3)
    torch.testing.assert_close(betti_matching_error(pred, target, threshold=0.7, reduction="sum"), each.sum())
    masks = pred >= 0.7, (target >= 0.7).to(torch.int16)
    torch.testing.assert_close(betti_matching_error(*masks, reduction="none"), each)
    halves = pred.bfloat16(), target.bfloat16()  # eighths are exact
    torch.testing.assert_close(betti_matching_error(*halves, threshold=0.7, reduction="none"), each)
    masked = pred.masked_fill(pred < 0.7, -torch.inf)
    torch.testing.assert_close(betti_matching_error(masked, target, threshold=0.7, reduction="none"), each)


THREE = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("dtype", THREE)
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 1 / 3])
def test_a_pixel_at_the_threshold_is_foreground_in_every_type(dtype: str, threshold: float) -> None:
    image = torch.zeros(5, 5, dtype=THREE[dtype])
    image[1, 1] = image[3, 3] = threshold
    image[1, 3] = 0.9
    batch, empty = image[None, None], torch.zeros(1, 1, 5, 5)
    for value in (threshold, np.float64(threshold)):
        np.testing.assert_array_equal(betti_numbers(image, threshold=value), [3, 0])
        assert betti_number_error(batch, empty, threshold=value).item() == 3
        assert betti_matching_error(batch, empty, threshold=value).item() == 2 + 2  # essential, and two more
    if dtype != "bfloat16":
        np.testing.assert_array_equal(betti_numbers(image.numpy(), threshold=threshold), [3, 0])
    np.testing.assert_array_equal(betti_numbers(-image, threshold=-threshold, filtration="sublevel"), [3, 0])


def test_sublevel_foreground_reaches_the_threshold_too() -> None:
    target = torch.ones(1, 1, 7, 7)
    pred = target.clone()
    pred[0, 0, [1, 3, 5], [1, 3, 5]] = 0.5
    np.testing.assert_array_equal(betti_numbers(pred[0, 0], filtration="sublevel"), [3, 0])
    assert betti_number_error(pred, target, filtration="sublevel").item() == 3
    assert betti_matching_error(pred, target, filtration="sublevel").item() == 4  # two bars, and the essential one


@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("values", [torch.int64, torch.uint8, torch.bool, torch.int8])
def test_integers_are_compared_exactly(filtration: Any, values: torch.dtype) -> None:
    image = torch.tensor([[0, 1, 0, 1, 1]], dtype=values)
    for threshold, bright, dark in ((0.5, 2, 2), (1.0, 2, 1), (0.0, 1, 2), (1e9, 0, 1), (-1e9, 1, 0)):
        expected = bright if filtration == "superlevel" else dark
        assert betti_numbers(image, threshold=threshold, filtration=filtration)[0] == expected
        assert betti_numbers(image.numpy(), threshold=threshold, filtration=filtration)[0] == expected
    large = torch.tensor([[2**53, 2**53 + 1, 2**53]])
    assert betti_numbers(large, threshold=float(2**53), filtration="sublevel")[0] == 2


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_masks(dtype: torch.dtype) -> None:
    pred, target = images(2, 1, 8, 8)
    masks = [(image >= 0.5).long() for image in (pred, target)]
    expected = betti_matching_error(*masks, reduction="none")
    unsigned = [mask.to(dtype) for mask in masks]
    for threshold in (0.5, 1.0):
        torch.testing.assert_close(betti_matching_error(*unsigned, threshold=threshold, reduction="none"), expected)
    assert betti_matching_error(*unsigned, threshold=-1.0).item() == 0  # all is foreground
    metric = BettiMatchingMetric()
    metric.update(*unsigned)
    assert metric.compute()["betti_matching_error"] == pytest.approx(expected.mean().item())


def test_what_never_enters_does_not_enter_by_rounding() -> None:
    image = torch.tensor([[1.0, torch.inf, 1.0, -torch.inf, 1.0]], dtype=torch.float16)
    assert betti_numbers(image, threshold=1e6)[0] == 1  # the infinite pixel alone
    assert betti_numbers(image, threshold=-1e6)[0] == 2  # all but that of -inf
    assert betti_numbers(image, threshold=1e6, filtration="sublevel")[0] == 2


@pytest.mark.parametrize("options", OPTIONS)
def test_the_number_error_never_exceeds_the_matching_error(options: dict[str, Any]) -> None:
    for ndim, shape in SHAPES.items():
        pred, target = images(40, 1, *shape, seed=ndim)
        for k in range(ndim):
            number = betti_number_error(pred, target, dims=[k], reduction="none", **options)
            matching = betti_matching_error(pred, target, dims=[k], reduction="none", **options)
            assert (number <= matching).all()


def test_rows_are_not_taken_for_channels() -> None:
    pred, target = images(2, 16, 16)
    for call in (betti_matching_error, betti_number_error, BettiMatchingMetric().update):
        with pytest.raises(ValueError, match=r"unsqueeze\(1\)"):
            call(pred, target)
    whole = betti_matching_error(pred, target, spatial_dims=1, reduction="none")
    parts = [betti_matching_error(pred[:, [c]], target[:, [c]], reduction="none") for c in range(16)]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1))
    with pytest.raises(ValueError, match="dimensions"):
        betti_matching_error(pred, target, spatial_dims=2)


@pytest.mark.parametrize("options", [*OPTIONS, {"dims": (1,), "comparison": "intersection"}, {"threshold": 0.3}])
def test_metric_is_the_mean_over_all_images(options: dict[str, Any]) -> None:
    pred, target = images(7, 2, 6, 7)
    metric = BettiMatchingMetric(**options)
    for rows in ([0, 1, 2], [3], [4, 5, 6]):
        metric.update(pred[rows], target[rows])
    result = metric.compute()
    dims = options.pop("dims", (0, 1))
    number_options = {k: v for k, v in options.items() if k != "comparison"}
    expected: dict[str, float] = {}
    for name, error, opts in (
        ("betti_matching_error", betti_matching_error, options),
        ("betti_number_error", betti_number_error, number_options),
    ):
        expected[name] = error(pred, target, dims=dims, **opts).item()
        expected |= {f"{name}_{k}": error(pred, target, dims=[k], **opts).item() for k in dims}
    above = torch.gt if options.get("filtration") == "sublevel" else torch.ge
    f, g = (above(image.flatten(2), options.get("threshold", 0.5)) for image in (pred, target))
    expected["dice"] = (2 * (f & g).sum(2) / (f.sum(2) + g.sum(2))).mean().item()
    assert result == pytest.approx(expected)
    assert result.keys() == expected.keys()
    assert metric.compute() == result
    metric.reset()
    with pytest.raises(RuntimeError, match="update"):
        metric.compute()


def test_metric_of_empty_masks() -> None:
    metric = BettiMatchingMetric()
    metric.update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    assert metric.compute()["dice"] == 1
    metric.update(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool))
    assert metric.compute()["dice"] == 0.5


def test_a_rejected_batch_changes_nothing() -> None:
    pred, target = images(2, 1, 6, 6)
    metric = BettiMatchingMetric()
    metric.update(pred, target)
    before = metric.compute()
    wrong = pred.clone()
    wrong[1, 0, 3, 3] = torch.nan
    for bad in ((wrong, target), (pred[..., None], target[..., None]), (pred[:1], target), (pred[:0], target[:0])):
        with pytest.raises(ValueError, match="pred"):
            metric.update(*bad)
    assert metric.compute() == before


def test_metrics_merge() -> None:
    pred, target = images(4, 1, 6, 6)
    whole, left, right = (BettiMatchingMetric(relative=True) for _ in range(3))
    whole.update(pred, target)
    left.update(pred[:1], target[:1])
    right.update(pred[1:], target[1:])
    left.merge_(right)
    assert left.compute() == pytest.approx(whole.compute())
    with pytest.raises(ValueError, match="other"):
        left.merge_(BettiMatchingMetric(relative=False))
