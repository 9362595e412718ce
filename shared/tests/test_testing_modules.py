"""Every property of check_module and check_wrapper catches an object that lacks it, and good ones pass."""

from __future__ import annotations

from typing import Self

import pytest
import torch
from torch import Tensor, nn

from offprints.shared.testing import check_module, check_wrapper
from offprints.shared.validation import check_tensor


def inputs(generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(5, 4, generator=generator),)


class Good(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout()
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.linear(x))) + self.table.to(x.dtype)


class Noisy(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(3)


class Stateful(Good):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class InPlace(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.add_(1))


class AlwaysEval(Good):
    def forward(self, x: Tensor) -> Tensor:
        self.eval()
        return super().forward(x)


class Freezing(Good):
    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.requires_grad_(False)
        return super().forward(x)


class SharedCopy(Good):
    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class Unregistered(Good):
    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.offset


class Unused(Good):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


class ByMemory(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.as_strided(x.shape, (x.shape[1], 1)))


class SinglePrecision(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class NoAutocast(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.eye(3).to(x).mv(self.linear(x)[0])


class OnTheCpu(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(3, dtype=x.dtype)


class OtherwiseCompiled(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if torch.compiler.is_compiling() else 1.0)


class SilentModule(Good):
    def forward(self, x: Tensor) -> str:
        return "done"


BROKEN_MODULES = [
    ("determinism", Noisy),
    ("determinism", Stateful),
    ("determinism", SilentModule),
    ("inputs unchanged", InPlace),
    ("modes", AlwaysEval),
    ("modes", Freezing),
    ("deepcopy", SharedCopy),
    ("state_dict", Unregistered),
    ("gradients", Unused),
    ("non-contiguous input", ByMemory),
    ("dtype", SinglePrecision),
    ("autocast", NoAutocast),
    ("device", OnTheCpu),
    ("torch.compile", OtherwiseCompiled),
]


@pytest.mark.parametrize(
    ("property_name", "module"), BROKEN_MODULES, ids=[module.__name__ for _, module in BROKEN_MODULES]
)
def test_broken_module_is_caught(property_name, module) -> None:
    with pytest.raises(AssertionError, match=rf"^check_module of {module.__name__}: {property_name}: "):
        check_module(module(), inputs)


def test_good_modules_pass_and_are_left_as_they_are() -> None:
    module = Good()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    skip = {"arguments": "torch's own errors"}
    check_module(module, inputs, errors=[(lambda: nn.Dropout(2.0), ValueError, "probability")], skip=skip)
    assert module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    check_module(nn.MultiheadAttention(4, 2), lambda g: (torch.randn(3, 2, 4, generator=g),) * 3, skip=skip)
    check_module(Good().double(), inputs, skip={**skip, "torch.compile": "checked above"})


def test_numbers_beside_tensors_have_no_dtype() -> None:
    class WithRate(Good):
        def forward(self, x: Tensor) -> tuple[Tensor, float]:  # type: ignore[override]
            return super().forward(x), 0.5

    skip = dict.fromkeys(("torch.compile", "arguments"), "not of interest")
    check_module(WithRate(), inputs, skip=skip)


def test_errors_are_checked() -> None:
    with pytest.raises(AssertionError, match="Good: errors: check_errors: case 0"):
        check_module(Good(), inputs, errors=[(Good, ValueError, "width")], skip={"torch.compile": "not of interest"})


# Wrappers: a running mean of the model's output, with a random sign from a stream of its own


class GoodWrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.stream = torch.Generator().manual_seed(0)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("stream_state", self.stream.get_state())

    def forward(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError("x must be finite")
        return self.update(x)

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        given = self.model(x)
        if not isinstance(given, Tensor) or given.shape != (len(x), 3):
            raise ValueError(f"model must give 3 numbers for each row, got {given}")
        self.stream.set_state(self.stream_state)
        self.mean += given.mean(0) * torch.randn((), generator=self.stream)
        self.stream_state.copy_(self.stream.get_state())
        return self.mean


class GlobalDraws(GoodWrapper):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(())


class MovesModel(GoodWrapper):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.model.bias.add_(1)
        return super().forward(x)


class LeavesGradients(GoodWrapper):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self.model(x).sum().backward()
        return super().forward(x)


class LeavesHook(GoodWrapper):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        model.register_forward_hook(lambda *_: None)


class ForgetsHalf(GoodWrapper):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        self.count += 1
        return result * self.count


class UpdatesFirst(GoodWrapper):
    def forward(self, x: Tensor) -> Tensor:
        self.stream_state.copy_(torch.Generator().manual_seed(int(x.isnan().any()) + 1).get_state())
        return super().forward(x)


class AcceptsAll(GoodWrapper):
    def forward(self, x: Tensor) -> Tensor:
        return self.update(x.nan_to_num())


class GoodProbe:
    """Without a state dict: hooks on the model while entered."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: list[Tensor] = []

    def __enter__(self) -> Self:
        self.handle = self.model.register_forward_pre_hook(lambda _, args: self.seen.append(args[0].detach().clone()))
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def __call__(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError("x must be finite")
        self.model(x)
        return torch.cat(self.seen).mean(0)


class StaysHooked(GoodProbe):
    def __exit__(self, *_: object) -> None:
        pass


class Twice(GoodWrapper):
    """Gives the batch to the model again, after the model has had it."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return super().forward(x)


class AnyRows(GoodWrapper):
    """Means over what the model gives, be it one row or all."""

    def update(self, x: Tensor) -> Tensor:
        self.mean += self.model(x).mean(0).detach() * 0.1
        return self.mean


class LosesNaN(GoodWrapper):
    def update(self, x: Tensor) -> Tensor:
        return super().update(x).nan_to_num()


class CountsFirst(GoodWrapper):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("count", torch.zeros(()))

    def update(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().update(x)


class SeesLater(GoodProbe):
    """Keeps the tensors that the model goes on to change."""

    def __enter__(self) -> Self:
        self.handle = self.model.register_forward_pre_hook(lambda _, args: self.seen.append(args[0]))
        return self


class Passes(nn.Module):
    """Gives what the model gives, whatever that is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError("x must be finite")
        return self.model(x)


BATCHES = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)]
BROKEN_WRAPPERS = [
    ("determinism", GlobalDraws),
    ("model untouched", MovesModel),
    ("model untouched", LeavesGradients),
    ("hooks removed", LeavesHook),
    ("hooks removed", StaysHooked),
    ("resume", ForgetsHalf),
    ("rejected batch", UpdatesFirst),
    ("rejected batch", AcceptsAll),
    (r"hostile networks: 1 of 7 habits of model:\n  in place: another result", Twice),
    (r"hostile networks: (.|\n)*  one row: accepted", AnyRows),
    (r"hostile networks: 1 of 7 habits of model:\n  NaN: is lost", LosesNaN),
    (
        r"hostile networks: (.|\n)*  one row: raised AssertionError: refused \(model must .*the state has chang",
        CountsFirst,
    ),
]


def model() -> nn.Module:
    return Good().linear


@pytest.mark.parametrize(
    ("property_name", "wrapper"), BROKEN_WRAPPERS, ids=[wrapper.__name__ for _, wrapper in BROKEN_WRAPPERS]
)
def test_broken_wrapper_is_caught(property_name, wrapper) -> None:
    with pytest.raises(AssertionError, match=rf"^check_wrapper of {wrapper.__name__}: {property_name}"):
        check_wrapper(wrapper, model(), BATCHES)


def test_good_wrappers_pass() -> None:
    check_wrapper(GoodWrapper, model(), BATCHES)
    check_wrapper(GoodWrapper, model(), [(x,) for x in BATCHES], step=lambda wrapper, batch: wrapper(*batch) * 2)
    check_wrapper(GoodProbe, model(), BATCHES, skip={"resume": "keeps no state"})
    check_wrapper(Passes, model(), BATCHES)
    skip = {"rejected batch": "moves the model first", "hostile networks": "wants a layer, for its bias"}
    check_wrapper(MovesModel, model(), BATCHES, owns_model=True, skip=skip)


def test_hooks_that_keep_what_changes_are_caught() -> None:
    with pytest.raises(AssertionError, match=r"SeesLater: hostile networks: 1 of 7 habits of model:\n  in place: "):
        check_wrapper(SeesLater, model(), BATCHES, skip={"resume": "keeps no state"})
    skip = {"resume": "keeps no state", "hostile networks: in place": "for the test"}
    check_wrapper(SeesLater, model(), BATCHES, skip=skip)


def test_wrapper_needs_batches_and_results() -> None:
    with pytest.raises(ValueError, match="at least two batches"):
        check_wrapper(GoodWrapper, model(), BATCHES[:1])
    with pytest.raises(AssertionError, match="nothing would be compared"):
        check_wrapper(GoodWrapper, model(), BATCHES, step=lambda wrapper, batch: [wrapper(batch)].clear())


class Checked(Good):
    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, "x", shape=(None, 4), finite=False)
        if x.dtype != self.linear.weight.dtype:
            raise TypeError(f"x must have the type of the weights, {self.linear.weight.dtype}, got {x.dtype}")
        return super().forward(x)


class Counted(Checked):
    def forward(self, x: Tensor) -> Tensor:
        self.table += 1
        return super().forward(x)


def test_arguments_are_tried() -> None:
    skip = {"torch.compile": "not of interest"}
    check_module(Checked(), inputs, skip=skip)
    with pytest.raises(AssertionError, match=r"Good: arguments: .*\n  x: None: raised TypeError: linear\(\)"):
        check_module(Good(), inputs, skip=skip)
    with pytest.raises(AssertionError, match=r"Checked: arguments: .* 3 of \d+ cases fail:\n  x: NaN: the result is"):
        check_module(Checked(), inputs, nan="raise", skip=skip)
    check_module(Checked(), inputs, nan="raise", skip={**skip, "arguments: x: *[nN][aAf]*": "goes through"})
    others = dict.fromkeys(("determinism", "inputs unchanged", "deepcopy", "state_dict"), "not of interest")
    with pytest.raises(
        AssertionError, match=r"Counted: arguments: (.|\n)*  x: a list: refused, but the state has changed"
    ):
        check_module(Counted(), inputs, skip={**skip, **others})
