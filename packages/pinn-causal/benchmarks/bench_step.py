"""Gradient of the causal loss on one batch: Taylor mode beside DeepXDE and plain nested autograd, the same network.

DeepXDE's derivatives (dde.grad.jacobian, dde.grad.hessian) and torch.autograd.grad act on the very module that ours
uses, on the same points, and their residuals go through the same causal loss, so that the gradients must agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import torch
from torch import Tensor

from offprints.pinn_causal import AllenCahn, CausalPINN, KuramotoSivashinsky, NavierStokes2d, causal_loss
from offprints.pinn_causal.equation import state_points
from offprints.pinn_causal.handover import Start
from offprints.pinn_causal.reproduce.settings import PAPER, Setting
from offprints.pinn_causal.window import WindowTrainer
from offprints.shared.benchmark import Case, compare
from offprints.shared.device import local_seed, peak_memory_mib, reset_peak_memory

SIZES = {
    "Allen-Cahn 100 x 256, MLP 4 x 128": "allen-cahn-mlp",
    "Allen-Cahn 100 x 256, modified 4 x 128": "allen-cahn",
    "KS regular 32 x 64, modified 3 x 256": "ks-regular",
    "KS chaotic 32 x 256, modified 8 x 128": "ks-chaotic",
    "Navier-Stokes 32 x 256, modified 4 x 128": "navier-stokes",
}
EPS = 1e-9  # every time counts: no chunk can be skipped
Gradient = Callable[[], Tensor]


def by_autograd(y: Tensor, x: Tensor, component: int, *axes: int) -> Tensor:
    """One component's derivative along several axes, by nested reverse mode."""
    value = y[:, component : component + 1]
    for axis in axes:
        value = torch.autograd.grad(value.sum(), x, create_graph=True)[0][:, axis : axis + 1]
    return value


def by_deepxde(y: Tensor, x: Tensor, component: int, *axes: int) -> Tensor:
    """The same by DeepXDE, second derivatives as Hessians."""
    value = y
    while len(axes) > 1:
        (i, j), axes = sorted(axes[:2]), axes[2:]
        value, component = dde.grad.hessian(value, x, component=component, i=i, j=j), 0
    for axis in axes:
        value, component = dde.grad.jacobian(value, x, i=component, j=axis), 0
    return value


def residual(problem, u: Tensor, x: Tensor, d: Callable[..., Tensor]) -> list[Tensor]:
    """The equations, written with the derivatives of a peer."""
    if isinstance(problem, AllenCahn):
        return [d(u, x, 0, 0) - problem.nu * d(u, x, 0, 1, 1) + problem.reaction * (u**3 - u)]
    if isinstance(problem, KuramotoSivashinsky):
        u_xx = d(u, x, 0, 1, 1)
        return [
            d(u, x, 0, 0)
            + problem.alpha * u * d(u, x, 0, 1)
            + problem.beta * u_xx
            + problem.gamma * d(u_xx, x, 0, 1, 1)
        ]
    w = d(u, x, 1, 1) - d(u, x, 0, 2)
    transport = d(w, x, 0, 0) + u[:, :1] * d(w, x, 0, 1) + u[:, 1:] * d(w, x, 0, 2)
    return [
        transport - problem.viscosity * (d(w, x, 0, 1, 1) + d(w, x, 0, 2, 2)),
        d(u, x, 0, 1) + d(u, x, 1, 2),
    ]


def contenders(row: Setting) -> dict[str, Gradient]:
    """Return functions that compute the gradient with respect to all parameters, as one vector."""
    with local_seed(0):
        net = row.make_net()
        problem = row.make_problem()
    model = CausalPINN(
        problem, row.make_net, eps=EPS, n_t=row.n_t, n_x=row.n_x, weight_by_initial=False, initial_weight=0.0,
        window_length=row.window_length, sampling=row.sampling, random_state=0,
    )  # fmt: skip
    grid = state_points(problem, None, torch.empty(0))[:4]  # the initial loss is not what is timed
    state = torch.zeros(3, 4, 4) if isinstance(problem, NavierStokes2d) else torch.zeros(4)
    trainer = WindowTrainer(problem, net, Start(0.0, grid, state), row.window_length, model._settings(0))
    if row.sampling == "random":
        trainer.batch = trainer.batches.draw()
    t, x = trainer.batch
    parameters = list(net.parameters())

    def vector() -> Tensor:
        return torch.cat([p.grad.flatten() for p in parameters])

    def ours() -> Tensor:
        trainer.gradient()
        return vector()

    def peer(derivative: Callable[..., Tensor]) -> Gradient:
        columns = x[:, None] if x.ndim == 1 else x
        grid = torch.cat([t[:, None, None].expand(-1, len(x), 1), columns.expand(len(t), -1, -1)], dim=-1).reshape(
            -1, 1 + columns.shape[1]
        )

        def gradient() -> Tensor:
            for p in parameters:
                p.grad = None
            points = grid.clone().requires_grad_()
            parts = residual(problem, net(points), points, derivative)
            squares = [c * r.square() for c, r in zip(problem.equation_weights, parts, strict=True)]
            causal_loss(sum(squares).reshape(len(t), len(x)).mean(1), EPS).loss.backward()
            dde.grad.clear()
            return vector()

        return gradient

    return {"ours": ours, "deepxde": peer(by_deepxde), "nested autograd": peer(by_autograd)}


def agree(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * float(b.abs().max()))


def measure_memory(name: str, who: str, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    function = contenders(PAPER[SIZES[name]])[who]
    reset_peak_memory()
    before = peak_memory_mib()
    function()
    queue.put(peak_memory_mib() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where other work is running")
    parser.add_argument("--cases", nargs="+", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    results = Path(__file__).parent / "results"

    for name in options.cases:
        found = contenders(PAPER[SIZES[name]])
        case = Case(name, ours=found.pop("ours"), peers=found, agree=agree)
        for threads in options.threads:
            output = results / f"{SIZES[name]}-threads-{threads}.json"
            clock = time.process_time if options.clock == "cpu" else None
            compare([case], output, rounds=options.rounds, threads=threads, clock=clock)

    context = multiprocessing.get_context("spawn")
    path = results / "memory-mib.json"
    memory: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.cases:
        for who in ("ours", "deepxde", "nested autograd"):
            queue = context.Queue()
            process = context.Process(target=measure_memory, args=(name, who, queue))
            process.start()
            memory.setdefault(name, {})[who] = round(queue.get(), 1)
            process.join()
        print(name, "peak MiB above the start:", memory[name])
    path.write_text(json.dumps(memory, indent=2) + "\n")


if __name__ == "__main__":
    main()
