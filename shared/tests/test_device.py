from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from offprints.shared.device import (
    autocast,
    compile,
    eagerly,
    evaluating,
    float32_default,
    float32_region,
    local_seed,
    make_generator,
    map_batches,
    modes_kept,
    peak_memory_mib,
    reset_peak_memory,
    resolve_device,
    rng_state,
    seed_everything,
    set_rng_state,
    training_region,
    working_dtype,
)


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]  # noqa: NPY002


def test_resolve_device() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device(None, like=torch.zeros(1)) == torch.device("cpu")
    assert resolve_device(None, like=np.zeros(1)) == resolve_device()
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == resolve_device().type == best
    with pytest.raises(ValueError, match="'toaster'"):
        resolve_device("toaster")
    for missing in ("cuda:77", "xla"):
        with pytest.raises(ValueError, match="not available"):
            resolve_device(missing)
    with pytest.raises(TypeError, match="int"):
        resolve_device(0)  # type: ignore[arg-type]


def test_seed_everything() -> None:
    with local_seed(0):
        seed_everything(3)
        first = draws()
        seed_everything(3)
        assert draws() == first
        seed_everything(4)
        assert draws() != first
    with pytest.raises(ValueError, match="seed"):
        seed_everything(-1)
    with pytest.raises(TypeError, match="seed"):
        seed_everything(0.5)  # type: ignore[arg-type]


def test_deterministic_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    benchmark = torch.backends.cudnn.benchmark
    try:
        with local_seed(0):
            seed_everything(0, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark


def test_rng_state_survives_a_file(tmp_path: Path) -> None:
    draws()  # leaves a Gaussian in reserve in Python's and NumPy's streams
    save_file(rng_state(), tmp_path / "state.safetensors")
    expected = draws()
    draws()
    set_rng_state(load_file(tmp_path / "state.safetensors"))
    assert draws() == expected
    with pytest.raises(ValueError, match="lacks python"):
        set_rng_state({})


def test_local_seed_restores_every_stream() -> None:
    before = rng_state()
    with local_seed(7):
        inside = draws()
    after = rng_state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(RuntimeError, match="inside"), local_seed(7):
        assert draws() == inside
        raise RuntimeError("inside")
    assert all(torch.equal(value, rng_state()[name]) for name, value in before.items())
    with local_seed(None):
        draws()
    assert not torch.equal(before["torch"], rng_state()["torch"])


def test_make_generator() -> None:
    assert torch.equal(torch.rand(3, generator=make_generator(1)), torch.rand(3, generator=make_generator(1)))
    with pytest.raises(ValueError, match="seed"):
        make_generator(-1)


def test_autocast() -> None:
    a = torch.ones(2, 2)
    with autocast("bfloat16", "cpu"):
        assert (a @ a).dtype == torch.bfloat16
        with float32_region("cpu"):
            assert (a @ a).dtype == torch.float32
    with float32_region("meta"):  # a device without autocast
        assert (a.to("meta") @ a.to("meta")).dtype == torch.float32
    with autocast("float32", "cpu"):
        assert (a @ a).dtype == torch.float32
    with pytest.raises(ValueError, match="precision"):
        autocast("float8", "cpu")  # type: ignore[arg-type]


def test_compile_equals_eager() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    assert compile(layer, enabled=False) is layer
    torch.testing.assert_close(compile(layer, enabled=True, backend="aot_eager")(x), layer(x))


def test_compile_falls_back_with_one_warning() -> None:
    def broken_backend(graph: object, inputs: object) -> object:
        raise RuntimeError("no kernel for this")

    call = compile(lambda t: t * 2, enabled=True, backend=broken_backend)
    with pytest.warns(RuntimeWarning, match="uncompiled") as caught:
        assert call(torch.ones(1)).item() == 2
        assert call(torch.ones(1)).item() == 2
    assert len(caught) == 1


def test_compile_does_not_hide_errors_of_the_function() -> None:
    def fails(t: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    for fullgraph in (False, True):
        with pytest.raises(KeyError, match="mine"):
            compile(fails, enabled=True, backend="eager", fullgraph=fullgraph)(torch.ones(1))


def test_peak_memory_counts_an_allocation() -> None:
    reset_peak_memory("cpu")
    before = peak_memory_mib("cpu")
    block = np.ones(64 * 2**20, dtype=np.uint8)
    assert peak_memory_mib("cpu") >= before + 32
    del block


@pytest.mark.gpu
def test_local_seed_does_not_start_cuda() -> None:
    program = """
import torch
from offprints.shared.device import local_seed
torch.manual_seed(3)
with local_seed(5):
    pass
assert not torch.cuda.is_initialized()
with local_seed(5):
    torch.rand(2, device="cuda")
left = torch.rand(2, device="cuda")
torch.manual_seed(3)
assert torch.equal(left, torch.rand(2, device="cuda"))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.gpu
def test_gpu_streams_and_memory() -> None:
    state = rng_state("cuda")
    first = torch.rand(3, device="cuda")
    set_rng_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), first)
    before = rng_state("cuda")
    with local_seed(5):
        inside = torch.rand(3, device="cuda")
    assert torch.equal(before["cuda"], rng_state("cuda")["cuda"])
    with local_seed(5):
        assert torch.equal(torch.rand(3, device="cuda"), inside)
    assert resolve_device("cuda") == first.device
    reset_peak_memory("cuda")
    block = torch.ones(2**20, device="cuda")
    assert peak_memory_mib("cuda") >= 4
    del block


class TwoModes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.norm(x))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_map_batches(batch_size: int) -> None:
    model = TwoModes().double()
    x = torch.randn(10, 3, dtype=torch.float64)
    result = map_batches(model, x, batch_size=batch_size, device="cpu")
    expected = x / math.sqrt(1 + 1e-5) ** 2
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=0)
    assert not result.requires_grad
    assert model.norm.training
    assert not model.frozen.training
    assert int(model.norm.num_batches_tracked) == 0
    torch.testing.assert_close(map_batches(torch.add, x, x, batch_size=batch_size), x + x)
    before = x.clone()
    torch.testing.assert_close(map_batches(nn.ReLU(inplace=True), x, batch_size=batch_size), before.relu())
    assert torch.equal(x, before)


def test_regions_of_a_training() -> None:
    """The caller's modes and defaults are without effect inside, and as before outside."""
    model = TwoModes()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            with float32_default(), training_region("cpu"), modes_kept(model):
                model.eval()
                weight = torch.ones(2, 2, requires_grad=True)
                product = weight @ weight
                assert product.requires_grad
                assert product.dtype == torch.float32
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.norm.training
    assert not model.frozen.training


def test_map_batches_refuses() -> None:
    x = torch.zeros(2, 3)
    for call, word in (
        (lambda: map_batches(torch.neg, batch_size=1), "at least one"),
        (lambda: map_batches(torch.add, x, x[:1], batch_size=1), "length"),
        (lambda: map_batches(torch.neg, x[:0], batch_size=1), "empty"),
        (lambda: map_batches(torch.neg, x, batch_size=0), "batch_size"),
        (lambda: map_batches(torch.sum, x, batch_size=1), "1 rows"),
        (
            lambda: map_batches(lambda rows: rows.T, x, batch_size=2),
            r"each of the 2 rows of a batch, got shape \(3, 2\)",
        ),
    ):
        with pytest.raises(ValueError, match=word):
            call()
    for other in ({"features": x}, (x, x), None):
        with pytest.raises(TypeError, match="fn must return a tensor"):
            map_batches(lambda rows, other=other: other, x, batch_size=2)


def test_map_batches_restores_the_mode_after_an_error() -> None:
    model = TwoModes()
    with pytest.raises(ValueError, match="2D or 3D"):
        map_batches(model, torch.zeros(2, 3, 1, 1), batch_size=1)
    assert model.norm.training


def test_evaluating_puts_every_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
        raise KeyError
    assert [part.training for part in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


class Merging(nn.Linear):
    """Adds to its weights in evaluation mode, as adapters do."""

    def train(self, mode: bool = True) -> nn.Module:
        if mode != self.training:
            self.weight.data += 1 if mode else -1
        return super().train(mode)


def test_evaluating_undoes_what_train_does_of_its_own() -> None:
    model = nn.Sequential(Merging(2, 2), Merging(2, 2))
    model[1].eval()
    before = [part.weight.clone() for part in model]
    with evaluating(model):
        assert not torch.equal(model[0].weight, before[0])
    assert [part.training for part in model.modules()] == [True, True, False]
    for part, weight in zip(model, before, strict=True):
        torch.testing.assert_close(part.weight, weight)


def test_working_dtype() -> None:
    half, double = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    assert working_dtype(half) == working_dtype(torch.bfloat16, half) == torch.float32
    assert working_dtype(half, double) == torch.float64
    assert working_dtype(torch.int64) == torch.float32


# The compiler looks at `.grad` of what an eager call returned and hides the warning, but not one that is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("recursive", [True, False])
def test_what_the_compiler_leaves_alone(recursive) -> None:
    seen = []

    def inner(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.compiler.is_compiling())
        return 2 * x

    @eagerly(recursive=recursive)
    def steps(x: torch.Tensor) -> torch.Tensor:
        """Depends on values."""
        while float(x.detach().abs().max()) < 100:
            x = inner(x)
        return x

    x = torch.tensor([1.0, -3.0], requires_grad=True)
    assert steps.__doc__ == "Depends on values."
    torch.compiler.reset()
    compiled = torch.compile(lambda x: steps(x * 1.0).sum() + 1, backend="eager")
    assert compiled(x).item() == 2 * -64 + 1
    assert torch.autograd.grad(compiled(x), x)[0].tolist() == [64, 64]
    assert recursive <= (not any(seen))


def test_importing_the_decorator_does_not_load_the_compiler() -> None:
    code = (
        "import sys; from offprints.shared.device import eagerly; eagerly()(len); print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_streams_are_put_back_whatever_the_default_device_is() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"), local_seed(3):
        inside = torch.rand(2, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    with local_seed(3):
        assert torch.equal(torch.rand(2), inside)
