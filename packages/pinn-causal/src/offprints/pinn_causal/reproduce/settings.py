"""The paper's problems and hyperparameters, row by row, and the small versions of the quick preset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from offprints.pinn_causal.embeddings import SpaceTimeEmbedding
from offprints.pinn_causal.equation import Problem
from offprints.pinn_causal.exact import ExactInitialCondition
from offprints.pinn_causal.networks import MLP, ModifiedMLP
from offprints.pinn_causal.problems import AllenCahn, KuramotoSivashinsky, Lorenz, NavierStokes2d

Name = Literal["allen-cahn", "ks-regular", "ks-chaotic", "lorenz", "navier-stokes"]

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "allen-cahn": AllenCahn,
    "ks-regular": KuramotoSivashinsky.regular,
    "ks-chaotic": KuramotoSivashinsky.chaotic,
    "lorenz": Lorenz,
    "navier-stokes": NavierStokes2d,
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row: a problem, its network, its training. Names as in `CausalPINN`."""

    problem: Name
    modified: bool
    exact: bool = False  # the initial condition; that of an ODE always is
    hidden: tuple[int, ...]
    modes: int
    n_t: int
    n_x: int
    sampling: Literal["random", "grid"]
    eps: tuple[float, ...]
    max_steps: int
    window_length: float
    time_powers: tuple[int, ...] = (0,)
    n_windows: int = 1
    extend: float = 0.01
    weight_by_initial: bool = True
    lr: float = 1e-3
    decay_steps: int = 5000
    check_every: int = 1000

    def make_problem(self) -> Problem:
        """Return the equation."""
        return PROBLEMS[self.problem]()

    def make_net(self) -> nn.Module:
        """Return a network of this row."""
        make = ModifiedMLP if self.modified else MLP
        problem = self.make_problem()
        embedding = None
        if problem.domain:
            embedding = SpaceTimeEmbedding(
                periods=[high - low for low, high in problem.domain],
                modes=[self.modes] * len(problem.domain),
                time_powers=self.time_powers,
            )
        net = make(1 + len(problem.domain), self.hidden, problem.n_outputs, embedding=embedding)
        if self.exact or not problem.domain:
            # The estimator puts the state of the window in.
            return ExactInitialCondition(net, torch.zeros(problem.n_outputs))
        return net


_ALLEN_CAHN = Setting(
    problem="allen-cahn",
    modified=True,
    hidden=(128,) * 4,
    modes=10,
    n_t=100,
    n_x=256,
    sampling="grid",
    eps=(100.0,),
    extend=0.0,
    weight_by_initial=False,
    max_steps=300_000,
    window_length=1.0,
)
_LORENZ = Setting(
    problem="lorenz",
    modified=False,
    hidden=(512,) * 3,
    modes=0,
    n_t=300,
    n_x=1,
    sampling="grid",
    eps=(1e-3, 1e-2, 1e-1, 1.0, 10.0),
    extend=0.1,
    max_steps=300_000,
    window_length=0.5,
    n_windows=60,
)

PAPER: dict[str, Setting] = {
    "allen-cahn-mlp": replace(_ALLEN_CAHN, modified=False),
    "allen-cahn": _ALLEN_CAHN,
    "lorenz": _LORENZ,
    "ks-regular": Setting(
        problem="ks-regular",
        modified=True,
        hidden=(256,) * 3,
        modes=5,
        n_t=32,
        n_x=64,
        sampling="random",
        eps=(1e-2, 1e-1, 1.0, 10.0, 100.0),
        extend=0.0,
        max_steps=200_000,
        window_length=0.1,
        n_windows=10,
    ),
    "ks-chaotic": Setting(
        problem="ks-chaotic",
        modified=True,
        hidden=(128,) * 8,
        modes=5,
        time_powers=(-3, -2, -1, 0, 1, 2),
        n_t=32,
        n_x=256,
        sampling="random",
        eps=(1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        max_steps=200_000,
        window_length=0.1,
        n_windows=10,
    ),
    "navier-stokes": Setting(
        problem="navier-stokes",
        modified=True,
        hidden=(128,) * 4,
        modes=5,
        time_powers=(0, 1, 2),
        n_t=32,
        n_x=256,
        sampling="random",
        eps=(1e-3, 1e-2, 1e-1, 1.0),
        max_steps=100_000,
        decay_steps=10_000,
        window_length=0.05,
        n_windows=20,
    ),
}

QUICK: dict[str, Setting] = {
    # With the exact initial condition about a thousand steps carry the front to the end; with an initial loss four
    # thousand do not.
    "allen-cahn": replace(
        _ALLEN_CAHN,
        exact=True,
        hidden=(48,) * 3,
        n_t=32,
        n_x=64,
        max_steps=1200,
        lr=5e-3,
        decay_steps=400,
        check_every=100,
    ),
    "lorenz": replace(
        _LORENZ,
        hidden=(128,) * 3,
        n_t=100,
        eps=(1e-3,),
        max_steps=6000,
        lr=2e-3,
        decay_steps=1500,
        check_every=250,
        n_windows=1,
    ),
}
