"""Data, models and the training loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offprints.shared.testing import check_errors
from offprints.stablemax import GrokConfig, GrokMLP, GrokTransformer, modular_arithmetic, sparse_parity, train_grokking

OPERATIONS = {
    "add": lambda x, y, p: x + y,
    "subtract": lambda x, y, p: x - y,
    "multiply": lambda x, y, p: x * y,
    "divide": lambda x, y, p: x * pow(y, p - 2, p),
    "square_sum": lambda x, y, p: x * x + y * y,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("p", [5, 13])
def test_every_pair_has_the_right_label(operation: str, p: int) -> None:
    pairs, labels = modular_arithmetic(p, operation, encoding="index")  # type: ignore[arg-type]
    one_hot, _ = modular_arithmetic(p, operation)  # type: ignore[arg-type]
    binary, _ = modular_arithmetic(p, operation, encoding="binary")  # type: ignore[arg-type]
    expected = [(x, y) for x in range(p) for y in range(operation == "divide", p)]
    assert pairs.tolist() == [list(pair) for pair in expected]
    assert labels.tolist() == [OPERATIONS[operation](x, y, p) % p for x, y in expected]
    assert torch.equal(torch.stack([one_hot[:, :p].argmax(1), one_hot[:, p:].argmax(1)], 1), pairs)
    assert (one_hot.sum(1) == 2).all()
    bits = (p - 1).bit_length()
    powers = 2.0 ** torch.arange(bits - 1, -1, -1)
    assert torch.equal((binary.view(-1, 2, bits) * powers).sum(2), pairs.float())


def test_a_modulus_that_is_not_prime() -> None:
    _, labels = modular_arithmetic(2, "divide")
    assert labels.tolist() == [0, 1]
    assert len(modular_arithmetic(6, "multiply")[1]) == 36


@pytest.mark.parametrize(("samples", "noise"), [(1, 0), (2, 0), (60, 5), (64, 5), (500, 40)])
def test_parity_rows_are_distinct(samples: int, noise: int) -> None:
    draw = {"num_parity": 1, "num_noise": noise}
    rows, labels = sparse_parity(samples, generator=torch.Generator().manual_seed(1), **draw)
    again, _ = sparse_parity(samples, generator=torch.Generator().manual_seed(1), **draw)
    assert rows.shape == (samples, 1 + noise)
    assert len(rows.unique(dim=0)) == samples
    assert torch.equal(rows[:, 0].long(), labels)
    assert torch.equal(rows, again)


def test_mlp_without_biases_is_homogeneous() -> None:
    model = GrokMLP(4, 3, hidden=(8, 8)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    before = model(x)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    torch.testing.assert_close(model(x), 8 * before)
    assert all(layer.bias is None for layer in model.layers)
    model.alpha = 3.0
    torch.testing.assert_close(model(x), 24 * before)


def small(**options: object) -> GrokConfig:
    defaults: dict[str, object] = {"p": 7, "hidden": (16,), "steps": 20, "log_every": 10, "device": "cpu"}
    return GrokConfig(**(defaults | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "exact", "orthograd": True, "granularity": "row"},
        {"loss": "stablemax", "optimizer": "sgd", "momentum": 0.8, "dtype": "float64", "alpha": 2.0},
        {"softmax_dtype": "float16", "task": "divide"},
        {"model": "transformer", "weight_decay": 1.0, "lr": 1e-3},
        {"task": "parity", "num_samples": 64, "num_noise": 5, "softmax_dtype": "float64"},
    ],
)
def test_training(options: dict[str, object]) -> None:
    before = torch.get_rng_state()
    result = train_grokking(small(**options))
    assert torch.equal(before, torch.get_rng_state())
    assert result.history["step"].tolist() == [0, 10, 20]
    assert result.history["train_loss"][-1] < result.history["train_loss"][0]
    assert all(np.isfinite(values).all() for values in result.history.values())
    again = train_grokking(small(**options))
    for name, values in result.history.items():
        np.testing.assert_array_equal(values, again.history[name])
    other = train_grokking(small(**options, seed=1))
    assert other.history["train_loss"][0] != result.history["train_loss"][0]


def test_memorization_is_not_grokking_and_a_callback_can_stop() -> None:
    entries = []

    def callback(entry: dict[str, float]) -> bool:
        entries.append(entry)
        return entry["train_accuracy"] == 1

    result = train_grokking(small(steps=2000, p=11, train_fraction=0.3, hidden=(64,)), callback=callback)
    assert result.grokked_at is None
    assert len(entries) == len(result.history["step"])
    assert 0 < result.history["step"][-1] < 2000
    assert result.history["train_accuracy"][-1] == 1


def test_easy_parity_is_learned() -> None:
    config = small(task="parity", num_parity=1, num_noise=4, num_samples=32, train_fraction=0.75, steps=60)
    result = train_grokking(config)
    assert result.grokked_at is not None
    assert result.history["test_accuracy"][-1] >= 0.95


def test_divergence_is_named() -> None:
    with pytest.raises(FloatingPointError, match="step"):
        train_grokking(small(optimizer="sgd", lr=1e30, log_every=1))


def test_bad_input() -> None:
    cases = [
        ({"task": "power"}, "task"),
        ({"loss": "hinge"}, "loss"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"model": "rnn"}, "model"),
        ({"model": "transformer", "task": "parity"}, "model"),
        ({"softmax_dtype": "float8"}, "softmax_dtype"),
        ({"dtype": "float16"}, "dtype"),
        ({"granularity": "layer"}, "granularity"),
        ({"train_fraction": 1.0}, "train_fraction"),
        ({"lr": 0.0}, "lr"),
        ({"beta2": 1.0}, "beta2"),
        ({"adam_eps": -1.0}, "adam_eps"),
        ({"steps": 0}, "steps"),
        ({"log_every": 0}, "log_every"),
    ]
    check_errors(
        [
            *((lambda options=options: small(**options), ValueError, word) for options, word in cases),  # type: ignore[misc]
            (lambda: train_grokking(small(train_fraction=0.001)), ValueError, "train_fraction"),
            (lambda: train_grokking(small(device="cuda:77")), ValueError, "cuda:77"),
            (lambda: modular_arithmetic(1), ValueError, "p must"),
            (lambda: modular_arithmetic(7, "power"), ValueError, "operation"),  # type: ignore[arg-type]
            (lambda: modular_arithmetic(7, encoding="gray"), ValueError, "encoding"),  # type: ignore[arg-type]
            (lambda: modular_arithmetic(9, "divide"), ValueError, "prime"),
            (lambda: sparse_parity(0), ValueError, "num_samples"),
            (lambda: sparse_parity(9, num_parity=3, num_noise=0), ValueError, "num_samples"),
            (lambda: sparse_parity(9, num_parity=0), ValueError, "num_parity"),
            (lambda: sparse_parity(9, num_noise=60), ValueError, "62"),
            (lambda: GrokMLP(0, 3), ValueError, "in_features"),
            (lambda: GrokMLP(3, 3, hidden=(0,)), ValueError, "hidden"),
            (lambda: GrokMLP(3, 3, alpha=math.nan), ValueError, "alpha"),
            (lambda: GrokMLP(3, 3)(torch.ones(2, 2, 3)), ValueError, "x"),
            (lambda: GrokTransformer(7, d_model=6, num_heads=4), ValueError, "num_heads"),
            (lambda: GrokTransformer(7, dropout=1.5), ValueError, "dropout"),
            (lambda: GrokTransformer(7)(torch.ones(2, dtype=torch.int64)), ValueError, "tokens"),
            (lambda: GrokTransformer(7)(torch.full((1, 2), 7)), ValueError, "tokens"),
        ]
    )
