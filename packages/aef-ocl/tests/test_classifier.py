"""The classifier: exact for any split, order and machine; balance that leaves no trace; resume bit for bit."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offprints.aef_ocl import AEFOCLClassifier, NotFittedError, RandomBuffer, ridge_solution
from offprints.aef_ocl.reference import Reference
from offprints.shared.device import make_generator
from offprints.shared.testing.processes import fresh_process

SMALL = {"buffer_size": 24, "device": "cpu"}


def data(n: int = 60, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes, 30, 20 and 10 of 60, with labels 7, -2 and 40."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(n // 6)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64) + codes[:, None]
    return X, torch.tensor([7, -2, 40])[codes]


def fed(model: AEFOCLClassifier, X: Tensor, y: Tensor, rows: int) -> AEFOCLClassifier:
    for x, labels in zip(X.split(rows), y.split(rows), strict=True):
        model.partial_fit(x, labels)
    return model


def near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("solver", ["auto", "recursive"])
def test_unbalanced_is_the_joint_ridge_classifier(solver) -> None:
    """Classes appear out of order of their labels; the columns are sorted all the same."""
    X, y = data()
    order = y.argsort(descending=True, stable=True)  # 40, then 7, then -2
    model = fed(AEFOCLClassifier(**SMALL, balance=False, solver=solver), X[order], y[order], 7)
    assert model.classes_.tolist() == [-2, 7, 40]
    assert model.generator_.count_.tolist() == [20, 30, 10]
    joint = ridge_solution(model.buffer_(X), torch.searchsorted(model.classes_, y), 1e-3)
    near(model.coef_, joint)
    near(model.ridge_.weight, joint)
    torch.testing.assert_close(model.decision_function(X), model.buffer_(X) @ model.coef_)
    assert torch.equal(model.predict(X), model.classes_[model.decision_function(X).argmax(1)])
    torch.testing.assert_close(model.predict_proba(X), model.decision_function(X).softmax(1))
    assert model.score(X, y) == (model.predict(X) == y).double().mean().item()


def test_balanced_equals_the_reference() -> None:
    X, y = data()
    model = fed(AEFOCLClassifier(**SMALL, noise=0.7), X, y, 7)
    codes = torch.searchsorted(model.classes_, y).numpy()
    reference = Reference(model.buffer_.weight.numpy(), 3, 1e-3, 0.7)
    for start in range(0, 60, 20):
        reference.batch(X[start : start + 20].numpy(), codes[start : start + 20])
    deficits = model.generator_.deficits()
    assert deficits.tolist() == [10, 0, 20]
    normals = torch.randn(30, 4, dtype=torch.float64, generator=make_generator(3))
    expected = reference.balanced(normals.numpy())
    assert model.rebalance(normals=normals) is model
    near(model.coef_, torch.from_numpy(expected), 1e-7)
    assert model.classes_[reference.predict(X.numpy(), expected)].tolist() == model.predict(X).tolist()
    near(model.rebalance(normals=normals.numpy()).coef_, torch.from_numpy(expected), 1e-7)  # an array too
    drawn = model.rebalance(generator=make_generator(3)).coef_
    near(drawn, torch.from_numpy(expected), 1e-7)


def test_pseudo_features_leave_no_trace() -> None:
    """Predicting between batches, once or twice, changes nothing that comes after."""
    X, y = data()
    quiet, asked = (AEFOCLClassifier(**SMALL) for _ in range(2))
    for x, labels in zip(X.split(13), y.split(13), strict=True):
        quiet.partial_fit(x, labels)
        asked.partial_fit(x, labels)
        weight, seen = asked.ridge_.weight.clone(), asked.ridge_.n_samples_seen_
        first = asked.decision_function(X)
        assert torch.equal(asked.decision_function(X), first)
        asked.rebalance().rebalance(generator=make_generator(9))
        assert torch.equal(asked.ridge_.weight, weight)
        assert asked.ridge_.n_samples_seen_ == seen
    assert torch.equal(quiet.decision_function(X), fed(AEFOCLClassifier(**SMALL), X, y, 13).decision_function(X))
    assert not torch.equal(asked.decision_function(X), quiet.decision_function(X))  # the last rebalance is in use
    asked.rebalance()
    assert torch.equal(asked.decision_function(X), quiet.decision_function(X))


def test_draws_depend_on_the_seed_and_on_the_number_of_samples() -> None:
    X, y = data()
    model = AEFOCLClassifier(**SMALL, random_state=3)
    for start, seen in ((0, 20), (20, 60)):
        model.partial_fit(X[start:seen], y[start:seen])
        entropy = np.random.SeedSequence([3, seen]).generate_state(1, np.uint64)[0] >> 1
        drawn = model.coef_.clone()
        assert torch.equal(model.rebalance(generator=make_generator(int(entropy))).coef_, drawn)


def test_which_weights_are_in_use() -> None:
    X, y = data()
    model = fed(AEFOCLClassifier(**SMALL, balance=False), X[:50], y[:50], 13)
    plain = model.coef_.clone()
    assert torch.equal(plain, model.ridge_.weight)
    forced = model.rebalance().coef_.clone()
    assert not torch.equal(forced, plain)
    assert torch.equal(model.set_params(balance=True).coef_, forced)
    assert torch.equal(model.set_params(balance=False).coef_, forced)
    model.partial_fit(X[50:], y[50:])  # until the next batch
    assert torch.equal(model.coef_, model.ridge_.weight)
    model.set_params(balance=True)
    balanced = model.coef_
    assert torch.equal(model.set_params(balance=False).coef_, model.ridge_.weight)
    assert torch.equal(model.rebalance().coef_, balanced)
    model.merge_(fed(AEFOCLClassifier(**SMALL), X[:6], y[:6], 6))  # or merge
    assert torch.equal(model.coef_, model.ridge_.weight)


def test_equal_classes_need_no_pseudo_features() -> None:
    X, y = data()
    rows = torch.cat([(y == label).nonzero()[:10, 0] for label in (-2, 7, 40)])
    model = AEFOCLClassifier(**SMALL).fit(X[rows], y[rows])
    assert torch.equal(model.coef_, model.ridge_.weight)


def test_declared_classes_change_nothing_in_the_end() -> None:
    """And one without samples is never predicted; a label beside the declared ones is refused."""
    X, y = data()
    late = fed(AEFOCLClassifier(**SMALL), X, y, 6)
    early = AEFOCLClassifier(**SMALL).partial_fit(X[:1], y[:1], classes=[40, -2, 7])
    scores = early.decision_function(X)
    assert scores[:, 1].isfinite().all()
    assert (scores[:, [0, 2]] == -torch.inf).all()
    assert early.predict(X).unique().tolist() == [7]
    assert early.predict_proba(X).sum(1).tolist() == [1.0] * len(X)
    fed(early, X[1:], y[1:], 6)
    near(early.decision_function(X), late.decision_function(X))
    with pytest.raises(ValueError, match="classes"):
        early.partial_fit(X[:6], y[:6], classes=[7, -2])
    early.partial_fit(X[:6], y[:6], classes={7, -2, 40, 99})
    assert early.classes_.tolist() == [-2, 7, 40, 99]
    assert early.ridge_.weight[:, 3].abs().max() == 0


@pytest.mark.parametrize("solver", ["cholesky", "recursive"])
def test_large_batches_go_through_in_blocks(solver, monkeypatch) -> None:
    X, y = data()
    whole = fed(AEFOCLClassifier(**SMALL, solver=solver), X, y, 60)
    monkeypatch.setattr("offprints.aef_ocl.classifier.ENTRIES", 7 * 24)
    monkeypatch.setattr("offprints.aef_ocl.pseudo_features.CHUNK", 11)
    blocks = fed(AEFOCLClassifier(**SMALL, solver=solver), X, y, 60)
    near(blocks.ridge_.weight, whole.ridge_.weight)
    near(blocks.decision_function(X), blocks.buffer_(X) @ blocks.coef_)


@pytest.mark.parametrize("random_state", [0, 5])
def test_random_state_is_that_of_the_buffer_and_of_the_draws(random_state) -> None:
    X, y = data()
    before = torch.get_rng_state()
    models = [fed(AEFOCLClassifier(**SMALL, random_state=random_state), X, y, 9) for _ in range(2)]
    assert torch.equal(models[0].decision_function(X), models[1].decision_function(X))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(models[0].buffer_.weight, RandomBuffer(4, 24, seed=random_state).weight)
    assert not torch.equal(models[0].rebalance(generator=make_generator(1)).coef_, models[1].coef_)


def test_without_a_random_state() -> None:
    """Drawn once, at the first batch, from torch's global generator; kept by the state."""
    X, y = data()
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(fed(AEFOCLClassifier(**SMALL, random_state=None), X, y, 9))
    weights = [model.buffer_.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    loaded = AEFOCLClassifier(**SMALL).load_state_dict(models[2].state_dict())
    assert loaded.random_state is None
    assert torch.equal(loaded.decision_function(X), models[2].decision_function(X))
    with pytest.raises(ValueError, match="buffer"):
        models[0].merge_(models[2])


# State


@pytest.mark.parametrize("solver", ["auto", "recursive"])
def test_resume_in_a_fresh_process_bit_for_bit(solver, tmp_path) -> None:
    X, y = data()
    model = fed(
        AEFOCLClassifier(buffer_size=24, gamma=0.02, noise=0.5, solver=solver, random_state=3), X[:30], y[:30], 6
    )
    file = tmp_path / "state.pt"
    torch.save(model.state_dict(), file)
    model.predict(X)

    def resumed() -> tuple[Tensor, Tensor, dict]:
        import torch

        from offprints.aef_ocl import AEFOCLClassifier

        torch.set_num_threads(threads)
        loaded = AEFOCLClassifier(buffer_size=7).load_state_dict(torch.load(file, weights_only=True))
        first = loaded.decision_function(X)
        for x, labels in zip(X[30:].split(6), y[30:].split(6), strict=True):
            loaded.partial_fit(x, labels)
        return first, loaded.decision_function(X), loaded.get_params()

    threads = torch.get_num_threads()
    first, last, params = fresh_process(resumed)
    assert torch.equal(first, model.decision_function(X))
    assert torch.equal(last, fed(model, X[30:], y[30:], 6).decision_function(X))
    assert params == model.get_params()


def test_state_is_a_copy_and_holds_the_forced_balance() -> None:
    X, y = data()
    model = fed(AEFOCLClassifier(**SMALL, balance=False), X[:30], y[:30], 6).rebalance(generator=make_generator(4))
    state = model.state_dict()
    scores = model.decision_function(X)
    fed(model, X[30:], y[30:], 6)
    loaded = AEFOCLClassifier().load_state_dict(state)
    assert torch.equal(loaded.decision_function(X), scores)
    assert loaded.balance is False
    fed(loaded, X[30:], y[30:], 6)
    assert torch.equal(loaded.decision_function(X), model.decision_function(X))
    assert torch.equal(AEFOCLClassifier().load_state_dict(state).decision_function(X), scores)


def test_state_of_text_labels_and_named_columns() -> None:
    import pandas as pd

    X, y = data()
    frame, words = pd.DataFrame(X.numpy(), columns=list("abcd")), np.array(["tram", "car"])[(y.numpy() == 7) * 1]
    model = AEFOCLClassifier(**SMALL).fit(frame, words)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = AEFOCLClassifier().load_state_dict(torch.load(file, weights_only=True))
    assert loaded.classes_.tolist() == ["car", "tram"]
    assert loaded.feature_names_in_.tolist() == list("abcd")
    assert loaded.predict(frame).tolist() == model.predict(frame).tolist()
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame[list("dcba")])
    loaded.partial_fit(frame, np.array(["a very long name indeed"] * len(X)))
    assert loaded.classes_.tolist() == ["a very long name indeed", "car", "tram"]


def test_state_needs_the_users_parts_again() -> None:
    X, y = data()
    torch.manual_seed(0)
    parts = {"backbone": nn.Linear(4, 5), "buffer": nn.Sequential(nn.Linear(5, 9), nn.ReLU())}
    model = fed(AEFOCLClassifier(**parts), X.float(), y, 9)
    state = model.state_dict()
    loaded = AEFOCLClassifier(**parts).load_state_dict(state)
    assert torch.equal(loaded.decision_function(X.float()), model.decision_function(X.float()))
    for lacking in ({}, {"backbone": parts["backbone"]}, {"buffer": parts["buffer"]}):
        with pytest.raises(ValueError, match=r"backbone|buffer"):
            AEFOCLClassifier(**lacking).load_state_dict(state)
    with pytest.raises(ValueError, match="another buffer"):
        AEFOCLClassifier(backbone=parts["backbone"], buffer=nn.Sequential(nn.Linear(5, 9), nn.ReLU())).load_state_dict(
            state
        )
    plain = fed(AEFOCLClassifier(**SMALL), X, y, 9)
    with pytest.raises(ValueError, match="without a buffer"):
        AEFOCLClassifier(buffer=nn.Linear(4, 9)).load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="lacks"):
        AEFOCLClassifier().load_state_dict({"seed": 1})
    before = plain.decision_function(X)
    broken = plain.state_dict() | {"ridge": {}}
    with pytest.raises(ValueError, match="undamaged"):
        plain.load_state_dict(broken)
    assert torch.equal(plain.decision_function(X), before)


def test_a_damaged_state_is_refused() -> None:
    """By name, whatever is wrong with it, and what was there before stays."""
    X, y = data()
    model = fed(AEFOCLClassifier(**SMALL), X, y, 9)
    scores, good = model.decision_function(X), model.rebalance().state_dict()
    ridge, generator = good["ridge"], good["generator"]
    K = torch.zeros(24, 2, dtype=torch.float64)
    damages = [
        {"params": None},
        {"params": good["params"] | {"gamma": -1.0}},
        {"dtype": "float99"},
        {"dtype": None},
        {"labels": None},
        {"labels": [-2, 7]},
        {"labels": [-2, 7, 7]},
        {"label_type": "zz"},
        {"features": -3},
        {"size": 25},
        {"n_features_in": None},
        {"buffer": {}},
        {"ridge": None},
        {"ridge": ridge | {"_matrix": ridge["_matrix"] * torch.nan}},
        {"ridge": ridge | {"_matrix": ridge["_matrix"][:5]}},
        {"ridge": ridge | {"_columns": K}},
        {"ridge": ridge | {"_seen": torch.tensor(59)}},
        {"ridge": ridge | {"_extra_state": {"gamma": 0.1, "solver": "recursive"}}},
        {"generator": {}},
        {"generator": generator | {"_count": torch.tensor([70, -20, 10])}},
        {"generator": generator | {"mean_": generator["mean_"] / 0}},
        {"balanced": 3},
        {"balanced": K},
        {"balanced": good["balanced"] * torch.nan},
    ]
    for damage in damages:
        with pytest.raises(ValueError, match="state must be one of state_dict, undamaged"):
            model.load_state_dict(good | damage)
        assert torch.equal(model.decision_function(X), scores), damage
    assert torch.equal(AEFOCLClassifier().load_state_dict(good).decision_function(X), scores)


def test_parameters_hold_from_the_first_batch_on() -> None:
    """A later change is refused by the next batch; what was learned stays in use; fit begins anew."""
    X, y = data()
    model = fed(AEFOCLClassifier(**SMALL), X[:48], y[:48], 9)
    scores = model.decision_function(X)
    for name, value in {
        "gamma": 1.0,
        "noise": 0.5,
        "solver": "recursive",
        "dtype": torch.float32,
        "buffer_size": 25,
        "random_state": 1,
    }.items():
        old = getattr(model, name)
        model.set_params(**{name: value})
        assert torch.equal(model.decision_function(X), scores)
        with pytest.raises(ValueError, match=f"{name} must stay what it was at the first batch"):
            model.partial_fit(X[48:], y[48:])
        model.set_params(**{name: old})
    for name, value in (("gamma", 0.0), ("balance", "no")):
        with pytest.raises((TypeError, ValueError), match=name):
            copy.deepcopy(model).set_params(**{name: value}).partial_fit(X[48:], y[48:])
    fed(model, X[48:], y[48:], 9)
    assert model.ridge_.n_samples_seen_ == 60
    fitted = model.set_params(gamma=1.0, balance=False).fit(X, y)
    near(fitted.coef_, ridge_solution(fitted.buffer_(X), torch.searchsorted(fitted.classes_, y), 1.0))


# Backbones and buffers of the user


def test_backbone() -> None:
    """Convolutions with batch norm and dropout: in evaluation mode, without a graph, their mode put back."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
    backbone.train()
    before = copy.deepcopy(backbone.state_dict())
    images = torch.randn(40, 1, 8, 8)
    y = torch.arange(40) % 2
    model = fed(AEFOCLClassifier(backbone=backbone, **SMALL), images, y, 9)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert model.n_features_in_ == 64
    assert model.generator_.in_features == 6
    with torch.no_grad():
        features = copy.deepcopy(backbone).eval()(images).flatten(1)
    expected = fed(AEFOCLClassifier(**SMALL), features, y, 9)
    near(model.decision_function(images), expected.decision_function(features), 1e-6)
    assert isinstance(model.decision_function(images.numpy()), np.ndarray)
    assert torch.equal(model.predict(images[:1]), model.predict(images)[:1])
    with pytest.raises(ValueError, match="features"):
        model.predict(images[:, :, :5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.decision_function(images), model.decision_function(images))
    tokens = torch.randint(50, (40, 7))
    embedded = AEFOCLClassifier(backbone=nn.EmbeddingBag(50, 5), **SMALL).fit(tokens, y)
    assert embedded.predict(tokens).shape == (40,)


class Writing(nn.Module):
    """Writes to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mul_(2.0))


def test_a_network_that_writes_to_its_input() -> None:
    """The user's rows stay as they are, and so do the features that the moments are of."""
    torch.manual_seed(0)
    X, y = data()
    layer = nn.Linear(4, 5).double()
    with torch.no_grad():
        features = layer(2 * X)
    expected = AEFOCLClassifier(**SMALL).fit(features, y)
    for rows in (X.clone(), X.numpy().copy()):
        model = AEFOCLClassifier(backbone=Writing(layer), **SMALL).fit(rows, y)
        near(torch.as_tensor(model.decision_function(rows)), expected.decision_function(features))
        assert torch.equal(torch.as_tensor(rows), X)
    rows = X.clone()
    model = AEFOCLClassifier(buffer=Writing(layer), balance=False, device="cpu").fit(rows, y)
    assert torch.equal(rows, X)
    near(model.coef_, ridge_solution(features, torch.searchsorted(model.classes_, y), 1e-3))
    near(model.generator_.mean_[1], X[y == 7].mean(0))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("given", [np.float32, np.float64])
def test_the_backbone_gets_its_own_type(kind, given) -> None:
    torch.manual_seed(0)
    X, y = data()
    backbone = nn.Linear(4, 5).to(kind)
    rows = X.numpy().astype(given)
    with torch.no_grad():
        features = backbone(torch.from_numpy(rows).to(kind)).double()
    model = AEFOCLClassifier(backbone=backbone, **SMALL).fit(rows, y)
    near(
        torch.from_numpy(model.decision_function(rows)),
        AEFOCLClassifier(**SMALL).fit(features, y).decision_function(features),
    )


def test_a_backbone_that_gives_no_tensor_is_refused() -> None:
    class Tuple(nn.Module):
        def __init__(self, given: object) -> None:
            super().__init__()
            self.given = given

        def forward(self, x: Tensor) -> object:
            return self.given

    X, y = data()
    for given in ((X,), {"features": X}, None, X.numpy()):
        with pytest.raises(TypeError, match=r"backbone must return a tensor \[B, d\], got"):
            AEFOCLClassifier(backbone=Tuple(given), **SMALL).fit(X, y)


def test_a_backbone_that_gives_nonsense_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    X, y = torch.rand(20, 3), torch.arange(20) % 2
    model = AEFOCLClassifier(backbone=Broken(), **SMALL).partial_fit(X, y)
    before = model.decision_function(X)
    with pytest.raises(ValueError, match=r"X \(as the backbone"):
        model.partial_fit(-X, y)
    assert torch.equal(model.decision_function(X), before)


def test_buffer_of_the_user() -> None:
    """A copy is taken: training it later changes nothing; any type; NaN from it is refused."""
    X, y = data()
    torch.manual_seed(0)
    buffer = nn.Sequential(nn.Linear(4, 20), nn.Tanh())  # float32
    model = fed(AEFOCLClassifier(buffer=buffer, device="cpu"), X, y, 9)
    assert model.ridge_.in_features == 20
    scores = model.decision_function(X)
    phi = buffer(X.float()).double().detach()
    near(model.ridge_.weight, ridge_solution(phi, torch.searchsorted(model.classes_, y), 1e-3), 1e-7)
    with torch.no_grad():
        buffer[0].weight.zero_()
    assert torch.equal(model.decision_function(X), scores)
    identity = fed(AEFOCLClassifier(buffer=nn.Identity(), balance=False, device="cpu"), X, y, 9)
    near(identity.coef_, ridge_solution(X, torch.searchsorted(identity.classes_, y), 1e-3))

    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    model = AEFOCLClassifier(buffer=Logarithm(), device="cpu").partial_fit(X.abs() + 1, y)
    before = model.state_dict()
    with pytest.raises(ValueError, match="X must be finite"):
        model.partial_fit(-X, y + 1)
    assert model.classes_.tolist() == [-2, 7, 40]
    assert torch.equal(model.state_dict()["ridge"]["_matrix"], before["ridge"]["_matrix"])
    assert torch.equal(model.state_dict()["ridge"]["_columns"], before["ridge"]["_columns"])
    with pytest.raises(ValueError, match="buffer"):
        AEFOCLClassifier(buffer=nn.Flatten(0), device="cpu").fit(X, y)


# Labels and data


def test_labels_of_any_kind() -> None:
    X, y = data()
    expected = fed(AEFOCLClassifier(**SMALL), X, y, 9)
    words = {-2: "bus", 7: "car", 40: "tram"}
    text = np.array([words[label] for label in y.tolist()])
    for labels, values in (
        (text, ["bus", "car", "tram"]),
        (text.astype(object), ["bus", "car", "tram"]),
        (text.tolist(), ["bus", "car", "tram"]),
        ((y + 2).numpy().astype(np.uint64) + np.uint64(2**63), [2**63, 2**63 + 9, 2**63 + 42]),
        (y.to(torch.int8), [-2, 7, 40]),
        (y.numpy().astype(">i4"), [-2, 7, 40]),
    ):
        model = AEFOCLClassifier(**SMALL)
        for start in range(0, 60, 9):
            model.partial_fit(X[start : start + 9].numpy(), labels[start : start + 9])
        assert model.classes_.tolist() == values
        assert [values.index(label) for label in model.predict(X.numpy()).tolist()] == [
            [-2, 7, 40].index(label) for label in expected.predict(X).tolist()
        ]
        near(torch.from_numpy(model.decision_function(X.numpy())), expected.decision_function(X))
    with pytest.raises(TypeError, match="strings and numbers"):
        expected.partial_fit(X, text)
    assert expected.score(X, y + 1000) == 0.0


def test_rows_of_any_kind() -> None:
    """Integers that float32 would round, and objects that scikit-learn takes for arrays."""
    large = np.array([[2**24 + 1, 3], [2**24, 5], [2**24 + 3, 5]], dtype=np.int32)
    for rows in (large, torch.from_numpy(large), large.astype(np.uint32)):
        model = AEFOCLClassifier(**SMALL).fit(rows, [0, 1, 2])
        assert model.generator_.mean_.tolist() == large.tolist()

    class Wrapped:
        def __init__(self, rows: np.ndarray) -> None:
            self.rows = rows

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return self.rows

    X, y = data()
    expected = AEFOCLClassifier(**SMALL).fit(X, y)
    model = AEFOCLClassifier(**SMALL).fit(Wrapped(X.numpy()), Wrapped(y.numpy()))
    near(torch.from_numpy(model.decision_function(Wrapped(X.numpy()))), expected.decision_function(X))


def test_surroundings_change_nothing() -> None:
    X, y = data()
    expected = fed(AEFOCLClassifier(**SMALL), X, y, 20).decision_function(X)
    with torch.inference_mode():
        model = fed(AEFOCLClassifier(**SMALL), X[:40], y[:40], 20)
        model.predict(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fed(model, X[40:].requires_grad_(), y[40:], 20)
        scores = model.decision_function(X)
        assert not scores.requires_grad
    X = X.detach()
    assert torch.equal(scores, expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(fed(AEFOCLClassifier(**SMALL), X, y, 20).decision_function(X), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    try:
        torch.set_default_device("meta")
        again = fed(AEFOCLClassifier(**SMALL), X, y, 20)
        assert torch.equal(again.decision_function(X), expected)
    finally:
        torch.set_default_device(None)


def test_pickle_and_deepcopy_go_their_own_way() -> None:
    X, y = data()
    model = fed(AEFOCLClassifier(**SMALL), X[:30], y[:30], 6)
    twins = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    expected = model.decision_function(X)
    for twin in twins:
        fed(twin, X[30:], y[30:], 6)
    assert torch.equal(model.decision_function(X), expected)
    fed(model, X[30:], y[30:], 6)
    assert all(torch.equal(twin.decision_function(X), model.decision_function(X)) for twin in twins)


def test_in_a_pipeline_and_a_search() -> None:
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = data()
    pipeline = make_pipeline(StandardScaler(), AEFOCLClassifier(**SMALL))
    search = GridSearchCV(pipeline, {"aefoclclassifier__gamma": [1e-3, 1.0]}, cv=2).fit(X.numpy(), y.numpy())
    assert search.best_score_ > 0.5


def test_before_the_first_batch() -> None:
    X, _ = data()
    model = AEFOCLClassifier()
    calls = [lambda name=name: getattr(model, name)(X) for name in ("predict", "decision_function", "predict_proba")]
    calls += [model.rebalance, model.state_dict, lambda: model.score(X, X[:, 0].long())]
    calls += [lambda name=name: getattr(model, name) for name in ("coef_", "classes_", "ridge_", "buffer_")]
    for call in calls:
        with pytest.raises(NotFittedError):
            call()
        with pytest.raises(RuntimeError):
            call()
    with pytest.raises(AttributeError, match="no_such_name"):
        model.no_such_name  # noqa: B018
