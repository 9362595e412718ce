"""`CausalPINN`: what it trains, hands over, stops at, stores and refuses."""

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from offprints.pinn_causal import (
    MLP,
    AllenCahn,
    CausalPINN,
    ExactInitialCondition,
    KuramotoSivashinsky,
    Lorenz,
    ModifiedMLP,
    NavierStokes2d,
    SpaceTimeEmbedding,
    causal_loss,
    jet,
    solve_lorenz,
)
from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_errors, check_estimator

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def periodic(period: float = 2.0, width: int = 8) -> nn.Module:
    return ModifiedMLP(2, (width,) * 2, 1, embedding=SpaceTimeEmbedding(periods=[period], modes=[3]))


def exact() -> nn.Module:
    return ExactInitialCondition(MLP(1, (16, 16), 3), torch.zeros(3))


class Decay:
    """u' = -u, or u_t = -u: an equation of the user's own."""

    equation_weights = (1.0,)
    initial_weight = 10.0
    n_outputs = 1
    domain = ()

    def residual(self, net, t, x=None):
        value, rate = jet(net, t[:, None], torch.ones(1), 1)
        return ((rate + value)[:, 0],)

    def temporal_losses(self, net, t, x=None):
        return self.residual(net, t)[0].square()

    def initial(self, x):
        return torch.ones(1, dtype=x.dtype, device=x.device)

    def initial_loss(self, net, x, state):
        return (net(state.new_zeros(1)) - state).square().mean()


SMALL = {"n_t": 8, "n_x": 6, "max_steps": 4, "check_every": 2, "random_state": 0, "device": "cpu"}


def same(a: CausalPINN, b: CausalPINN) -> None:
    for x, y in zip(a.nets_, b.nets_, strict=True):
        for p, q in zip(x.state_dict().values(), y.state_dict().values(), strict=True):
            assert torch.equal(p, q)
    assert torch.equal(a.weights_, b.weights_)
    for x, y in zip(a.history_, b.history_, strict=True):
        assert {k: v for k, v in x.items() if k != "seconds"} == {k: v for k, v in y.items() if k != "seconds"}
    assert (a.converged_, a.n_iter_, a.edges_) == (b.converged_, b.n_iter_, b.edges_)


def test_it_solves_an_equation_of_the_users_and_says_that_it_converged() -> None:
    model = CausalPINN(
        Decay(),
        partial(MLP, 1, (16,), 1),
        eps=(1e-2, 1.0),
        window_length=0.5,
        n_t=10,
        max_steps=2000,
        check_every=25,
        lr=3e-2,
        decay_steps=100,
        random_state=0,
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit()
    assert model.converged_ == [True]
    assert model.n_iter_ < 4000
    t = np.linspace(0, 0.5, 21)
    assert model.score(t, None, np.exp(-t)[:, None]) > -0.05
    assert model.history_[-1]["w_min"] > 0.99


def test_causality_decides_whether_lorenz_is_solved() -> None:
    """The first stretch of the paper's ODE, small: the same steps with and without weights."""
    t = np.linspace(0, 0.2, 21)
    errors = {}
    for eps in (1e-2, 0.0):
        model = CausalPINN(
            Lorenz(),
            exact,
            eps=eps,
            n_t=40,
            sampling="grid",
            window_length=0.2,
            extend=0.1,
            max_steps=500,
            check_every=500,
            lr=1e-2,
            decay_steps=100,
            random_state=0,
            device="cpu",
        )
        errors[eps] = -model.fit().score(t, None, solve_lorenz(t))
    assert errors[1e-2] < 0.5 * errors[0.0], errors


def test_one_step_is_adam_on_the_causal_loss() -> None:
    """Chunks of time, skipped chunks and the sweep change nothing."""
    problem, eps = AllenCahn(), 3.0
    model = CausalPINN(
        problem, periodic, eps=eps, sampling="grid", n_t=8, n_x=600, extend=0.0, max_steps=1, check_every=1,
        random_state=3, device="cpu", dtype=torch.float64,
    ).fit()  # fmt: skip
    torch.manual_seed(3)
    net = periodic().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    t, x = torch.linspace(0, 1, 8).double(), torch.linspace(-1, 1, 600, dtype=torch.float64)
    t = torch.linspace(0, 1, 8, dtype=torch.float64)
    grid = -1 + 2 * torch.arange(512, dtype=torch.float64) / 512
    initial = 100 * problem.initial_loss(net, grid, problem.initial(grid))
    loss, _ = causal_loss(problem.temporal_losses(net, t, x), eps, initial_loss=initial)
    loss.backward()
    optimizer.step()
    for ours, theirs in zip(model.nets_[0].parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        initial = 100 * problem.initial_loss(net, grid, problem.initial(grid))
        loss, weights = causal_loss(problem.temporal_losses(net, t, x), eps, initial_loss=initial)
    torch.testing.assert_close(model.weights_[0], weights)
    record = model.history_[0]
    assert record["loss"] == pytest.approx(float(loss))
    assert record["initial"] == pytest.approx(float(initial))
    assert record["w_min"] == pytest.approx(float(weights.min()))
    assert list(record) == ["step", "window", "eps", "loss", "initial", "residual", "w_min", "seconds"]


def test_vanished_weights_train_the_initial_condition_alone() -> None:
    problem = KuramotoSivashinsky.regular()
    model = CausalPINN(problem, periodic, eps=1e3, **SMALL).fit()
    assert not model.weights_.any()
    assert model.converged_ == [False]
    assert model.n_iter_ == 4


def test_budget_ends_every_eps_and_the_plain_pinn_spends_it_all() -> None:
    with pytest.warns(ConvergenceWarning, match=r"2 of 2 windows.*\[0, 1\]"):
        causal = CausalPINN(AllenCahn(), periodic, eps=(10.0, 100.0), n_windows=2, **SMALL).fit()
    assert [(r["step"], r["window"], r["eps"]) for r in causal.history_] == [
        (2, 0, 10.0), (4, 0, 10.0), (6, 0, 100.0), (8, 0, 100.0),
        (10, 1, 10.0), (12, 1, 10.0), (14, 1, 100.0), (16, 1, 100.0),
    ]  # fmt: skip
    assert causal.n_iter_ == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no criterion, no warning
        plain = CausalPINN(AllenCahn(), periodic, eps=0, **SMALL).fit()
    assert plain.n_iter_ == 4
    assert plain.converged_ == [False]
    assert bool((plain.weights_ == 1).all())


def test_the_threshold_advances_eps_at_once() -> None:
    model = CausalPINN(AllenCahn(), periodic, eps=(1e-9, 1e-8), weight_by_initial=False, **SMALL).fit()
    # At the last eps weights of 1 do not suffice: the residual must be small beside its own scale too.
    assert [r["eps"] for r in model.history_] == [1e-9, 1e-8, 1e-8]
    assert model.n_iter_ == 6
    assert model.converged_ == [False]
    lenient = CausalPINN(
        AllenCahn(), periodic, eps=(1e-9, 1e-8), weight_by_initial=False, relative_tolerance=1e6, **SMALL
    ).fit()
    assert [r["eps"] for r in lenient.history_] == [1e-9, 1e-8]
    assert lenient.converged_ == [True]


def test_a_window_hands_its_end_over() -> None:
    seen: list[Tensor] = []

    class Watched(AllenCahn):
        def initial_loss(self, net, x, state):
            if not seen or not torch.equal(seen[-1], state):
                seen.append(state.clone())
            return super().initial_loss(net, x, state)

    model = CausalPINN(Watched(), periodic, n_windows=2, window_length=0.5, eps=1.0, **SMALL).fit()
    grid = -1 + 2 * torch.arange(512) / 512
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], AllenCahn().initial(grid))
    end = model.nets_[0](torch.stack([torch.full_like(grid, 0.5), grid], dim=-1))[:, 0]
    torch.testing.assert_close(seen[1], end.detach())
    times = torch.tensor([0.25, 0.75])
    for row, t, net in zip(model.predict(times, grid[:4]), times, model.nets_, strict=True):
        torch.testing.assert_close(row, net(torch.stack([t.expand(4), grid[:4]], dim=-1))[:, 0])


@pytest.mark.parametrize("problem", [AllenCahn(), Lorenz(), NavierStokes2d()], ids=lambda p: type(p).__name__)
def test_exact_initial_conditions_get_the_state_of_their_window(problem) -> None:
    d = len(problem.domain)
    outputs, periods = problem.n_outputs, [high - low for low, high in problem.domain]

    def make() -> nn.Module:
        embedding = SpaceTimeEmbedding(periods=periods, modes=[2] * d) if d else None
        return ExactInitialCondition(MLP(1 + d, (6,), outputs, embedding=embedding), torch.zeros(outputs))

    start = {0: torch.tensor([1.0, 2.0, 3.0]), 1: torch.cos(np.pi * torch.arange(16) / 8), 2: torch.randn(3, 8, 8)}[d]
    low, high = problem.domain[0] if d else (0.0, 1.0)
    grid = low + (high - low) * torch.arange(start.shape[-1]) / start.shape[-1]
    points = {0: None, 1: grid, 2: torch.cartesian_prod(grid, grid)}[d]  # x slowest
    model = CausalPINN(problem, make, n_windows=2, eps=1e-6, **SMALL).fit(start)
    assert {r["initial"] for r in model.history_} == {0}
    found = model.predict(torch.tensor([0.0]), points)[0]
    expected = start[:2].permute(2, 1, 0).reshape(-1, 2) if d == 2 else start
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    before = model.nets_[0](torch.cat([torch.ones(1, 1), torch.zeros(1, d)], dim=1))
    after = model.nets_[1](torch.cat([torch.ones(1, 1), torch.zeros(1, d)], dim=1))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert not torch.equal(after, expected[:1] if d else expected)


def test_windows_that_fail_are_halved() -> None:
    model = CausalPINN(AllenCahn(), periodic, eps=1e4, n_windows=2, window_length=1.0, max_halvings=1, **SMALL).fit()
    assert model.edges_ == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert len(model.nets_) == len(model.converged_) == 4
    assert model.n_iter_ == 6 * 4
    assert model.predict(np.linspace(0, 2, 9), np.zeros(2)).shape == (9, 2)


@pytest.mark.parametrize("problem", [KuramotoSivashinsky.regular(), Lorenz(), NavierStokes2d()])
@pytest.mark.parametrize("sampling", ["random", "grid"])
def test_batches(problem, sampling) -> None:
    d = len(problem.domain)
    batches = []

    class Watched(type(problem)):
        def temporal_losses(self, net, t, x=None):
            batches.append((t, x))
            return super().temporal_losses(net, t, x)

    watched = Watched.__new__(Watched)
    watched.__dict__.update(vars(problem))
    settings = SMALL | {"n_x": 9, "max_steps": 2, "check_every": 2}
    make = partial(MLP, 1 + d, (4,), problem.n_outputs)
    CausalPINN(watched, make, sampling=sampling, eps=1e-9, window_length=0.5, extend=0.2, **settings).fit(
        torch.zeros(3, 8, 8) if d == 2 else None
    )
    t, x = batches[0]
    assert t.shape == (8,)
    assert bool((t.diff() >= 0).all())
    assert float(t.max()) <= 0.6 + 1e-6
    if sampling == "grid":
        torch.testing.assert_close(t, torch.linspace(0, 0.6, 8))
        assert torch.equal(batches[1][0], t)
    else:
        assert not torch.equal(batches[1][0], t)
    if d == 0:
        assert x is None
        return
    assert x.shape == ((9,) if d == 1 else (9, 2))
    low, high = problem.domain[0]
    assert bool(((x >= low) & (x <= high)).all())
    if sampling == "grid":
        assert float(x.min()) == pytest.approx(low)
        assert float(x.max()) == pytest.approx(high)


def test_seeds() -> None:
    make = partial(CausalPINN, KuramotoSivashinsky.regular(), periodic, eps=1e-5, **SMALL)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = make().fit(), make().fit()
    same(first, second)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    other = make().set_params(random_state=1).fit()
    assert not torch.equal(other.weights_, first.weights_)
    # None draws one seed, which all windows share.
    free = make().set_params(random_state=None, n_windows=2, max_steps=1, check_every=1, lr=1e-12).fit()
    for p, q in zip(*(net.parameters() for net in free.nets_), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_conformance() -> None:
    model = CausalPINN(Lorenz(), exact, eps=1e-3, n_windows=2, n_t=4, max_steps=2, check_every=1)
    start, times = np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.4, 1.0, 1.7])
    diverges, outside = "FloatingPointError, as documented", "the times asked for are outside, as predict says"
    arguments = {
        "parameters: eps: a list": "a schedule",
        "parameters: extend: huge": diverges,
        "parameters: lr: huge": diverges,
        "parameters: window_length: huge": diverges,
        "parameters: window_length: tiny": outside,
        "parameters: t0: -1": outside,
        "parameters: t0: huge": outside,
        "fit: initial: huge": diverges,
    }
    skip = {f"arguments: {case}": reason for case, reason in arguments.items()}
    skip["bad data"] = "a state has one axis: test_errors"
    skip["set_params after fit: compile"] = "half a minute of compiling: test_compiled_losses_agree"
    check_estimator(model, (start,), query=(times,), skip=skip)


def test_scikit_learn_habits() -> None:
    model = CausalPINN(Lorenz(), exact, eps=1e-6, **SMALL)
    twin = clone(model)
    assert twin.get_params()["n_t"] == 8
    assert "CausalPINN" in repr(model)
    model.fit()
    same(model, twin.fit())
    t = torch.linspace(0, 1, 5)
    expected = model.predict(t)
    assert torch.equal(copy.deepcopy(model).predict(t), expected)
    assert isinstance(model.predict(t.numpy()), np.ndarray)
    np.testing.assert_allclose(model.predict(t.double().numpy()), expected, atol=1e-6)
    assert model.score(t, None, 2 * expected) == pytest.approx(-0.5)


def test_numbers_of_numpy_are_numbers() -> None:
    numbers = {k: np.int32(v) for k, v in SMALL.items() if k != "device"} | {"lr": np.float32(1e-3), "device": "cpu"}
    found = CausalPINN(Lorenz(), exact, eps=np.float64(1e-6), **numbers).fit()
    same(found, CausalPINN(Lorenz(), exact, eps=1e-6, **SMALL | {"lr": float(np.float32(1e-3))}).fit())


def test_numpy_states_and_float64() -> None:
    state = np.cos(np.pi * np.arange(16) / 8)
    model = CausalPINN(AllenCahn(), periodic, eps=1.0, dtype=torch.float64, **SMALL).fit(state)
    assert next(model.nets_[0].parameters()).dtype == torch.float64
    assert model.predict(np.array([0.5]), np.array([0.1, 0.2])).dtype == np.float64
    same(model, CausalPINN(AllenCahn(), periodic, eps=1.0, dtype=torch.float64, **SMALL).fit(torch.from_numpy(state)))


@pytest.mark.slow
def test_compiled_losses_agree() -> None:
    """With generated code, which takes a minute."""
    make = partial(CausalPINN, Lorenz(), partial(MLP, 1, (4,), 3), eps=1e-3, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler itself warns of
        compiled = make(compile=True).fit()
    torch.testing.assert_close(compiled.weights_, make().fit().weights_, rtol=1e-3, atol=1e-4)


def test_problems_are_equal_by_their_coefficients() -> None:
    assert AllenCahn(nu=0.1) == AllenCahn(nu=0.1) != AllenCahn(nu=0.2)
    assert KuramotoSivashinsky.regular() != KuramotoSivashinsky.chaotic()
    assert len({Lorenz(), Lorenz(), Lorenz(rho=20.0), NavierStokes2d()}) == 3
    assert repr(AllenCahn(nu=0.1)) == "AllenCahn(nu=0.1, reaction=5.0, initial_weight=100.0)"


def test_callback_sees_the_current_window() -> None:
    seen = []

    def callback(model: CausalPINN) -> None:
        end = model.edges_[-1]
        seen.append((model.history_[-1]["step"], len(model.nets_), model.predict(np.array([end])).shape))

    CausalPINN(Lorenz(), exact, eps=1.0, n_windows=2, callback=callback, **SMALL).fit()
    assert seen == [(2, 1, (1, 3)), (4, 1, (1, 3)), (6, 2, (1, 3)), (8, 2, (1, 3))]


class KilledError(Exception):
    """The process ends here."""


class Memory:
    """A run that keeps its newest checkpoint, and is killed after so many."""

    def __init__(self, limit: int) -> None:
        self.limit, self.saved, self.logged = limit, None, []

    def log(self, step, **scalars) -> None:
        self.logged.append((step, scalars))

    def checkpoint(self, step, state) -> None:
        self.saved = step, copy.deepcopy(state)
        self.limit -= 1
        if self.limit == 0:
            raise KilledError

    def restore(self):
        return self.saved


@pytest.mark.parametrize(
    ("after", "make_net"), [(1, exact), (2, partial(MLP, 1, (6,), 3)), (3, exact), (5, partial(MLP, 1, (6,), 3))]
)
def test_an_interrupted_fit_gives_the_same_result(after, make_net) -> None:
    make = partial(
        CausalPINN, Lorenz(), make_net, eps=(1e-8, 10.0), n_windows=2, max_halvings=1, **SMALL | {"random_state": None}
    )
    run = Memory(after)
    with pytest.raises(KilledError):
        make().fit(run=run)
    resumed = make().fit(run=run)
    seed = run.saved[1]["seed"]
    same(resumed, make().set_params(random_state=seed).fit())
    assert run.logged[0][1].keys() == {"window", "eps", "loss", "initial", "residual", "w_min"}


def test_nan_is_an_error_and_not_a_model() -> None:
    class Broken(Lorenz):
        def temporal_losses(self, net, t, x=None):
            losses = super().temporal_losses(net, t, x)
            return losses * (float("nan") if float(net(t[:1, None])[0, 0].detach()) != 1 else 1.0)

    model = CausalPINN(Broken(), exact, eps=1e-3, sampling="grid", **SMALL)
    with pytest.raises(FloatingPointError, match=r"window 0 at eps=0\.001, step 1"):
        CausalPINN(Broken(state0=(2.0, 1.0, 1.0)), exact, eps=1e-3, sampling="grid", **SMALL).fit()
    with pytest.raises(FloatingPointError, match="window 0 at eps=10000"):
        CausalPINN(AllenCahn(), periodic, eps=1e4, lr=1e25, **SMALL | {"max_steps": 50}).fit()
    with pytest.raises(NotFittedError):
        model.predict(np.array([0.0]))


def distributed_fit(rank: int) -> dict[str, object]:
    import torch

    from offprints.pinn_causal import AllenCahn, CausalPINN, ModifiedMLP, SpaceTimeEmbedding

    def make() -> torch.nn.Module:
        return ModifiedMLP(2, (6, 6), 1, embedding=SpaceTimeEmbedding(periods=[2.0], modes=[3]))

    model = CausalPINN(
        AllenCahn(), make, eps=5.0, n_t=5, n_x=7, max_steps=6, check_every=3, random_state=0, device="cpu",
        dtype=torch.float64, weight_by_initial=False,
    ).fit()  # fmt: skip
    return {
        "weights": model.weights_.numpy(),
        "loss": [r["loss"] for r in model.history_],
        "prediction": model.predict(torch.linspace(0, 1, 4), torch.linspace(-1, 1, 5)).numpy(),
    }


def test_two_processes_share_the_points_and_agree_with_one(two_processes) -> None:
    alone = distributed_fit(0)
    for found in two_processes(quiet_fit):
        np.testing.assert_allclose(found["weights"], alone["weights"], rtol=1e-8)
        np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-8)
        np.testing.assert_allclose(found["prediction"], alone["prediction"], rtol=1e-6, atol=1e-9)


def quiet_fit(rank: int) -> dict[str, object]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return distributed_fit(rank)


def test_errors() -> None:
    make = partial(CausalPINN, AllenCahn(), periodic)
    fitted = CausalPINN(AllenCahn(), periodic, eps=1.0, n_windows=2, **SMALL).fit()
    ode = CausalPINN(Lorenz(), exact, eps=1.0, **SMALL).fit()
    t, x, bad = np.array([0.5]), np.array([0.1]), torch.full((16,), torch.nan)
    before = copy.deepcopy(fitted.nets_[0].state_dict())
    check_errors(
        [
            (lambda: CausalPINN("heat", periodic), TypeError, "problem"),
            (lambda: CausalPINN(AllenCahn(), "net"), TypeError, "make_net"),
            (lambda: CausalPINN(AllenCahn(), lambda: "net", **SMALL).fit(), TypeError, "make_net"),
            (lambda: make(eps=-1.0), ValueError, "eps"),
            (lambda: make(eps=(1.0, 0.5)), ValueError, "eps"),
            (lambda: make(eps=()), ValueError, "eps"),
            (lambda: make(eps=(0.0, 1.0)), ValueError, "eps"),
            (lambda: make(threshold=1.0), ValueError, "threshold"),
            (lambda: make(n_t=1), ValueError, "n_t"),
            (lambda: make(n_x=0), ValueError, "n_x"),
            (lambda: make(n_x=2.5), TypeError, "n_x"),
            (lambda: make(sampling="sobol"), ValueError, "'random', 'grid'"),
            (lambda: make(window_length=0.0), ValueError, "window_length"),
            (lambda: make(n_windows=0), ValueError, "n_windows"),
            (lambda: make(extend=-0.1), ValueError, "extend"),
            (lambda: make(initial_weight=-1.0), ValueError, "initial_weight"),
            (lambda: make(lr=0.0), ValueError, "lr"),
            (lambda: make(decay_rate=0.0), ValueError, "decay_rate"),
            (lambda: make(decay_steps=0), ValueError, "decay_steps"),
            (lambda: make(max_steps=0), ValueError, "max_steps"),
            (lambda: make(check_every=0), ValueError, "check_every"),
            (lambda: make(random_state=-1), ValueError, "random_state"),
            (lambda: make(dtype=torch.int64), TypeError, "dtype"),
            (lambda: make(callback=3), TypeError, "callback"),
            (lambda: make(max_halvings=-1), ValueError, "max_halvings"),
            (lambda: make(device="abacus").fit(), ValueError, "device"),
            (lambda: make().set_params(n_t=0).fit(), ValueError, "n_t"),
            (lambda: CausalPINN(NavierStokes2d(), periodic, sampling="grid", n_x=8), ValueError, "n_x"),
            (lambda: make().predict(t, x), NotFittedError, "fit"),
            (lambda: make().score(t, x, t), NotFittedError, "fit"),
            (lambda: fitted.fit(bad), ValueError, "initial"),
            (lambda: fitted.fit(torch.zeros(2, 2)), ValueError, "initial"),
            (lambda: fitted.fit(torch.zeros(3)), ValueError, "initial"),
            (lambda: fitted.fit(np.arange(16)), TypeError, "initial"),
            (lambda: ode.fit(torch.zeros(4)), ValueError, "initial"),
            (lambda: fitted.predict(np.array([-0.1]), x), ValueError, "t must be in [0, 2]"),
            (lambda: fitted.predict(np.array([2.1]), x), ValueError, "t must be in [0, 2]"),
            (lambda: fitted.predict(t), ValueError, "x must"),
            (lambda: fitted.predict(t, np.zeros((3, 2))), ValueError, "x must"),
            (lambda: fitted.predict(np.array([[0.1]]), x), ValueError, "t must"),
            (lambda: fitted.predict(np.array([1]), x), TypeError, "t must"),
            (lambda: ode.predict(t, x), ValueError, "x must"),
            (lambda: fitted.score(t, x, np.zeros((2, 2))), ValueError, "shape"),
        ]
    )
    # A refused state has changed nothing.
    assert all(torch.equal(a, b) for a, b in zip(before.values(), fitted.nets_[0].state_dict().values(), strict=True))
