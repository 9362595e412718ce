"""A federation in one process: what it computes, by hand and by theorem; resumed runs; bad clients."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from offprints.fedld import FederatedResult, LocalConfig, PrincipalGradientAggregator, simulate, train_client
from offprints.fedld.simulation import METHODS
from offprints.fedld.training import ClientLoader, client_seed
from offprints.shared.device import local_seed
from offprints.shared.testing import check_errors
from offprints.shared.testing._properties import random_state_untouched, saved_and_loaded

CONFIG = LocalConfig(lr=0.1, batch_size=8)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))


def clients(m: int = 3, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [17, 24, 10, 12, 9][:m]
    made = []
    for i, n in enumerate(sizes):
        x = torch.randn(n, 4, generator=generator) + 0.3 * i
        made.append((x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()))
    return made


def common() -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(9))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def run(method: str = "fedld", *, rounds: int = 3, data=None, **options) -> FederatedResult:
    data = clients() if data is None else data
    options = {"config": CONFIG, "eval_data": common(), "device": "cpu"} | options
    return simulate(network(), data, method=method, rounds=rounds, **options)  # type: ignore[arg-type]


def same(one: FederatedResult, other: FederatedResult) -> None:
    for a, b in zip([one.state, *one.client_states], [other.state, *other.client_states], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert one.history == other.history
    assert one.reports == other.reports


@pytest.mark.parametrize("method", METHODS)
def test_terms_and_resume(method: str) -> None:
    whole = run(method, rounds=4)
    assert [entry["step"] for entry in whole.history] == [1, 2, 3, 4]
    for entry in whole.history:
        assert entry["local"] + entry["shift"] + entry["aggregation"] == pytest.approx(entry["loss"], abs=1e-6)
        assert entry["total"] == pytest.approx(entry["loss"], abs=1e-6)
        if method in ("local", "fedbn"):
            assert entry["aggregation"] == pytest.approx(0, abs=1e-12)
    first = run(method, rounds=2)
    stored = saved_and_loaded({k: getattr(first, k) for k in ("state", "client_states", "history", "aggregator_state")})
    first = FederatedResult(**stored, reports=first.reports)
    same(run(method, rounds=4, resume_from=first), whole)
    assert len(first.history) == 2  # the earlier result is left as it was


def test_fedavg_by_hand() -> None:
    """The draws of client i in round r depend on (seed, r, i) alone."""
    data, model = clients(), network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = torch.tensor([len(y) for _, y in data]).double()
    for number in (1, 2):
        results = []
        for i, pair in enumerate(data):
            with local_seed(client_seed(7, number, i)):
                results.append(
                    train_client(network(), ClientLoader(pair, 8), CONFIG, global_state=state, device="cpu")[0]
                )
        for name in state:
            mean = sum(p * result[name].double() for p, result in zip(sizes / sizes.sum(), results, strict=True))
            state[name] = mean.round().long() if name.endswith("tracked") else mean.float()
    result = run("fedavg", rounds=2, seed=7)
    for name in state:
        torch.testing.assert_close(result.state[name], state[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.client_states[2][name], results[2][name], rtol=1e-4, atol=1e-5)


def test_methods_differ_in_what_they_should() -> None:
    results = {
        method: run(method, rounds=2, config=LocalConfig(lr=0.1, batch_size=8, penalty=0.0)) for method in METHODS
    }
    start = network().state_dict()
    norm = {name for name in start if name.startswith("1.")}
    for name, value in start.items():
        assert torch.equal(results["local"].state[name], value)  # no server
        assert torch.equal(results["fedbn"].state[name], value) == (name in norm)
    assert not torch.equal(results["fedbn"].client_states[0]["1.weight"], results["fedbn"].client_states[1]["1.weight"])
    weights = {method: result.state["0.weight"] for method, result in results.items()}
    pairs = [("fedld", "fedavg"), ("fedprox", "fedavg"), ("fedgh", "fedavg"), ("fedbn", "fedavg"), ("fedgh", "fedld")]
    assert not any(torch.equal(weights[a], weights[b]) for a, b in pairs)
    # FedProx is FedAvg with the term; 0 stands for 0.01.
    proximal = LocalConfig(lr=0.1, batch_size=8, penalty=0.0, proximal=0.01)
    assert torch.equal(run("fedavg", rounds=2, config=proximal).state["0.weight"], weights["fedprox"])


def test_losses_are_those_of_the_models() -> None:
    result = run("fedavg", rounds=1)
    model, (x, y) = network(), common()
    model.eval()
    model.load_state_dict(result.state)
    entry = result.history[0]
    assert entry["loss"] == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-6)
    assert entry["accuracy"] == pytest.approx((model(x).argmax(1) == y).float().mean().item())
    own = cross = 0.0
    for state, (inputs, labels) in zip(result.client_states, clients(), strict=True):
        model.load_state_dict(state)
        own += len(labels) / 51 * nn.functional.cross_entropy(model(inputs), labels).item()
        cross += len(labels) / 51 * nn.functional.cross_entropy(model(x), y).item()
    assert entry["local"] == pytest.approx(own, rel=1e-5)
    assert entry["shift"] == pytest.approx(cross - own, abs=1e-5)


def test_nothing_outside_is_touched_or_matters() -> None:
    model, data = network(), clients()
    common_data = common()
    model.eval()
    before = copy.deepcopy((model.state_dict(), data))
    with random_state_untouched():
        first = simulate(model, data, rounds=2, config=CONFIG, eval_data=common(), device="cpu")
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(
        torch.equal(a, b) for pair, kept in zip(data, before[1], strict=True) for a, b in zip(pair, kept, strict=True)
    )
    torch.manual_seed(1234)
    sets = [TensorDataset(*pair) for pair in data]
    with torch.inference_mode():
        same(run(rounds=2, data=sets), first)  # data sets of the same samples
    torch.set_default_device("meta")
    try:
        same(simulate(model, data, rounds=2, config=CONFIG, eval_data=common_data, device="cpu"), first)
    finally:
        torch.set_default_device(None)
    assert run(rounds=1, seed=1).state["0.weight"].ne(run(rounds=1).state["0.weight"]).any()


def test_participation_draws_so_many_and_goes_on() -> None:
    for share, count in ((0.4, 2), (0.5, 2), (0.01, 1), (1.0, 5)):
        result = run(rounds=4, data=clients(5), participation=share)
        drawn = [report.accepted for report in result.reports]
        assert [len(of_round) for of_round in drawn] == [count] * 4
        assert all(of_round == sorted(set(of_round)) for of_round in drawn)
    assert len({tuple(r.accepted) for r in run(rounds=6, data=clients(5), participation=0.4).reports}) > 1
    first = run("local", rounds=3, data=clients(5), participation=0.4)
    trained = {i for report in first.reports for i in report.accepted}
    start = network().state_dict()["0.weight"]
    assert {i for i, state in enumerate(first.client_states) if not torch.equal(state["0.weight"], start)} == trained
    whole, half = (run("fedbn", rounds=r, data=clients(5), participation=0.6) for r in (4, 2))
    same(run("fedbn", rounds=4, data=clients(5), participation=0.6, resume_from=half), whole)


@pytest.mark.parametrize("method", METHODS)
def test_client_with_nan_is_left_out(method: str) -> None:
    data = clients()
    data[1] = (torch.full_like(data[1][0], float("nan")), data[1][1])
    result = run(method, rounds=3, data=data)
    entry = result.history[-1]
    if method == "local":  # there is no server to reject
        assert result.reports[-1].accepted == [0, 1, 2]
        assert math.isnan(entry["loss"])
        assert math.isnan(entry["shift"])
        return
    for report in result.reports:
        assert report.accepted == [0, 2]
        assert list(report.rejected) == [1]
        assert "is not finite" in report.rejected[1]
    assert all(value.isfinite().all() for value in result.state.values())
    assert entry["local"] + entry["shift"] + entry["aggregation"] == pytest.approx(entry["loss"], abs=1e-6)
    assert result.client_states[1]["0.weight"].isnan().any()


def test_round_without_a_valid_client_keeps_the_weights() -> None:
    data = [(torch.full_like(x, float("nan")), y) for x, y in clients(2)]
    result = run(rounds=2, data=data)
    start = network().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in result.state.items())
    assert [(r.accepted, sorted(r.rejected)) for r in result.reports] == [([], [0, 1])] * 2
    assert math.isfinite(result.history[0]["loss"])
    assert math.isnan(result.history[0]["shift"])
    with pytest.raises(ValueError, match="client_states"):
        run(rounds=1, data=data, aggregator=PrincipalGradientAggregator(on_bad_update="raise"))


def test_evaluation_every_so_many_rounds_and_callback() -> None:
    told: list[dict[str, float]] = []
    result = run(rounds=5, eval_every=2, callback=told.append)
    assert [entry["step"] for entry in result.history if "loss" in entry] == [2, 4, 5]
    assert told == result.history
    dense = run(rounds=5)
    assert dense.history[4] == result.history[4]
    assert set(run(rounds=1, eval_data=None).history[0]) == {"step", "train_loss"}


def test_aggregator_is_used_and_left_as_it_was() -> None:
    server = PrincipalGradientAggregator(rule="projection", k_proportion=1.0, warmup_rounds=0)
    with_projection = run(rounds=2, aggregator=server)
    assert server.state_dict() == {"round": 0, "moved": []}
    assert with_projection.aggregator_state["round"] == 2
    # All directions, projected: the plain mean.
    mean = run(rounds=2, aggregator=PrincipalGradientAggregator(warmup_rounds=99))
    torch.testing.assert_close(with_projection.state["0.weight"], mean.state["0.weight"], rtol=1e-4, atol=1e-6)


def test_single_client_and_clients_of_one_sample() -> None:
    x, y = clients(1)[0]
    one = run(rounds=2, data=[(x, y)])
    torch.testing.assert_close(one.state["0.weight"], one.client_states[0]["0.weight"], rtol=1e-5, atol=1e-6)
    plain = nn.Linear(4, 3)
    tiny = simulate(plain, [(x[:1], y[:1]), (x[1:2], y[1:2])], rounds=2, config=CONFIG, device="cpu")
    assert tiny.reports[1].accepted == [0, 1]


def test_penalty_and_seed_act() -> None:
    plain = run("fedavg", rounds=2, config=LocalConfig(lr=0.1, batch_size=8, penalty=0.0))
    assert not torch.equal(plain.state["0.weight"], run("fedavg", rounds=2).state["0.weight"])


def test_bad_inputs() -> None:
    data, result = clients(), run(rounds=2)
    x, y = data[0]
    cases = [
        (lambda: run("fedsgd"), ValueError, "method"),
        (lambda: run(rounds=0), ValueError, "rounds"),
        (lambda: run(rounds=1.0), TypeError, "rounds"),
        (lambda: run(eval_every=0), ValueError, "eval_every"),
        (lambda: run(participation=0.0), ValueError, "participation"),
        (lambda: run(participation=1.1), ValueError, "participation"),
        (lambda: run(participation=float("nan")), ValueError, "participation"),
        (lambda: run(seed=-1), ValueError, "seed"),
        (lambda: run(config={"epochs": 1}), TypeError, "config"),
        (lambda: run(data=[]), ValueError, "client_data"),
        (lambda: run(data=data[0][0]), TypeError, "client_data"),
        (lambda: run(data=[x]), TypeError, "client_data[0]"),
        (lambda: run(data=[data[0], (x[:0], y[:0])]), ValueError, "client_data[1]"),
        (lambda: run(data=[(x, y[:3])]), ValueError, "client_data[0]"),
        (lambda: run(data=[(x, y.float())]), TypeError, "client_data[0]"),
        (lambda: run(data=[(x, y + 5)]), ValueError, "labels"),
        (lambda: run(eval_data=x), TypeError, "eval_data"),
        (lambda: run(eval_data=(x[:0], y[:0])), ValueError, "eval_data"),
        (lambda: run("fedavg", aggregator=PrincipalGradientAggregator()), ValueError, "aggregator"),
        (lambda: run(aggregator="fedld"), TypeError, "aggregator"),
        (lambda: run(callback=3), TypeError, "callback"),
        (lambda: run(device="nowhere"), ValueError, "device"),
        (lambda: run(rounds=1, resume_from=result), ValueError, "rounds"),
        (lambda: run(resume_from=result, data=clients(2)), ValueError, "resume_from"),
        (lambda: run(resume_from=result.state), TypeError, "resume_from"),
        (
            lambda: simulate(nn.Linear(4, 3), data, rounds=3, config=CONFIG, resume_from=result),
            ValueError,
            "resume_from",
        ),
        (lambda: simulate(x, data, rounds=1, config=CONFIG), TypeError, "model"),
    ]
    check_errors(cases)


@pytest.mark.gpu
def test_on_an_accelerator() -> None:
    here, there = run("fedavg", rounds=1), run("fedavg", rounds=1, device="cuda")
    assert not there.state["0.weight"].is_cuda  # results are where the model is
    assert abs(there.history[0]["accuracy"] - here.history[0]["accuracy"]) < 0.5
