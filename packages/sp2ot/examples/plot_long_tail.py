"""
Pseudo-labels for long-tailed data
==================================

Self-labeling gives every sample to a cluster and trains on the answer. The usual transport makes all clusters equally
large. Where classes are not, it tears the large ones apart and fills the small ones with strangers. Partial transport
asks for softly prescribed sizes, and for the confident share of the samples alone.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from offprints.sp2ot import knn_similarity, long_tailed_indices, partial_ot, semantic_partial_ot

# %%
# Ten classes, one of them ten times as large as another
# ------------------------------------------------------
# Scanned digits, thinned out exponentially: the head class keeps all it has, the last a tenth.

digits = load_digits()
index = long_tailed_indices(digits.target, ratio=0.1, seed=0)
labels = torch.tensor(digits.target[index])
features = torch.tensor(PCA(20, random_state=0).fit_transform(digits.data[index] / 16))
counts = torch.bincount(labels)
print("samples a class:", counts.tolist())

# %%
# Predictions to start from
# -------------------------
# The logits are ten times the cosines with the centers of k-means, in place of a network's head.

centers = KMeans(10, n_init=10, random_state=0).fit(features.numpy()).cluster_centers_
logits = 10 * torch.nn.functional.cosine_similarity(features[:, None], torch.tensor(centers)[None], dim=-1)
cost = -logits.log_softmax(1)

# %%
# Three ways to make pseudo-labels
# --------------------------------
# Balanced transport fixes equal sizes (`gamma=inf`) and labels every sample. Partial transport labels the confident
# share `rho`, with sizes that may differ at a price. The semantic term adds a reward for neighbors in one cluster; its
# weight is the paper's, scaled to the number of samples.

count = len(features)
similarity = knn_similarity(features, k=20)
shares = [0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0]


def right_share(pseudo_labels):
    """Share of the labeled mass on the right class, clusters named in the best way."""
    mass = torch.zeros(10, 10, dtype=pseudo_labels.dtype).index_add_(0, labels, pseudo_labels)
    rows, columns = linear_sum_assignment(-mass.numpy())
    return float(mass[rows, columns].sum() / mass.sum()), mass[:, columns[np.argsort(rows)]]


balanced, balanced_mass = right_share(partial_ot(cost, rho=1.0, gamma=float("inf")).pseudo_labels)
partial, semantic = [], []
for rho in shares:
    partial.append(right_share(partial_ot(cost, rho=rho).pseudo_labels))
    plan = semantic_partial_ot(cost, similarity, rho=rho, semantic_weight=0.195 * count)
    semantic.append(right_share(plan.pseudo_labels))
for rho, one, other in zip(shares, partial, semantic, strict=True):
    print(f"rho {rho}: partial {one[0]:.3f}, semantic {other[0]:.3f}, balanced {balanced:.3f}")

# %%
# Where the mass goes
# -------------------
# Rows are classes from head to tail, columns their clusters. Balanced transport spreads the head over clusters that
# belong to others; the semantic plan keeps it together.

figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
axes[0].plot(shares, [share for share, _ in semantic], "o-", color="#d55e00", label="semantic (SP²OT)")
axes[0].plot(shares, [share for share, _ in partial], "o-", color="#0072b2", label="partial (P²OT)")
axes[0].axhline(balanced, color="#999999", label="balanced, all samples")
axes[0].set(xlabel="rho, share of the samples that is labeled", ylabel="share on the right class")
axes[0].legend(frameon=False)
chosen = semantic[shares.index(0.6)][1]
panels = [(axes[1], "Balanced transport", balanced_mass), (axes[2], "SP²OT, rho = 0.6", chosen)]
for panel, title, mass in panels:
    image = panel.imshow(mass / mass.sum(1, keepdim=True), cmap="Blues", vmin=0, vmax=1)
    panel.set(
        title=title, xlabel="cluster of the class", ylabel="class, head to tail", xticks=range(10), yticks=range(10)
    )
figure.colorbar(image, ax=axes[1:], label="share of the class's mass")
figure.show()
