"""
Which embedding separates the classes?
======================================

An embedding is often chosen by training a classifier on each candidate. The ICNN score needs none: it looks at the
distances of every sample's nearest neighbors, of its own class and of others. Here it compares three embeddings of
handwritten digits, one of them trained with the loss made of the score.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from offprints.susana import PrototypicalClassifier, icnn_components, icnn_loss

# %%
# Digits, half of them for the test
# ---------------------------------
images, labels = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(images / 16, labels, test_size=0.5, random_state=0, stratify=labels)
X, X_test = (torch.tensor(part, dtype=torch.float32) for part in (X, X_test))
y, y_test = torch.from_numpy(y), torch.from_numpy(y_test)

# %%
# Three embeddings in 16 dimensions
# ---------------------------------
# A random projection, principal components, and a linear map trained with the ICNN loss on batches of 200. Classes have
# about 20 members in a batch: the window in which the nearest sample of another class is looked for has to hold them.
torch.manual_seed(0)
random_map = torch.nn.Linear(64, 16, bias=False).requires_grad_(False)
center = X.mean(0)
directions = torch.linalg.svd(X - center, full_matrices=False).Vh[:16]
trained = torch.nn.Linear(64, 16)
optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
for _ in range(300):
    batch = torch.randperm(len(X))[:200]
    optimizer.zero_grad()
    icnn_loss(trained(X[batch]), y[batch], window=40).backward()
    optimizer.step()
embeddings = {
    "random projection": random_map,
    "principal components": lambda x: (x - center) @ directions.T,
    "trained with the ICNN loss": lambda x: trained(x).detach(),
}

# %%
# The score, its parts, and a classifier to compare with
# ------------------------------------------------------
rows = {}
for name, embed in embeddings.items():
    parts = icnn_components(embed(X_test), y_test, window=150)
    accuracy = PrototypicalClassifier().fit(embed(X), y).score(embed(X_test), y_test)
    rows[name] = [float(parts.score), float(parts.lambda_), float(parts.gamma), accuracy]
    print(f"{name:28s} score {parts.score:.3f}, accuracy of the nearest mean {accuracy:.3f}")

# %%
# Side by side
# ------------
figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
groups = ["ICNN score", "lambda: distances", "gamma: neighbors", "accuracy, nearest mean"]
for number, (name, values) in enumerate(rows.items()):
    places = [group + 0.25 * (number - 1) for group in range(len(groups))]
    ax.bar(places, values, width=0.23, label=name, color=("#7f7f7f", "#0072b2", "#d55e00")[number])
ax.set_xticks(range(len(groups)), groups)
ax.set_ylim(0, 1)
ax.set_title("Digits of the test in 16 dimensions")
ax.legend(loc="lower right")
