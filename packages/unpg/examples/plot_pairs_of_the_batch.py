"""
What a margin softmax does not see
==================================

A softmax over class weights compares samples with weights, never with one another. Here a small network learns to tell
24 identities apart (six digits in four rotations), once with ArcFace and once with the negative pairs of the batch in
the same loss. What is compared in use are pairs: their similarities are drawn.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from offprints.unpg import ArcFaceHead, MarginLoss, UNPGLoss, pair_similarities, similarity_gap, tar_at_far

# %%
# Identities: a digit and a rotation
# ----------------------------------
# Digits that another rotation turns into another digit are left out.

scans = load_digits()
x, y = [], []
for number, digit in enumerate((0, 2, 3, 5, 6, 7)):
    images = torch.tensor(scans.images[scans.target == digit], dtype=torch.float32)[:, None] / 16
    for turns in range(4):
        x.append(images.rot90(turns, (2, 3)))
        y.append(torch.full((len(images),), 4 * number + turns))
x, y = torch.cat(x), torch.cat(y)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x, y = x[order], y[order]

# %%
# Two trainings that differ in the loss alone
# -------------------------------------------
# The head's weights are parameters of the loss.


def train(unified: bool) -> nn.Module:
    """A network trained for four passes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.PReLU(16), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.PReLU(32), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 32), nn.BatchNorm1d(32)),
    )
    head = ArcFaceHead(32, 24, scale=16.0, margin=0.3)
    loss_of = UNPGLoss(head, whisker=1.5) if unified else MarginLoss(head)
    optimizer = torch.optim.SGD(
        [*network.parameters(), *loss_of.parameters()], lr=0.05, momentum=0.9, weight_decay=5e-4
    )
    for _ in range(4):
        for images, labels in zip(x.split(128), y.split(128), strict=True):
            optimizer.zero_grad()
            loss_of(network(images), labels).backward()
            optimizer.step()
    return network.eval()


# %%
# Similarities of pairs
# ---------------------
# The less the two histograms overlap, the fewer strangers are accepted at a given threshold.

figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
for axes, (name, unified) in zip(panels, (("ArcFace", False), ("ArcFace and pairs", True)), strict=True):
    network = train(unified)
    with torch.no_grad():
        embeddings = network(x[:800])
    positive, negative = pair_similarities(embeddings, y[:800])
    scores, same = torch.cat([positive, negative]), torch.arange(len(positive) + len(negative)) < len(positive)
    tar = tar_at_far(scores, same, far=1e-3)[0]
    gap = similarity_gap(embeddings, y[:800], quantile=0.1).gap
    print(f"{name}: TAR {tar:.3f} at a FAR of 0.001, gap {gap:.2f} at quantile 0.1")
    axes.hist(positive, bins=80, range=(-1, 1), density=True, alpha=0.6, color="#0072b2", label="one identity")
    axes.hist(negative, bins=80, range=(-1, 1), density=True, alpha=0.6, color="#d55e00", label="two identities")
    axes.set(title=f"{name}: TAR {tar:.2f}", xlabel="cosine of a pair")
panels[0].set_ylabel("density")
panels[0].legend(frameon=False)
figure.show()
