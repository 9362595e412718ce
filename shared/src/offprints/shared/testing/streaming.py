"""`check_streaming`: what accumulates over batches, merges, and reduces over processes.

::

    check_streaming(lambda: GroupMoments(3, (4,)), batches, result=lambda moments: (moments.count, moments.mean))
    check_streaming(BettiMatchingMetric, batches, skip={"merge": "compute() reduces by itself"})
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from offprints.shared.testing._properties import Skip, assert_near, clone, expect_error, run_properties, tensors


def check_streaming(
    make: Callable[[], Any],
    batches: Iterable[Any],
    *,
    update: str | Callable[..., Any] | None = None,
    result: str | Callable[[Any], Any] = "compute",
    rtol: float = 1e-9,
    atol: float = 1e-12,
    skip: Skip | None = None,
) -> None:
    """Check that every way to see the same data gives one result.

    Properties, in order: *inputs unchanged*, *batch split* (all at once; row by row), *batch order* (backwards;
    rotated), *merge* (by ``merge_`` or ``merge``; also with one that has seen nothing, both ways; the other is left
    alone), *copy* (a deep copy goes its own way), *rejected batch* (a NaN is a ValueError and changes nothing),
    *two processes* (with ``all_reduce_`` or ``all_reduce`` where there is one; shares of different sizes, also none).

    Args:
        make: ``make()`` returns a new object.
        batches: At least three: tensors (arrays), or tuples of them; the first axis is that of the rows.
        update: Name of the method or ``update(object, *batch)``; None: ``update`` or ``partial_fit``.
        result: Name of the method or ``result(object)``; what is compared, tensors and numbers in any nesting.
        rtol, atol: How closely results agree: sums are taken in another order.
        skip: Property to reason.
    """
    case = _Case(make, [_as_tuple(batch) for batch in batches], update, result, rtol, atol)
    properties: dict[str, Callable[[], None]] = {
        "inputs unchanged": case.check_inputs_unchanged,
        "batch split": case.check_split,
        "batch order": case.check_order,
        "merge": case.check_merge,
        "copy": case.check_copy,
        "rejected batch": case.check_rejected_batch,
        "two processes": case.check_two_processes,
    }
    run_properties("check_streaming", make(), properties, skip)


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    batch = batch if isinstance(batch, list | tuple) else (batch,)
    return tuple(x if isinstance(x, Tensor) else torch.as_tensor(x) for x in batch)


def _method(subject: Any, names: Sequence[str]) -> Callable[..., Any] | None:
    return next((getattr(subject, name) for name in names if hasattr(subject, name)), None)


class _Case:
    def __init__(
        self,
        make: Callable[[], Any],
        batches: list[tuple[Tensor, ...]],
        update: str | Callable[..., Any] | None,
        result: str | Callable[[Any], Any],
        rtol: float,
        atol: float,
    ) -> None:
        if len(batches) < 3:
            raise ValueError(f"at least three batches are needed, got {len(batches)}")
        self.make, self.batches, self.update, self.result = make, batches, update, result
        self.rtol, self.atol = rtol, atol

    def feed(self, subject: Any, batches: Iterable[tuple[Tensor, ...]]) -> Any:
        for batch in clone(list(batches)):
            self.feed_one(subject, batch)
        return subject

    def feed_one(self, subject: Any, batch: tuple[Tensor, ...]) -> None:
        if callable(self.update):
            self.update(subject, *batch)
            return
        method = _method(subject, ("update", "partial_fit") if self.update is None else (self.update,))
        if method is None:
            raise AssertionError("there is neither update nor partial_fit: pass update=")
        method(*batch)

    def value(self, subject: Any) -> Any:
        value = self.result(subject) if callable(self.result) else getattr(subject, self.result)()
        value = [tensor.detach().clone() for tensor in tensors(value)]
        if not value:
            raise AssertionError("the result holds no number: nothing would be compared")
        return value

    def of(self, batches: Iterable[tuple[Tensor, ...]]) -> Any:
        return self.value(self.feed(self.make(), batches))

    def agree(self, actual: Any, what: str) -> None:
        assert_near(actual, self.of(self.batches), what, rtol=self.rtol, atol=self.atol)

    def check_inputs_unchanged(self) -> None:
        batch = clone(self.batches[0])
        self.feed_one(self.make(), batch)
        assert_near(batch, self.batches[0], "a batch was changed", rtol=0.0, atol=0.0)

    def check_split(self) -> None:
        together = tuple(torch.cat(columns) for columns in zip(*self.batches, strict=True))
        self.agree(self.of([together]), "all rows at once against batches")
        rows = [tuple(x[i : i + 1] for x in together) for i in range(len(together[0]))]
        self.agree(self.of(rows), "row by row against batches")

    def check_order(self) -> None:
        self.agree(self.of(self.batches[::-1]), "the batches backwards")
        self.agree(self.of([*self.batches[1:], self.batches[0]]), "the first batch last")

    def check_merge(self) -> None:
        def merged(mine: list[tuple[Tensor, ...]], its: list[tuple[Tensor, ...]]) -> Any:
            subject, other = self.feed(self.make(), mine), self.feed(self.make(), its)
            merge = _method(subject, ("merge_", "merge"))
            if merge is None:
                raise AssertionError("there is neither merge_ nor merge")
            before = self.value(other) if its else None
            merge(other)
            if its:
                assert_near(self.value(other), before, "merging changed the other", rtol=0.0, atol=0.0)
            return self.value(subject)

        self.agree(merged(self.batches[:1], self.batches[1:]), "merged from two")
        self.agree(merged(self.batches, []), "merged with one that has seen nothing")
        self.agree(merged([], self.batches), "one that has seen nothing, merged with the whole")

    def check_copy(self) -> None:
        subject = self.feed(self.make(), self.batches[:1])
        twin = copy.deepcopy(subject)
        self.feed(twin, self.batches[1:])
        self.agree(self.value(twin), "a deep copy that goes on")
        self.agree(self.value(self.feed(subject, self.batches[1:])), "the original of a deep copy")

    def check_rejected_batch(self) -> None:
        subject = self.feed(self.make(), self.batches[:1])
        bad, spoiled = [x.clone() for x in self.batches[1]], False
        for x in bad:
            if x.is_floating_point() and not spoiled:
                x.view(-1)[-1], spoiled = torch.nan, True
        expect_error(ValueError, "NaN in a batch", self.feed, subject, [tuple(bad)])
        self.agree(self.value(self.feed(subject, self.batches[1:])), "after a rejected batch")

    def check_two_processes(self) -> None:
        from offprints.shared.testing.processes import two_processes

        shares = {
            "one batch against the rest": (self.batches[:1], self.batches[1:]),
            "all batches against none": (self.batches, []),
        }
        make, feed, value = self.make, self.feed, self.value

        def reduced(rank: int) -> list[Any]:
            results = []
            for parts in shares.values():
                subject = feed(make(), parts[rank])
                reduce = _method(subject, ("all_reduce_", "all_reduce"))
                if reduce is not None:
                    reduce()
                results.append(value(subject))
            return results

        for rank, results in enumerate(two_processes(reduced)):
            for what, reduced_result in zip(shares, results, strict=True):
                self.agree(reduced_result, f"{what}, on rank {rank}")
