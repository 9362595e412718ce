"""`check_module`: what users of torch expect of an ``nn.Module``.

::

    check_module(ResnetGenerator(width=4), lambda generator: (torch.randn(2, 1, 16, 16, generator=generator),),
                 errors=[(lambda: ResnetGenerator(width=0), ValueError, "width")])
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offprints.shared.testing._properties import (
    Skip,
    assert_equal,
    assert_near,
    cast,
    clone,
    compiled,
    generator,
    map_tensors,
    parts_of,
    random_state_untouched,
    run_properties,
    saved_and_loaded,
    seed_globally,
    shorten,
    simulated_accelerator,
    strided,
    tensors,
)
from offprints.shared.testing.arguments import check_arguments
from offprints.shared.testing.errors import check_errors


def check_module(
    module: nn.Module,
    make_inputs: Callable[[torch.Generator], Sequence[Any]],
    *,
    errors: Iterable[tuple[Callable[[], object], type[Exception], str]] = (),
    kwargs: Mapping[str, Any] | None = None,
    nan: Literal["raise", "propagate"] = "propagate",
    skip: Skip | None = None,
) -> None:
    """Check a module, property by property, on copies of it: `module` itself is left as it is.

    Properties, in order: *determinism* in eval mode (and the global random state is left alone), *inputs unchanged*,
    *modes* (train/eval flags and requires_grad after forward in both modes), *deepcopy* (equal and independent),
    *state_dict* (through ``torch.load(weights_only=True)`` into a module with other values; a tensor that is neither
    parameter nor buffer fails here), *gradients* (every trainable parameter gets a finite one), *non-contiguous input*,
    *dtype* (the other of float32 and float64), *autocast*, *device*, *torch.compile*, *errors*,
    *arguments* (`check_arguments` of forward, in eval mode, on copies).

    Args:
        module: An instance. Its dtype is that of its first floating parameter or buffer.
        make_inputs: ``make_inputs(generator)`` draws the positional arguments on the CPU, floating ones in the module's
            dtype.
        errors: Cases for `check_errors`.
        kwargs: Keyword arguments of every call.
        nan: With "propagate", NaN, infinite and huge inputs may give any result, as with torch's own layers; with
            "raise" they are refused, or the result is finite.
        skip: Property to reason; of arguments also a part: ``{"arguments: x: inf": "reason"}``.
    """
    case = _Case(module, make_inputs, dict(kwargs or {}))
    errors = list(errors)
    properties: dict[str, Callable[[], None]] = {
        "determinism": case.check_determinism,
        "inputs unchanged": case.check_inputs_unchanged,
        "modes": case.check_modes,
        "deepcopy": case.check_deepcopy,
        "state_dict": case.check_state_dict,
        "gradients": case.check_gradients,
        "non-contiguous input": case.check_strides,
        "dtype": case.check_dtype,
        "autocast": case.check_autocast,
        "device": case.check_device,
        "torch.compile": case.check_compile,
        "errors": lambda: check_errors(errors) if errors else None,
        "arguments": lambda: check_arguments(
            case.copy(), lambda g: case.cast(make_inputs(g)), kwargs=kwargs, nan=nan, skip=parts_of(skip, "arguments")
        ),
    }
    run_properties("check_module", module, properties, skip, parts=("arguments",))


class _Case:
    def __init__(self, module: nn.Module, make_inputs: Callable[..., Sequence[Any]], kwargs: dict[str, Any]) -> None:
        self.module, self.make_inputs, self.kwargs = module, make_inputs, kwargs
        owned = [t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        self.dtype = owned[0] if owned else torch.float32
        # Two implementations of one float32 computation differ by some roundings, scaled by the network's depth.
        self.tolerance = 1e-4 if self.dtype == torch.float32 else 1e-9

    def inputs(self) -> Any:
        return self.cast(self.make_inputs(generator(0)))

    def cast(self, inputs: Sequence[Any]) -> Any:
        return cast(clone(tuple(inputs)), self.dtype)

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.module).eval()

    def run(self, module: Callable[..., Any], inputs: Sequence[Any] | None = None) -> Any:
        return module(*(self.inputs() if inputs is None else inputs), **self.kwargs)

    def check_determinism(self) -> None:
        results, module = [], self.copy()
        for seed in (1, 2):
            seed_globally(seed)
            with random_state_untouched():
                results.append(self.run(module))
        if not tensors(results[0]):
            raise AssertionError(f"no tensor in the result {shorten(results[0])}")
        assert_equal(results[1], results[0], "a second call in eval mode gives another result")

    def check_inputs_unchanged(self) -> None:
        inputs = self.inputs()
        self.run(self.copy(), inputs)
        assert_equal(inputs, self.inputs(), "an argument was changed")

    def check_modes(self) -> None:
        for training in (True, False):
            module = self.copy().train(training)
            before = _flags(module)
            self.run(module)
            for (name, kind, was), (_, _, now) in zip(before, _flags(module), strict=True):
                if was != now:
                    raise AssertionError(
                        f"forward with training={training} turned {kind} of {name!r} from {was} to {now}"
                    )

    def check_deepcopy(self) -> None:
        original = self.copy()
        expected, twin = self.run(original), copy.deepcopy(original)
        assert_equal(self.run(twin), expected, "the copy gives another result")
        _scramble(twin)
        assert_equal(self.run(original), expected, "changing the copy changes the original")

    def check_state_dict(self) -> None:
        module = self.copy()
        state, expected = saved_and_loaded(module.state_dict()), self.run(module)
        other = self.copy()
        _scramble(other)
        other.load_state_dict(state)
        assert_equal(self.run(other), expected, "a module with other values gives another result after load_state_dict")

    def check_gradients(self) -> None:
        module = self.copy()
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            return
        outputs = [t for t in tensors(self.run(module)) if t.is_floating_point() and t.requires_grad]
        if not outputs:
            raise AssertionError("no result has a gradient, but there are trainable parameters")
        draws = generator(1)
        total = torch.stack([(t * torch.rand(t.shape, generator=draws).to(t)).sum() for t in outputs]).sum()
        total.backward()
        for name, parameter in trainable.items():
            if parameter.grad is None:
                raise AssertionError(f"no gradient reaches the parameter {name!r}")
            if not parameter.grad.isfinite().all():
                raise AssertionError(f"the gradient of the parameter {name!r} is not finite")

    def check_strides(self) -> None:
        inputs = map_tensors(lambda t: strided(t) if t.ndim > 0 else t, self.inputs())
        self._near(self.run(self.copy(), inputs), self.run(self.copy()), "strided inputs differ", self.tolerance)

    def check_dtype(self) -> None:
        other = torch.float32 if self.dtype == torch.float64 else torch.float64
        result = self.run(self.copy().to(other), cast(self.inputs(), other))
        found: list[torch.dtype] = []

        def note(t: Tensor) -> Tensor:  # of tensors alone: a plain number in the result has no dtype to keep
            if t.is_floating_point():
                found.append(t.dtype)
            return t

        map_tensors(note, result)
        wrong = [dtype for dtype in found if dtype != other]
        if wrong:
            raise AssertionError(f"after .to({other}), with {other} inputs, the result is {wrong[0]}")
        self._near(result, self.run(self.copy()), f"{other} against {self.dtype}", 1e-3)

    def check_autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            result = self.run(self.copy())
        self._near(result, self.run(self.copy()), "autocast to bfloat16 against plain", 5e-2)

    def check_device(self) -> None:
        module, inputs = self.copy(), self.inputs()
        if not torch.cuda.is_available():
            with simulated_accelerator() as to_cuda:
                state = {n: to_cuda(t) for n, t in (*module.named_parameters(), *module.named_buffers())}
                result = torch.func.functional_call(module, state, map_tensors(to_cuda, inputs), self.kwargs)
                self._on_cuda(result)
            return
        result = self.run(module.cuda(), map_tensors(Tensor.cuda, inputs))
        self._on_cuda(result)
        self._near(result, self.run(self.copy()), "CUDA against CPU", 100 * self.tolerance)  # TF32

    @staticmethod
    def _on_cuda(result: Any) -> None:
        for t in tensors(result):
            if t.ndim > 0 and not t.is_cuda:
                raise AssertionError(f"a module and inputs on CUDA give a result on {t.device}")

    def check_compile(self) -> None:
        module = self.copy()
        expected = self.run(self.copy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # graph breaks and what the compiler itself warns of
            result = self.run(compiled(module))
        self._near(result, expected, "compiled against eager", self.tolerance)

    @staticmethod
    def _near(actual: Any, expected: Any, what: str, tolerance: float) -> None:
        left, right = tensors(actual), tensors(expected)
        if len(left) != len(right):
            raise AssertionError(f"{what}: {len(left)} tensors against {len(right)}")
        for a, b in zip(left, right, strict=True):
            if not b.is_floating_point():
                continue  # indices and masks may flip where two values round differently
            scale = float(b.detach().abs().max()) if b.numel() else 0.0
            assert_near(a.cpu().to(b.dtype), b, what, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


def _flags(module: nn.Module) -> list[tuple[str, str, bool]]:
    modes = [(name, "training", m.training) for name, m in module.named_modules()]
    return modes + [(name, "requires_grad", p.requires_grad) for name, p in module.named_parameters()]


@torch.no_grad()
def _scramble(module: nn.Module) -> None:
    """Change every value that the state dict restores, and every tensor that is neither parameter nor buffer."""
    plain = [v for m in module.modules() for k, v in vars(m).items() if isinstance(v, Tensor)]
    for tensor in (*(v for v in module.state_dict().values() if isinstance(v, Tensor)), *plain):
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.mul_(0.5).add_(0.25)
        elif tensor.dtype == torch.bool:
            tensor.logical_not_()
        else:
            tensor.add_(1)
