"""
What is a face, having seen faces alone
=======================================

A one-class detector learns from one class and meets the other only when it is used. Here it learns from 60 small
pictures of faces; what is no face it has never seen.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage.data import lfw_subset
from skimage.feature import hog

from offprints.hyp_oc import HypOCDetector, spoof_metrics

# %%
# Pictures and features
# ---------------------
# The first 100 pictures are faces. Any features do; these are histograms of oriented gradients. They are left as they
# are: the detector sees the class from 0, and centered features would take that away.

pictures = lfw_subset()
features = np.stack([hog(picture, pixels_per_cell=(5, 5), cells_per_block=(2, 2)) for picture in pictures])
order = np.random.default_rng(0).permutation(100)
train, live, others = features[order[:60]], features[order[60:]], features[100:]

# %%
# Fit on faces
# ------------
# `variance` is of the size of a coordinate's scatter. With `alpha=0` the pseudo-negatives lie around the faces
# themselves, and less is learned: that is the control.

options = {"lr": 3e-3, "epochs": 40, "variance": 0.03, "random_state": 0}
detectors = {
    "mean displaced (the method)": HypOCDetector(**options).fit(train),
    "mean at the features (alpha 0)": HypOCDetector(alpha=0.0, **options).fit(train),
}
test, labels = np.concatenate([live, others]), np.repeat([0, 1], [len(live), len(others)])
scores = {name: -detector.score_samples(test) for name, detector in detectors.items()}
for name, values in scores.items():
    metrics = spoof_metrics(values, labels)
    print(f"{name}: AUC {metrics.auc:.3f}, EER {metrics.eer:.3f}")

# %%
# The scores, and the least and most likely faces
# -----------------------------------------------

figure, axes = plt.subplot_mosaic([["a", "a", "b", "b"], ["c", "d", "e", "f"]], figsize=(8, 6), layout="constrained")
for place, (name, values) in zip("ab", scores.items(), strict=True):
    edges = np.linspace(values.min(), values.max(), 25)
    axes[place].hist(values[labels == 0], edges, alpha=0.6, label="faces")
    axes[place].hist(values[labels == 1], edges, alpha=0.6, label="no faces")
    axes[place].set(title=name, xlabel="spoof score")
    axes[place].legend(frameon=False)
values = scores["mean displaced (the method)"]
shown = np.concatenate([pictures[order[60:]], pictures[100:]])
ranked = np.argsort(values)
for place, (index, title) in zip(
    "cdef",
    ((ranked[0], "most live"), (ranked[1], "second"), (ranked[-2], "second least"), (ranked[-1], "least live")),
    strict=True,
):
    axes[place].imshow(shown[index], cmap="gray")
    axes[place].set_title(title)
    axes[place].set_axis_off()
figure.show()
