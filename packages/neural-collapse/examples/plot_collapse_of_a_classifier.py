"""
Which classes will a classifier lose?
=====================================

With weight decay and unequal classes, the features and the classifier of a small class shrink, and below a certain size
they vanish. That size follows from the number of samples, the decay and the depth of the linear head: it can be known
before any training. Here it is computed for handwritten digits, and a network is trained on either side of it.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from offprints.neural_collapse import LinearHead, NCProbe, gof_solution, minimum_class_count, separate_decay

# %%
# The smallest class that survives
# --------------------------------
# Three digits, 150 scans of the first two and few of the third; two linear layers on top of the network.

images, digits = load_digits(return_X_y=True)
X, y = torch.from_numpy(images).float() / 16, torch.from_numpy(digits).long()
decay = 6e-3
options = {"weight_decay": [decay, decay], "feature_decay": decay}
for few in (5, 60):
    counts = [150, 150, few]
    smallest = minimum_class_count(sum(counts), **options)
    print(
        f"{few} scans of the third digit, at least {smallest:.1f} needed: {gof_solution(counts, **options).collapsed}"
    )

# %%
# Training on either side
# -----------------------
# The decay acts on the head and on its features, as in the paper: `separate_decay` is added to the loss. The probe
# measures at the first linear layer of the head, by its name.


def train(counts: list[int]) -> tuple[nn.Sequential, NCProbe]:
    """A network trained on so many scans of each digit, and what the probe saw."""
    torch.manual_seed(0)
    rows = torch.cat([(y == k).nonzero().flatten()[:n] for k, n in enumerate(counts)])
    inputs, labels = X[rows], y[rows]
    body, head = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)), LinearHead(32, 3, depth=2)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(800):
        features = body(inputs)
        loss = (head(features) - F.one_hot(labels, 3)).square().sum() / (2 * len(labels))
        loss = loss + separate_decay(head, features, weight_decay=decay, feature_decay=decay)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = nn.Sequential(body, head).eval()
    return model, NCProbe(model, "1.0", num_classes=3).run([(inputs, labels)])


# %%
# Theory beside training
# ----------------------
# The bars are the norms of the classifier's rows, the marks what the closed form predicts.

figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
for axes, few in zip(panels, (5, 60), strict=True):
    counts = [150, 150, few]
    model, probe = train(counts)
    target = gof_solution(counts, **options)
    print(counts, probe.compute(geometry="gof", target=target))
    axes.bar(range(3), model[1].product().detach().norm(dim=1), color="#56b4e9", label="trained")
    axes.plot(range(3), target.ww.sqrt(), "D", color="#d55e00", label="closed form")
    axes.set(title=f"{few} scans of the third digit", xlabel="digit", xticks=range(3))
panels[0].set_ylabel("norm of its row of the classifier")
panels[0].legend(frameon=False)
figure.show()
