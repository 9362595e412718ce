"""A client's training."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from offprints.fedld import LocalConfig, margin_control_loss, train_client
from offprints.fedld.training import ClientLoader, client_seed, evaluate
from offprints.shared.testing import check_arguments


def data(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randint(2, (n,), generator=generator)


def network(*, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.ReLU(), nn.Linear(4, 2)]
        return nn.Sequential(*layers)


def batches(n: int = 12, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    x, y = data(n)
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("proximal", [0.0, 0.3])
@pytest.mark.parametrize("warmup", [0, 4])
def test_equals_a_loop_by_hand(proximal: float, warmup: int) -> None:
    """SGD with momentum and decay on cross-entropy, margin term and the autograd of the proximal term."""
    config = LocalConfig(
        epochs=2, lr=0.1, momentum=0.5, weight_decay=0.01, penalty=0.7, proximal=proximal, warmup_steps=warmup
    )
    start = {name: value.clone() for name, value in network().state_dict().items()}
    ours = network()
    state, metrics = train_client(ours, batches(), config, device="cpu")
    by_hand = network()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
    step, last = 0, []
    for epoch in range(2):
        for x, y in batches():
            optimizer.param_groups[0]["lr"] = 0.1 * min(1.0, (step + 1) / warmup if warmup else 1.0)
            distance = sum((p - start[n]).square().sum() for n, p in by_hand.named_parameters())
            loss = margin_control_loss(by_hand(x), y, penalty=0.7) + proximal / 2 * distance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if epoch == 1:
                last.append(loss.item())
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)  # in place
    assert metrics == {"train_loss": pytest.approx(sum(last) / 3, rel=1e-5), "num_examples": 12.0}


def test_global_state_is_the_start_and_the_center() -> None:
    other = {name: value + 1 for name, value in network().state_dict().items()}
    config = LocalConfig(lr=1e-9, momentum=0.0, proximal=5.0)
    state, metrics = train_client(network(), batches(), config, global_state=other, device="cpu")
    for name, value in other.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    plain = train_client(network(), batches(), LocalConfig(lr=1e-9), global_state=other, device="cpu")[1]
    assert metrics["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-6)  # at the center the term is 0


def test_state_is_a_copy_and_modes_are_put_back() -> None:
    model = network(norm=True)
    model.eval()
    model[1].train()
    state, _ = train_client(model, batches(), LocalConfig(), device="cpu")
    assert [part.training for part in model] == [False, True, False, False]
    assert state["1.num_batches_tracked"] == 3  # trained in training mode
    model[0].weight.data.zero_()
    assert state["0.weight"].any()


def test_frozen_and_unused_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(2))
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    before = model[0].weight.clone()
    state, _ = train_client(model, batches(), LocalConfig(proximal=0.5), device="cpu")
    assert torch.equal(state["0.weight"], before)
    assert torch.equal(state["unused"], torch.ones(2))


def test_nan_passes_through_to_the_state() -> None:
    x, y = data()
    x[0] = float("nan")
    for penalty in (0.0, 0.1):
        state, metrics = train_client(network(), [(x, y)], LocalConfig(penalty=penalty), device="cpu")
        assert all(value.isnan().any() for value in state.values())
        assert metrics["train_loss"] != metrics["train_loss"]


def test_surroundings_do_not_matter() -> None:
    expected, _ = train_client(network(), batches(), LocalConfig(), device="cpu")
    with torch.no_grad():
        state, _ = train_client(network(), batches(), LocalConfig(), device="cpu")
    assert all(torch.equal(state[name], expected[name]) for name in state)
    model, loader = network(), batches()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        state, _ = train_client(model, loader, LocalConfig(), device="cpu")
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_bad_inputs() -> None:
    config = LocalConfig()
    cases = [
        (lambda: train_client("model", batches(), config), TypeError, "model"),
        (lambda: train_client(network(), batches(), {"epochs": 1}), TypeError, "config"),
        (lambda: train_client(network(), None, config), TypeError, "loader"),
        (lambda: train_client(network(), [], config), ValueError, "loader"),
        (lambda: train_client(network(), iter(batches()), LocalConfig(epochs=2)), ValueError, "loader"),
        (lambda: train_client(network(), [torch.zeros(2, 3)], config), TypeError, "loader"),
        (lambda: train_client(network(), [([0.0], torch.zeros(1))], config), TypeError, "loader"),
        (lambda: train_client(network(), [(torch.zeros(2, 3), torch.tensor([0, 2]))], config), ValueError, "labels"),
        (lambda: train_client(network(), [(torch.zeros(2, 3), torch.zeros(2))], config), TypeError, "labels"),
        (lambda: train_client(network(), [(torch.zeros(2, 3), torch.tensor([0]))], config), ValueError, "labels"),
        (lambda: train_client(nn.Flatten(0), [(torch.zeros(2, 3), torch.tensor([0]))], config), ValueError, "model"),
        (
            lambda: train_client(network(), batches(), config, global_state={"a": torch.zeros(1)}),
            ValueError,
            "global_state",
        ),
        (lambda: train_client(network(), batches(), config, global_state=3), TypeError, "global_state"),
        (lambda: train_client(network(), batches(), config, device="nowhere"), ValueError, "device"),
        (
            lambda: train_client(nn.Conv1d(3, 4, 1), [(torch.zeros(2, 3, 1), torch.tensor([0, 1]))], config),
            ValueError,
            "model",
        ),
    ]
    from offprints.shared.testing import check_errors

    check_errors(cases)  # type: ignore[arg-type]
    check_arguments(LocalConfig, lambda g: {})


# ---- the loader ------------------------------------------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


@pytest.mark.parametrize("kind", [tuple, TensorDataset, Pairs])
def test_order_is_that_of_torchs_loader(kind) -> None:
    x, y = data(10)
    ours = ClientLoader((x, y) if kind is tuple else kind(x, y), 4)
    theirs = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    torch.manual_seed(5)
    expected = [list(theirs), list(theirs)]
    after = torch.rand(1)
    torch.manual_seed(5)
    got = [list(ours), list(ours)]
    assert torch.equal(torch.rand(1), after)
    for one, other in zip(got, expected, strict=True):
        for mine, its in zip(one, other, strict=True):
            assert torch.equal(mine[0], its[0])
            assert torch.equal(mine[1], its[1])


def test_last_batch_of_one_is_joined() -> None:
    for n, sizes in ((9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (8, [4, 4])):
        assert [len(y) for _, y in ClientLoader(data(n), 4)] == sizes
    assert [len(y) for _, y in ClientLoader(data(3), 1)] == [1, 2]
    state, _ = train_client(network(norm=True), ClientLoader(data(9), 4), LocalConfig(), device="cpu")
    assert state["1.num_batches_tracked"] == 2


def test_evaluation_weighs_samples_alike() -> None:
    x, y = data(10)
    model = network()
    loss, accuracy, count = evaluate(model, ClientLoader((x, y), 4, shuffle=False), torch.device("cpu"))
    assert loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6)
    assert accuracy == pytest.approx((model(x).argmax(1) == y).float().mean().item())
    assert count == 10


def test_seeds_of_clients_differ() -> None:
    seeds = [client_seed(s, r, i) for s in (0, 1) for r in (1, 2, 3) for i in (0, 1, 2)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**32
