"""perpGrad (OrthoGrad in the official code): take the weight-scaling part out of the gradient (section 5 of the paper).

Per weight tensor w with gradient g: g' = g - <w, g> / <w, w> w, then rescaled to the norm of g. Training then cannot
lower the loss by scaling the weights up (naive loss minimization), the direction that ends in Softmax Collapse.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from offprints.shared.validation import check_bool, check_choice, check_number
from offprints.stablemax import _projection as projection
from offprints.stablemax._projection import Shard
from offprints.stablemax._sharding import Layout, add_up_, layout, listed, matrix, maximum_

Granularity = Literal["tensor", "row", "global"]


def _checked(params: Iterable[Parameter]) -> list[Parameter]:
    """The parameters; what cannot be projected is refused before anything is changed."""
    chosen = listed(params)
    for position, param in enumerate(chosen):
        if param.grad is None:
            continue
        if param.grad.is_sparse or param.grad.layout != torch.strided:
            raise TypeError(f"params: the gradient at position {position} is sparse; a dense one is needed")
        if param.is_complex():
            raise TypeError(f"params: the parameter at position {position} is complex; a real one is needed")
    for param in chosen:
        if param.grad is not None and _overlaps(param.grad):
            param.grad = param.grad.contiguous()
    return chosen


def _overlaps(gradient: Tensor) -> bool:
    """Whether elements share memory, as those of an expanded tensor do: it cannot be written in place."""
    return any(stride == 0 and size > 1 for stride, size in zip(gradient.stride(), gradient.shape, strict=True))


@torch.no_grad()
def _orthogonalize_(
    params: Iterable[Parameter], granularity: Granularity, rescale: bool, eps: float, foreach: bool | None, group: Any
) -> None:
    everyone = _checked(params)
    by_row = granularity == "row"
    layouts = [layout(param, by_row, group) for param in everyone]
    spread, whole = [], []
    for param, one in zip(everyone, layouts, strict=True):
        if one.groups or (granularity == "global" and param.grad is not None):
            spread.append((param, one))
        elif param.grad is not None:
            whole.append((param, one))
    if spread:
        _project_(spread, granularity, rescale, eps)
    batched = []
    for param, one in whole:
        if one.size == 1 or param.numel() == 0:
            continue
        shard, target = matrix(param, by_row, one.size)
        on_cpu = shard.weight.device.type == "cpu"
        if granularity == "tensor" and on_cpu and shard.weight.dtype == torch.float32 and shard.grad is not None:
            done = projection.project_vector_(shard.weight[0], shard.grad[0], eps, rescale)
            if done and target is not None:
                target.copy_(shard.grad.view(target.shape))
            if done:
                continue
        if on_cpu or foreach is False:
            _project_([(param, one)], granularity, rescale, eps)
        else:
            batched.append((param, one))
    if batched:
        _project_(batched, granularity, rescale, eps)


def _project_(params: list[tuple[Parameter, Layout]], granularity: Granularity, rescale: bool, eps: float) -> None:
    """The projection in double precision, of whole units of which other processes may hold parts."""
    layouts = [one for _, one in params]
    made = [matrix(param, granularity == "row", one.size) for param, one in params]
    shards = [shard for shard, _ in made]
    starts = projection.offsets(shards)
    device = shards[0].weight.device
    totals = projection.dots(shards, device)
    add_up_(totals, layouts, starts)
    totals = torch.where(totals[projection.PRESENT] > 0, totals, 0)  # what has a gradient nowhere takes no part
    if granularity == "global":
        totals = totals.sum(1, keepdim=True).expand(-1, starts[-1]).clone()
    types = [torch.finfo(shard.weight.dtype) for shard in shards for _ in range(len(shard.weight))]
    rounding = totals.new_tensor([kind.eps for kind in types])
    a, b = projection.coefficients(totals, rounding, eps, rescale)
    a, b = _within_range(shards, layouts, starts, totals, a, b, granularity)
    projection.write(shards, a, b)
    for shard, target in made:
        if target is not None and shard.grad is not None:
            target.copy_(shard.grad.view(target.shape))


def _within_range(
    shards: list[Shard],
    layouts: list[Layout],
    starts: list[int],
    totals: Tensor,
    a: Tensor,
    b: Tensor,
    granularity: Granularity,
) -> tuple[Tensor, Tensor]:
    """Scale units down whose result has an element that its type cannot hold, though the gradient was finite.

    No element exceeds the norm. On an accelerator only float16, whose norm may well be beyond its largest number, is
    worth the synchronization.
    """
    highest = totals.new_tensor(
        [torch.finfo(shard.weight.dtype).max for shard in shards for _ in range(len(shard.weight))]
    )
    suspects = totals[projection.GG].isfinite() & (totals[projection.GG].sqrt() > highest)
    likely = any(shard.weight.dtype == torch.float16 or shard.weight.device.type == "cpu" for shard in shards)
    if not likely or not bool(suspects.any()):
        return a, b
    peaks = projection.largest(shards, a, b)
    maximum_(peaks, suspects, layouts, starts)
    factor = torch.where(suspects, (highest / peaks.clamp(min=1)).clamp(max=1), 1)
    if granularity == "global":
        factor = factor.min().expand_as(factor)
    factor = factor * torch.where(factor < 1, 1 - 2 * torch.finfo(torch.float32).eps, 1)  # not to be rounded up again
    return a * factor, b * factor


def orthogonalize_gradients_(
    params: Iterable[Parameter],
    *,
    granularity: Granularity = "tensor",
    rescale: bool = True,
    eps: float = 1e-30,
    foreach: bool | None = None,
    process_group: Any = None,
) -> None:
    """Make each gradient orthogonal to its weights, in place on ``.grad``; parameters without a gradient are skipped.

    With `granularity="tensor"` and `rescale=True` this is the official code; `"global"` without rescaling is the
    formula of the paper's text, over all `params` as one vector; `"row"` projects per output unit (dimension 0),
    whose scale a ReLU network can change on its own. One-element tensors and rows are left as they are, nothing of
    them would remain. A gradient that is parallel to its weights up to rounding becomes 0; one that holds inf or NaN
    is not touched. Rescaling stops short of the norm where an element would exceed the range of float16.

    Sharded parameters are projected as whole, with one collective a call for each group of processes that they are
    spread over: DTensors (FSDP2, HSDP, tensor parallelism) by their placements, plain tensors over `process_group`.

    Args:
        params: The parameters. Processes that share shards pass the same list, whether or not there is a gradient.
        granularity: What counts as one vector.
        rescale: Give the projected gradient the norm of the original one.
        eps: Added to <w, w>.
        foreach: On an accelerator, one batched computation for all tensors (the default) instead of one per tensor. A
            CPU always goes tensor by tensor, which is faster there.
        process_group: Group over which parameters that are plain tensors are spread, flat
            (FullyShardedDataParallel with `use_orig_params=True`) or along dimension 0, evenly or not. A parameter of
            equal sums on all of its processes is taken for a replica.

    Raises:
        TypeError: a sparse gradient or a complex parameter; the message has its position.
        ValueError: an unknown granularity, `eps` negative; flattened parameters with `"row"` or without
            `process_group`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> weight.grad = torch.tensor([1.0, 0.0])
        >>> orthogonalize_gradients_([weight])
        >>> weight.grad
        tensor([ 0.8000, -0.6000])
    """
    check_choice(granularity, "granularity", ("tensor", "row", "global"))
    check_bool(rescale, "rescale")
    check_number(eps, "eps", low=0)
    if foreach is not None:
        check_bool(foreach, "foreach")
    _orthogonalize_(params, granularity, rescale, eps, foreach, process_group)


class OrthoGrad(torch.optim.Optimizer):
    """Any torch optimizer, stepping with gradients from which `orthogonalize_gradients_` took the weight-scaling part.

    `param_groups`, `state` and `defaults` are those of the wrapped optimizer itself, so that schedulers, checkpoints
    and gradient scalers work on it; what else it has, like the `train` of schedule-free optimizers, is reached through
    the wrapper. The state dict is the wrapped optimizer's with the entry `"orthograd"` beside it,
    which holds the granularity, `rescale` and `eps`; that of the wrapped optimizer alone can be loaded too.
    The wrapped optimizer gets the closure of `step`, if any, with the projection behind it: it may read the loss or
    evaluate more than once. A param group with `"orthograd": False` is not projected. Coupled (L2) weight decay is
    added by the wrapped optimizer after the projection; decoupled decay does not interact.

    Args:
        optimizer: The optimizer that steps.
        granularity: As in `orthogonalize_gradients_`; `"global"` is over all groups that are projected.
        rescale: As in `orthogonalize_gradients_`.
        eps: As in `orthogonalize_gradients_`.
        foreach: As in `orthogonalize_gradients_`.
        process_group: As in `orthogonalize_gradients_`. Unsharded and DDP training and DTensors need none.

    Raises:
        TypeError: `optimizer` is not a torch optimizer, cannot do without a closure (LBFGS), or steps in two halves
            with gradients of its own between them (SAM).
        ValueError: an unknown granularity, `eps` negative.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = OrthoGrad(torch.optim.SGD([weight], lr=1.0))
        >>> weight[0].backward()
        >>> optimizer.step()  # with the gradient (0.8, -0.6) instead of (1, 0)
        >>> weight.detach()
        tensor([2.2000, 4.6000])
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        granularity: Granularity = "tensor",
        rescale: bool = True,
        eps: float = 1e-30,
        foreach: bool | None = None,
        process_group: Any = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TypeError(f"optimizer must be able to step without a closure, got {type(optimizer).__name__}")
        if hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step"):
            raise TypeError(
                f"optimizer must step at once, got {type(optimizer).__name__}, which steps in two halves: wrap the "
                "optimizer inside of it"
            )
        check_choice(granularity, "granularity", ("tensor", "row", "global"))
        check_bool(rescale, "rescale")
        check_number(eps, "eps", low=0)
        if foreach is not None:
            check_bool(foreach, "foreach")
        super().__init__([{"params": []}], {})  # sets up the hooks; groups and state are the wrapped optimizer's
        self.optimizer = optimizer
        self.granularity = granularity
        self.rescale = rescale
        self.eps = eps
        self.foreach = foreach
        self.process_group = process_group

    # The base class assigns these in its own __init__, before there is a wrapped optimizer: the setters let that pass.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups."""
        return self.optimizer.param_groups if "optimizer" in self.__dict__ else []

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        if "optimizer" in self.__dict__:
            self.optimizer.param_groups = value

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state."""
        return self.optimizer.state if "optimizer" in self.__dict__ else {}

    @state.setter
    def state(self, value: Any) -> None:
        if "optimizer" in self.__dict__:
            self.optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults if "optimizer" in self.__dict__ else {}

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        if "optimizer" in self.__dict__:
            self.optimizer.defaults = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "optimizer" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r})"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        if "optimizer" in self.__dict__:
            self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, and the settings of the projection as `"orthograd"`."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = dict(self.optimizer.state_dict())
        state["orthograd"] = {"granularity": self.granularity, "rescale": self.rescale, "eps": self.eps}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state and, where it has them, the settings of the projection.

        Raises:
            ValueError: settings of the projection that do not exist, or what the wrapped optimizer refuses.
        """
        state = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state = before(self, state) or state
        settings = state.pop("orthograd", {})
        granularity = settings.get("granularity", self.granularity)
        rescale, eps = settings.get("rescale", self.rescale), settings.get("eps", self.eps)
        check_choice(granularity, "state_dict['orthograd']['granularity']", ("tensor", "row", "global"))
        check_bool(rescale, "state_dict['orthograd']['rescale']")
        check_number(eps, "state_dict['orthograd']['eps']", low=0)
        self.optimizer.load_state_dict(state)
        self.granularity, self.rescale, self.eps = granularity, rescale, eps
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Project the gradients and let the wrapped optimizer step; returns what it returns, or the closure's value.

        The wrapped optimizer gets a closure that evaluates the given one and projects the gradients that it leaves.
        """
        if closure is None:
            self._project()
            return self.optimizer.step()
        values = []

        def projecting() -> Any:
            with torch.enable_grad():
                values.append(closure())
            self._project()
            return values[-1]

        parameters = inspect.signature(self.optimizer.step).parameters.values()
        if not any(p.name == "closure" or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            projecting()
            result = self.optimizer.step()
        else:
            result = self.optimizer.step(projecting)
        return values[0] if result is None and values else result

    def _project(self) -> None:
        params = [p for group in self.param_groups if group.get("orthograd", True) for p in group["params"]]
        _orthogonalize_(params, self.granularity, self.rescale, self.eps, self.foreach, self.process_group)
