"""
How large a step to separate two classes
========================================

A linear classifier on features that a hyperplane separates: textbooks say that gradient descent needs small steps, and
that the loss tells how far it is. Neither is so here. This example sweeps the step size over five decades in one call,
and shows what the loss does meanwhile.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from offprints.lr_perceptron import iteration_bound, margin, radius, separate, sweep

# %%
# Features
# --------
# Any table of features does, such as the input of the last layer of a frozen network; here it is the pixels of two
# digits that look alike. A column of ones makes the last weight the intercept, and labels are -1 and +1. Counts of
# updates are compared, so everything is float64.

data = load_digits()
rows = (data.target == 3) | (data.target == 5)
X = torch.cat([torch.from_numpy(data.data[rows] / 16), torch.ones(int(rows.sum()), 1, dtype=torch.float64)], 1)
y = torch.where(torch.from_numpy(data.target[rows]) == 5, 1.0, -1.0).double()

# %%
# All step sizes at once
# ----------------------
# `sweep` runs gradient descent for every step size in the same matrix products, until each separates the samples.
# Dividing the gradient by the mean of the sigmoids, one line, makes the count nearly independent of the step size. The
# limit of large steps is known in closed form: it is a perceptron.

step_sizes = torch.logspace(-1, 4, 11, dtype=torch.float64)
plain = sweep(X, y, step_sizes, method="lr_gd")
normalized = sweep(X, y, step_sizes, method="normalized_lr_gd")
limit = separate(X, y, method="batch_perceptron")
print("updates of gradient descent:", plain.n_iter.tolist())
print("the same, normalized:       ", normalized.n_iter.tolist())

mu, R = margin(X, y), radius(X)
bound = iteration_bound("normalized_lr_gd", n=len(y), radius=R, margin=mu, step_size=100.0)
print(f"margin {mu:.3f}, radius {R:.3f}: at most {bound:.0f} updates with step size 100")

# %%
# The loss is no measure of progress
# ----------------------------------
# With a small step it falls steadily and is far from done; with a large one it first rises to many times its first
# value, and the samples are separated forty times sooner.

figure, (counts, losses) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
counts.plot(step_sizes, plain.n_iter, "o-", color="#0072B2", label="gradient descent")
counts.plot(step_sizes, normalized.n_iter, "s-", color="#D55E00", label="normalized")
counts.axhline(limit.n_iter, color="gray", linestyle=":", label="Batch Perceptron")
counts.set(xscale="log", yscale="log", xlabel="step size", ylabel="updates", title="Updates until separation")
counts.legend(frameon=False)
for step_size, color in ((0.1, "#56B4E9"), (1.0, "#0072B2"), (10.0, "#D55E00")):
    history = separate(X, y, method="lr_gd", step_size=step_size, record_every=1).history
    losses.plot(history["iteration"] + 1, history["loss"], color=color, label=f"step size {step_size:g}")
losses.set(xscale="log", yscale="log", xlabel="updates + 1", ylabel="logistic loss", title="Loss until separation")
losses.legend(frameon=False)
figure.show()
