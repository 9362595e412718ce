"""Devices, seeds, precision and memory: one spelling for every package."""

from __future__ import annotations

import functools
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.validation import check_choice, check_number, check_same_length

Precision = Literal["float32", "bfloat16", "float16"]
P = ParamSpec("P")
R = TypeVar("R")


def resolve_device(device: str | torch.device | None = None, *, like: object = None) -> torch.device:
    """The device to use. ``None`` and ``"auto"`` mean that of the tensor ``like``, else CUDA, then MPS, then the CPU.

    ``like`` may be any data: what is not a tensor (a NumPy array) has no device to offer. ``"cuda"`` is resolved to the
    current CUDA device, so that the result equals the ``device`` of what is put there.

    Raises:
        TypeError: ``device`` is neither a string nor a device.
        ValueError: ``device`` is unknown or not available here.

    Example:
        >>> resolve_device("auto", like=torch.zeros(3))
        device(type='cpu')
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device is None or device == "auto":
        if isinstance(like, Tensor):
            return like.device
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device must be a string or a torch.device, got {type(device).__name__}")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:<index>' or 'mps', got {device!r}") from None
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ValueError(f"device {str(device)!r} is not available: {count} CUDA devices here")
        return torch.device("cuda", torch.cuda.current_device() if resolved.index is None else resolved.index)
    if resolved.type != "cpu":
        try:
            torch.empty(0, device=resolved)
        except (RuntimeError, AssertionError, ImportError) as error:  # torch has no one error for this
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"device {str(device)!r} is not available here: {reason}") from None
    return resolved


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy, torch and all devices; ``deterministic`` also asks torch for deterministic algorithms.

    An operation that has no deterministic algorithm warns. CUDA's matrix products read their setting when CUDA starts:
    ask for determinism before the first use of a GPU.

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: ``seed`` is not in [0, 2**32).

    Example:
        >>> seed_everything(3)
        >>> first = torch.rand(2)
        >>> seed_everything(3)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    check_number(seed, "seed", low=0, high=2**32, open_high=True, integer=True)
    seed = int(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global stream is the one to seed
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("warn")  # as use_deterministic_algorithms, without loading the compiler
        torch.backends.cudnn.benchmark = False


def rng_state(device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """States of the global random streams of Python, NumPy, torch and ``device``; safetensors can store them.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(2)
        >>> set_rng_state(state)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    with torch.device("cpu"):  # states are there, whatever the default device is
        state = {
            "python": torch.tensor(words, dtype=torch.int64),
            "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
            "numpy_keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
            "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
            "torch": torch.get_rng_state(),
        }
    device = torch.device(device)
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
        state["cuda_index"] = torch.tensor([torch.cuda.current_device() if device.index is None else device.index])
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` returned.

    Raises:
        ValueError: ``state`` lacks a stream.

    Example:
        >>> state = rng_state()
        >>> first = np.random.rand()
        >>> set_rng_state(state)
        >>> np.random.rand() == first
        True
    """
    needed = ("python", "python_gauss", "numpy_keys", "numpy_position", "numpy_gauss", "torch")
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"state lacks {', '.join(missing)}")
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy_keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy_gauss"][0])))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu(), int(state["cuda_index"][0]))
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


@contextmanager
def local_seed(seed: int | None) -> Iterator[None]:
    """Seed every global stream inside, put them all back outside; ``None`` does nothing.

    Example:
        >>> with local_seed(0):
        ...     noise = torch.randn(2)
        >>> noise
        tensor([ 1.5410, -0.2934])
    """
    if seed is None:
        yield
        return
    # A CUDA that has not started stays so: starting it takes seconds and forbids forks. Its streams then still follow
    # torch's own seed.
    started = torch.cuda.is_initialized()
    before = rng_state("mps" if torch.backends.mps.is_available() else "cpu")
    cuda = torch.cuda.get_rng_state_all() if started else []
    try:
        seed_everything(seed)
        yield
    finally:
        set_rng_state(before)
        if started:
            torch.cuda.set_rng_state_all(cuda)
        else:
            torch.cuda.manual_seed_all(torch.initial_seed())


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A seeded generator. Draws that must be equal on every rank are made on the CPU and moved.

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: ``seed`` is not in [0, 2**63).

    Example:
        >>> torch.randn(2, generator=make_generator(0))
        tensor([ 1.5410, -0.2934])
    """
    check_number(seed, "seed", low=0, high=2**63, open_high=True, integer=True)
    return torch.Generator(device=device).manual_seed(int(seed))


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[None]:
    """Region in which torch computes in ``precision``. float16 trains with a GradScaler.

    ``"float32"`` changes nothing: matrix products then have torch's float32 precision, which is ``"highest"`` unless
    ``torch.set_float32_matmul_precision`` asked for less.

    Raises:
        ValueError: an unknown precision.

    Example:
        >>> layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
        >>> with autocast("bfloat16", "cpu"):
        ...     layer(x).dtype
        torch.bfloat16
    """
    check_choice(precision, "precision", ("float32", "bfloat16", "float16"))
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, precision))


def float32_region(device: torch.device | str) -> AbstractContextManager[None]:
    """Region in which autocast is off; the inputs are for the caller to convert.

    Example:
        >>> a = torch.ones(2, 2)
        >>> with autocast("bfloat16", "cpu"), float32_region("cpu"):
        ...     (a @ a).dtype
        torch.float32
    """
    kind = torch.device(device).type
    # The question itself cannot be compiled by torch before 2.8, so it is asked of unusual devices alone.
    available = kind in {"cpu", "cuda", "mps"} or torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()


@contextmanager
def training_region(device: torch.device | str) -> Iterator[None]:
    """Region with gradients and without autocast, whatever modes the caller is in.

    Example:
        >>> with torch.inference_mode(), training_region("cpu"):
        ...     torch.ones(2, requires_grad=True).sum().requires_grad
        True
    """
    with torch.inference_mode(False), torch.enable_grad(), float32_region(device):
        yield


@contextmanager
def float32_default() -> Iterator[None]:
    """Region in which new layers and tensors are float32, whatever the caller's default type is.

    Example:
        >>> with float32_default():
        ...     torch.nn.Linear(2, 1).weight.dtype
        torch.float32
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def working_dtype(*tensors_or_dtypes: Tensor | torch.dtype) -> torch.dtype:
    """The type to compute in: float32 for half types (and integers), else the promoted floating type.

    Example:
        >>> logits, weights = torch.zeros(2, dtype=torch.bfloat16), torch.ones(2)
        >>> logits.to(working_dtype(logits, weights)).dtype
        torch.float32
        >>> working_dtype(torch.float16, torch.float64)
        torch.float64
    """
    dtype = torch.float32
    for item in tensors_or_dtypes:
        dtype = torch.promote_types(dtype, item.dtype if isinstance(item, Tensor) else item)
    return dtype


def compile(fn: Callable[..., Any], *, enabled: bool, **options: Any) -> Callable[..., Any]:
    """``torch.compile(fn, **options)`` when enabled; where compilation fails, ``fn`` itself, with one warning.

    For a module the result is a function to call; parameters, mode and state stay those of the module. A call whose
    compilation fails is made again as a whole: ``fn`` must not depend on what it changed before.

    Raises:
        Whatever ``fn`` raises.

    Example:
        >>> double = compile(lambda x: 2 * x, enabled=False)
        >>> double(torch.ones(2))
        tensor([2., 2.])
    """
    if not enabled:
        return fn
    compiled = torch.compile(fn, **options)
    failed = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if failed:
            return fn(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:  # also the base of Inductor's
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        result = fn(*args, **kwargs)  # an error of its own, seen while compiling, is the caller's
        failed = True
        warnings.warn(f"torch.compile failed, running uncompiled: {reason}", RuntimeWarning, stacklevel=2)
        return result

    return call


def eagerly(*, recursive: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of what ``torch.compile`` shall leave alone: loops on the host, draws, checks of values.

    As `torch.compiler.disable`, which as a decorator loads the whole compiler (2 s) when the module is imported. Here
    it is asked only while something is compiled. With ``recursive=False`` what the function calls is compiled.

    Example:
        >>> @eagerly()
        ... def count(x):
        ...     return sum(1 for value in x.tolist() if value > 0)
        >>> torch.compile(lambda x: x * count(x), backend="eager")(torch.tensor([1.0, -2.0, 3.0]))
        tensor([ 2., -4.,  6.])
    """

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                result: R = torch.compiler.disable(fn, recursive=recursive)(*args, **kwargs)
                return result
            return fn(*args, **kwargs)

        return call

    return decorate


def peak_memory_mib(device: torch.device | str = "cpu") -> float:
    """Largest memory in use since `reset_peak_memory`, in MiB: of the device, or of the process on the CPU.

    On a CPU whose system does not allow the reset (other than Linux), since the process began; MPS keeps no peak, what
    is allocated now is given. 0 where the system does not tell (Windows).

    Example:
        >>> reset_peak_memory()
        >>> peak_memory_mib() > 1
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Start a new measurement of `peak_memory_mib`.

    Example:
        >>> reset_peak_memory("cpu")
        >>> x = torch.zeros(1000)
        >>> peak_memory_mib("cpu") > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not Linux, or not permitted: the peak is then that of the whole process
            return


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the mode of every part of the modules is put back outside.

    A module whose `train` has effects of its own (adapters that merge their weights in evaluation mode) is put back by
    its `train`.

    Example:
        >>> model = torch.nn.Dropout(0.5)
        >>> with evaluating(model):
        ...     model(torch.ones(3))
        tensor([1., 1., 1.])
        >>> model.training
        True
    """
    with modes_kept(*modules), torch.no_grad():
        for module in modules:
            module.eval()
        yield


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """The training or evaluation mode of every part of the modules is put back outside, as by `evaluating`.

    Example:
        >>> model = torch.nn.Dropout(0.5)
        >>> with modes_kept(model):
        ...     _ = model.eval()
        >>> model.training
        True
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            if part.training != mode:
                part.train(mode)  # more than a flag where a module merges its weights in evaluation mode
        for part, mode in modes:
            part.training = mode


def map_batches(
    fn: Callable[..., Tensor], *tensors: Tensor, batch_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Apply ``fn`` to batches along the first axis, without gradients; join the results on the first tensor's device.

    A module (or a method of one) runs in evaluation mode and gets the mode of each of its parts back. What writes into
    its input changes nothing outside: it is given copies.

    Args:
        fn: Function or module of as many tensors as are given; its result has as many rows as they.
        tensors: Tensors of equal length.
        batch_size: Rows at a time.
        device: Where ``fn`` runs; default: where the tensors are.

    Raises:
        TypeError: ``fn`` returns no tensor.
        ValueError: no tensor, unequal lengths, no rows, ``batch_size`` < 1, ``fn`` returns another number of rows.

    Example:
        >>> map_batches(torch.nn.ReLU(), torch.tensor([-1.0, 2.0, 3.0]), batch_size=2)
        tensor([0., 2., 3.])
    """
    check_number(batch_size, "batch_size", low=1, integer=True)
    if not tensors:
        raise ValueError("tensors must hold at least one tensor")
    for other in tensors[1:]:
        check_same_length(tensors[0], other, ("tensors[0]", "tensors[i]"))
    if len(tensors[0]) == 0:
        raise ValueError("tensors must not be empty")
    target = resolve_device(device, like=tensors[0])
    owner = getattr(fn, "__self__", fn)
    with evaluating(*([owner] if isinstance(owner, nn.Module) else [])):
        batches = zip(*(tensor.split(batch_size) for tensor in tensors), strict=True)
        results = []
        for batch in batches:
            result = fn(*(part.to(target, copy=True) for part in batch))
            if not isinstance(result, Tensor):
                raise TypeError(f"fn must return a tensor, got {type(result).__name__}")
            if result.ndim == 0 or len(result) != len(batch[0]):
                raise ValueError(
                    f"fn must return one row for each of the {len(batch[0])} rows of a batch,"
                    f" got shape {tuple(result.shape)}"
                )
            results.append(result.to(tensors[0].device))
    return torch.cat(results)
