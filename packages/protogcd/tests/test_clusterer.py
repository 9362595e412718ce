"""The clusterer: scikit-learn's habits, what it learns, modes of training, kinds of data."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offprints.protogcd import ProtoGCDClusterer, ProtoGCDOutput, gcd_accuracy
from offprints.shared.testing import check_estimator

RNG = np.random.default_rng(0)
TRUE = np.repeat(np.arange(4), 12)
X = (4 * np.eye(4)[TRUE] + RNG.normal(size=(48, 4))).astype(np.float32)
Y = np.where((TRUE < 2) & (np.arange(48) % 2 == 0), TRUE, -1)


def small(n_classes=4, **changes) -> ProtoGCDClusterer:
    return ProtoGCDClusterer(
        n_classes, **{"epochs": 2, "batch_size": 24, "random_state": 0, "device": "cpu", **changes}
    )


def test_conformance() -> None:
    check_estimator(small(epochs=1, batch_size=48), (X, Y))  # one step: hundreds of fits


@pytest.mark.parametrize("init", ["random", "kmeans"])
def test_finds_old_and_new_classes(init) -> None:
    model = ProtoGCDClusterer(4, epochs=20, batch_size=24, init=init, random_state=1).fit(X, Y)
    unlabeled = Y < 0
    found = gcd_accuracy(TRUE[unlabeled], model.labels_[unlabeled], TRUE[unlabeled] < 2)
    assert min(found) > 0.9
    assert (model.labels_[~unlabeled] == Y[~unlabeled]).mean() > 0.9  # old classes keep their numbers
    assert np.array_equal(model.labels_, model.predict(X))
    assert model.score(X, TRUE) == gcd_accuracy(TRUE, model.labels_, TRUE < 2).all
    assert model.classes_.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(model.prototypes_, axis=1), 1, rtol=1e-5)
    far = RNG.normal(size=(48, 4)).astype(np.float32) + 1.3
    assert model.ood_score(far).mean() > model.ood_score(X).mean()
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(-probabilities.max(1), model.ood_score(X), rtol=1e-5)


def test_history() -> None:
    model = small(epochs=4).fit(X, Y)
    assert [record["step"] for record in model.history_] == list(range(1, 9))
    assert [record["epoch"] for record in model.history_] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [record["ratio"] for record in model.history_[::2]] == [0.0, 1.0, 1.0, 1.0]
    for record in model.history_:
        assert set(record) == {"step", "epoch", *ProtoGCDOutput._fields}
        terms = record["dapl"] + 2 * record["entropy"] + 0.1 * record["separation"] + record["contrastive"]
        supervised = record["classification"] + record["supervised_contrastive"]
        assert record["loss"] == pytest.approx(0.65 * terms + 0.35 * supervised, rel=1e-4)


def test_fit_predict_passes_y_on() -> None:
    assert np.array_equal(small().fit_predict(X, Y), small().fit(X, Y).labels_)
    pipeline = make_pipeline(StandardScaler(), small())
    assert np.array_equal(pipeline.fit(X, Y).predict(X), pipeline[-1].labels_)


def test_estimate() -> None:
    model = small("estimate").fit(X, Y)
    assert model.class_count_.candidates == list(range(2, 13))
    assert model.n_classes_ == model.class_count_.n_classes == len(model.prototypes_) == len(model.classes_)
    assert small().fit(X, Y).class_count_ is None


def test_shift_and_scale_do_not_matter() -> None:
    expected = small().fit(X.astype(np.float64), Y).predict_proba(X)
    for a, b in ((1e-12, 0.0), (1e12, 0.0), (2.0, 1e5)):
        changed = a * X.astype(np.float64) + b
        np.testing.assert_allclose(small().fit(changed, Y).predict_proba(changed), expected, atol=1e-3)


def test_constant_features() -> None:
    assert np.isfinite(small().fit(np.ones((48, 3)), Y).predict_proba(np.ones((2, 3)))).all()


def test_adapters_and_views() -> None:
    plain = small(adapter="none").fit(X, Y)
    assert plain.prototypes_.shape == (4, 4)
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 7), torch.nn.Dropout(0.2))
    before = copy.deepcopy(own.state_dict())
    images = X.reshape(48, 1, 2, 2)
    seen: list[torch.Tensor] = []

    def flipped(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return batch.flip(-1) if torch.rand(()) < 0.5 else batch

    model = small(adapter=own, views=flipped, random_state=3).fit(images, Y)
    assert model.prototypes_.shape == (4, 7)
    assert len(seen) == 2 * 4
    assert seen[0].shape == (24, 1, 2, 2)
    for batch in seen:  # the samples as they were given
        rows = {tuple(row) for row in batch.flatten(1).tolist()}
        assert rows <= {tuple(row) for row in X.tolist()}
    assert all(torch.equal(before[key], value) for key, value in own.state_dict().items())
    assert not torch.equal(model.adapter_[1].weight.cpu(), own[1].weight)
    assert np.array_equal(
        model.predict(images), small(adapter=own, views=flipped, random_state=3).fit(images, Y).labels_
    )
    assert small(views=lambda batch: batch + 0.1 * torch.randn_like(batch)).fit(X, Y).prototypes_.shape == (4, 64)
    frozen = torch.nn.Linear(4, 5).requires_grad_(False)
    kept = small(adapter=frozen).fit(X, Y)
    assert torch.equal(kept.adapter_.weight, frozen.weight)


class Hostile(torch.nn.Module):
    """Writes into what it gets, and returns what `change` makes of its features."""

    def __init__(self, change=lambda features: features) -> None:
        super().__init__()
        self.linear, self.change = torch.nn.Linear(4, 5), change
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(20).view(5, 4) / 10)
            self.linear.bias.zero_()

    def forward(self, samples: torch.Tensor) -> object:
        return self.change(self.linear(samples.mul_(2)))


def test_adapters_and_views_that_write_into_their_input() -> None:
    expected = small(adapter=Hostile()).fit(X, Y).predict_proba(X)
    given = torch.from_numpy(X.copy())
    model = small(adapter=Hostile()).fit(given, Y)
    assert np.array_equal(model.predict_proba(given).numpy(), expected)
    assert np.array_equal(model.labels_.numpy(), expected.argmax(1))
    small(views=lambda batch: batch.add_(1)).fit(given, Y)
    assert np.array_equal(given.numpy(), X)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda features: {"features": features}, TypeError),
        (lambda features: (features,), TypeError),
        (lambda features: features.long(), TypeError),
        (lambda features: features[:1], ValueError),
        (lambda features: features[:, None], ValueError),
        (lambda features: features.sum(), ValueError),
        (lambda features: features * torch.nan, ValueError),
    ],
    ids=["dict", "tuple", "integers", "one row", "three axes", "a number", "nan"],
)
def test_adapters_that_return_something_else(change, error) -> None:
    with pytest.raises(error, match="adapter"):
        small(adapter=Hostile(change)).fit(X, Y)


def test_views_that_return_something_else() -> None:
    for views, error in (
        (lambda batch: batch[:1], ValueError), (lambda batch: batch[:, :3], ValueError),
        (lambda batch: None, TypeError), (lambda batch: batch.numpy(), TypeError),
        (lambda batch: batch * torch.nan, ValueError),
    ):  # fmt: skip
        with pytest.raises(error, match="views"):
            small(views=views).fit(X, Y)


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_noise_is_in_units_of_the_range(factor) -> None:
    seen: list[torch.Tensor] = []
    own = torch.nn.Linear(4, 5)
    own.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    small(adapter=own, noise=0.1, batch_size=20, epochs=10).fit(factor * X, Y)
    views = [batch for batch in seen if len(batch) == 40]
    assert len(views) == 20
    found = torch.cat([batch[:20] - batch[20:] for batch in views]).std()
    spread = np.sqrt(np.square(X - X.mean(0)).mean())
    assert float(found) == pytest.approx(0.1 * 4 * factor * spread * 2**0.5, rel=0.1)


def test_images_of_every_kind() -> None:
    whole = np.round(10 * X.reshape(48, 1, 2, 2)).astype(np.int8)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5))
    expected = small(adapter=flat).fit(whole.astype(np.float32), Y).predict_proba(whole)
    for images in (whole, whole.tolist(), torch.from_numpy(whole), whole.astype(np.float64), whole.astype(">i4")):
        found = small(adapter=flat).fit(images, Y).predict_proba(images)
        assert isinstance(found, torch.Tensor) == isinstance(images, torch.Tensor)
        assert np.array_equal(np.asarray(found), expected)


def test_options_reach_the_training() -> None:
    base = small().fit(X, Y).predict_proba(X)
    for change in (
        {"epochs": 3}, {"lr": 1e-2}, {"batch_size": 12}, {"noise": 0.5}, {"adapter": "none"}, {"init": "kmeans"},
        {"supervised_weight": 0.9}, {"entropy_weight": 0.0}, {"separation_weight": 5.0}, {"random_state": 1},
    ):  # fmt: skip
        assert not np.array_equal(small(**change).fit(X, Y).predict_proba(X), base), change
    torch.manual_seed(0)
    first = small(random_state=None).fit(X, Y).predict_proba(X)
    second = small(random_state=None).fit(X, Y).predict_proba(X)
    torch.manual_seed(0)
    assert np.array_equal(small(random_state=None).fit(X, Y).predict_proba(X), first)
    assert not np.array_equal(first, second)


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "region",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),  # as the default device
        float64_by_default,
    ],
    ids=["no_grad", "inference_mode", "autocast", "default device", "default dtype"],
)
def test_same_under_every_mode(region) -> None:
    plain = small(init="kmeans").fit(X, Y)
    expected = plain.predict_proba(X)
    with region():
        model = small(init="kmeans").fit(X, Y)
        assert np.array_equal(model.predict_proba(X), expected)
        assert np.array_equal(plain.predict_proba(X), expected)
    assert {p.dtype for p in model.head_.parameters()} == {torch.float32}
    assert np.array_equal(model.fit(X, Y).predict_proba(X), expected)


def test_tensor_of_inference_mode() -> None:
    with torch.inference_mode():
        inside = torch.from_numpy(X) * 1.0
    for adapter in ("mlp", torch.nn.Linear(4, 5)):
        expected = small(adapter=adapter).fit(X, Y).predict_proba(X)
        assert np.array_equal(small(adapter=adapter).fit(inside, Y).predict_proba(X), expected)


def test_kinds_of_tables_and_labels() -> None:
    expected = small().fit(X, Y).predict_proba(X)
    for labels in (
        torch.from_numpy(Y), Y.tolist(), pd.Series(Y), pd.Series(Y).astype("Int64"), Y.astype(np.int8), Y.astype(">i4"),
    ):  # fmt: skip
        assert np.array_equal(small().fit(X, labels).predict_proba(X), expected)
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = small().fit(frame, Y)
    assert list(model.feature_names_in_) == list("abcd")
    for table in (frame, frame.astype("Float32"), np.asfortranarray(X), X.astype(object), X.tolist()):
        assert np.array_equal(
            small().fit(table, Y).predict_proba(frame if isinstance(table, pd.DataFrame) else X), expected
        )
    for other in (frame[list("dcba")], frame.rename(columns={"a": "z"}), frame[["a", "b"]]):
        with pytest.raises(ValueError, match="feature names"):
            model.predict(other)
    assert not hasattr(model.fit(X, Y), "feature_names_in_")


def test_what_fails_changes_nothing() -> None:
    model = small().fit(pd.DataFrame(X, columns=list("abcd")), Y)
    expected = model.predict_proba(pd.DataFrame(X, columns=list("abcd")))
    for bad in ((X[:, :2] * np.nan, Y), (X[:, :2], Y[:3]), (X[:, :2], np.where(Y < 0, 0, Y))):
        with pytest.raises(ValueError, match=r"X|y"):
            model.fit(*bad)
    with pytest.raises(ValueError, match="lr"):
        model.set_params(lr=1e30, epochs=9).fit(X[:, :2], Y)
    assert list(model.feature_names_in_) == list("abcd")
    assert np.array_equal(model.predict_proba(pd.DataFrame(X, columns=list("abcd"))), expected)


def test_numbers_that_are_not_finite_any_more() -> None:
    with pytest.raises(ValueError, match="lr"):  # the only step is the last one
        small(epochs=1, batch_size=48, lr=1e30).fit(X, Y)
    with pytest.raises(ValueError, match="X"):
        small().fit(X, Y).predict(X.astype(np.float64) * 1e300)


def test_stored_in_one_process_and_used_in_another(tmp_path) -> None:
    model = small().fit(X, Y)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "x.npy", X)
    script = (
        "import pickle, pathlib, numpy as np; model = pickle.loads(pathlib.Path('model.pickle').read_bytes()); "
        "np.save('found.npy', model.predict_proba(np.load('x.npy')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), model.predict_proba(X), rtol=1e-5, atol=1e-6)


def test_tags_and_clone() -> None:
    model = small(adapter=torch.nn.Linear(4, 5), views=torch.nn.Identity())
    assert clone(model).get_params()["n_classes"] == 4
    assert model.__sklearn_tags__().target_tags.required
