"""The experiment of the paper: causal and plain training on the same problems, against reference solutions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from offprints.pinn_causal.equation import state_at
from offprints.pinn_causal.estimator import CausalPINN
from offprints.pinn_causal.references import (
    relative_l2,
    solve_allen_cahn,
    solve_kuramoto_sivashinsky,
    solve_lorenz,
    solve_navier_stokes_2d,
)
from offprints.pinn_causal.reproduce import figures
from offprints.pinn_causal.reproduce.settings import PAPER, QUICK, Setting
from offprints.shared.distributed import world_size
from offprints.shared.experiment import Experiment, Part, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which rows to run, in which size.

    Attributes:
        size: "quick" has small networks and budgets for Allen-Cahn and Lorenz; "paper" has all rows of the paper.
        rows: names of the rows, see settings.py.
        plain: rows to train as a plain PINN (eps = 0) too, with the same seed and number of steps.
        max_steps, check_every, n_windows, width: instead of the row's own; 0 keeps it.
    """

    size: Literal["quick", "paper"] = "quick"
    rows: tuple[str, ...] = ("allen-cahn", "lorenz")
    plain: tuple[str, ...] = ("allen-cahn", "lorenz")
    max_steps: int = 0
    check_every: int = 0
    n_windows: int = 0
    width: int = 0


# Largest relative L2 error that counts as success, and the official figure where there is one to read.
QUICK_TARGETS = {"allen-cahn": 0.2, "lorenz": 0.02}
PAPER_TARGETS: dict[str, tuple[float, float | None]] = {
    "allen-cahn-mlp": (5e-3, 1.662e-3),
    "allen-cahn": (1e-3, None),
    "ks-regular": (5e-2, 3.49e-4),
    "ks-chaotic": (1e-1, None),
    "lorenz": (5e-2, None),
    "navier-stokes": (1e-1, None),
}
LORENZ_HORIZON = 20.0  # rounding of float32 at the windows' ends grows by about exp(0.9 t)


def choose(config: Config) -> dict[str, Setting]:
    """Return the settings of the rows.

    Raises:
        ValueError: an unknown row.
    """
    table = QUICK if config.size == "quick" else PAPER
    chosen = {}
    for name in (*config.rows, *config.plain):
        if name not in table:
            raise ValueError(f"rows and plain must be among {', '.join(table)}, got {name!r}")
        row = table[name]
        own = {key: value for key in ("max_steps", "check_every", "n_windows") if (value := getattr(config, key))}
        if config.width:
            own["hidden"] = (config.width,) * len(row.hidden)
        chosen[name] = replace(row, **own)
    return chosen


def reference(row: Setting) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return times, points and the reference solution on them, ``(n_t, ...)``; vorticity for the flow."""
    per_window = {"allen-cahn": 100, "lorenz": 50, "navier-stokes": 1}.get(row.problem, 10)
    t = np.linspace(0, row.window_length * row.n_windows, per_window * row.n_windows + 1)
    if row.problem == "lorenz":
        return t, None, solve_lorenz(t)
    if row.problem == "navier-stokes":
        flow = solve_navier_stokes_2d(t, n=128)
        return t, flow.x[::2], flow.w[:, ::2, ::2]
    if row.problem == "allen-cahn":
        solution = solve_allen_cahn(t)
    else:
        solution = solve_kuramoto_sivashinsky(t, regime="regular" if row.problem == "ks-regular" else "chaotic")
    return t, solution.x[::2], solution.u[:, ::2]


def predict(model: CausalPINN, row: Setting, t: np.ndarray, x: np.ndarray | None) -> np.ndarray:
    """Return the prediction in the form of the reference, at the times that are trained so far."""
    if row.problem != "navier-stokes":
        return np.asarray(model.predict(t, x))
    grid = next(model.nets_[0].parameters()).new_tensor(x)
    fields = []
    for time in t:
        window = min(int(np.searchsorted(model.edges_[1:], time, side="right")), len(model.nets_) - 1)
        with torch.no_grad():
            fields.append(state_at(model.problem, model.nets_[window], float(time), grid)[2].cpu().numpy())
    return np.stack(fields)


def train(row: Setting, *, plain: bool, seed: int, device: str, part: Part | None = None) -> dict[str, Any]:
    """Train one row; return its error, the errors on the way, the history, weights, prediction and reference."""
    from sklearn.exceptions import ConvergenceWarning

    t, x, truth = reference(row)
    errors: list[float] = []

    def measure(model: CausalPINN) -> None:
        now = t <= model.edges_[-1] + 1e-9
        errors.append(relative_l2(predict(model, row, t[now], x), truth[now]))

    model = CausalPINN(
        row.make_problem(),
        row.make_net,
        eps=0 if plain else row.eps,
        n_t=row.n_t,
        n_x=row.n_x,
        sampling=row.sampling,
        window_length=row.window_length,
        n_windows=row.n_windows,
        extend=row.extend,
        weight_by_initial=row.weight_by_initial,
        lr=row.lr,
        decay_steps=row.decay_steps,
        max_steps=row.max_steps * (len(row.eps) if plain else 1),
        check_every=row.check_every,
        random_state=seed,
        device=device,
        callback=measure if part is None else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the report has a column for it
        model.fit(run=part)
    prediction = predict(model, row, t, x)
    within = t <= LORENZ_HORIZON if row.problem == "lorenz" else np.ones(len(t), dtype=bool)
    return {
        "error": relative_l2(prediction[within], truth[within]),
        "converged": sum(model.converged_),
        "windows": len(model.converged_),
        "steps": [record["step"] for record in model.history_],
        "residual": [record["residual"] for record in model.history_],
        "w_min": [record["w_min"] for record in model.history_],
        "errors": errors,
        "weights": model.weights_,
        "t": torch.from_numpy(t),
        "x": torch.empty(0) if x is None else torch.from_numpy(x),
        "prediction": torch.from_numpy(np.asarray(prediction, dtype=np.float32)),
        "reference": torch.from_numpy(truth.astype(np.float32)),
    }


def _in_part(training: Callable[..., dict[str, Any]], part: Part) -> dict[str, Any]:
    return training(part=part)


def reproduce(config: Config, run: Run) -> None:
    """Train every row, and the plain PINN beside it; record the claims."""
    rows = choose(config)
    jobs = {name: (rows[name], False) for name in config.rows}
    jobs |= {f"{name} plain": (rows[name], True) for name in config.plain}
    # The longest first, so that two processes finish together.
    jobs = dict(sorted(jobs.items(), key=lambda item: -item[1][0].n_t * item[1][0].n_x * item[1][0].max_steps))
    training = partial(train, seed=run.seed, device=str(run.device))
    if config.size == "quick" and world_size() == 1:
        work = {key: partial(training, row, plain=plain) for key, (row, plain) in jobs.items()}
        # A second process is slower to start than a few steps are to make.
        results = run.units(work, workers=1 if 0 < config.max_steps < 100 else 2)
    else:
        results = {
            key: run.part(key).once(partial(_in_part, partial(training, row, plain=plain)))
            for key, (row, plain) in jobs.items()
        }
    for key, result in results.items():
        for step, residual, error in zip(result["steps"], result["residual"], result["errors"], strict=False):
            run.log(step, **{f"{key}/residual": residual, f"{key}/error": error})

    _claims(config, run, results)
    _report(config, run, rows, results)


def _claims(config: Config, run: Run, results: dict[str, dict[str, Any]]) -> None:
    """Record the errors, each beside that of the plain PINN: the same network, seed and steps without weights."""
    for name in config.rows:
        error = results[name]["error"]
        statement = f"causal training solves {name}: its relative L2 error"
        threshold, official = (QUICK_TARGETS[name], None) if config.size == "quick" else PAPER_TARGETS[name]
        plain = results.get(f"{name} plain")
        run.claim(
            name,
            statement,
            error,
            "<",
            threshold,
            paper_value=official,
            control=None if plain is None else plain["error"],
            control_name=None if plain is None else "plain PINN, eps = 0",
        )
        if plain is not None:
            ratio = error / plain["error"]
            run.report_value(f"{name}-ratio", f"on {name} the error of causal training over the plain PINN's", ratio)


def _report(config: Config, run: Run, rows: dict[str, Setting], results: dict[str, dict[str, Any]]) -> None:
    run.table(
        "relative L2 errors",
        [
            {
                "run": key,
                "relative L2 error": result["error"],
                "mean residual at the end": result["residual"][-1],
                "smallest weight at the end": result["w_min"][-1],
                "windows converged": f"{result['converged']} of {result['windows']}",
                "steps": result["steps"][-1],
                "reference": key.endswith(" plain"),
            }
            for key, result in results.items()
        ],
    )
    for name in config.rows:
        found, plain = results[name], results.get(f"{name} plain")
        if rows[name].problem == "lorenz":
            figures.trajectories(run, name, found, plain)
        elif rows[name].problem == "navier-stokes":
            figures.flow(run, name, found)
        else:
            figures.fields(run, name, found, plain)
        reach = 1 + rows[name].extend if rows[name].sampling == "grid" else 1.0
        figures.weights(run, f"{name}-weights", found, rows[name].window_length * reach)
    figures.errors(run, {key: result for key, result in results.items() if result["errors"]})


experiment = Experiment(
    name="pinn-causal",
    title="Respecting causality for training physics-informed neural networks",
    arxiv="2203.07404",
    config=Config,
    presets={
        "smoke": Config(max_steps=20, check_every=10, width=16),
        "quick": Config(),
        "paper": Config(
            size="paper",
            rows=("allen-cahn", "allen-cahn-mlp", "lorenz", "ks-regular", "ks-chaotic", "navier-stokes"),
            plain=("allen-cahn-mlp",),
        ),
    },
    function=reproduce,
)
