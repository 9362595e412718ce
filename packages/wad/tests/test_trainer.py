from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_errors
from offprints.wad import (
    Knowledge,
    SimCLRTeacher,
    WADLoss,
    WADOutput,
    WADTrainer,
    error_decomposition,
    teacher_knowledge,
)
from offprints.wad.networks import small_encoder


def problem(seed: int = 0, *, per_class: int = 40, classes: int = 3, unknown: int = 60) -> tuple[Tensor, ...]:
    """Directions in eight dimensions, four labeled samples of each known class, one class unknown."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.linalg.qr(torch.randn(8, 8, generator=g)).Q[: classes + 1]
    y = torch.arange(classes).repeat_interleave(per_class)
    y = torch.cat([y, torch.full((unknown,), classes)])
    x = centers[y] + 0.2 * torch.randn(len(y), 8, generator=g)
    labeled = torch.cat([torch.where(y == k)[0][:4] for k in range(classes)])
    pool = torch.ones(len(y), dtype=torch.bool)
    pool[labeled] = False
    truth = torch.where(y < classes, y, -1)
    order = torch.randperm(int(pool.sum()), generator=g)
    return x[labeled], y[labeled], x[pool][order], truth[pool][order]


def student(seed: int = 0, *, dim: int = 8, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Linear(16, classes))


X, Y, POOL, TRUTH = problem()


def test_a_round_is_a_loop_of_the_loss() -> None:
    """Batches, a new Adam each round, the loss, and the growing labeled set, written out."""
    trained, by_hand = student(), student()
    trainer = WADTrainer(trained, (X, POOL), rounds=3, steps_per_round=4, alpha=0.5, lr=0.01, batch_size=5, seed=2).fit(
        X, Y, POOL
    )
    torch.manual_seed(2)
    loss, x, y, remaining, history = WADLoss(), X, Y, torch.arange(len(POOL)), []
    for r in range(1, 4):
        known = teacher_knowledge(POOL[remaining], x, y, num_classes=3)
        optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
        rows = [torch.rand(-(-20 // n), n).argsort(1).flatten()[:20].view(4, 5) for n in (len(x), len(remaining))]
        for of_x, of_u in zip(*rows, strict=True):
            output = loss(
                by_hand(x[of_x]), y[of_x], by_hand(POOL[remaining[of_u]]), known.pseudo_labels[of_u],
                known.weights[of_u],
            )  # fmt: skip
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            history.append([float(term.detach()) for term in output])
        chosen = trainer.selected_[r]
        pseudo = torch.zeros(len(POOL), dtype=torch.int64)
        pseudo[remaining] = known.pseudo_labels
        x, y = torch.cat([x, POOL[chosen]]), torch.cat([y, pseudo[chosen]])
        remaining = torch.tensor([i for i in remaining.tolist() if i not in set(chosen.tolist())])
    assert [len(moved) for moved in trainer.selected_.values()] == [int(0.125 * len(POOL)), 0, 0]
    found = [[entry[name] for name in WADOutput._fields] for entry in trainer.history_]
    assert_close(torch.tensor(found), torch.tensor(history), rtol=1e-4, atol=1e-5)
    assert [(entry["step"], entry["round"]) for entry in trainer.history_] == [(i + 1, i // 4 + 1) for i in range(12)]
    for a, b in zip(trained.parameters(), by_hand.parameters(), strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_it_learns_and_leaves_unknowns_alone() -> None:
    net = student()
    trainer = WADTrainer(net, (X, POOL), rounds=4, steps_per_round=60, lr=5e-3, alpha=0.3, seed=0).fit(X, Y, POOL)
    known = TRUTH >= 0
    assert (net(POOL).argmax(1) == TRUTH)[known].double().mean() > 0.95
    assert len(trainer.knowledge_) == len(trainer.selected_) == 4
    moved = torch.cat(list(trainer.selected_.values()))
    assert len(moved) == len(set(moved.tolist())) > 20
    for number, entry in enumerate(trainer.knowledge_):
        gone = set(torch.cat([trainer.selected_[r] for r in range(1, number + 2)]).tolist()) - set(
            trainer.selected_[number + 1].tolist()
        )
        assert set(entry["positions"].tolist()) == set(range(len(POOL))) - gone
        errors = error_decomposition(entry["pseudo_labels"], entry["weights"], TRUTH[entry["positions"]])
        share = float((TRUTH[entry["positions"]] < 0).double().mean())
        assert errors.invasion < 0.5 * share
        assert errors.pseudo_labeling < 0.1


def test_options() -> None:
    base = {"rounds": 2, "steps_per_round": 10, "lr": 0.01, "batch_size": 8, "seed": 0}

    def weights(**change: object) -> Tensor:
        net = student()
        WADTrainer(net, (X, POOL), **{**base, **change}).fit(X, Y, POOL)  # type: ignore[arg-type]
        return net(POOL).detach()

    expected = weights()
    assert torch.equal(weights(), expected)
    for change in (
        {"rounds": 3}, {"steps_per_round": 11}, {"lr": 0.02}, {"batch_size": 9}, {"seed": 1},
        {"normalize_weights": True}, {"rounds": 3, "alpha": 0.9, "steps_per_round": 7},
    ):  # fmt: skip
        assert not torch.equal(weights(**change), expected), change
    torch.manual_seed(3)
    first = weights(seed=None)
    assert not torch.equal(first, weights(seed=None, steps_per_round=9))


def test_one_round_moves_nothing() -> None:
    trainer = WADTrainer(student(), (X, POOL), rounds=1, steps_per_round=2, alpha=1.0, seed=0).fit(X, Y, POOL)
    assert {r: len(moved) for r, moved in trainer.selected_.items()} == {1: 0}
    small = WADTrainer(student(), (X, POOL[:2]), rounds=5, steps_per_round=2, alpha=0.1, seed=0).fit(X, Y, POOL[:2])
    assert {r: len(moved) for r, moved in small.selected_.items()} == dict.fromkeys(range(1, 6), 0)
    assert len(small.history_) == 10


class _Doubting(WADTrainer):
    def weigh(self, knowledge: Knowledge) -> Tensor:
        return torch.zeros_like(knowledge.weights)


class _Wrong(WADTrainer):
    def weigh(self, knowledge: Knowledge) -> Tensor:
        return -knowledge.weights


class _Endless(WADTrainer):
    def weigh(self, knowledge: Knowledge) -> Tensor:
        return knowledge.weights / 0


class _Merging(nn.Linear):
    """As adapters do, it merges its weights in evaluation mode, and `train` is what undoes that."""

    merged = False

    def train(self, mode: bool = True) -> _Merging:
        self.merged = not mode
        return super().train(mode)


def test_modes_are_put_back_by_the_modules_own_train() -> None:
    net = nn.Sequential(_Merging(8, 3)).eval()
    WADTrainer(net, (X, POOL), rounds=1, steps_per_round=2, seed=0).fit(X, Y, POOL)
    assert not net.training
    assert net[0].merged


def test_weights_of_ones_own() -> None:
    trainer = _Doubting(student(), (X, POOL), rounds=2, steps_per_round=3, seed=0).fit(X, Y, POOL)
    assert all(entry["distillation"] == entry["effective_weight"] == 0 for entry in trainer.history_)
    for wrong in (_Wrong, _Endless):
        with pytest.raises(ValueError, match="weigh"):
            wrong(student(), (X, POOL), rounds=2, steps_per_round=3, seed=0).fit(X, Y, POOL)


def test_regions_and_streams() -> None:
    def run(samples: Tensor = X) -> Tensor:
        net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        net[2].eval()
        before = torch.get_rng_state()
        WADTrainer(net, (X, POOL), rounds=3, steps_per_round=5, alpha=0.5, seed=0).fit(samples, Y, POOL)
        assert torch.equal(torch.get_rng_state(), before)
        assert net.training
        assert not net[2].training
        assert all(parameter.grad is None for parameter in net.parameters())
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return net.eval()(POOL)

    expected = run()
    torch.manual_seed(5)
    assert torch.equal(run(X.clone().requires_grad_()), expected)
    for region in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with region:
            assert torch.equal(run(), expected)
    net, other = student(), student()
    with torch.inference_mode():
        made_inside = X * 1.0
        WADTrainer(net, (made_inside, POOL), rounds=2, steps_per_round=3, seed=0).fit(made_inside, Y, POOL)
    with torch.device("meta"):
        WADTrainer(other, (X, POOL), rounds=2, steps_per_round=3, seed=0).fit(X, Y, POOL)
    plain = student()
    WADTrainer(plain, (X, POOL), rounds=2, steps_per_round=3, seed=0).fit(X, Y, POOL)
    assert torch.equal(net(POOL), plain(POOL))
    assert torch.equal(other(POOL), plain(POOL))


def test_kinds_of_data() -> None:
    def run(x: object, y: object, pool: object, z: tuple[object, object], dtype: torch.dtype = torch.float32) -> Tensor:
        net = student().to(dtype)
        WADTrainer(net, z, rounds=2, steps_per_round=5, seed=0).fit(x, y, pool)
        return net(POOL.to(dtype)).detach().float()

    expected = run(X, Y, POOL, (X, POOL))
    arrays = X.numpy(), Y.numpy(), POOL.numpy()
    frozen = [array.copy() for array in arrays]
    for array in frozen:
        array.flags.writeable = False
    assert torch.equal(run(*frozen, (frozen[0], frozen[2])), expected)
    assert torch.equal(run(X.double(), Y.to(torch.uint8), POOL.double(), [X, POOL]), expected)
    assert torch.equal(run(arrays[0].astype(">f4"), arrays[1].astype(">i2"), POOL, (X, POOL)), expected)
    assert torch.equal(run(X.tolist(), Y.tolist(), POOL.tolist(), (X, POOL)), expected)
    assert_close(run(X, Y, POOL, (X, POOL), torch.float64), expected, rtol=1e-3, atol=1e-4)


def test_teachers() -> None:
    """An encoder of the user's, in evaluation mode; a SimCLR teacher, fitted or not."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5))
    by_module = WADTrainer(student(), encoder, rounds=1, steps_per_round=2, seed=0).fit(X, Y, POOL)
    with torch.no_grad():
        pair = encoder[0](X), encoder[0](POOL)
    by_pair = WADTrainer(student(), pair, rounds=1, steps_per_round=2, seed=0).fit(X, Y, POOL)
    assert_close(by_module.knowledge_[0]["weights"], by_pair.knowledge_[0]["weights"])
    assert encoder.training

    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    body, width = small_encoder(1, width=2)
    simclr = SimCLRTeacher(body, width, projection_dim=4)
    net = nn.Sequential(nn.Flatten(), student(dim=64, classes=2))
    y = torch.tensor([0, 1, 1, 0])
    with pytest.raises(NotFittedError, match="fit"):
        WADTrainer(net, simclr, rounds=1, steps_per_round=1).fit(images[:4], y, images[4:])
    simclr.fit(images, epochs=1, batch_size=6, seed=0)
    trainer = WADTrainer(net, simclr, rounds=1, steps_per_round=1, seed=0).fit(images[:4], y, images[4:])
    z = simclr.embed(images)
    assert_close(trainer.knowledge_[0]["weights"], teacher_knowledge(z[4:], z[:4], y, num_classes=2).weights)


def test_bad_inputs() -> None:
    def fit(
        x: object = X, y: object = Y, pool: object = POOL, z: object = None, net: nn.Module | None = None
    ) -> object:
        teacher = (X, POOL) if z is None else z
        return WADTrainer(net or student(), teacher, rounds=1, steps_per_round=1, seed=0).fit(x, y, pool)  # type: ignore[arg-type]

    def new(**change: object) -> WADTrainer:
        return WADTrainer(**{"student": student(), "teacher": (X, POOL), **change})  # type: ignore[arg-type]

    nan, zero = X.clone(), X.clone()
    nan[0, 0], zero[3] = torch.nan, 0.0
    frozen = student().requires_grad_(False)
    with torch.inference_mode():
        still = student()
    check_errors(
        [
            (lambda: new(rounds=0), ValueError, "rounds"),
            (lambda: new(rounds=1.5), TypeError, "rounds"),
            (lambda: new(steps_per_round=0), ValueError, "steps_per_round"),
            (lambda: new(alpha=1.1), ValueError, "alpha"),
            (lambda: new(lr=0.0), ValueError, "lr"),
            (lambda: new(batch_size=0), ValueError, "batch_size"),
            (lambda: new(normalize_weights="no"), TypeError, "normalize_weights"),
            (lambda: new(device="abacus"), ValueError, "device"),
            (lambda: new(seed=-1), ValueError, "seed"),
            (lambda: new(student="mlp"), TypeError, "student"),
            (lambda: new(student=nn.Flatten()), ValueError, "student"),
            (lambda: new(student=frozen), ValueError, "student"),
            (lambda: new(student=still), ValueError, "inference_mode"),
            (lambda: new(teacher="simclr"), TypeError, "teacher"),
            (lambda: new(teacher=(X,)), ValueError, "teacher"),
            (lambda: fit(nan), ValueError, "X_labeled"),
            (lambda: fit(X.long()), TypeError, "X_labeled"),
            (lambda: fit(X[:, :4]), ValueError, "X_unlabeled"),
            (lambda: fit(X[:0], Y[:0]), ValueError, "X_labeled"),
            (lambda: fit(pool=POOL[:0]), ValueError, "X_unlabeled"),
            (lambda: fit(pool=POOL * torch.inf), ValueError, "X_unlabeled"),
            (lambda: fit(X.double() * 1e300), ValueError, "X_labeled"),
            (lambda: fit(np.ma.masked_array(X.numpy(), mask=X.numpy() > 0)), ValueError, "X_labeled"),
            (lambda: fit(y=Y[:-1]), ValueError, "y"),
            (lambda: fit(y=Y.float()), TypeError, "y"),
            (lambda: fit(y=Y.numpy() + 0.5), TypeError, "y"),
            (lambda: fit(y=Y > 0), TypeError, "y"),
            (lambda: fit(y=Y[:, None]), ValueError, "y"),
            (lambda: fit(y=Y - 1), ValueError, "y"),
            (lambda: fit(y=2 * Y), ValueError, "class 1"),
            (lambda: fit(y=0 * Y), ValueError, "class 1"),
            (lambda: fit(y=Y + 1000), ValueError, "y"),
            (lambda: fit(z=(X[:-1], POOL)), ValueError, "Z_labeled"),
            (lambda: fit(z=(X, POOL[:-1])), ValueError, "Z_unlabeled"),
            (lambda: fit(z=(X, POOL[:, :3])), ValueError, "Z_unlabeled"),
            (lambda: fit(z=(zero, POOL)), ValueError, "Z_labeled"),
            (lambda: fit(z=(nan, POOL)), ValueError, "Z_labeled"),
            (lambda: fit(z=(X.long(), POOL)), TypeError, "Z_labeled"),
            (lambda: fit(z=_Infinite()), ValueError, "teacher"),
            (lambda: fit(net=student(classes=4)), ValueError, "student"),
            (lambda: fit(net=nn.LSTM(8, 3)), ValueError, "student"),
        ]
    )
    with pytest.raises(ValueError, match="lr"):
        WADTrainer(student(), (X, POOL), rounds=1, steps_per_round=60, lr=1e30, seed=0).fit(X, Y, POOL)


class _Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def test_a_refused_fit_changes_nothing() -> None:
    net = student()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="class 1"):
        WADTrainer(net, (X, POOL)).fit(X, 2 * Y, POOL)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
