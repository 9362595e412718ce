"""
Sampling with few evaluations of the network
============================================

A diffusion model is expensive because it is evaluated at every step. With fewer steps the samples end in the wrong
place, and how wrong depends on the sampler. Here the noise prediction is exact, that of a mixture of Gaussians in the
plane, so that the true end of every trajectory is known.
"""

import matplotlib.pyplot as plt
import torch

from offprints.pndm import AlphaSchedule, GaussianMixtureEps, num_model_calls, pndm_sample

# %%
# A model that is exact
# ---------------------
# `GaussianMixtureEps` is what a perfectly trained network would predict. The times run from pure noise at 1 to 0.02;
# thousands of DDIM steps give the truth. In your own code the model is a network, and `AlphaSchedule.linear()` or the
# schedule that it was trained with takes the place of the continuous one.

schedule = AlphaSchedule.continuous_linear()
means = torch.tensor([[-1.5, -0.6], [1.4, -0.9], [0.1, 1.5]], dtype=torch.float64)
model = GaussianMixtureEps(means, torch.full((3,), 0.35), torch.full((3,), 1 / 3), schedule)
noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sample(method, num_steps, start=noise, **options):
    """Samples after so many equal steps from 1 to 0.02."""
    times = torch.linspace(1, 0.02, num_steps + 1, dtype=torch.float64)
    return pndm_sample(model, start, schedule=schedule, times=times, method=method, **options)


truth = sample("f-pndm-sigma", 500)

# %%
# The error at equal cost
# -----------------------
# What counts is the number of evaluations, not of steps: F-PNDM spends nine extra ones on its start, PLMS and S-PNDM
# one. With very few evaluations that start does not pay; from about thirty on the higher order does.

methods = {"ddim": "#999999", "s-pndm": "#e69f00", "plms": "#0072b2", "f-pndm": "#d55e00"}
errors = {}
for method in methods:
    calls = [num_model_calls(steps, method) for steps in (8, 12, 20, 32, 50, 80, 125, 200)]
    ends = [sample(method, steps) for steps in (8, 12, 20, 32, 50, 80, 125, 200)]
    errors[method] = calls, [float((end - truth).square().sum(1).mean().sqrt()) for end in ends]

# %%
# Trajectories
# ------------
# Three samples from noise (dots) to the end, with the evaluations that the label says. Where DDIM's end differs from
# the cross, the sample is another one than the model describes.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
few = noise[:6]
exact = sample("f-pndm-sigma", 500, few, return_trajectory=True)
for line in exact.unbind(1):
    axes[0].plot(*line.T, color="black", linewidth=0.6, zorder=1)
for method, steps in [("ddim", 8), ("s-pndm", 7)]:
    path = sample(method, steps, few, return_trajectory=True)
    label = f"{method}, {num_model_calls(steps, method)} evaluations"
    for number, line in enumerate(path.unbind(1)):
        style = {"color": methods[method], "label": label if number == 0 else None}
        axes[0].plot(*line.T, "o-", markersize=3, linewidth=1.2, **style)
axes[0].plot(*few.T, "o", color="black", markersize=6, label="noise")
axes[0].plot(*exact[-1].T, "x", color="black", markersize=9, markeredgewidth=2, label="true end", zorder=5)
axes[0].set_aspect("equal")
axes[0].legend(frameon=False, fontsize="small")
for method, (calls, error) in errors.items():
    axes[1].loglog(calls, error, "o-", color=methods[method], label=method)
axes[1].set(xlabel="evaluations of the model", ylabel="RMS distance to the true end")
axes[1].legend(frameon=False)
figure.show()
