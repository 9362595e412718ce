"""
Two segmentations of a retina with the same Dice score
======================================================

Dice counts pixels. A segmentation that cuts a vessel loses a handful of them, and so does one that is a little ragged
at the boundary: the score cannot tell the two apart, although only one of them still shows how the blood flows. The
Betti matching error counts the components and loops that have no partner *in the same place* of the other image.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data, filters, morphology

from offprints.betti_matching import (
    BettiMatchingLoss,
    betti_matching_error,
    compute_matching,
    representative_cycles,
)

# %%
# A mask of vessels
# -----------------
# Scikit-image comes with a picture of a retina. Vessels are dark ridges in its green channel; a ridge filter and two
# thresholds give a mask, which is the truth of this example.

green = data.retina()[:1410, :1410, 1].reshape(470, 3, 470, 3).mean((1, 3)) / 255
ridges = filters.sato(green, sigmas=[1.0, 1.5, 2.0, 2.5], black_ridges=True)[250:410, 60:260]
picture = green[250:410, 60:260]
truth = morphology.remove_small_objects(filters.apply_hysteresis_threshold(ridges, 0.014, 0.03), max_size=30)


def dice(prediction):
    """Twice the common pixels over the pixels of both masks."""
    return 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())


def error(prediction):
    """Features of either image that have no partner in the other."""
    images = [torch.from_numpy(mask).float()[None, None] for mask in (prediction, truth)]
    return int(betti_matching_error(*images, relative=True))


# %%
# Vessels cut in two
# ------------------
# The first prediction has lost three pieces of vessel, each six pixels long, where the loss changes the features.

generator = np.random.default_rng(0)
rows, columns = np.indices(truth.shape)
cut, places = truth.copy(), []
for row, column in generator.permutation(np.argwhere(morphology.skeletonize(truth))):
    far = all((row - r) ** 2 + (column - c) ** 2 > 40**2 for r, c in places)
    inside = 10 < row < truth.shape[0] - 10 and 10 < column < truth.shape[1] - 10
    trial = cut & ((rows - row) ** 2 + (columns - column) ** 2 > 3**2)
    if far and inside and error(trial) > error(cut):
        cut = trial
        places.append((row, column))
    if len(places) == 3:
        break

# %%
# A ragged boundary
# -----------------
# The second prediction has lost as many pixels, but along the boundary, and only where all features stay as they are.

ragged, missing = truth.copy(), int((truth & ~cut).sum())
boundary = np.argwhere(truth & ~morphology.erosion(truth, morphology.disk(1)))
for some in np.array_split(generator.permutation(boundary), len(boundary) // 3):
    some = some[: missing - int((truth & ~ragged).sum())]
    ragged[tuple(some.T)] = False
    if error(ragged):
        ragged[tuple(some.T)] = True

for name, prediction in {"ragged": ragged, "cut": cut}.items():
    print(f"{name}: Dice {dice(prediction):.3f}, Betti matching error {error(prediction)}")

# %%
# Where the error is
# ------------------
# `compute_matching` names the features without a partner, and `representative_cycles` the pixels that they consist of:
# in the mask with cuts, the pieces of vessel that have come off, and in the truth the loops that are open now.

figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
axes[0].imshow(picture, cmap="gray")
axes[0].contour(truth, [0.5], colors="#0072b2", linewidths=0.8)
axes[0].set_title("Retina and truth")
for panel, name, prediction in [(axes[1], "Ragged", ragged), (axes[2], "Cut", cut)]:
    matching = compute_matching(prediction.astype(float), truth.astype(float))
    panel.imshow(prediction, cmap="gray", alpha=0.55)
    for dim in (0, 1):
        for image, pairs in [(prediction, matching.unmatched_pred[dim]), (truth, matching.unmatched_target[dim])]:
            for cycle in representative_cycles(image.astype(float), pairs, dim=dim):
                panel.scatter(cycle[:, 1], cycle[:, 0], s=3, color="#d55e00")
    panel.set_title(f"{name}: Dice {dice(prediction):.2f}, Betti matching error {error(prediction)}")
for panel in axes:
    panel.set_axis_off()
figure.show()

# %%
# What the loss does about it
# ---------------------------
# The error is a metric; `BettiMatchingLoss` is its differentiable relative. `DiceBettiMatchingLoss` adds it to Dice in
# the training of a network: the gradient of Dice reaches every pixel, that of Betti matching the few on which the
# features depend. Here it is of a blurred prediction with cuts.

blurred = torch.from_numpy(filters.gaussian(cut.astype(float), 1.0)).float()[None, None].requires_grad_()
loss = BettiMatchingLoss(relative=True)(blurred, torch.from_numpy(truth).float()[None, None])
loss.backward()
touched = int(blurred.grad.count_nonzero())
print(f"loss {float(loss.detach()):.2f}, pixels with a gradient: {touched} of {blurred.numel()}")
