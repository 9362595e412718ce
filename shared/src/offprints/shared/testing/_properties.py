"""What all checks stand on: a table of named properties run one after the other, and comparisons of nested results."""

from __future__ import annotations

import copy
import dataclasses
import io
import random
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Skip = Mapping[str, str]


def run_properties(
    check: str,
    subject: Any,
    properties: Mapping[str, Callable[[], None]],
    skip: Skip | None = None,
    *,
    parts: Collection[str] = (),
) -> None:
    """Run each property in order; what it raises becomes an AssertionError that names check, subject and property.

    `parts` names the properties of which a part can be skipped ("arguments: tau: inf"); they see to it themselves.

    Raises:
        ValueError: `skip` names a property that does not exist, or gives no reason.
        AssertionError: A property does not hold.
    """
    skip = {} if skip is None else skip
    for name, reason in skip.items():
        if name not in properties and name.partition(": ")[0] not in parts:
            raise ValueError(f"skip names {name!r}; the properties of {check} are {', '.join(properties)}")
        if not reason:
            raise ValueError(f"skip[{name!r}] needs a reason")
    for name, holds in properties.items():
        if name in skip:
            continue
        try:
            with preserved_random_state():
                holds()
        except AssertionError as error:
            raise AssertionError(f"{check} of {describe(subject)}: {name}: {error}") from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{check} of {describe(subject)}: {name}: raised {what}") from error


def parts_of(skip: Skip | None, name: str) -> dict[str, str]:
    """Return what `skip` leaves out of a property, with the property's name taken off."""
    start = f"{name}: "
    return {key.removeprefix(start): reason for key, reason in (skip or {}).items() if key.startswith(start)}


def describe(subject: Any) -> str:
    """Return the name of a function or the class of an object; a text is one already."""
    if isinstance(subject, str):
        return subject
    subject = getattr(subject, "func", subject)  # functools.partial
    return str(getattr(subject, "__qualname__", type(subject).__qualname__))


def expect_error(
    error: type[Exception] | tuple[type[Exception], ...],
    what: str,
    call: Callable[..., object],
    *args: Any,
    **kwargs: Any,
) -> Exception:
    """Call and return the error that was expected."""
    wanted = " or ".join(kind.__name__ for kind in (error if isinstance(error, tuple) else (error,)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error is what is looked at here
            result = call(*args, **kwargs)
    except error as expected:
        return expected
    except Exception as other:
        raise AssertionError(f"{what}: {wanted} expected, got {type(other).__name__}: {other}") from other
    raise AssertionError(f"{what}: {wanted} expected, got the result {shorten(result)}")


def shorten(value: Any) -> str:
    """Return repr(value) on one line of bounded length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def tensors(result: Any) -> list[Tensor]:
    """Return every tensor, array and number of a nested result, in order, as tensors."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, np.ndarray):
        if result.dtype.kind in "USO":
            return []
        native = np.ascontiguousarray(result, dtype=result.dtype.newbyteorder("="))
        return [torch.from_numpy(native if native.flags.writeable else native.copy())]
    if isinstance(result, bool | int | float | complex | np.generic):
        return [torch.as_tensor(result)]
    if isinstance(result, Mapping):
        return [t for value in result.values() for t in tensors(value)]
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return [t for field in dataclasses.fields(result) for t in tensors(getattr(result, field.name))]
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        return [t for value in result for t in tensors(value)]
    return []


def assert_equal(actual: Any, expected: Any, what: str) -> None:
    """Compare two nested results bit for bit (NaN equals NaN)."""
    assert_near(actual, expected, what, rtol=0.0, atol=0.0)


def assert_near(actual: Any, expected: Any, what: str, *, rtol: float, atol: float, dtype: bool = True) -> None:
    """Compare the tensors of two nested results on the CPU; `dtype`: types have to agree too.

    (torch's own ``assert_close`` spends seconds on imports at its first use.)
    """
    left, right = tensors(actual), tensors(expected)
    if len(left) != len(right):
        raise AssertionError(f"{what}: {len(left)} tensors against {len(right)}")
    for a, b in zip(left, right, strict=True):
        a, b = a.detach().cpu(), b.detach().cpu()
        if a.shape != b.shape or (dtype and a.dtype != b.dtype):
            raise AssertionError(f"{what}: {a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}")
        common = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64)
        x, y = a.to_dense().to(common), b.to_dense().to(common)
        differ = ~torch.isclose(x, y, rtol=rtol, atol=atol, equal_nan=True)
        if differ.any():
            worst = int(torch.where(differ, (x - y).abs().nan_to_num(torch.inf), -1.0).argmax())
            where = "" if a.ndim == 0 else f"{int(differ.sum())} of {a.numel()} entries differ, most of all "
            index = "" if a.ndim == 0 else f"{list(map(int, np.unravel_index(worst, a.shape)))}: "
            values = f"got {x.flatten()[worst].item():.9g}, expected {y.flatten()[worst].item():.9g}"
            raise AssertionError(f"{what}: {where}{index}{values}")


def clone(value: Any) -> Any:
    """Copy a nested value; tensors leave the graph and keep strides and requires_grad."""
    if isinstance(value, Tensor):
        copied = value.detach().clone()
        if value.layout == torch.strided and 0 not in value.stride():  # clone closes gaps
            copied = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).copy_(
                copied
            )
        return copied.requires_grad_(value.requires_grad)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(clone, value))
    if isinstance(value, list | tuple):
        return type(value)(map(clone, value))
    return copy.deepcopy(value)


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply `fn` to the tensors of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(fn, v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(fn, v) for v in value)
    if isinstance(value, dict):
        return {key: map_tensors(fn, v) for key, v in value.items()}
    return value


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Bring the floating tensors of a nested value to `dtype`."""
    return map_tensors(
        lambda t: t.detach().to(dtype).requires_grad_(t.requires_grad) if t.is_floating_point() else t, value
    )


def strided(x: Tensor) -> Tensor:
    """Return the same values in memory that is not contiguous."""
    spread = torch.stack([x.detach(), x.detach()], -1)[..., 0]
    return spread.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim >= 2 and spread.is_contiguous() else spread


def saved_and_loaded(state: Any) -> Any:
    """Send a state dict through ``torch.save`` and ``torch.load(weights_only=True)``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def random_state() -> list[Any]:
    """Return the states of Python's, NumPy's and torch's global generators, comparable with ==."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy_state, dict)
    inner = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist(), "gauss": numpy_state["gauss"]}
    return [random.getstate(), inner, torch.get_rng_state().tolist()]


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the global generators back at the end."""
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        torch.set_rng_state(saved[2])


@contextmanager
def random_state_untouched() -> Iterator[None]:
    """Fail when a global generator has been drawn from or seeded inside."""
    before = random_state()
    yield
    for name, a, b in zip(("random", "numpy", "torch"), before, random_state(), strict=True):
        if a != b:
            raise AssertionError(f"the global random state of {name} has changed")


def seed_globally(seed: int) -> None:
    """Seed the global generators: what must not matter is made to differ."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def simulated_accelerator() -> Iterator[Callable[[Tensor], Tensor]]:
    """Give a function that moves tensors to a CUDA device without kernels, on a machine that has none.

    Devices, types and shapes are followed, values are not. Where CPU and CUDA tensors meet as they may not, that is an
    AssertionError. Other errors end the block in silence: the simulation cannot follow what depends on values, or goes
    through NumPy or foreign kernels.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        try:
            yield lambda tensor: torch.empty_like(mode.from_tensor(tensor.detach()), device="cuda")
        except AssertionError:
            raise
        except Exception as error:
            if re.search("two (different )?devices", str(error)):
                raise AssertionError(f"CUDA tensors meet CPU tensors: {error}") from error


def compiled(fn: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    """Compile with tracing and ahead-of-time autograd but without code generation: seconds instead of minutes."""
    torch._dynamo.reset()
    return torch.compile(fn, backend=backend)
