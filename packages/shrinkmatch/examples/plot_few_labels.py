"""
One label in sixty: which unlabeled samples can be used
=======================================================

FixMatch learns from unlabeled samples of which the network is certain. Of most it is not: two or three classes share
the probability. Without the rivals the likeliest class *is* certain among the rest, and that can be learned from.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.semi_supervised import LabelSpreading

from offprints.shrinkmatch import ShrinkMatchClassifier, shrink_class_space, split_labels

# %%
# Three labels a class
# --------------------
# Of 1797 scans, 30 keep their label; -1 marks the others.

digits = load_digits()
X, truth = digits.images[:, None].astype(np.float32), digits.target
labeled, _ = split_labels(truth, per_class=3, seed=0)
y = np.full(len(truth), -1)
y[labeled] = truth[labeled]

# %%
# A classifier for images
# -----------------------
# A small network of three convolutions, with shifts as weak views, and affine maps, noise and missing squares as strong
# ones.

classifier = ShrinkMatchClassifier(max_steps=150, batch_size=24, mu=4, random_state=0).fit(X, y)
unknown = y == -1
accuracy = classifier.score(X[unknown], truth[unknown])
spreading = LabelSpreading(kernel="knn", n_neighbors=7).fit(X.reshape(len(X), -1), y)
print(f"accuracy on the unlabeled scans: {accuracy:.3f}")
print(f"scikit-learn's label spreading: {(spreading.transduction_ == truth)[unknown].mean():.3f}")

# %%
# Certain, rescued, dropped
# -------------------------
# The shrunk class space of the final predictions: how many rivals have to go, and how often the top class is right.

probs = torch.from_numpy(classifier.predict_proba(X[unknown]))
space = shrink_class_space(probs, threshold=0.95)
right = space.order[:, 0].numpy() == truth[unknown]
groups = {
    "certain": ~space.uncertain.numpy(),
    "rescued": space.reached.numpy(),
    "dropped": (space.uncertain & ~space.reached).numpy(),
}
for name, rows in groups.items():
    told = f", {right[rows].mean():.3f} of them right" if rows.any() else ""
    print(f"{name}: {rows.mean():.3f} of the unlabeled scans{told}")

# %%
# What training used
# ------------------
# The share of certain samples grows slowly; the shrunk loss has the others from the beginning on, weighted by the
# running ratio of certain ones.

history = classifier.history_
steps = [record["step"] for record in history]
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
axes[0].plot(steps, [record["mask_ratio"] for record in history], color="#0072b2", label="certain, this batch")
axes[0].plot(steps, [record["certain_ratio"] for record in history], color="#d55e00", label="running ratio")
axes[0].set(xlabel="step", ylabel="share of the unlabeled samples", ylim=(0, 1))
axes[0].legend(frameon=False)
removed = (space.first_kept - 1)[space.reached].numpy()
axes[1].bar(*np.unique(removed, return_counts=True), color="#d55e00")
axes[1].set(xlabel="classes removed", ylabel="rescued scans")
hardest = int(torch.where(space.reached, space.first_kept, -1).argmax())
kept = space.kept[hardest].numpy()
axes[2].bar(range(10), probs[hardest], color=np.where(kept, "#d55e00", "#cccccc"))
axes[2].set(xlabel="class", ylabel="probability", xticks=range(10), title="a rescued scan: kept and removed (gray)")
figure.show()
