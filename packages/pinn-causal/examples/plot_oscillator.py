"""
A physics-informed network that respects causality
==================================================

A physics-informed network minimizes the residual of its equation at all times at once, and nothing makes it right at
early times first. Over a long time it often settles in a curve of small residual that has nothing to do with the
solution. Causal weights count a time only once the earlier ones are solved.
"""

import matplotlib.pyplot as plt
import torch

from offprints.pinn_causal import MLP, ExactInitialCondition, causal_loss, jet

# %%
# A damped oscillator
# -------------------
# ``x'' + x'/2 + 9 x = 0`` as a system, from x = 1 at rest, over three units of time. `jet` takes the value and the
# derivative of the network in one pass; `ExactInitialCondition` builds the initial state into it.

END, DAMPING, STIFFNESS = 3.0, 0.5, 9.0
times = torch.linspace(0, END, 64)
omega = (STIFFNESS - DAMPING**2 / 4) ** 0.5
solution = torch.exp(-DAMPING * times / 2) * (
    torch.cos(omega * times) + DAMPING / (2 * omega) * torch.sin(omega * times)
)


def residuals(network):
    """The residual loss of the system at every time."""
    (x, v), (x_t, v_t) = (part.unbind(-1) for part in jet(network, times[:, None], torch.ones(1), 1))
    return (x_t - v).square() + ((v_t + STIFFNESS * x + DAMPING * v) / STIFFNESS**0.5).square()


def train(eps, steps=1500):
    """The same network, from the same start, with causal weights of this parameter; 0 gives a plain one."""
    torch.manual_seed(0)
    network = ExactInitialCondition(MLP(1, (32, 32), 2), torch.tensor([1.0, 0.0]))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9985)
    history = []
    for step in range(steps):
        result = causal_loss(residuals(network), eps)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        schedule.step()
        if step in (100, 400, 1000, steps - 1):
            history.append((step + 1, result.weights.detach()))
    with torch.no_grad():
        return network(times[:, None])[:, 0], history


# %%
# With and without
# ----------------
# Everything else is equal: network, start, steps, learning rate.

plain, _ = train(0.0)
causal, weights = train(0.05)
for name, curve in {"plain": plain, "causal": causal}.items():
    print(f"{name}: relative error {float((curve - solution).norm() / solution.norm()):.3f}")

# %%
# The weights are a front
# -----------------------
# They are near one where the solution stands and fall towards later times, and the fall moves to the right as training
# goes on. Once the smallest is near one, everything counts and training is finished: a verdict that a small loss alone
# does not give.

figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=(3, 2))
axes[0].plot(times, solution, color="black", linewidth=3, alpha=0.35, label="solution")
axes[0].plot(times, plain, color="#d55e00", label="plain residual loss")
axes[0].plot(times, causal, "--", color="#0072b2", label="causal weights")
axes[0].set(xlabel="time", ylabel="x", title="A damped oscillator")
axes[0].legend(frameon=False)
shades = plt.cm.Blues(torch.linspace(0.35, 1.0, len(weights)).numpy())
for (step, weight), shade in zip(weights, shades, strict=True):
    axes[1].plot(times, weight, color=shade, label=f"step {step}")
axes[1].set(xlabel="time", ylabel="causal weight", title="What counts so far")
axes[1].legend(frameon=False)
figure.show()
