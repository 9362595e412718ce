"""Every property of check_split, check_sampler and check_streaming catches an object that lacks it; good ones pass."""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offprints.shared.testing import check_sampler, check_split, check_streaming
from offprints.shared.validation import check_tensor

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 1, 2, 0])
Split = namedtuple("Split", "labeled unlabeled mask")


def good_split(labels, *, seed, per_class=2):
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError("labels must be a non-empty vector")
    if labels.dtype.kind not in "iu":
        raise TypeError("labels must be integers")
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == c][:per_class] for c in np.unique(labels)])
    return Split(chosen, np.setdiff1d(order, chosen), np.isin(np.arange(len(labels)), chosen))


def changed(change):
    def split(labels, *, seed):
        result = good_split(labels, seed=seed)
        return change(result, labels, seed)

    return split


def drawn_globally(labels, *, seed):
    good_split(labels, seed=seed)
    return good_split(labels, seed=int(torch.randint(2**31, ())))


def spoiling(labels, *, seed):
    result = good_split(labels, seed=seed)
    if isinstance(labels, np.ndarray):
        labels[0] = 7
    return result


def by_kind(labels, *, seed):
    return good_split(labels, seed=seed if isinstance(labels, np.ndarray) else seed + 1)


BROKEN_SPLITS = [
    ("indices", changed(lambda r, y, s: Split(r.labeled, r.unlabeled + 1, r.mask))),
    ("indices", changed(lambda r, y, s: [np.repeat(r.labeled, 2), r.unlabeled])),
    ("indices", changed(lambda r, y, s: [r.labeled[None], r.unlabeled])),
    ("indices", changed(lambda r, y, s: r.mask)),
    ("disjoint", changed(lambda r, y, s: [r.labeled, np.arange(len(y))])),
    ("cover", changed(lambda r, y, s: [r.labeled, r.unlabeled[1:]])),
    ("counts", changed(lambda r, y, s: [r.labeled[1:], np.append(r.unlabeled, r.labeled[0])])),
    ("counts", changed(lambda r, y, s: [r.labeled, r.unlabeled, r.labeled[:0]])),
    ("determinism", drawn_globally),
    ("seed", lambda labels, *, seed: good_split(labels, seed=0)),
    ("kinds", by_kind),
    ("labels unchanged", spoiling),
    ("errors", lambda labels, *, seed: good_split(np.asarray(labels).astype(int), seed=seed)),
    ("errors", lambda labels, *, seed: good_split(np.ravel(labels), seed=seed)),
]


@pytest.mark.parametrize(("property_name", "fn"), BROKEN_SPLITS)
def test_broken_split_is_caught(property_name, fn) -> None:
    with pytest.raises(AssertionError, match=rf"^check_split of .*: {property_name}: "):
        check_split(fn, LABELS, counts=[6, None])


def test_good_splits_pass() -> None:
    check_split(partial(good_split, per_class=1), LABELS, counts=[{0: 1, 1: 1, 2: 1}, 11])
    check_split(lambda labels, *, seed: good_split(labels, seed=seed).labeled, LABELS, cover=False)
    check_split(changed(lambda r, y, s: [torch.from_numpy(r.labeled), np.arange(len(y))]), LABELS, disjoint=False)


# Samplers: two steps towards the origin, with fresh noise where there is a generator

THETA = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
NOISE = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def step(x: Tensor) -> Tensor:
    return x * THETA.to(x)


@torch.no_grad()
def good_sampler(noise: Tensor) -> Tensor:
    check_tensor(noise, "noise")
    return step(step(noise))


@torch.no_grad()
def good_stochastic(noise: Tensor, generator: torch.Generator) -> Tensor:
    check_tensor(noise, "noise")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    fresh = torch.randn(noise.shape, generator=generator, device=generator.device).to(noise)
    return step(step(noise) + fresh)


@torch.no_grad()
def stochastic_by_row(noise: Tensor, generator: torch.Generator) -> Tensor:
    return good_stochastic(noise, generator) + (noise.mean() if len(noise) > 1 else 0)


def with_graph(noise: Tensor) -> Tensor:
    check_tensor(noise, "noise")
    return step(noise)


def in_place(noise: Tensor) -> Tensor:
    check_tensor(noise, "noise")
    return noise.detach().mul_(0.5)


def globally(noise: Tensor) -> Tensor:
    return good_sampler(noise) + torch.randn(()).to(noise)


def seeded(noise: Tensor) -> Tensor:
    torch.manual_seed(0)
    return good_sampler(noise)


def deaf(noise: Tensor, generator: torch.Generator) -> Tensor:
    return good_sampler(noise)


@torch.no_grad()
def mixing(noise: Tensor) -> Tensor:
    return good_sampler(noise) + noise.mean()


def by_batch_size(noise: Tensor) -> Tensor:
    return good_sampler(noise) * len(noise)


def by_memory(noise: Tensor) -> Tensor:
    return good_sampler(noise.as_strided(noise.shape, (noise.shape[1], 1)))


# without THETA: older torch cannot follow a real parameter to a simulated device
@torch.no_grad()
def on_the_cpu(noise: Tensor) -> Tensor:
    check_tensor(noise, "noise")
    return 0.5 * noise + torch.zeros(3, dtype=noise.dtype)


@torch.no_grad()
def moved_to_the_cpu(noise: Tensor) -> Tensor:
    check_tensor(noise, "noise")
    return (0.5 * noise).cpu()


BROKEN_SAMPLERS = [
    ("shape and dtype", lambda noise: good_sampler(noise).double()),
    ("shape and dtype", lambda noise: good_sampler(noise)[None]),
    ("shape and dtype", lambda noise: good_sampler(noise) / 0),
    ("no graph", with_graph),
    ("noise unchanged", in_place),
    ("determinism", globally),
    ("determinism", seeded),
    ("generator", deaf),
    ("rows", mixing),
    ("rows", stochastic_by_row),
    ("batch split", by_batch_size),
    ("non-contiguous noise", by_memory),
    ("device", on_the_cpu),
    ("device", moved_to_the_cpu),
    ("errors", lambda noise: good_sampler(noise.float() if noise.dtype == torch.int64 else noise)),
    ("errors", lambda noise: good_sampler(noise.nan_to_num())),
    ("errors", lambda noise: good_sampler(noise) if len(noise) else noise),
]


@pytest.mark.parametrize(("property_name", "fn"), BROKEN_SAMPLERS)
def test_broken_sampler_is_caught(property_name, fn) -> None:
    with pytest.raises(AssertionError, match=rf"^check_sampler of .*: {property_name}: "):
        check_sampler(fn, NOISE)


@pytest.mark.parametrize("fn", [good_sampler, good_stochastic])
def test_good_sampler_passes(fn) -> None:
    check_sampler(fn, NOISE)
    with pytest.raises(ValueError, match="at least two rows"):
        check_sampler(fn, NOISE[:1])


def test_arguments_of_a_sampler_are_tried() -> None:
    def unnamed(noise: Tensor) -> Tensor:
        try:
            return good_sampler(noise)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("noise", "input")) from error

    with pytest.raises(AssertionError, match=r"unnamed: arguments: .*\n  noise: None: the message does not name noise"):
        check_sampler(unnamed, NOISE)
    check_sampler(unnamed, NOISE, skip={"arguments: noise: *": "called input"})


THETA = torch.full((), 0.5, requires_grad=True)


def contracting(x: Tensor) -> Tensor:
    return THETA.to(x) * x


@torch.no_grad()
def careful(noise: Tensor, model: Any = contracting) -> Tensor:
    check_tensor(noise, "noise")
    if not callable(model):
        raise TypeError(f"model must be callable, got {model!r}")
    for _ in range(2):
        step = model(noise.clone())
        if not isinstance(step, Tensor) or step.shape != noise.shape:
            raise ValueError(f"model must keep the shape of its input, got {step!r}")
        noise = noise - 0.1 * step.to(noise)
    return noise


def on_the_users_tensor(noise: Tensor, model: Any = contracting) -> Tensor:
    check_tensor(noise, "noise")
    return careful(noise, lambda x: model(noise) if torch.equal(x, noise) else model(x))


def twice_in_place(noise: Tensor, model: Any = contracting) -> Tensor:
    def second(x: Tensor) -> Tensor:
        kept = x.clone()
        return model(kept) * (1 + (kept - x).abs().amax())

    return careful(noise, second if callable(model) else model)


@torch.no_grad()
def takes_any_type(noise: Tensor, model: Any = contracting) -> Tensor:
    careful(noise, model)
    result = noise - 0.1 * model(noise.clone())
    return result if result.isnan().any() else result.to(model(noise.clone()).dtype)


def loses_nan(noise: Tensor, model: Any = contracting) -> Tensor:
    return careful(noise, model).nan_to_num()


def broadcasts(noise: Tensor, model: Any = contracting) -> Tensor:
    def expanded(x: Tensor) -> Tensor:
        result = model(x)
        return result.expand(x.shape) if isinstance(result, Tensor) else result

    return careful(noise, expanded if callable(model) else model)


@pytest.mark.parametrize(
    ("fn", "line"),
    [
        (on_the_users_tensor, "in place: raised AssertionError: the noise was changed"),
        (twice_in_place, "in place: another result"),
        (takes_any_type, "another type: another result: torch.float64"),
        (loses_nan, "NaN: is lost in the result"),
        (broadcasts, r"a number: accepted\n  one row: accepted\n  one column: accepted$"),
    ],
)
def test_hostile_networks_of_a_sampler(fn, line) -> None:
    with pytest.raises(AssertionError, match=rf"{fn.__name__}: networks: \d of 7 habits of model:(.*\n)*  {line}"):
        check_sampler(fn, NOISE)


def test_a_sampler_that_stands_hostile_networks_passes() -> None:
    check_sampler(careful, NOISE)
    habits = dict.fromkeys(("networks: a number", "networks: one row", "networks: one column"), "broadcasts")
    check_sampler(broadcasts, NOISE, skip=habits)
    with pytest.raises(AssertionError, match="the habits of networks are in place, another type"):
        check_sampler(careful, NOISE, skip={"networks: asleep": "?"})


# Streaming: the mean of rows


class GoodMean:
    def __init__(self) -> None:
        self.total, self.count = torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def update(self, x: Tensor, weight: Tensor) -> None:
        check_tensor(x, "x")
        self.total += (x * weight[:, None]).sum(0)
        self.count += weight.sum()

    def merge_(self, other: GoodMean) -> GoodMean:
        self.total += other.total
        self.count += other.count
        return self

    def all_reduce_(self) -> GoodMean:
        torch.distributed.all_reduce(self.total)
        torch.distributed.all_reduce(self.count)
        return self

    def compute(self) -> dict[str, Tensor]:
        return {"mean": self.total / self.count, "count": self.count}


class InPlace(GoodMean):
    def update(self, x: Tensor, weight: Tensor) -> None:
        super().update(x, weight)
        x.zero_()


class MeanOfMeans(GoodMean):
    def update(self, x: Tensor, weight: Tensor) -> None:
        check_tensor(x, "x")
        self.total += x.mean(0)
        self.count += 1


class ByOrder(GoodMean):
    def update(self, x: Tensor, weight: Tensor) -> None:
        for row, w in zip(x, weight, strict=True):
            super().update(row[None] * (1 + self.count), w[None])


class NoMerge(GoodMean):
    merge_ = None

    def __getattribute__(self, name: str):
        if name == "merge_":
            raise AttributeError(name)
        return super().__getattribute__(name)


class MergeTakesMean(GoodMean):
    def merge_(self, other: GoodMean) -> GoodMean:
        self.total = (self.total + other.total) / 2
        return self


class MergeDrains(GoodMean):
    def merge_(self, other: GoodMean) -> GoodMean:
        super().merge_(other)
        other.total *= 0
        return self


class SharedState(GoodMean):
    def __deepcopy__(self, memo: dict[int, object]) -> SharedState:
        twin = SharedState()
        twin.total, twin.count = self.total, self.count
        return twin


class UpdatesFirst(GoodMean):
    def update(self, x: Tensor, weight: Tensor) -> None:
        self.count += weight.sum()
        self.count -= weight.sum() if x.isfinite().all() else 0
        super().update(x, weight)


class AcceptsNaN(GoodMean):
    def update(self, x: Tensor, weight: Tensor) -> None:
        super().update(x.nan_to_num(), weight)


class ReducesHalf(GoodMean):
    def all_reduce_(self) -> GoodMean:
        torch.distributed.all_reduce(self.total)
        return self


class NothingToCompare(GoodMean):
    def compute(self) -> None:
        return None


BROKEN_STREAMS = [
    ("inputs unchanged", InPlace),
    ("batch split", MeanOfMeans),
    ("batch split", NothingToCompare),
    ("batch order", ByOrder),
    ("merge", NoMerge),
    ("merge", MergeTakesMean),
    ("merge", MergeDrains),
    ("copy", SharedState),
    ("rejected batch", UpdatesFirst),
    ("rejected batch", AcceptsNaN),
    ("two processes", ReducesHalf),
]
DRAWS = torch.Generator().manual_seed(1)
BATCHES = [
    (torch.randn(n, 3, generator=DRAWS, dtype=torch.float64), torch.rand(n, generator=DRAWS).double())
    for n in (4, 1, 5, 2)
]


@pytest.mark.parametrize(("property_name", "make"), BROKEN_STREAMS, ids=[make.__name__ for _, make in BROKEN_STREAMS])
def test_broken_stream_is_caught(property_name, make) -> None:
    with pytest.raises(AssertionError, match=rf"^check_streaming of {make.__name__}: {property_name}: "):
        check_streaming(make, BATCHES)


def test_good_streams_pass() -> None:
    check_streaming(GoodMean, BATCHES)
    check_streaming(
        lambda: GoodMean(),
        [(x.numpy(), w.numpy()) for x, w in BATCHES],
        update=lambda mean, x, w: mean.update(x * 2, w),
        result=lambda mean: mean.total,
        skip={"two processes": "checked above"},
    )
    with pytest.raises(AssertionError, match="pass update="):
        check_streaming(list, BATCHES, result=len)
    with pytest.raises(ValueError, match="at least three"):
        check_streaming(GoodMean, BATCHES[:2])
