"""
Should I regularize?
====================

Kernel regression on handwritten digits: two calls say from a kernel matrix whether fitting the training data exactly is
best, and how much label noise it takes until it is not. Then the answer is compared with all ridges tried out.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from offprints.more_is_better import (
    critical_noise,
    estimate_exponents,
    optimal_fitting_ratio,
    powerlaw_test_mse,
    relu_ntk,
    ridge_path,
)

# %%
# A kernel matrix and a target
# ----------------------------
# Any symmetric kernel matrix does; here the neural tangent kernel of a network with one hidden layer. The labels are
# centered one-hot vectors.

images, labels = load_digits(return_X_y=True)
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(images), generator=generator)[:1000]
X = torch.from_numpy(images)[order] / 16
y = torch.nn.functional.one_hot(torch.from_numpy(labels)[order].long(), 10).double() - 0.1
K = relu_ntk(X)

# %%
# Two calls
# ---------
# The exponents of the eigenvalues and of the target are measured; the theory of power laws makes of them the ratio of
# train error and test error that is best. 0 says: interpolate.

found = estimate_exponents(K, y, trials=4, fit_from=60, generator=generator)
print(f"alpha = {found.alpha:.2f}, beta = {found.beta:.2f}")
for noise in (0.0, 5.0):
    ratio = optimal_fitting_ratio(found.alpha, found.beta, noise_rel=noise)
    print(f"noise of {noise:g} times the ridgeless error: the best fitting ratio is {ratio:.2f}")
print(f"interpolate up to a noise of {critical_noise(found.alpha, found.beta):.2f}")

# %%
# All ridges
# ----------
# One factorization gives train and test errors at all ridges. The stars are the best ones: at the left edge without
# noise, far from it with noise. The lines are the closed form, which knows the two exponents alone.

train, test = slice(0, 700), slice(700, 1000)
blocks = K[train, train], K[test, train]
ridges = torch.logspace(-6, 3, 40, dtype=torch.float64)
base = ridge_path(*blocks, y[train], y[test], ridges[:1])[1].item()
fine = torch.linspace(0, 0.95, 200, dtype=torch.float64)
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for noise, color in ((0.0, "#0072b2"), (5.0, "#d55e00")):
    noisy = y + (noise * base / 10) ** 0.5 * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    train_mse, test_mse = ridge_path(*blocks, noisy[train], noisy[test], ridges)
    ratios, errors = train_mse / test_mse, test_mse / base
    shown, best = ratios < 0.95, int(errors.argmin())
    axes.plot(ratios[shown], errors[shown], "o", color=color, label=f"noise {noise:g}, measured")
    axes.plot(ratios[best], errors[best], "*", color=color, markersize=16)
    clean = powerlaw_test_mse(0.0, found.alpha, found.beta)
    axes.plot(fine, powerlaw_test_mse(fine, found.alpha, found.beta, noise_rel=noise) / clean, color=color)
axes.set(
    xlabel="fitting ratio: train error / test error",
    ylabel="test error / ridgeless error",
    title="How closely should the training data be fit?",
    yscale="log",
)
axes.legend(frameon=False)
figure.show()
