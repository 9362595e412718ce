from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_errors, check_estimator
from offprints.wad import SimCLRTeacher, WADClassifier, classifier, networks, teacher_knowledge
from offprints.wad.networks import Standardize, small_encoder


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four directions in six dimensions, of which the last has no labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(120) % 4
    x = (np.eye(6)[y] + 0.15 * rng.standard_normal((120, 6))).astype(np.float32)
    labeled = np.flatnonzero(y < 3)[:12]
    pool = np.setdiff1d(np.arange(120), labeled)
    return x[labeled], y[labeled], x[pool], y[pool]


X, Y, POOL, TRUTH = data()


def small(**options: object) -> WADClassifier:
    given = {"teacher": "features", "rounds": 2, "steps_per_round": 4, "lr": 1e-3, "random_state": 0, **options}
    return WADClassifier(**given)  # type: ignore[arg-type]


def test_conformance() -> None:
    skip = {"arguments: parameters: rounds: huge": "trains on and on"}
    check_estimator(small(batch_size=8), (X, Y, POOL), query=None, skip=skip)


def test_it_learns() -> None:
    model = WADClassifier(teacher="features", rounds=3, steps_per_round=100, random_state=0).fit(X, Y + 5, POOL)
    known = TRUTH < 3
    assert model.classes_.tolist() == [5, 6, 7]
    assert model.score(POOL[known], TRUTH[known] + 5) > 0.95
    assert model.score(torch.from_numpy(POOL[known]), torch.from_numpy(TRUTH[known] + 5)) > 0.95
    assert (model.pseudo_labels_[known] == TRUTH[known] + 5).mean() > 0.95
    score = model.outlier_score(POOL)
    assert np.median(score[~known]) > np.quantile(score[known], 0.95)
    np.testing.assert_allclose(score, 1 - model.weights_, atol=1e-6)
    weight = np.ones(int(known.sum()))
    assert model.score(POOL[known], TRUTH[known] + 5, sample_weight=weight) == model.score(
        POOL[known], TRUTH[known] + 5
    )
    wrong = np.arange(known.sum()) % 2 == 0
    assert model.score(POOL[known], np.where(wrong, 5, TRUTH[known] + 5)) < 0.9


def test_attributes() -> None:
    model = small(alpha=0.9, rounds=4).fit(X, Y, POOL)
    known = teacher_knowledge(torch.from_numpy(POOL), torch.from_numpy(X), torch.from_numpy(Y), num_classes=3)
    np.testing.assert_allclose(model.weights_, known.weights, atol=1e-6)
    assert np.array_equal(model.pseudo_labels_, known.pseudo_labels)
    assert list(model.selected_) == [1, 2, 3, 4]
    assert len(model.selected_[1]) == int(0.9 * (2 / 3) ** 2 * len(POOL))
    assert all(isinstance(moved, np.ndarray) for moved in model.selected_.values())
    moved = np.concatenate(list(model.selected_.values()))
    assert len(set(moved.tolist())) == len(moved)
    assert [entry["step"] for entry in model.history_] == list(range(1, 17))
    assert len(model.knowledge_) == 4
    assert model.n_features_in_ == 6
    assert model.teacher_ is None
    tensors = small().fit(*map(torch.from_numpy, (X, Y, POOL)))
    assert all(isinstance(value, Tensor) for value in (tensors.weights_, tensors.pseudo_labels_, tensors.selected_[1]))


def test_a_space_of_its_own_for_the_teacher() -> None:
    rng = np.random.default_rng(1)
    turn = rng.standard_normal((6, 9))
    z, z_pool = X @ turn, POOL @ turn
    noise = rng.standard_normal((len(X), 3)).astype(np.float32), rng.standard_normal((len(POOL), 3)).astype(np.float32)
    model = small().fit(noise[0], Y, noise[1], Z_labeled=z, Z_unlabeled=z_pool)
    expected = teacher_knowledge(
        torch.from_numpy(z_pool), torch.from_numpy(z), torch.from_numpy(Y), num_classes=3
    ).weights
    np.testing.assert_allclose(model.weights_, expected, atol=1e-6)
    np.testing.assert_allclose(model.outlier_score(z_pool), 1 - expected, atol=1e-6)
    assert model.predict(noise[1]).shape == (len(POOL),)
    with pytest.raises(ValueError, match="Z_labeled"):
        model.outlier_score(noise[1])
    with pytest.raises(ValueError, match="X"):
        model.predict(z_pool)
    same = small().fit(X, Y, POOL, Z_labeled=torch.from_numpy(X), Z_unlabeled=torch.from_numpy(POOL))
    assert np.array_equal(same.predict_proba(POOL), small().fit(X, Y, POOL).predict_proba(POOL))


def test_options_reach_the_training() -> None:
    base = small().fit(X, Y, POOL).predict_proba(POOL)
    for change in (
        {"rounds": 3}, {"steps_per_round": 5}, {"lr": 1e-2}, {"lr": None}, {"batch_size": 9}, {"random_state": 1},
        {"rounds": 4, "alpha": 0.9}, {"student": nn.Linear(6, 3)}, {"teacher": nn.Linear(6, 4)},
    ):  # fmt: skip
        other = small(rounds=4, alpha=0.0).fit(X, Y, POOL).predict_proba(POOL) if "alpha" in change else base
        assert not np.array_equal(small(**change).fit(X, Y, POOL).predict_proba(POOL), other), change
    default = small(lr=5e-4).fit(X, Y, POOL).predict_proba(POOL)
    assert np.array_equal(small(lr=None).fit(X, Y, POOL).predict_proba(POOL), default)
    torch.manual_seed(4)
    first = small(random_state=None).fit(X, Y, POOL).predict_proba(POOL)
    assert not np.array_equal(small(random_state=None).fit(X, Y, POOL).predict_proba(POOL), first)


def test_the_users_modules_are_left_alone() -> None:
    net, encoder = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 4), nn.Dropout())
    before = [parameter.clone() for module in (net, encoder) for parameter in module.parameters()]
    model = small(student=net, teacher=encoder).fit(X, Y, POOL)
    after = [parameter for module in (net, encoder) for parameter in module.parameters()]
    assert all(map(torch.equal, after, before))
    assert net.training
    assert encoder.training
    assert not torch.equal(model.student_.weight, net.weight)
    with torch.no_grad():
        z, z_pool = encoder[0](torch.from_numpy(X)), encoder[0](torch.from_numpy(POOL))
    expected = teacher_knowledge(z_pool, z, torch.from_numpy(Y), num_classes=3).weights
    np.testing.assert_allclose(model.weights_, expected, atol=1e-6)
    np.testing.assert_allclose(model.outlier_score(POOL), 1 - expected, atol=1e-6)
    twin = clone(model)
    assert np.array_equal(twin.fit(X, Y, POOL).predict_proba(POOL), model.predict_proba(POOL))


def pictures(count: int = 30) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SimCLR teacher on all images, and the paper's student; features of images are their flat pixels."""
    monkeypatch.setattr(classifier, "TEACHER_EPOCHS", 2)
    x, y = pictures(), np.arange(6) % 2
    model = WADClassifier(rounds=1, steps_per_round=1, batch_size=4, random_state=0).fit(x[:6], y, x[6:])
    assert isinstance(model.teacher_, SimCLRTeacher)
    assert len(model.teacher_.history_) == 2
    z = model.teacher_.embed(x)
    expected = teacher_knowledge(z[6:], z[:6], torch.from_numpy(y), num_classes=2).weights
    assert_close(model.weights_, expected)
    assert_close(model.outlier_score(x[6:]), 1 - expected, rtol=1e-4, atol=1e-5)
    assert model.predict(x).shape == (30,)
    assert model.n_features_in_ == 1
    again = WADClassifier(rounds=1, steps_per_round=1, batch_size=4, random_state=0).fit(x[:6], y, x[6:])
    assert torch.equal(again.predict_proba(x), model.predict_proba(x))

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    flat = small(student=net).fit(x[:6], y, x[6:])
    unit = x.flatten(1)
    assert_close(flat.weights_, teacher_knowledge(unit[6:], unit[:6], torch.from_numpy(y), num_classes=2).weights)
    fitted = small(student=net, teacher=model.teacher_).fit(x[:6], y, x[6:])
    assert_close(fitted.weights_, expected)
    with pytest.raises(ValueError, match="X"):
        flat.predict(x[:, :, :4])


def test_labels_of_other_kinds() -> None:
    numbers = small().fit(X, Y, POOL)
    words = np.array(["ant", "bee", "cow"])
    for y in (words[Y], words[Y].astype(object), words[Y].tolist(), pd.Series(words[Y])):
        model = small().fit(X, y, POOL)
        assert model.classes_.tolist() == words.tolist()
        assert np.array_equal(model.predict(POOL), words[numbers.predict(POOL)])
        assert np.array_equal(model.pseudo_labels_, words[numbers.pseudo_labels_])
    assert small().fit(torch.from_numpy(X), words[Y], POOL).predict(torch.from_numpy(POOL)).dtype.kind == "U"
    two = small().fit(X, Y > 0, POOL)
    assert two.predict(POOL).dtype == bool


def test_data_frames() -> None:
    frame, pool = (pd.DataFrame(x, columns=list("abcdef")) for x in (X, POOL))
    model = small().fit(frame, pd.Series(Y), pool)
    assert list(model.feature_names_in_) == list("abcdef")
    assert np.array_equal(model.predict_proba(pool), small().fit(X, Y, POOL).predict_proba(POOL))
    for call in (model.predict, model.predict_proba, model.outlier_score):
        with pytest.raises(ValueError, match="feature names"):
            call(pool[list("fedcba")])
    with pytest.raises(ValueError, match="X_unlabeled"):
        small().fit(frame, Y, pool[list("fedcba")])
    assert not hasattr(model.fit(X, Y, POOL), "feature_names_in_")


def test_data_frames_with_nullable_columns() -> None:
    frame, pool = (pd.DataFrame(x.astype(np.float64), columns=list("abcdef")) for x in (X, POOL))
    expected = small().fit(frame, Y, pool)
    model = small().fit(frame.astype("Float64"), pd.Series(Y, dtype="Int64"), pool.astype("Float64"))
    assert np.array_equal(model.predict_proba(pool.astype("Float64")), expected.predict_proba(pool))
    missing = frame.astype("Float64")
    missing.iloc[0, 0] = pd.NA
    with pytest.raises(TypeError, match="X_labeled"):
        small().fit(missing, Y, pool)


class _Named(nn.Module):
    """Returns what is no tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.inner(x)}


class _Doubling(nn.Module):
    """Writes into what it gets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(2))


def test_modules_that_write_into_their_input() -> None:
    torch.manual_seed(0)
    student, teacher = _Doubling(3), _Doubling(4)
    x, pool = torch.from_numpy(X.copy()), torch.from_numpy(POOL.copy())
    model = small(student=student, teacher=teacher).fit(x, Y, pool)
    with torch.no_grad():
        z, z_pool = teacher.inner(2 * x), teacher.inner(2 * pool)
    assert_close(model.weights_, teacher_knowledge(z_pool, z, torch.from_numpy(Y), num_classes=3).weights)
    with torch.no_grad():
        expected = model.student_.inner(2 * pool).softmax(1)
    assert_close(model.predict_proba(pool), expected)
    assert_close(model.outlier_score(pool), 1 - model.weights_)
    assert np.array_equal(x, X)
    assert np.array_equal(pool, POOL)


def test_a_refused_fit_changes_nothing() -> None:
    model = small().fit(X, Y, POOL)
    before, held = model.predict_proba(POOL), set(vars(model))
    frame, zeros = (pd.DataFrame(x[:, :3], columns=list("abc")) for x in (X, 0 * POOL))
    for x, y, pool in ((X, 0 * Y, POOL), (frame, Y, zeros)):
        with pytest.raises(ValueError, match=r"classes|zeros"):
            model.fit(x, y, pool)
        assert np.array_equal(model.predict_proba(POOL), before)
        assert set(vars(model)) == held
        assert model.n_features_in_ == 6


def test_score_is_the_share_of_right_classes() -> None:
    model = small().fit(X, Y, POOL)
    found, truth = model.predict(POOL), np.where(TRUTH < 3, TRUTH, 99)
    weight = np.arange(1.0, len(POOL) + 1)
    assert model.score(POOL, truth) == pytest.approx((found == truth).mean())
    assert model.score(POOL, truth, sample_weight=weight) == pytest.approx(np.average(found == truth, weights=weight))
    words = np.array(["ant", "bee", "cow", "dog"])
    assert small().fit(X, words[Y], POOL).score(POOL, words[TRUTH]) == pytest.approx((found == TRUTH).mean())


def test_parameters_are_refused_where_they_are_given() -> None:
    for change in ({"teacher": "resnet"}, {"rounds": 0}, {"alpha": 2.0}, {"device": "abacus"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            WADClassifier(**change)
        with pytest.raises(ValueError, match=next(iter(change))):
            small().set_params(**change).fit(X, Y, POOL)


def test_units_of_the_features_do_not_matter_to_the_default_student(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = np.array([1e-3, 1.0, 1e3, 1e6, 5.0, 0.1], dtype=np.float32)
    options = {"Z_labeled": X, "Z_unlabeled": POOL}
    expected = small().fit(X, Y, POOL, **options).predict_proba(POOL)
    found = small().fit(scale * X + scale, Y, scale * POOL + scale, **options).predict_proba(scale * POOL + scale)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    constant = torch.full((5, 2), 0.1)
    assert_close(Standardize(constant)(constant), torch.zeros(5, 2))
    images = torch.rand(9, 2, 4, 4) * 7
    standard = Standardize(images)(images)
    assert_close(standard.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    assert_close(standard.std((0, 2, 3), correction=0), torch.ones(2))
    monkeypatch.setattr(networks, "BLOCK", 40)  # which a single image fills nearly
    assert_close(Standardize(images[:4], images[4:])(images), standard)


def test_regions() -> None:
    expected = small().fit(X, Y, POOL)
    wanted = expected.predict_proba(POOL), expected.outlier_score(POOL)
    torch.set_default_dtype(torch.float64)
    try:
        found = small().fit(X, Y, POOL)
        assert np.array_equal(found.predict_proba(POOL), wanted[0])
    finally:
        torch.set_default_dtype(torch.float32)
    for region in (
        torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"),
    ):  # fmt: skip
        with region:
            found = small().fit(X, Y, POOL)
            assert np.array_equal(found.predict_proba(POOL), wanted[0])
            assert np.array_equal(found.outlier_score(POOL), wanted[1])


def test_stored_in_one_process_and_used_in_another(tmp_path) -> None:
    model = small().fit(X, Y, POOL)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "pool.npy", POOL)
    script = (
        "import pickle, numpy as np, pathlib; pool = np.load('pool.npy');"
        "model = pickle.loads(pathlib.Path('model.pickle').read_bytes());"
        "np.savez('found.npz', p=model.predict_proba(pool), o=model.outlier_score(pool))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=300)
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["p"], model.predict_proba(POOL), rtol=1e-5)
    np.testing.assert_allclose(found["o"], model.outlier_score(POOL), rtol=1e-5, atol=1e-6)


def test_bad_inputs() -> None:
    nan, zero, x = X.copy(), X.copy(), pictures()
    nan[0, 0], zero[2] = np.nan, 0.0
    body, width = small_encoder(1, width=2)
    unfitted = SimCLRTeacher(body, width)
    fitted = small().fit(X, Y, POOL)
    parameters = (
        ({"teacher": "resnet"}, ValueError), ({"teacher": None}, ValueError), ({"student": "mlp"}, TypeError),
        ({"student": nn.Flatten()}, ValueError), ({"rounds": 0}, ValueError), ({"steps_per_round": 0}, ValueError),
        ({"alpha": -0.1}, ValueError), ({"lr": 0.0}, ValueError), ({"batch_size": 0}, ValueError),
        ({"device": "abacus"}, ValueError), ({"random_state": -1}, ValueError), ({"random_state": 0.5}, TypeError),
    )  # fmt: skip
    cases = [
        (lambda change=change: small(**change).fit(X, Y, POOL), error, next(iter(change)))
        for change, error in parameters
    ]
    cases += [
        (lambda: small(teacher="simclr").fit(X, Y, POOL), ValueError, "teacher='features'"),
        (lambda: small(teacher=unfitted).fit(x[:6], np.arange(6) % 2, x[6:]), NotFittedError, "fit"),
        (lambda: small().fit(nan, Y, POOL), ValueError, "X_labeled"),
        (lambda: small().fit(zero, Y, POOL), ValueError, "X_labeled"),
        (lambda: small().fit(X.astype(int), Y, POOL), TypeError, "X_labeled"),
        (lambda: small().fit(X, Y, POOL.astype(int)), TypeError, "X_unlabeled"),
        (lambda: small().fit(X, Y, POOL[:, :3]), ValueError, "X_unlabeled"),
        (lambda: small().fit(X[:, :, None], Y, POOL[:, :, None]), ValueError, "X_labeled"),
        (lambda: small().fit(X, Y, POOL[:0]), ValueError, "X_unlabeled"),
        (lambda: small().fit(X, Y[:-1], POOL), ValueError, "y"),
        (lambda: small().fit(X, Y - 1, POOL), ValueError, "X_unlabeled, not labels of -1"),
        (lambda: small().fit(X, Y.astype(float), POOL), TypeError, "y"),
        (lambda: small().fit(X, 0 * Y, POOL), ValueError, "2 classes"),
        (lambda: small().fit(X, None, POOL), ValueError, "y"),
        (lambda: small().fit(X, [0, "a"] * 6, POOL), TypeError, "y"),
        (lambda: small().fit(X, np.array([0, None] * 6), POOL), TypeError, "y"),
        (lambda: small().fit(X, np.ma.masked_array(Y, mask=Y > 0), POOL), ValueError, "y"),
        (lambda: small().fit(X, Y, POOL, Z_labeled=X), ValueError, "Z_unlabeled"),
        (lambda: small().fit(X, Y, POOL, Z_labeled=X[:-1], Z_unlabeled=POOL), ValueError, "Z_labeled"),
        (lambda: small().fit(X, Y, POOL, Z_labeled=X, Z_unlabeled=POOL[:, :2]), ValueError, "Z_unlabeled"),
        (lambda: small().fit(X, Y, POOL, Z_labeled=zero, Z_unlabeled=POOL), ValueError, "Z_labeled"),
        (lambda: small().fit(X, Y, POOL, Z_labeled=nan, Z_unlabeled=POOL), ValueError, "Z_labeled"),
        (
            lambda: small(teacher=nn.Linear(6, 4)).fit(X, Y, POOL, Z_labeled=X, Z_unlabeled=POOL),
            ValueError,
            "teacher",
        ),
        (lambda: small().predict(POOL), NotFittedError, "fit"),
        (lambda: small().outlier_score(POOL), NotFittedError, "fit"),
        (lambda: fitted.score(POOL, Y), ValueError, "y"),
        (lambda: fitted.score(X, Y, sample_weight=-np.ones(len(X))), ValueError, "sample_weight"),
        (lambda: small(teacher=_Named(nn.Linear(6, 4))).fit(X, Y, POOL), ValueError, "teacher"),
        (lambda: small(student=_Named(nn.Linear(6, 3))).fit(X, Y, POOL), ValueError, "student"),
        (lambda: fitted.predict(POOL[:, :3]), ValueError, "X"),
        (lambda: fitted.outlier_score(POOL[:, :3]), ValueError, "X"),
        (lambda: fitted.outlier_score(zero), ValueError, "X"),
        (lambda: fitted.outlier_score(nan), ValueError, "X"),
        (lambda: small(lr=1e30, steps_per_round=60).fit(X, Y, POOL), ValueError, "lr"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_errors(cases)
    with pytest.raises(RuntimeError, match="fit"):
        small().predict_proba(POOL)
