"""The unconstrained feature model, optimized directly: by SGD as in the paper, and by L-BFGS to the last digit."""

from __future__ import annotations

from typing import Any

import torch

from offprints.neural_collapse.closed_form import gof_solution
from offprints.neural_collapse.metrics import nc_metrics
from offprints.neural_collapse.unconstrained import DeepLinearUFM, global_minimizer

NO_DECAY = 1e-12  # stands for none: the model asks for a positive one


def sgd(
    counts: tuple[int, ...], dim: int, depth: int, decay: float, decayed: bool, steps: int, seed: int
) -> dict[str, Any]:
    """One unit: SGD with momentum 0.9 and learning rate 0.1 from N(0, 0.1^2); distances to the frame of ``decay``."""
    used = decay if decayed else NO_DECAY
    model = DeepLinearUFM(counts, [dim] * depth, weight_decay=[used] * depth, feature_decay=used, seed=seed)
    target = gof_solution(counts, weight_decay=[decay] * depth, feature_decay=decay)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history: dict[str, list[float]] = {"step": [], "objective": []}
    for step in range(steps + 1):
        objective = model.objective()
        if step % max(1, steps // 20) == 0:
            history["step"].append(step)
            history["objective"].append(objective.item())
            found = nc_metrics(model.features, model.labels, model.product(), geometry="gof", target=target)
            for name, value in vars(found).items():
                history.setdefault(name, []).append(value)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    return {**history, "minimum": target.loss}


def optimized(model: DeepLinearUFM, steps: int = 300) -> float:
    """The objective after L-BFGS."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=steps,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = model.objective()
        value.backward()
        return value

    optimizer.step(closure)
    return model.objective().item()


def lowest(
    counts: tuple[int, ...], dim: int, depth: int, decay: float, loss: str, starts: int, seed: int
) -> dict[str, Any]:
    """One unit: the lowest objective over several starts, and the norms of the rows of its classifier."""
    best, norms = float("inf"), torch.zeros(len(counts))
    for start in range(starts):
        model = DeepLinearUFM(
            counts,
            [dim] * depth,
            weight_decay=[decay] * depth,
            feature_decay=decay,
            loss=loss,
            init_std=0.5,
            seed=seed + start,
        )
        value = optimized(model)
        if value < best:
            best, norms = value, model.product().detach().norm(dim=1)
    return {"objective": best, "norms": norms.tolist()}


def largest_gradient(seed: int) -> float:
    """The largest entry of the gradient of the objective at the closed-form minimizers of very different problems."""
    problems: list[tuple[list[int], list[int], list[float], dict[str, Any]]] = [
        ([20, 10, 5], [8], [5e-3], {}),
        ([20, 10, 5], [8, 6, 7], [5e-3, 2e-3, 1e-3], {}),
        ([200, 100, 50, 50], [64] * 6, [5e-4] * 6, {}),
        ([200, 100, 3], [6, 6], [5e-3, 5e-3], {}),
        ([30, 20, 10, 5], [6, 2, 5], [1e-3, 1e-3, 1e-3], {}),
        ([10] * 5, [6, 6], [2e-3, 1e-3], {"bias": True}),
        ([10] * 5, [6, 6, 6], [1e-3] * 3, {"loss": "ce", "bias": True}),
    ]
    largest = 0.0
    for counts, dims, decays, options in problems:
        model = DeepLinearUFM(counts, dims, weight_decay=decays, feature_decay=decays[0], **options)
        state = global_minimizer(counts, dims, weight_decay=decays, feature_decay=decays[0], seed=seed, **options)
        model.load_state_dict(state.state_dict())
        for gradient in torch.autograd.grad(model.objective(), list(model.parameters())):
            largest = max(largest, gradient.abs().max().item())
    return largest
