"""
Where a federation loses
========================

Five clients hold scanned digits, each mostly of a few kinds. They train together without sharing a picture. The loss of
the common model is the sum of three terms: how well each client does at home, what its model loses on everybody's data,
and what averaging gives back. Margin control acts on the second.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from offprints.fedld import LocalConfig, dirichlet_partition, simulate

# %%
# Clients that differ
# -------------------
# Each class is spread over the clients by shares drawn from a Dirichlet distribution; the smaller ``alpha``, the more
# they differ. A quarter of the pictures belongs to nobody, to test on.

pictures = load_digits()
images = torch.tensor(pictures.data, dtype=torch.float32) / 16
labels = torch.tensor(pictures.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(4))
test, train = order[:450], order[450:]
parts = dirichlet_partition(labels[train], 5, alpha=0.3, seed=4)
clients = [(images[train[part]], labels[train[part]]) for part in parts]
for i, (_, own) in enumerate(clients):
    print(f"client {i}: {len(own):4d} pictures, by class {torch.bincount(own, minlength=10).tolist()}")

# %%
# Three runs
# ----------
# ``simulate`` runs all rounds in this process; the same settings give the same result in Flower. The third is the
# paper's server, which moves the weights along the principal directions of the clients' updates.

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
runs = {"FedAvg": ("fedavg", 0.0), "FedAvg, margin control": ("fedavg", 1.0), "FedLD": ("fedld", 0.1)}
history = {}
for name, (method, penalty) in runs.items():
    config = LocalConfig(epochs=2, lr=0.1, batch_size=20, penalty=penalty)
    everybody = (images[test], labels[test])
    result = simulate(model, clients, method=method, rounds=15, config=config, eval_data=everybody, seed=4)
    history[name] = result.history
    print(f"{name}: accuracy {100 * result.history[-1]['accuracy']:.1f} %")

# %%
# The terms, round by round
# -------------------------
# With the margin term the models are less sure of themselves: all losses are larger, and their differences smaller.
# That alone would not make the common model better at its task; whether it does is seen in the accuracy.

figure, axes = plt.subplots(ncols=4, figsize=(12, 3.4), layout="constrained")
titles = {"local": "local", "shift": "+ distribution shift", "aggregation": "+ aggregation", "accuracy": "accuracy"}
for axis, (term, title) in zip(axes, titles.items(), strict=True):
    for name, entries in history.items():
        axis.plot([entry["step"] for entry in entries], [entry[term] for entry in entries], label=name)
    axis.set(title=title, xlabel="round")
axes[0].legend(fontsize="small")
