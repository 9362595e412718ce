"""The options of a matching and of a loss: one frozen record each, checked once, where it is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch

from offprints.shared.validation import check_bool, check_choice, check_number

Filtration = Literal["superlevel", "sublevel"]
Construction = Literal["V", "T"]
Comparison = Literal["union", "intersection"]
LossFiltration: TypeAlias = Literal["superlevel", "sublevel", "bothlevel"]
Unmatched: TypeAlias = Literal["diagonal", "corner"]
Nonfinite: TypeAlias = Literal["auto", "raise", "propagate"]


@dataclass(frozen=True)
class MatchingOptions:
    """How images are filtered and compared; see `compute_matching`."""

    filtration: Filtration = "superlevel"
    construction: Construction = "V"
    comparison: Comparison = "union"
    relative: bool = False
    reduced: bool = False

    def __post_init__(self) -> None:
        check_choice(self.filtration, "filtration", ("superlevel", "sublevel"))
        check_choice(self.construction, "construction", ("V", "T"))
        check_choice(self.comparison, "comparison", ("union", "intersection"))
        for name in ("relative", "reduced"):
            object.__setattr__(self, name, check_bool(getattr(self, name), name))

    @property
    def superlevel(self) -> bool:
        """Whether bright voxels come first."""
        return self.filtration == "superlevel"

    @property
    def sign(self) -> float:
        """What turns the filtration into the sublevel filtration."""
        return -1.0 if self.superlevel else 1.0

    @property
    def code_of_construction(self) -> int:
        """The construction as the compiled code names it."""
        return int(self.construction == "T")


@dataclass(frozen=True)
class LossOptions:
    """What a loss does with the matchings; see `betti_matching_loss`."""

    filtration: LossFiltration = "superlevel"
    construction: Construction = "V"
    comparison: Comparison = "union"
    relative: bool = False
    reduced: bool = False
    dims: Sequence[int] | None = None
    weights: tuple[float, float] = (1.0, 1.0)
    min_persistence: float = 0.0
    unmatched: Unmatched = "diagonal"
    nonfinite: Nonfinite = "auto"
    num_workers: int | None = None
    spatial_dims: int | None = None
    filtrations: tuple[MatchingOptions, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice(self.filtration, "filtration", ("superlevel", "sublevel", "bothlevel"))
        first = MatchingOptions("superlevel", self.construction, self.comparison, self.relative, self.reduced)
        both = (first, replace(first, filtration="sublevel"))
        chosen = {"superlevel": both[:1], "sublevel": both[1:], "bothlevel": both}[self.filtration]
        check_choice(self.unmatched, "unmatched", ("diagonal", "corner"))
        check_choice(self.nonfinite, "nonfinite", ("auto", "raise", "propagate"))
        checked = {
            "relative": first.relative,
            "reduced": first.reduced,
            "dims": check_dims(self.dims),
            "weights": check_weights(self.weights),
            "min_persistence": float(check_number(self.min_persistence, "min_persistence", low=0.0)),
            "num_workers": check_num_workers(self.num_workers),
            "spatial_dims": check_spatial_dims(self.spatial_dims),
            "filtrations": chosen,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def check_dims(dims: Sequence[int] | None, ndim: int | None = None) -> tuple[int, ...] | None:
    """The homology dimensions as a tuple; ValueError if empty, repeated or (with ``ndim``) out of range."""
    if dims is None:
        return None if ndim is None else tuple(range(ndim))
    given: object = dims
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"dims must be a sequence of integers or None, got {dims!r}")
    high = (3 if ndim is None else ndim) - 1
    chosen = tuple(check_number(k, "dims", low=0, high=high, integer=True) for k in dims)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"dims must name at least one homology dimension and none twice, got {chosen}")
    return chosen


def check_weights(weights: Sequence[float]) -> tuple[float, float]:
    """The weights of matched and of unmatched bars, as plain numbers."""
    given: object = weights
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"weights must be two numbers, of matched and unmatched bars, got {weights!r}")
    if len(weights) != 2:
        raise ValueError(f"weights must be two numbers, of matched and unmatched bars, got {len(weights)}")
    matched, unmatched = (float(check_number(w, "weights", low=0.0)) for w in weights)
    return matched, unmatched


def check_spatial_dims(spatial_dims: int | None) -> int | None:
    """The number of axes of an image where it is given."""
    if spatial_dims is None:
        return None
    return check_number(spatial_dims, "spatial_dims", low=1, high=3, integer=True)


def check_num_workers(num_workers: int | None) -> int | None:
    """The number of threads where it is given."""
    return None if num_workers is None else check_number(num_workers, "num_workers", low=1, integer=True)


def default_workers() -> int:
    """Threads that may be used: those that torch uses, and no more than the processors that this process may run on."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(own, torch.get_num_threads()))
