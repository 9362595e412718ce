"""The server: rounds, buffers, types, who is rejected, what is remembered."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from offprints.fedld import PrincipalGradientAggregator, principal_aggregate
from offprints.fedld import states as pieces
from offprints.fedld.baselines import GradientHarmonization, WeightedAverage, batch_norm_names, buffer_names
from offprints.shared.testing import check_arguments
from offprints.shared.testing._properties import saved_and_loaded

State = dict[str, Tensor]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 1))


def clients_of(start: State, m: int = 4, seed: int = 0, scale: float = 0.1) -> list[State]:
    """Updates with a common part; counters go up by different numbers."""
    generator = torch.Generator().manual_seed(seed)
    common = {n: torch.randn(v.shape, generator=generator) for n, v in start.items()}
    made = []
    for i in range(m):
        state = {}
        for name, value in start.items():
            if value.is_floating_point():
                own = torch.randn(value.shape, generator=generator)
                state[name] = value + scale * (common[name] + own).to(value)
            else:
                state[name] = value + 3 + i
        made.append(state)
    return made


def after_warmup(**options) -> tuple[PrincipalGradientAggregator, State]:
    """A server after one round, and the state it gave."""
    start = {"a": torch.zeros(3, 4), "b": torch.ones(5), "one": torch.zeros(1)}
    server = PrincipalGradientAggregator(**options)
    return server, server.aggregate(start, clients_of(start))[0]


def test_first_round_is_the_plain_mean_and_later_ones_are_not() -> None:
    start = {"a": torch.zeros(3, 4), "b": torch.ones(5), "one": torch.zeros(1)}
    clients = clients_of(start)
    for warmup in (0, 1, 2):
        server, state = PrincipalGradientAggregator(warmup_rounds=warmup), start
        for number in range(3):
            before, clients = state, clients_of(state, seed=number)
            state, report = server.aggregate(before, clients, [1, 1, 1, 97])  # sizes play no role for weights
            assert report.accepted == [0, 1, 2, 3]
            for name in before:
                updates = torch.stack([(client[name] - before[name]).flatten() for client in clients])
                plain = number < warmup or name == "one"
                step = updates.mean(0) if plain else principal_aggregate(updates)
                torch.testing.assert_close(state[name].flatten(), (before[name].flatten() + step), rtol=1e-5, atol=1e-6)


def test_tensor_that_never_moved_takes_the_mean() -> None:
    start = {"moves": torch.zeros(4), "frozen": torch.zeros(4)}
    server = PrincipalGradientAggregator()
    first = [{"moves": torch.randn(4), "frozen": torch.zeros(4)} for _ in range(3)]
    state, _ = server.aggregate(start, first)
    assert server.state_dict() == {"round": 1, "moved": ["moves"]}
    second = [{name: value + torch.randn(4) + 1 for name, value in state.items()} for _ in range(3)]
    state, _ = server.aggregate(state, second)
    torch.testing.assert_close(state["frozen"], torch.stack([client["frozen"] for client in second]).mean(0))
    assert server.state_dict()["moved"] == ["frozen", "moves"]


def test_server_lr_scales_the_step_and_not_the_buffers() -> None:
    start = {"w": torch.zeros(4), "running": torch.zeros(2)}
    clients = clients_of(start)
    one, _ = PrincipalGradientAggregator().aggregate(start, clients, buffer_names=["running"])
    two, _ = PrincipalGradientAggregator(server_lr=2.0).aggregate(start, clients, buffer_names=["running"])
    torch.testing.assert_close(two["w"], 2 * one["w"])
    assert torch.equal(two["running"], one["running"])


def test_buffers_are_averaged_by_size_and_integers_rounded() -> None:
    model = network()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    clients = clients_of(start, 3)
    sizes, share = [10, 20, 70], torch.tensor([0.1, 0.2, 0.7])
    names = buffer_names(model)
    assert names == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    new, _ = PrincipalGradientAggregator().aggregate(start, clients, sizes, buffer_names=names)
    for name in ("1.running_mean", "1.running_var"):
        expected = sum(p * client[name] for p, client in zip(share, clients, strict=True))
        torch.testing.assert_close(new[name], expected)
    assert new["1.num_batches_tracked"] == round(0.1 * 3 + 0.2 * 4 + 0.7 * 5)
    assert [(n, v.dtype) for n, v in new.items()] == [(n, v.dtype) for n, v in start.items()]
    model.load_state_dict(new)


def test_buffers_like_weights_can_become_negative_as_in_the_code() -> None:
    """Why the default averages: two clients against each other, and a step along their direction."""
    start = {"running_var": torch.tensor([0.1, 1.0])}
    clients = [{"running_var": torch.tensor(v)} for v in ([0.01, 9.0], [0.01, 9.5], [0.02, 0.3])]
    like_weights, averaged = PrincipalGradientAggregator(buffers="principal", warmup_rounds=0, server_lr=4.0), None
    new, _ = like_weights.aggregate(start, clients, buffer_names=["running_var"])
    assert new["running_var"].min() < 0
    averaged, _ = PrincipalGradientAggregator(warmup_rounds=0, server_lr=4.0).aggregate(
        start, clients, buffer_names=["running_var"]
    )
    assert averaged["running_var"].min() > 0
    ints = {"n": torch.tensor([2**62 + 1, -5])}
    same, _ = PrincipalGradientAggregator(buffers="principal").aggregate(ints, [copy.deepcopy(ints)] * 3)
    assert torch.equal(same["n"], ints["n"])  # large integers stay what they are


def test_booleans_complex_and_scalars() -> None:
    start = {"mask": torch.tensor([True, False]), "z": torch.zeros(2, dtype=torch.complex64), "s": torch.tensor(1.0)}
    clients = [
        {"mask": torch.tensor([True, True]), "z": torch.tensor([1 + 1j, 2]), "s": torch.tensor(3.0)},
        {"mask": torch.tensor([False, True]), "z": torch.tensor([3 - 1j, 4]), "s": torch.tensor(5.0)},
    ]
    new, _ = PrincipalGradientAggregator().aggregate(start, clients, [3, 1])
    assert new["mask"].tolist() == [True, True]
    torch.testing.assert_close(new["z"], torch.tensor([2, 3], dtype=torch.complex64))
    assert new["s"].item() == 4.0
    assert new["s"].shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_those_of_the_global_state(dtype: torch.dtype) -> None:
    start = {"w": torch.linspace(-1, 1, 12).to(dtype).reshape(3, 4)}
    clients = [{"w": (start["w"].float() + 0.1 * torch.randn(3, 4) + 0.1).to(dtype)} for _ in range(3)]
    for warmup in (0, 1):
        new, _ = PrincipalGradientAggregator(warmup_rounds=warmup).aggregate(start, clients)
        exact, _ = PrincipalGradientAggregator(warmup_rounds=warmup).aggregate(
            {"w": start["w"].double()}, [{"w": client["w"].double()} for client in clients]
        )
        assert new["w"].dtype == dtype
        torch.testing.assert_close(new["w"].double(), exact["w"].to(dtype).double(), rtol=1e-2, atol=1e-2)
    mixed, _ = PrincipalGradientAggregator().aggregate(start, [{"w": client["w"].float()} for client in clients])
    assert mixed["w"].dtype == dtype  # of the same kind: a client in another precision is accepted


def test_pieces_give_what_whole_tensors_give(monkeypatch: pytest.MonkeyPatch) -> None:
    start = {"w": torch.randn(7, 31), "empty": torch.zeros(0, 3)}
    clients = clients_of(start, 5)
    whole = PrincipalGradientAggregator(warmup_rounds=0).aggregate(start, clients)[0]
    monkeypatch.setattr(pieces, "PIECE", 35)
    small = PrincipalGradientAggregator(warmup_rounds=0).aggregate(start, clients)[0]
    torch.testing.assert_close(small["w"], whole["w"], rtol=1e-6, atol=1e-7)
    assert small["empty"].shape == (0, 3)


def test_nothing_given_is_changed_and_nothing_is_shared() -> None:
    server, state = after_warmup()
    clients = clients_of(state)
    clients[0]["a"] = clients[0]["a"].T.contiguous().T  # another layout in memory
    for client in clients:
        client["b"].requires_grad_()
    before = copy.deepcopy((state, clients))
    with torch.inference_mode():
        new, _ = server.aggregate(state, clients)
    for given, kept in zip([state, *clients], [before[0], *before[1]], strict=True):
        assert all(torch.equal(given[name], kept[name]) for name in kept)
    for name, value in new.items():
        assert not value.requires_grad
        assert all(value.data_ptr() != given[name].data_ptr() for given in [state, *clients])


def test_autocast_and_other_defaults_do_not_matter() -> None:
    start = {"w": torch.randn(6, 5), "n": torch.tensor(3)}
    clients = clients_of(start, 4)

    def result() -> State:
        return PrincipalGradientAggregator(warmup_rounds=0).aggregate(start, clients)[0]

    expected = result()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(result()["w"], expected["w"])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = result()
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
    assert torch.equal(got["w"], expected["w"])
    assert got["n"] == expected["n"]


def test_order_of_the_clients_does_not_matter() -> None:
    start = {"w": torch.zeros(6, 5)}
    clients = clients_of(start, 6)
    results = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        server = PrincipalGradientAggregator(warmup_rounds=0)
        results.append(server.aggregate(start, [clients[i] for i in order])[0]["w"])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


# ---- bad clients -----------------------------------------------------------------------------------------------------


def changed(state: State, **values: object) -> dict[str, object]:
    return {name: values.get(name, value) for name, value in state.items()}


def test_bad_clients_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    server, state = after_warmup()
    good = clients_of(state, 3)
    nan, inf = torch.full((3, 4), float("nan")), state["b"] + torch.tensor([0, 0, float("inf"), 0, 0])
    bad = [
        (changed(good[0], a=nan), "a is not finite"),
        (changed(good[0], b=inf), "b is not finite"),
        ({"a": good[0]["a"], "b": good[0]["b"]}, "keys differ: lacks one"),
        ({**good[0], "more": torch.zeros(1)}, "keys differ: has more"),
        (changed(good[0], a=good[0]["a"].T), "a has shape (4, 3), not (3, 4)"),
        (changed(good[0], b=torch.zeros(5, dtype=torch.int64)), "b is integer, not floating"),
        (changed(good[0], b=[0.0] * 5), "b is not a dense tensor"),
        (changed(good[0], b=torch.zeros(5).to_sparse()), "b is not a dense tensor"),
        (None, "the state is a NoneType, not a mapping"),
    ]
    expected, _ = copy.deepcopy(server).aggregate(state, good)
    with caplog.at_level(logging.WARNING, "offprints.fedld"):
        new, report = server.aggregate(state, [good[0], *(client for client, _ in bad), good[1], good[2]])
    assert report.accepted == [0, len(bad) + 1, len(bad) + 2]
    assert report.rejected == {i + 1: reason for i, (_, reason) in enumerate(bad)}
    assert len(caplog.records) == len(bad)
    for name in new:
        torch.testing.assert_close(new[name], expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), "7", None, True])
def test_bad_number_of_examples(size: object) -> None:
    server, state = after_warmup()
    _, report = server.aggregate(state, clients_of(state, 3), [5, size, 7])  # type: ignore[list-item]
    assert report.accepted == [0, 2]
    assert "num_examples" in report.rejected[1]


def test_long_updates_are_rejected_over_all_weights_together() -> None:
    start = {"a": torch.zeros(2), "b": torch.zeros(1), "running": torch.zeros(1), "n": torch.tensor(0)}
    clients = [
        {
            "a": torch.tensor([1.0, 2.0]),
            "b": torch.tensor([2.0]),
            "running": torch.tensor([99.0]),
            "n": torch.tensor(9),
        },
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([2.1]), "running": torch.tensor([0.0]), "n": torch.tensor(9)},
    ]
    server = PrincipalGradientAggregator(max_update_norm=3.0)  # 1, 2, 2: a norm of exactly 3
    _, report = server.aggregate(start, clients, buffer_names=["running"])
    assert report.accepted == [0]
    assert "norm of the update is 3.06" in report.rejected[1]
    _, report = PrincipalGradientAggregator(max_update_norm=3.0, buffers="principal").aggregate(
        start, [clients[1] | {"b": torch.tensor([2.0])}, clients[0]], buffer_names=["running"]
    )
    assert list(report.rejected) == [1]  # where buffers move like weights they count


def test_masks_with_infinity_are_no_fault() -> None:
    """A causal mask among the buffers: infinite at the server too."""
    mask = torch.full((2, 2), float("-inf")).triu(1)
    start = {"w": torch.zeros(3), "mask": mask}
    clients = [{"w": torch.ones(3), "mask": mask.clone()} for _ in range(2)]
    new, report = PrincipalGradientAggregator().aggregate(start, clients, buffer_names=["mask"])
    assert report.accepted == [0, 1]
    assert torch.equal(new["mask"], mask)
    clients[1]["mask"] = torch.full((2, 2), float("nan"))
    _, report = PrincipalGradientAggregator().aggregate(start, clients, buffer_names=["mask"])
    assert report.rejected == {1: "mask is not finite"}


def test_refusals_change_nothing() -> None:
    server, state = after_warmup(on_bad_update="raise")
    remembered = server.state_dict()
    good = clients_of(state, 2)
    bad = changed(good[0], b=torch.full((5,), float("nan")))
    calls = [
        (lambda: server.aggregate(state, [good[0], bad]), "client_states\\[1\\]"),
        (lambda: server.aggregate(state, []), "client_states"),
        (lambda: after_warmup()[0].aggregate(state, [bad, bad]), "at least one valid client.*0: b is not finite"),
        (lambda: server.aggregate(bad, good), "global_state must be finite"),
        (lambda: server.aggregate({}, good), "global_state"),
        (lambda: server.aggregate(state, good, [1]), "num_examples"),
        (lambda: server.aggregate(state, good, buffer_names=["nothing"]), "buffer_names"),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=words):
            call()
    for wrong in (None, 3, [torch.zeros(2)], {"a": 1.0}):
        with pytest.raises(TypeError, match="global_state"):
            server.aggregate(wrong, good)  # type: ignore[arg-type]
    for wrong in (None, 3, good[0], "ab"):
        with pytest.raises(TypeError, match="client_states"):
            server.aggregate(state, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_examples"):
        server.aggregate(state, good, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="buffer_names"):
        server.aggregate(state, good, buffer_names="b")
    assert server.state_dict() == remembered


def test_every_argument_of_the_constructor() -> None:
    check_arguments(
        PrincipalGradientAggregator,
        lambda g: {"k_proportion": 0.8, "warmup_rounds": 1, "server_lr": 1.0, "max_update_norm": 2.0},
    )
    assert repr(PrincipalGradientAggregator(rule="projection")).startswith(
        "PrincipalGradientAggregator(k_proportion=0.8, rule='projection'"
    )


def test_resumed_server_goes_on_bit_for_bit() -> None:
    server, state = after_warmup()
    resumed = PrincipalGradientAggregator()
    resumed.load_state_dict(saved_and_loaded(server.state_dict()))
    clients = clients_of(state, seed=5)
    for name, value in server.aggregate(state, clients)[0].items():
        assert torch.equal(value, resumed.aggregate(state, clients)[0][name]) or name not in state
        resumed.load_state_dict({"round": 1, "moved": ["a", "b", "one"]})
    for wrong, error in (
        (None, TypeError),
        ({}, ValueError),
        ({"round": -1, "moved": []}, ValueError),
        ({"round": 1, "moved": "abc"}, ValueError),
    ):
        with pytest.raises(error, match="state"):
            resumed.load_state_dict(wrong)  # type: ignore[arg-type]


# ---- baselines -------------------------------------------------------------------------------------------------------


def test_weighted_average() -> None:
    start = network().state_dict()
    clients = clients_of(start, 3)
    new, _ = WeightedAverage().aggregate(start, clients, [1, 2, 5], buffer_names=["1.running_mean"])
    for name in ("0.weight", "1.running_mean", "3.bias"):
        expected = (clients[0][name] + 2 * clients[1][name] + 5 * clients[2][name]) / 8
        torch.testing.assert_close(new[name], expected)
    _, report = WeightedAverage().aggregate(start, [clients[0], {}])
    assert list(report.rejected) == [1]


def test_harmonization_resumes_and_rejects() -> None:
    start = {"w": torch.zeros(3, 2), "one": torch.zeros(1), "still": torch.zeros(2)}
    server = GradientHarmonization()
    clients = [{**client, "still": torch.zeros(2)} for client in clients_of(start, 4)]
    state, _ = server.aggregate(start, clients)
    resumed = GradientHarmonization()
    resumed.load_state_dict(saved_and_loaded(server.state_dict()))
    later = clients_of(state, 4, seed=1)
    later[2]["w"] = torch.full((3, 2), float("nan"))
    one, report = server.aggregate(state, later)
    two, _ = resumed.aggregate(state, later)
    assert report.accepted == [0, 1, 3]
    assert all(torch.equal(one[name], two[name]) for name in one)
    mean = torch.stack([later[i]["still"] for i in (0, 1, 3)]).mean(0)
    torch.testing.assert_close(one["still"], mean)  # without a history it is the mean


def test_batch_norm_is_found_by_type() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.downsample = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
            self.bn_like = nn.Linear(1, 1)

    assert batch_norm_names(Block()) == {
        f"downsample.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert batch_norm_names(nn.BatchNorm1d(2)) == set(nn.BatchNorm1d(2).state_dict())


@pytest.mark.gpu
def test_on_an_accelerator() -> None:
    start = {"w": torch.randn(300, 200), "n": torch.tensor(3)}
    clients = clients_of(start, 4)
    expected, _ = PrincipalGradientAggregator(warmup_rounds=0).aggregate(start, clients)
    moved = {name: value.cuda() for name, value in start.items()}
    got, _ = PrincipalGradientAggregator(warmup_rounds=0).aggregate(moved, clients)  # clients may be elsewhere
    assert got["w"].is_cuda
    torch.testing.assert_close(got["w"].cpu(), expected["w"], rtol=1e-5, atol=1e-6)
