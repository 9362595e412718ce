"""The losses that the paper compares with: Wasserstein matching of barcodes, and clDice."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from offprints.betti_matching._terms import (
    Layout,
    in_output_precision,
    in_working_precision,
    padded,
    square_terms,
    sum_of_squares,
)
from offprints.betti_matching.bars import check_values
from offprints.betti_matching.images import check_images, refuse_transformed
from offprints.betti_matching.matching import VoxelPairs, compute_barcode
from offprints.betti_matching.options import Construction, Filtration, MatchingOptions, check_dims
from offprints.betti_matching.pairs import PairList
from offprints.shared.validation import Reduction, check_choice, check_number, reduce


def wasserstein_loss(
    pred: Float[Tensor, "batch channels *spatial"],
    target: Shaped[Tensor, "batch channels *spatial"],
    *,
    filtration: Filtration = "superlevel",
    construction: Construction = "V",
    relative: bool = False,
    reduced: bool = False,
    dims: Sequence[int] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Loss of Hu et al. (NeurIPS 2019): the Betti matching loss with bars matched by their values alone.

    Of all matchings of the two barcodes it takes the cheapest (twice the squared 2-Wasserstein distance), wherever in
    the image the features lie; it is never greater than `betti_matching_loss` of the same images. Arguments, result and
    errors as for `betti_matching_loss`.
    """
    settings = MatchingOptions(filtration, construction, "union", relative, reduced)
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    check_images(pred, target, ("pred", "target"), floating=True)
    for x, name in ((pred, "pred"), (target, "target")):
        refuse_transformed(x, name)
    chosen = check_dims(dims, pred.ndim - 2) or ()
    p, t = in_working_precision(pred, target)
    shape = p.shape[2:]
    host = torch.stack((p.detach(), t.detach())).flatten(1, 2).cpu().numpy()
    check_values(host[0], host[1], "pred")

    matchings = []
    for images in zip(*host, strict=True):
        barcodes = [
            compute_barcode(x, filtration=filtration, construction=construction, relative=relative, reduced=reduced)
            for x in images
        ]
        matchings.append([_match_by_value(barcodes[0][k], barcodes[1][k], shape, settings.relative) for k in chosen])
    frames = (filtration,) if settings.relative else ()
    terms = square_terms(matchings, Layout(tuple(shape), frames), frame=0 if frames else None)
    ends, weights = (torch.from_numpy(x).to(p.device) for x in padded([terms], len(matchings)))
    losses = sum_of_squares(p, t, ends, weights, frames)
    return in_output_precision(reduce(losses, reduction), pred)


def _match_by_value(f: PairList, g: PairList, shape: Sequence[int], relative: bool) -> VoxelPairs:
    """The cheapest matching of two lists of bars; the essential ones are matched to each other."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    grid = [n + 2 * relative for n in shape]
    finite, voxels, points = [], [], []
    for bars in (f, g):
        ends = [np.ravel_multi_index(end.T, grid, mode="clip") for end in (bars.birth, bars.death)]
        finite.append(bars.death[:, 0] >= 0)
        voxels.append(np.stack((ends[0], np.where(finite[-1], ends[1], -1)), axis=1))
        points.append(np.stack((bars.birth_values, bars.death_values), axis=1)[finite[-1]])
    # What it saves to match two points instead of sending both to the diagonal, (b - d)^2 / 2 away from each.
    diagonal = [np.square(x[:, 0] - x[:, 1]) / 2 for x in points]
    savings = np.add.outer(*diagonal) - np.square(points[0][:, None] - points[1]).sum(axis=2)
    i, j = linear_sum_assignment(np.maximum(savings, 0), maximize=True)
    useful = savings[i, j] > 0
    i, j = i[useful], j[useful]
    left, right = (rows[keep] for rows, keep in zip(voxels, finite, strict=True))
    essential = np.concatenate([rows[~keep] for rows, keep in zip(voxels, finite, strict=True)], axis=1)
    matched = np.concatenate((essential, np.concatenate((left[i], right[j]), axis=1)))
    return matched, np.delete(left, i, axis=0), np.delete(right, j, axis=0)


def cldice_loss(
    pred: Float[Tensor, "batch channels *spatial"],
    target: Shaped[Tensor, "batch channels *spatial"],
    *,
    iterations: int = 3,
    smooth: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """One minus the centerline Dice score of Shit et al. (CVPR 2021), with their soft skeletons.

    Args:
        pred: probabilities ``[batch, channels, *spatial]`` with 1 to 3 spatial axes.
        target: the same shape and device; floating, integer or boolean.
        iterations: erosions of the soft skeleton, at least the largest radius of a structure.
        smooth: added to numerator and denominator of both ratios.
        reduction: over the ``batch * channels`` images.

    Returns:
        The loss in the dtype of `pred`, as `betti_matching_loss` has it. NaN and infinite values propagate.

    Raises:
        TypeError, ValueError: as `betti_matching_loss`; also if `iterations` or `smooth` is negative.
    """
    iterations = check_number(iterations, "iterations", low=0, integer=True)
    smooth = check_number(smooth, "smooth", low=0.0)
    check_images(pred, target, ("pred", "target"), floating=True)
    p, t = in_working_precision(pred, target)
    axes = tuple(range(2, p.ndim))
    skeletons = soft_skeleton(p, iterations), soft_skeleton(t, iterations)
    precision, sensitivity = (
        ((skeleton * mask).sum(axes) + smooth) / (skeleton.sum(axes) + smooth)
        for skeleton, mask in zip(skeletons, (t, p), strict=True)
    )
    losses = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    return in_output_precision(reduce(losses, reduction), pred)


def soft_skeleton(
    image: Float[Tensor, "batch channels *spatial"], iterations: int
) -> Float[Tensor, "batch channels *spatial"]:
    """Skeleton of a probability map by repeated erosion and opening (Algorithm 1 of Shit et al.)."""
    axes = image.ndim - 2
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]

    def dilate(x: Tensor) -> Tensor:
        return pool(x, 3, stride=1, padding=1)

    def erode(x: Tensor) -> Tensor:
        lines = [[3 if axis == other else 1 for other in range(axes)] for axis in range(axes)]
        return -torch.stack([pool(-x, line, 1, [n // 2 for n in line]) for line in lines]).amax(0)

    skeleton = (image - dilate(erode(image))).relu()
    for _ in range(iterations):
        image = erode(image)
        ridge = (image - dilate(erode(image))).relu()
        skeleton = skeleton + (ridge - skeleton * ridge).relu()
    return skeleton
