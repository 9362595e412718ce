"""
Which unlabeled samples can be trusted
======================================

A few labels of some classes, and a pool in which half of the samples are of other classes. A representation that was
learned without labels says which label each sample of the pool would get, and how much that is worth: the weight is
small for samples of unknown classes, and for those between two known ones.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import SpectralEmbedding

from offprints.wad import error_decomposition, mismatch_split, rectify_labels, teacher_knowledge

# %%
# Five classes with four labels each, half of the pool unknown
# ------------------------------------------------------------
digits = load_digits()
known_classes = [0, 1, 4, 6, 7]
split = mismatch_split(digits.target, target_classes=known_classes, num_labeled=20, mismatch=0.5, seed=0, balanced=True)
y_labeled = torch.tensor(rectify_labels(digits.target[split.labeled], known_classes))
print(len(split.labeled), "labeled,", len(split.unlabeled), "unlabeled images")

# %%
# A teacher without labels
# ------------------------
# Any encoder will do: a contrastive network, CLIP, DINO. Here it is a spectral embedding.
features = torch.tensor(SpectralEmbedding(20, n_neighbors=10, random_state=0).fit_transform(digits.data))
knowledge = teacher_knowledge(features[split.unlabeled], features[split.labeled], y_labeled, num_classes=5)

# %%
# What the weights are worth
# --------------------------
# Without weights, half of what a student is taught would come from classes that it cannot know.
truth = np.full(len(split.unlabeled), -1)
truth[split.is_target_unlabeled] = rectify_labels(
    digits.target[split.unlabeled][split.is_target_unlabeled], known_classes
)
for name, weights in (("equal weights", torch.ones(len(truth))), ("WAD's weights", knowledge.weights)):
    errors = error_decomposition(knowledge.pseudo_labels, weights, truth)
    print(f"{name}: pseudo-labeling error {errors.pseudo_labeling:.3f}, invasion error {errors.invasion:.3f}")

# %%
# The pool, from the least to the most trusted
# --------------------------------------------
weights, order = knowledge.weights.numpy(), knowledge.weights.argsort().numpy()
figure = plt.figure(figsize=(8, 4.5), layout="constrained")
top, bottom = figure.subfigures(2, height_ratios=[3, 2])
axis = top.subplots()
edges = np.linspace(0, weights.max(), 30)
axis.hist(weights[truth >= 0], edges, alpha=0.6, label="known classes")
axis.hist(weights[truth < 0], edges, alpha=0.6, label="unknown classes")
axis.set(xlabel="weight", ylabel="unlabeled images")
axis.legend(frameon=False)
shown = order[np.linspace(0, len(order) - 1, 10).astype(int)]
for ax, row in zip(bottom.subplots(1, 10), shown, strict=True):
    ax.imshow(digits.images[split.unlabeled[row]], cmap="gray_r")
    label = known_classes[knowledge.pseudo_labels[row]]
    ax.set_title(f"{label}? {weights[row]:.2f}", fontsize=8, color="C0" if truth[row] >= 0 else "C1")
    ax.set_axis_off()
