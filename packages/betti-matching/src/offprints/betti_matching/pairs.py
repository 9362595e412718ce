"""Persistence pairs of an image and the Betti matching of two images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True, eq=False)
class PairList:
    """Persistence pairs of one image in one homology dimension.

    Attributes:
        birth: voxel that gives the birth cell its value, one row of coordinates per pair; on the padded grid (one voxel
            more on every side) if ``relative``.
        death: the same of the death cell; -1 everywhere for the essential pair, which never dies.
        birth_values: values of the image itself, whatever the filtration.
        death_values: the same; the essential pair's is infinite: positive in sublevel, negative in superlevel.
    """

    birth: Int64[np.ndarray, "pairs ndim"]
    death: Int64[np.ndarray, "pairs ndim"]
    birth_values: Float64[np.ndarray, "pairs"]
    death_values: Float64[np.ndarray, "pairs"]

    def __len__(self) -> int:
        return len(self.birth)


@dataclass(frozen=True, eq=False)
class Matching:
    """Betti matching of a prediction and a target (Definition 2 of the paper).

    Each list has one entry per homology dimension 0, ..., d - 1. Row i of ``matched_pred[k]`` is matched to row i of
    ``matched_target[k]``; row 0 of dimension 0 is the essential pair, unless ``reduced``.

    Attributes:
        shape: of the images, without the frame that ``relative`` puts around them.
    """

    shape: tuple[int, ...]
    filtration: str
    construction: str
    comparison: str
    relative: bool
    reduced: bool
    matched_pred: tuple[PairList, ...]
    matched_target: tuple[PairList, ...]
    unmatched_pred: tuple[PairList, ...]
    unmatched_target: tuple[PairList, ...]

    @property
    def num_matched(self) -> tuple[int, ...]:
        """Number of matched pairs of each homology dimension."""
        return tuple(map(len, self.matched_pred))

    @property
    def num_unmatched_pred(self) -> tuple[int, ...]:
        """Number of pairs of the prediction that have no partner, for each homology dimension."""
        return tuple(map(len, self.unmatched_pred))

    @property
    def num_unmatched_target(self) -> tuple[int, ...]:
        """Number of pairs of the target that have no partner, for each homology dimension."""
        return tuple(map(len, self.unmatched_target))
