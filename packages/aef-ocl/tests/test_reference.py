"""The reference says what the paper says: recursion equals joint solution, balance as the steps have it."""

from __future__ import annotations

import numpy as np

from offprints.aef_ocl.reference import Reference, class_moments, expand, joint_ridge, pseudo_features


def test_reference() -> None:
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(40, 3)), np.repeat([0, 1, 2], [25, 14, 1])
    matrix = draws.uniform(-1, 1, (10, 3))
    model = Reference(matrix, 3, 0.1, 1.0)
    for part in np.array_split(draws.permutation(40), 6):
        model.batch(x[part], y[part])
    phi = expand(x, matrix)
    assert (phi >= 0).all()
    np.testing.assert_allclose(model.W, joint_ridge(phi, np.eye(3)[y], 0.1), atol=1e-9)
    count, mean, std = class_moments(x, y, 3)
    assert count.tolist() == [25, 14, 1]
    assert std[2].tolist() == [0, 0, 0]
    normals = draws.normal(size=(35, 3))
    features, labels = pseudo_features(count, mean, std, normals, 1.0)
    assert labels.tolist() == [1] * 11 + [2] * 24
    np.testing.assert_allclose(features[11:], np.tile(x[-1], (24, 1)))
    np.testing.assert_allclose(features[0], mean[1] + std[1] * normals[0])
    before = model.W.copy()
    both = np.concatenate([phi, expand(features, matrix)])
    joint = joint_ridge(both, np.eye(3)[np.concatenate([y, labels])], 0.1)
    np.testing.assert_allclose(model.balanced(normals), joint, atol=1e-9)
    assert (before == model.W).all()
    assert (model.predict(x, joint) == (phi @ joint).argmax(1)).all()
