"""
Impulses in latents, and losses that bear them
==============================================

Consistency training that works on pixels degrades on latents, because latents have impulses: a few values far beyond
everything else. This example looks for them in data as a box plot does, and then shows what a single impulse does to
each of the losses that a consistency model could be trained with.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from offprints.lct import LatentNormalizer, cauchy_loss, geman_mcclure_loss, impulse_statistics, pseudo_huber_loss

# %%
# Does your data need this?
# -------------------------
# `LatentNormalizer` standardizes every position of a latent, as one does before training. Scanned digits stand for
# latents here: pixels at the rim are nearly always empty, and standardized, the few that are not become impulses.
# `impulse_statistics` counts what lies beyond the outer fences of the box plot.

pixels = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32)[:, None]
normalizer = LatentNormalizer(pixels.shape[1:])
normalizer.update(pixels)
standardized = normalizer(pixels)
normal = torch.randn(standardized.shape, generator=torch.Generator().manual_seed(0))
samples = {"pixels": pixels, "standardized": standardized, "normal noise": normal}
for name, values in samples.items():
    found = impulse_statistics(values)
    print(f"{name}: {found['outer_fraction']:.2%} beyond the outer fences, largest {found['max_abs']:.1f}")

# %%
# What an impulse pulls
# ---------------------
# A robust loss is one whose gradient does not grow with the error. That of the squared loss does; that of Pseudo-Huber,
# the loss of earlier consistency models, tends to a constant; those of Cauchy and Geman-McClure fall again, Cauchy's
# slowly enough that no sample is cut off.

LOSSES = {
    "squared": (lambda a, b: 0.5 * (a - b).square().mean(), "#999999"),
    "Pseudo-Huber": (lambda a, b: pseudo_huber_loss(a, b, c=1.0, norm="element"), "#e69f00"),
    "Geman-McClure": (lambda a, b: geman_mcclure_loss(a, b, c=1.0, norm="element"), "#009e73"),
    "Cauchy": (lambda a, b: cauchy_loss(a, b, c=1.0, norm="element"), "#0072b2"),
}
residuals = torch.linspace(0, 12, 121)
pulls = {}
for name, (loss, _) in LOSSES.items():
    residual = residuals[:, None].clone().requires_grad_()
    (loss(residual, torch.zeros_like(residual)) * len(residuals)).backward()
    pulls[name] = residual.grad[:, 0]

# %%
# Where a fit ends
# ----------------
# The smallest model there is: one number, fitted to 400 values of which a fifth are impulses. How far it ends from the
# center of the others, for impulses that are farther and farther away?

values = torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
distances = [1, 2, 3, 5, 8, 12, 20, 40]
shifts = {name: [] for name in LOSSES}
for distance in distances:
    contaminated = values.clone()
    contaminated[:80] += distance
    for name, (loss, _) in LOSSES.items():
        center = torch.zeros(1, 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([center], lr=0.5, max_iter=60)

        def closure(center=center, optimizer=optimizer, loss=loss, data=contaminated):
            """The loss of the present center, for the line search."""
            optimizer.zero_grad()
            value = loss(center.expand_as(data), data)
            value.backward()
            return value

        optimizer.step(closure)
        shifts[name].append(abs(float(center.detach() - values[80:].mean())))

figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
axes[0].boxplot(
    [part.flatten()[::7].numpy() for part in samples.values()],
    whis=3.0,  # codespell:ignore
    tick_labels=list(samples),
    flierprops={"markersize": 2, "markerfacecolor": "#d55e00", "markeredgecolor": "none"},
    medianprops={"color": "#0072b2"},
)
axes[0].set(title="Impulses: beyond the outer fences", ylabel="value")
for name, (_, color) in LOSSES.items():
    axes[1].plot(residuals, pulls[name], color=color, label=name, linewidth=2)
    axes[2].plot(distances, shifts[name], "o-", color=color, label=name)
axes[1].set(title="Pull of one value", xlabel="its error", ylabel="gradient", ylim=(0, 4))
axes[1].legend(frameon=False)
axes[2].set(title="A fifth of the data are impulses", xlabel="their distance", ylabel="error of the fit", xscale="log")
axes[2].set_yscale("log")
figure.show()
