"""
A network that small changes of the picture do not fool
=======================================================

A network that reads scanned digits almost without error can be fooled by changes of the pixels that nobody would
notice. Training on such changes helps, and costs some accuracy on clean scans. How much of each is a choice; this
example makes it with `adv_comp_sum_loss`, and then asks what a small loss guarantees.
"""

import matplotlib.pyplot as plt
import torch

from offprints.comp_sum import (
    adv_comp_sum_loss,
    comp_sum_loss,
    h_consistency_bound,
    nu_ramp,
    pgd_attack,
    robust_accuracy,
)
from offprints.shared.datasets import digits

torch.set_num_threads(1)  # a second one would only wait: the network is small
x, y = digits(layout="image")
x_test, y_test = x[1300:], y[1300:]
x, y = x[:1300], y[:1300]
BALL = {"eps": 0.15, "step_size": 0.04, "steps": 5}

# %%
# Training, with and without an attack
# ------------------------------------
# `nu` is the strength of the penalty for margins that move under attack. It grows over the first half of the training:
# at full strength from the first step on, a network would only learn to be constant.


def train(nu, epochs=20):
    """A small network, trained at this strength."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(epochs * 10):
        batch = torch.randint(len(x), (130,))
        if nu == 0:
            loss = comp_sum_loss(model(x[batch]), y[batch])
        else:
            now = nu_ramp(step, epochs * 10, nu=nu)
            loss = adv_comp_sum_loss(model, x[batch], y[batch], nu=now, **BALL)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


points = {}
for nu in (0.0, 0.1, 0.3, 1.0):
    model = train(nu)
    points[nu] = robust_accuracy(model, x_test, y_test, eps=0.15, step_size=0.02)
    print(f"nu = {nu}: {points[nu][0]:.1%} on clean scans, {points[nu][1]:.1%} under attack")
    if nu in (0.0, 0.3):
        x_adv = pgd_attack(model, x_test[:1], y_test[:1], eps=0.15, step_size=0.02, steps=40)
        read = int(model(x_adv).argmax())
        print(f"  the first scan, a {int(y_test[0])}, is read as {read} under attack")

# %%
# What a loss guarantees
# ----------------------
# The logistic loss of a classifier, less the least one that its class of functions can reach, bounds its excess error.

for excess in (0.1, 0.01, 0.001):
    bound = float(h_consistency_bound(excess, tau=1.0, num_classes=10))
    print(f"an excess loss of {excess}: an excess error of at most {bound:.1%}")

# %%
# The choice
# ----------
# Each point is one strength. Without a penalty the network is best on clean scans and fooled most of the time.

figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
axes.plot(*zip(*[(100 * a, 100 * b) for a, b in points.values()], strict=True), marker="o", color="#0072b2")
for nu, (clean, robust) in points.items():
    axes.annotate(f"nu = {nu}", (100 * clean, 100 * robust), textcoords="offset points", xytext=(6, 4))
axes.set(xlabel="accuracy on clean scans (%)", ylabel="accuracy under attack (%)")
axes.margins(0.2)
figure.show()
