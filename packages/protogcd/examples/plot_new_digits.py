"""
New kinds of digits beside known ones
=====================================

Five digits have names, five do not, and most pictures have no label at all. One model gives the known digits their
names, finds groups among the others, and says which pictures look like neither.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from offprints.protogcd import ProtoGCDClusterer, estimate_num_classes, gcd_accuracy, gcd_split

# %%
# What is known
# -------------
# Digits 0 to 4 are known; half of their pictures have a label. The pictures themselves are the features.

pictures, true = load_digits(return_X_y=True)
split = gcd_split(true, old_classes=range(5), seed=0)
y = np.full(len(true), -1)
y[split.labeled] = true[split.labeled]

# %%
# How many kinds there are
# ------------------------
# The criterion is shown with its whole curve. Here it is nearly flat from 8 on: it says that there are more kinds than
# five, and not exactly how many.

curve = estimate_num_classes(pictures - pictures.mean(0), y, max_classes=14)
print(curve.n_classes, np.round(curve.scores, 2))

# %%
# Fit
# ---
# Beside k-means, which does not use the labels.

model = ProtoGCDClusterer(10, random_state=0).fit(pictures, y)
unlabeled = split.unlabeled
for name, labels in {"ProtoGCD": model.labels_, "k-means": KMeans(10, random_state=0).fit_predict(pictures)}.items():
    found = gcd_accuracy(true[unlabeled], labels[unlabeled], true[unlabeled] < 5)
    print(f"{name}: all {found.all:.2f}, old {found.old:.2f}, new {found.new:.2f}")

# %%
# The curve, and pictures of the new groups
# -----------------------------------------
# A row is one group without a name; its last picture is the one that looks most like an outlier.

figure = plt.figure(figsize=(9, 4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.2])
axis = left.subplots()
axis.plot(curve.candidates, curve.scores, "o-")
axis.set(xlabel="number of classes", ylabel="prototype silhouette")
scores = model.ood_score(pictures)
for row, (group, axes) in enumerate(zip(range(5, 10), right.subplots(5, 8), strict=True)):
    members = np.flatnonzero(model.labels_ == group)
    ranked = members[np.argsort(scores[members])]
    shown = ranked[np.linspace(0, len(ranked) - 1, 8).astype(int)] if len(ranked) else []
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(axes, shown, strict=False):
        axis.imshow(pictures[index].reshape(8, 8), cmap="gray_r")
    axes[0].set_title(f"group {row + 1}", loc="left", fontsize=8)
figure.show()
