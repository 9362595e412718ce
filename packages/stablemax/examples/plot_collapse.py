"""
Where the gradient of a softmax vanishes
========================================

A classifier that is sure of a sample by a margin of about 17 gets no gradient from it any more: in float32 the softmax
has rounded to exactly one. The loss is zero, training has stopped for this sample, and nothing warns of it. Two losses
of this package go on where `torch.nn.functional.cross_entropy` ends.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from offprints.stablemax import exact_cross_entropy, stablemax_cross_entropy

LOSSES = {
    "F.cross_entropy": (F.cross_entropy, "#d55e00"),
    "exact_cross_entropy": (exact_cross_entropy, "#0072b2"),
    "stablemax_cross_entropy": (stablemax_cross_entropy, "#009e73"),
}

# %%
# The gradient of one logit
# -------------------------
# The right class of ten leads by a margin; how much gradient does its logit get? The terms of StableMax grow linearly
# instead of exponentially, so that its gradient falls like a power of the margin. `exact_cross_entropy` is the ordinary
# softmax loss without the rounding: the term of the label never enters the sum in which it would drown the others.

margins = torch.linspace(0, 60, 241)
gradients = {}
for name, (loss, _) in LOSSES.items():
    logits = torch.zeros(len(margins), 10)
    logits[:, 0] = margins
    logits.requires_grad_()
    loss(logits, torch.zeros(len(margins), dtype=torch.int64), reduction="sum").backward()
    gradients[name] = logits.grad[:, 0].abs()
first = margins[gradients["F.cross_entropy"] == 0][0]
print(f"F.cross_entropy: no gradient from a margin of {float(first):.1f} on")

# %%
# A network that is trained until it is sure
# ------------------------------------------
# Now a network on 600 scanned digits, all in one batch, trained on after it has learned them. A sample teaches it
# something as long as the logit of its class gets a gradient. (`CollapseMonitor` watches a training for this without
# touching its loop.)

torch.set_num_threads(1)  # a second one would only wait: the network is small
digits = load_digits()
images = torch.tensor(digits.data[:600] / 16, dtype=torch.float32)
labels = torch.tensor(digits.target[:600])
shares = {}
for name, (loss_fn, _) in LOSSES.items():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    shares[name] = []
    for step in range(400):
        logits = model(images)
        logits.retain_grad()
        optimizer.zero_grad()
        loss_fn(logits, labels).backward()
        if step % 10 == 0:
            shares[name].append(float((logits.grad.gather(1, labels[:, None]) != 0).float().mean()))
        optimizer.step()
    accuracy = float((model(images).argmax(1) == labels).float().mean())
    print(f"{name}: accuracy {accuracy:.3f}, {shares[name][-1]:.0%} of the samples still have a gradient")

# %%
# What is left of the gradient
# ----------------------------
# Left, the gradient of the right class by its margin: the line of `F.cross_entropy` ends where float32 does. Right, the
# share of the set that still teaches the network anything.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for name, (_, color) in LOSSES.items():
    alive = gradients[name] > 0
    axes[0].semilogy(margins[alive], gradients[name][alive], color=color, label=name, linewidth=2)
    axes[1].plot(range(0, 400, 10), shares[name], color=color, linewidth=2)
axes[0].axvline(float(first), color="#d55e00", linestyle=":")
axes[0].set(xlabel="margin of the right class", ylabel="gradient of its logit", ylim=(1e-30, 10))
axes[0].legend(frameon=False, loc="lower left")
axes[1].set(xlabel="step", ylabel="share of samples with a gradient", ylim=(0, 1.05))
figure.show()
