"""`check_wrapper`: what is put around, or hooked into, a user's model.

::

    check_wrapper(lambda model: CoTTA(model, seed=0), resnet(), batches, owns_model=True)
    check_wrapper(lambda model: NCProbe(model, num_classes=3), mlp(), batches,
                  step=lambda probe, batch: (probe.model(batch[0]), probe.update(batch[1])))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from offprints.shared.testing._hostile import Hostile, check_networks
from offprints.shared.testing._properties import (
    Skip,
    assert_equal,
    clone,
    expect_error,
    map_tensors,
    parts_of,
    random_state_untouched,
    run_properties,
    saved_and_loaded,
    seed_globally,
    tensors,
)

W = TypeVar("W")


def check_wrapper(
    wrapper: Callable[[nn.Module], W],
    model: nn.Module,
    batches: Iterable[Any],
    *,
    step: Callable[[W, Any], Any] | None = None,
    owns_model: bool = False,
    name: str = "model",
    skip: Skip | None = None,
) -> None:
    """Check a wrapper on copies of a user's model.

    Properties, in order: *determinism* (whatever the global seeds, which are left alone), *model untouched* (values,
    modes, requires_grad, gradients), *hooks removed* (after ``with`` or ``.remove()``, else after every step), *resume*
    (a state dict saved half way, through ``torch.load(weights_only=True)``, loaded in a new wrapper of the original
    model, continues bit for bit), *rejected batch* (a NaN is a ValueError and changes nothing), *hostile networks* (a
    model that changes its input in place: the same results; that gives another floating type: the same, or a TypeError
    or ValueError that names it; NaN: such an error, a FloatingPointError, or a NaN that is seen; another shape or None:
    such an error, or passed on as it is. What is refused changes no state; what leaves the output of the model aside
    need not look at it. A part is "hostile networks: one row").

    Args:
        wrapper: ``wrapper(model)`` makes the object; give it its seed. A context manager is entered, one with
            ``remove`` is removed.
        model: The user's model.
        batches: At least two batches: tensors, or tuples with tensors.
        step: ``step(wrapper, batch)`` returns what is compared; default: calls the wrapper with the batch (a tuple as
            positional arguments).
        owns_model: The wrapper is documented to change the model: leaves *model untouched* and *hooks removed* out.
        name: The argument's name, which messages about the model have in them.
        skip: Property, or "hostile networks" and part, to reason. Objects without ``state_dict`` have to skip *resume*.
    """
    case = _Case(wrapper, model, list(batches), step or _call)
    untouched: dict[str, Callable[[], None]] = {
        "model untouched": case.check_model_untouched,
        "hooks removed": case.check_hooks_removed,
    }
    properties: dict[str, Callable[[], None]] = {
        "determinism": case.check_determinism,
        **({} if owns_model else untouched),
        "resume": case.check_resume,
        "rejected batch": case.check_rejected_batch,
        "hostile networks": lambda: case.check_hostile_networks(name, parts_of(skip, "hostile networks")),
    }
    run_properties("check_wrapper", wrapper(copy.deepcopy(model)), properties, skip, parts=("hostile networks",))


def _call(wrapper: Any, batch: Any) -> Any:
    return wrapper(*batch) if isinstance(batch, list | tuple) else wrapper(batch)


class _Case:
    def __init__(
        self, make: Callable[[nn.Module], Any], model: nn.Module, batches: list[Any], step: Callable[[Any, Any], Any]
    ) -> None:
        if len(batches) < 2:
            raise ValueError(f"at least two batches are needed, got {len(batches)}")
        self.make, self.model, self.batches, self.step = make, model, batches, step

    def run(self, wrapper: Any, batches: Iterable[Any]) -> list[Any]:
        return [clone(self.step(wrapper, clone(batch))) for batch in batches]

    def new(self) -> Any:
        wrapper = self.make(copy.deepcopy(self.model))
        return wrapper.__enter__() if isinstance(wrapper, AbstractContextManager) else wrapper

    def whole_life(self, model: nn.Module) -> None:
        wrapper = self.make(model)
        if isinstance(wrapper, AbstractContextManager):
            with wrapper as entered:
                self.run(entered, self.batches)
            return
        self.run(wrapper, self.batches)
        if hasattr(wrapper, "remove"):
            wrapper.remove()

    def check_determinism(self) -> None:
        results = []
        for seed in (1, 2):
            seed_globally(seed)
            with random_state_untouched():
                results.append(self.run(self.new(), self.batches))
        if not tensors(results[0]):
            raise AssertionError("the steps return no tensor: nothing would be compared")
        assert_equal(results[1], results[0], "the same batches give another result under another global seed")

    def check_model_untouched(self) -> None:
        model = copy.deepcopy(self.model)
        before = _facts(model)
        self.whole_life(model)
        for name, value in _facts(model).items():
            if name not in before:
                raise AssertionError(f"the model has got {name}")
            assert_equal(value, before.pop(name), f"{name} of the model was changed")
        if before:
            raise AssertionError(f"the model has lost {', '.join(before)}")

    def check_hooks_removed(self) -> None:
        model = copy.deepcopy(self.model)
        before = _hooks(model)
        self.whole_life(model)
        left = [hook for hook in _hooks(model) if hook not in before]
        if left:
            raise AssertionError(f"left on the model: {', '.join(sorted(set(left)))}")

    def check_resume(self) -> None:
        half = len(self.batches) // 2
        uninterrupted = self.new()
        self.run(uninterrupted, self.batches[:half])
        state = saved_and_loaded(uninterrupted.state_dict())
        expected = self.run(uninterrupted, self.batches[half:])
        seed_globally(3)
        resumed = self.new()
        resumed.load_state_dict(state)
        assert_equal(self.run(resumed, self.batches[half:]), expected, "the resumed run gives another result")
        assert_equal(resumed.state_dict(), uninterrupted.state_dict(), "the resumed run ends in another state")

    def check_rejected_batch(self) -> None:
        half = len(self.batches) // 2
        undisturbed, disturbed = self.new(), self.new()
        for wrapper in (undisturbed, disturbed):
            self.run(wrapper, self.batches[:half])
        expect_error(ValueError, "NaN in a batch", self.run, disturbed, [_with_nan(self.batches[half])])
        if hasattr(disturbed, "state_dict"):
            assert_equal(disturbed.state_dict(), undisturbed.state_dict(), "a rejected batch changed the state")
        expected = self.run(undisturbed, self.batches[half:])
        assert_equal(self.run(disturbed, self.batches[half:]), expected, "a rejected batch changed what follows")

    def check_hostile_networks(self, name: str, skip: dict[str, str]) -> None:
        """Wrap the model in each bad habit, and give it the first batches."""

        def first_steps(network: Any) -> Any:
            if isinstance(network, Hostile):  # a wrapper may change its model
                network.network = copy.deepcopy(self.model)
            wrapper = self.make(network)
            wrapper = wrapper.__enter__() if isinstance(wrapper, AbstractContextManager) else wrapper
            before = clone(wrapper.state_dict()) if hasattr(wrapper, "state_dict") else {}
            try:
                return clone(self.step(wrapper, clone(self.batches[0])))
            except (TypeError, ValueError, FloatingPointError) as error:
                after = wrapper.state_dict() if hasattr(wrapper, "state_dict") else {}
                assert_equal(after, before, f"refused ({error}), but the state has changed")
                raise

        check_networks(first_steps, copy.deepcopy(self.model), name, skip, passes=True)


def _with_nan(batch: Any) -> Any:
    spoiled = False

    def spoil(x: Tensor) -> Tensor:
        nonlocal spoiled
        if spoiled or not x.is_floating_point():
            return x
        spoiled, x = True, x.detach().clone()
        x.view(-1)[0] = torch.nan
        return x

    return map_tensors(spoil, batch)


def _facts(model: nn.Module) -> dict[str, Any]:
    facts: dict[str, Any] = {f"the mode of {name!r}": m.training for name, m in model.named_modules()}
    for name, parameter in model.named_parameters():
        facts[f"requires_grad of {name!r}"] = parameter.requires_grad
        facts[f"the gradient of {name!r}"] = clone(parameter.grad)
    for name, value in model.state_dict().items():
        facts[f"the value of {name!r}"] = clone(value)
    return facts


def _hooks(model: nn.Module) -> list[str]:
    """Name every hook, and every method that an instance overrides."""
    found: list[str] = []
    kinds: Sequence[str] = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for name, module in model.named_modules():
        found += [f"{kind[1:-1]} {key} of {name!r}" for kind in kinds for key in getattr(module, kind)]
        found += [f"forward of {name!r}"] if "forward" in vars(module) else []
    for name, parameter in model.named_parameters():
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            found += [f"{kind[1:-1]} {key} of {name!r}" for key in getattr(parameter, kind, None) or ()]
    return found
