"""
The center of scans of which some are spoiled
=============================================

REPLACE. One worked example for a user: real data that needs no download, at most 60 seconds, ending in a figure.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from offprints.protogcd import pseudo_huber_loss

# %%
# Scans of the digit 0, a fifth of them twenty times too bright
# -------------------------------------------------------------
scans = torch.tensor(load_digits(n_class=1).data, dtype=torch.float32) / 16
spoiled = scans.clone()
spoiled[::5] *= 20

# %%
# Two estimates of the center
# ---------------------------
# The mean minimizes the squared error, and the spoiled scans move it. The Pseudo-Huber loss follows the others.
center = torch.zeros(64, requires_grad=True)
optimizer = torch.optim.Adam([center], lr=0.02)
for _ in range(300):
    optimizer.zero_grad()
    pseudo_huber_loss(center.expand_as(spoiled), spoiled, scale=0.1).backward()
    optimizer.step()

# %%
# Beside the truth
# ----------------
figure, axes = plt.subplots(ncols=3, layout="constrained")
pictures = {"clean scans": scans.mean(0), "mean": spoiled.mean(0), "Pseudo-Huber": center.detach()}
for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
    ax.imshow(picture.reshape(8, 8), cmap="gray", vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()
