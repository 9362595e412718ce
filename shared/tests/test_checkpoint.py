"""States of tensors and plain values on disk."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from offprints.shared.store import checkpoint, states
from offprints.shared.usage import UsageError


def through_disk(value: Any, folder: Path) -> Any:
    path = folder / "state.json"
    states.save(path, states.pack(value), fingerprint="f")
    return states.unpack(states.load(path, states.read(path, fingerprint="f")))


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(*[torch.empty(x.shape, dtype=x.dtype).copy_(x).flatten().view(torch.uint8) for x in (a, b)])
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (math.isnan(a) and math.isnan(b))


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=8)
keys = st.integers() | st.text(max_size=5) | st.booleans() | st.tuples(st.integers(), st.text(max_size=2))
trees = st.recursive(
    plain,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.dictionaries(keys, parts, max_size=3)
        | st.dictionaries(st.sampled_from(["tensor", "dict", "tuple", "float", "array", "complex"]), parts, max_size=2)
    ),
    max_leaves=12,
)


@given(trees)
@settings(max_examples=150)
def test_plain_values_survive(value: Any) -> None:
    structure, tensors = states.pack(value)
    again = json.loads(json.dumps(structure, allow_nan=False))
    assert_same(states.unpack((again, tensors)), value)


TENSORS = [
    *[torch.arange(6).reshape(2, 3).to(dtype) for dtype in (torch.float64, torch.float32, torch.float16)],
    *[torch.tensor([[0, 1], [2, 200]], dtype=dtype) for dtype in (torch.uint8, torch.int16, torch.int64, torch.uint16)],
    torch.tensor([1.1, math.nan, math.inf], dtype=torch.bfloat16),
    torch.tensor([1.5, 200.0]).to(torch.float8_e4m3fn),
    torch.tensor([True, False]),
    torch.tensor(3.5),
    torch.empty(0, 4),
    torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).t(),
    torch.arange(10)[2:8:3],
    torch.arange(4.0).expand(3, 4),
    torch.tensor([1 + 2j, 3 - 1j]),
    torch.tensor([[1 + 2j]], dtype=torch.complex128).conj(),
    torch.view_as_real(torch.tensor([1 + 2j])),
    torch.tensor([1 + 2j]).conj().imag,  # negative bit
    torch.tensor([1.0], requires_grad=True) * 2,
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}")
def test_tensors_survive(tensor: torch.Tensor, tmp_path: Path) -> None:
    assert_same(through_disk({"x": [tensor]}, tmp_path)["x"][0], tensor.detach().resolve_conj().resolve_neg())


ARRAYS = [
    np.arange(6.0).reshape(2, 3).T,
    np.array([1, 2], dtype=">i4").astype("=i4"),
    np.array(2.5),
    np.array([1 + 1j, 2], dtype=np.complex64),
    np.array([], dtype=np.int8),
    np.array([2**31 + 5], dtype=np.uint32),
    np.array([True]),
    np.float64(0.1),
    np.float32(0.1),
    np.int64(7),
    np.bool_(True),
    np.complex128(1j),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{type(array).__name__}{array.dtype}{array.shape}")
def test_arrays_survive(array: Any, tmp_path: Path) -> None:
    assert_same(through_disk((array,), tmp_path)[0], array)


def test_foreign_byte_order_becomes_the_machines(tmp_path: Path) -> None:
    np.testing.assert_array_equal(through_disk(np.array([1, 2, 3], dtype=">i8"), tmp_path), [1, 2, 3])


def test_training_state_survives(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1, 1, 2])
    for _ in range(2):
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        schedule.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "python": random.getstate(),
        "numpy": np.random.default_rng(3).bit_generator.state,
        "legacy": np.random.RandomState(3).get_state(),
    }
    again = through_disk(state, tmp_path)
    state["model"] = dict(state["model"])
    assert_same(again["optimizer"], state["optimizer"])
    assert set(again["optimizer"]["state"]) == set(range(6))
    assert_same(again["model"], state["model"])
    assert again["schedule"]["milestones"] == Counter([1, 1, 2])
    assert isinstance(again["schedule"]["milestones"], Counter)
    random.setstate(again["python"])
    np.random.default_rng(0).bit_generator.state = again["numpy"]
    np.random.RandomState(0).set_state(again["legacy"])
    optimizer.load_state_dict(again["optimizer"])
    schedule.load_state_dict(again["schedule"])
    assert isinstance(again["model"], dict)
    assert not isinstance(again["model"], OrderedDict)


def test_one_memory_is_stored_once_and_is_one_again(tmp_path: Path) -> None:
    shared = torch.randn(1000)
    state = {"a": shared, "b": [shared, shared[:10]], "c": shared.view(10, 100)}
    packed = states.pack(state)
    assert list(packed[1]) == ["a", "b.1", "c"]  # views of another shape are stored apart
    again = through_disk(state, tmp_path)
    assert again["a"] is again["b"][0]
    assert_same(again["b"][1], shared[:10])
    tied = nn.Linear(5, 5)
    tied.bias = nn.Parameter(tied.weight[0].detach())  # a part of the weight's memory
    assert_same(through_disk(tied.state_dict(), tmp_path)["bias"], tied.bias.detach())


def test_a_slice_does_not_bring_its_whole_memory(tmp_path: Path) -> None:
    through_disk(torch.zeros(1_000_000)[:3], tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2000


def test_tensors_have_readable_names(tmp_path: Path) -> None:
    state = {"model": nn.Linear(2, 1).state_dict(), "__metadata__": torch.ones(1), "a": {"b": torch.zeros(1)}}
    through_disk(state | {"a.b": torch.ones(1), "x y/z": torch.ones(1)}, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    assert set(load_file(path)) == {"model.weight", "model.bias", "__metadata__'", "a.b", "a.b'", "x_y_z"}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, object()]}, "a.1"),
        ({"a": {1, 2}}, "a"),
        ({"a": torch.eye(2).to_sparse()}, "a"),
        ({"a": torch.zeros(2, device="meta")}, "a"),
        ({"a": np.array(["x"])}, "a"),
        ({"a": np.array([object()])}, "a"),
        ({"a": torch.float32}, "a"),
        ({"a": Path("x")}, "a"),
        ({"a": lambda: None}, "a"),
        ({"a": {frozenset(): 1}}, "a"),
        ({"a": torch.nn.UninitializedParameter()}, "a"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, path: str) -> None:
    with pytest.raises(TypeError, match=f"^{path} "):
        states.pack(value)


def test_nothing_is_written_of_a_state_that_cannot_be_stored(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"x": torch.ones(2)}, step=1, fingerprint="f")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TypeError, match="x"):
        checkpoint.save(tmp_path, {"y": torch.ones(2), "x": object()}, step=2, fingerprint="f")
    assert sorted(tmp_path.iterdir()) == before


def test_the_newest_wins_and_older_ones_go(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 10, 3):  # a second stage may count anew
        checkpoint.save(tmp_path, {"x": torch.full((2,), float(step))}, step=step, fingerprint="f")
        newest = checkpoint.newest(tmp_path)
        assert newest is not None
        record = states.read(newest, fingerprint="f")
        assert record["step"] == step
        assert states.unpack(states.load(newest, record))["x"][0] == step
        assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"x": torch.ones(2)}, step=1, fingerprint="f")
    first = checkpoint.newest(tmp_path)
    for name in (".000000002-step2.tmp", ".000000002-step2.json.tmp", "000000002-step2-0123456789abcdef.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == first
    checkpoint.save(tmp_path, {"x": torch.ones(2)}, step=2, fingerprint="f")
    assert len(list(tmp_path.iterdir())) == 2


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"x": torch.ones(2), "y": 1.5}, step=1, fingerprint="f")
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for i in range(0, len(whole), 7):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            with pytest.raises(UsageError, match="malformed: it was half-written or changed"):
                states.read(newest, fingerprint="f")
            path.write_bytes(whole[:i])
            with pytest.raises(UsageError, match="malformed: it was half-written or changed"):
                states.read(newest, fingerprint="f")
        path.write_bytes(whole)
    states.read(newest, fingerprint="f")
    with pytest.raises(UsageError, match="another configuration"):
        states.read(newest, fingerprint="g")


def test_states_travel_as_bytes() -> None:
    value = {"a": torch.arange(3), "b": (1, math.inf), "empty": {}}
    assert_same(states.unpack(states.from_bytes(states.to_bytes(states.pack(value)))), value)
    assert_same(states.unpack(states.from_bytes(states.to_bytes(states.pack({"a": 1})))), {"a": 1})


@pytest.mark.parametrize("structure", [{"frob": 1}, {"tensor": "missing"}, {"dict": 3}, {"array": "x", "dtype": "f4"}])
def test_malformed_structures_are_refused(structure: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown kind|malformed"):
        states.unpack((structure, {}))


@pytest.mark.gpu
def test_tensors_return_to_the_accelerator(tmp_path: Path) -> None:
    state = {"gpu": torch.arange(3, device="cuda"), "cpu": torch.arange(3)}
    path = tmp_path / "state.json"
    states.save(path, states.pack(state), fingerprint="f")
    again = states.unpack(states.load(path, states.read(path, fingerprint="f")), "cuda")
    assert again["gpu"].device.type == "cuda"
    assert again["cpu"].device.type == "cpu"
    assert torch.equal(again["gpu"].cpu(), again["cpu"])
