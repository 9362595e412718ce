"""Persistence pairs of an image and the Betti matching of two images."""

from dataclasses import dataclass, replace

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

    Example:
        >>> components, loops = compute_barcode(np.array([[0.9, 0.2, 0.7]]))
        >>> components.birth_values, components.death_values
        (array([0.9, 0.7]), array([-inf,  0.2]))
        >>> components.birth[1]
        array([0, 2])
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

    Example:
        >>> matching = compute_matching(np.array([0.9, 0.2, 0.7, 0.0]), np.array([1.0, 1.0, 1.0, 0.0]))
        >>> matching.num_matched, matching.num_unmatched_pred, matching.num_unmatched_target
        ((1,), (1,), (0,))
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

    def unpadded(self) -> "Matching":
        """The same matching in coordinates of the images themselves, also where it is ``relative``.

        A voxel of the frame then has a coordinate of -1 or of the length of the axis; the death of the essential pair
        stays -1 everywhere.

        Example:
            >>> matching = compute_matching(np.eye(3), np.eye(3), relative=True)
            >>> matching.matched_pred[1].death[0], matching.unpadded().matched_pred[1].death[0]
            (array([3, 2]), array([2, 1]))
        """
        if not self.relative:
            return self

        def shift(pairs: PairList) -> PairList:
            endless = (pairs.death < 0).all(axis=1, keepdims=True)
            return replace(pairs, birth=pairs.birth - 1, death=np.where(endless, pairs.death, pairs.death - 1))

        return replace(
            self,
            matched_pred=tuple(map(shift, self.matched_pred)),
            matched_target=tuple(map(shift, self.matched_target)),
            unmatched_pred=tuple(map(shift, self.unmatched_pred)),
            unmatched_target=tuple(map(shift, self.unmatched_target)),
        )
