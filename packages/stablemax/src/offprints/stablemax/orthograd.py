"""perpGrad (OrthoGrad in the official code): take the weight-scaling part out of the gradient (section 5 of the paper).

Per weight tensor w with gradient g: g' = g - <w, g> / <w, w> w, then rescaled to the norm of g. Training then cannot
lower the loss by scaling the weights up (naive loss minimization), the direction that ends in Softmax Collapse.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from offprints.shared.validation import check_choice, check_number

Granularity = Literal["tensor", "row", "global"]

BLOCK = 1 << 15  # elements whose weights and gradients fit in a core's cache together
BUCKET = 1 << 24  # elements that an accelerator projects at once; bounds the float64 temporaries


@dataclass(frozen=True)
class _Bucket:
    """Weights and gradients of one device and type, as local shards."""

    weights: list[Tensor]
    grads: list[Tensor]

    def lengths(self, granularity: Granularity) -> list[int]:
        """Elements of each unit that is projected on its own, in order."""
        if granularity == "row":
            return [weight[0].numel() for weight in self.weights for _ in range(len(weight))]
        return [weight.numel() for weight in self.weights]


def _is_distributed(tensor: Tensor) -> bool:
    """Whether this is a DTensor, told without importing torch.distributed.tensor, which takes half a second."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def _local(tensor: Any) -> Tensor:
    result: Tensor = tensor.to_local() if _is_distributed(tensor) else tensor
    return result


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, 1) if tensor.ndim == 0 else tensor


def _gather(params: Iterable[Parameter]) -> list[Parameter]:
    """Parameters that have a gradient; what cannot be projected is refused before anything is changed."""
    chosen = []
    for position, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise TypeError(f"params must hold parameters, got {type(param).__name__} at position {position}")
        if param.grad is None:
            continue
        if param.grad.is_sparse or param.grad.layout != torch.strided:
            raise TypeError(f"params: the gradient at position {position} is sparse; a dense one is needed")
        if param.is_complex():
            raise TypeError(f"params: the parameter at position {position} is complex; a real one is needed")
        chosen.append(param)
    return chosen


def _buckets(params: Sequence[Parameter], together: bool) -> list[_Bucket]:
    groups: dict[tuple[torch.device, torch.dtype], list[_Bucket]] = {}
    for param in params:
        weight, grad = _as_rows(_local(param.detach())), param.grad
        assert grad is not None
        open_ = groups.setdefault((weight.device, weight.dtype), [])
        if not open_ or not together or sum(w.numel() for w in open_[-1].weights) + weight.numel() > BUCKET:
            open_.append(_Bucket([], []))
        open_[-1].weights.append(weight)
        open_[-1].grads.append(_as_rows(_local(grad)))
    return [bucket for buckets in groups.values() for bucket in buckets]


def _coefficients(
    ww: Tensor, wg: Tensor, gg: Tensor, eps: float, rescale: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Factors (a, b) of g'' = a g - b w from the three dot products of each unit."""
    r = wg / (ww + eps)
    # |g'|^2 from the dot products: they are double precision, so that its cancellation stays below the rounding of g
    # itself.
    remainder = (gg - r * (2 * wg - r * ww)).clamp(min=0).sqrt()
    norm = gg.sqrt()
    scale = norm / remainder.masked_fill(remainder == 0, 1) if rescale else torch.ones_like(r)
    # A gradient parallel to the weights leaves rounding noise alone, which rescaling would blow up to a full step.
    parallel = remainder <= 8 * torch.finfo(dtype).eps * norm
    scale = scale.masked_fill(parallel, 0)
    # An overflowed gradient stays as it is, so that a gradient scaler sees it.
    broken = ~(gg.isfinite() & wg.isfinite())
    return scale.masked_fill(broken, 1), (scale * r).masked_fill(broken, 0)


def _blocked_dots(w: Tensor, g: Tensor) -> tuple[float, float, float]:
    """<w, w>, <w, g>, <g, g> of float32 vectors on a CPU, blocks added in double precision."""
    ww = wg = gg = 0.0
    for x, y in zip(w.split(BLOCK), g.split(BLOCK), strict=True):
        ww += torch.dot(x, x).item()
        wg += torch.dot(x, y).item()
        gg += torch.dot(y, y).item()
    return ww, wg, gg


def _project_vector_(weight: Tensor, grad: Tensor, eps: float, rescale: bool) -> bool:
    """Project one float32 tensor on a CPU in place; False where single precision is not enough for it."""
    ww, wg, gg = _blocked_dots(weight.reshape(-1), grad.reshape(-1))
    inside = 1e-20 < gg < 1e30 and 1e-20 < ww < 1e30
    if not inside or wg * wg > 0.75 * ww * gg:
        return False
    r = wg / (ww + eps)
    scale = math.sqrt(gg / (gg - r * (2 * wg - r * ww))) if rescale else 1.0
    if scale != 1.0:
        grad.mul_(scale)
    grad.add_(weight, alpha=-scale * r)
    return True


def _sums(values: Tensor, lengths: list[int]) -> Tensor:
    if len(set(lengths)) == 1 and lengths[0] > 0:
        return values.view(len(lengths), -1).sum(1)
    sizes = torch.tensor(lengths, device=values.device)
    return torch.segment_reduce(values, "sum", lengths=sizes, initial=0, unsafe=True)


def _spread(values: Tensor, lengths: list[int]) -> Tensor:
    if len(lengths) == 1:
        return values
    repeats = torch.tensor(lengths, device=values.device)
    return values.repeat_interleave(repeats, output_size=sum(lengths))


def _project_buckets_(buckets: list[_Bucket], granularity: Granularity, eps: float, rescale: bool, group: Any) -> None:
    """The projection in double precision, all units of a bucket at once; no value visits the host."""
    flats, products = [], []
    for bucket in buckets:
        wide = torch.float32 if bucket.weights[0].device.type == "mps" else torch.float64
        w = torch.cat([weight.reshape(-1) for weight in bucket.weights]).to(wide)
        g = torch.cat([grad.reshape(-1) for grad in bucket.grads]).to(wide)
        sizes = [w.numel()] if granularity == "global" else bucket.lengths(granularity)
        flats.append((w, g, sizes))
        counts = torch.tensor(sizes, dtype=wide, device=w.device)
        products.append(torch.stack([_sums(w * w, sizes), _sums(w * g, sizes), _sums(g * g, sizes), counts]))
    products = _over_shards(products, granularity == "global", group)
    for bucket, (w, g, sizes), (ww, wg, gg, counts) in zip(buckets, flats, products, strict=True):
        a, b = _coefficients(ww, wg, gg, eps, rescale, bucket.weights[0].dtype)
        a, b = a.masked_fill(counts == 1, 1), b.masked_fill(counts == 1, 0)
        g = _spread(a, sizes) * g - _spread(b, sizes) * w
        pieces = g.to(bucket.weights[0].dtype).split([grad.numel() for grad in bucket.grads])
        shaped = [piece.view(grad.shape) for piece, grad in zip(pieces, bucket.grads, strict=True)]
        torch._foreach_copy_(bucket.grads, shaped)


def _over_shards(products: list[Tensor], add_up: bool, group: Any) -> list[Tensor]:
    """Dot products over all shards and, if asked for, over all buckets: one collective whatever their number."""
    devices, home = [part.device for part in products], products[0].device
    if add_up:
        stacked = torch.stack([part.to(home) for part in products]).sum(0)
    elif group is None:
        return products
    else:
        stacked = torch.cat([part.to(home) for part in products], 1)
    if group is not None:
        torch.distributed.all_reduce(stacked, group=group)
    parts = [stacked] * len(products) if add_up else list(stacked.split([part.shape[1] for part in products], 1))
    return [part.to(device) for part, device in zip(parts, devices, strict=True)]


def _shard_group(params: Sequence[Parameter], granularity: Granularity) -> Any:
    """The group over which the shards of distributed parameters are spread; None where every unit is whole."""
    distributed: list[Any] = [param for param in params if _is_distributed(param)]
    if not distributed or all(placement.is_replicate() for param in distributed for placement in param.placements):
        return None
    if granularity == "row" and all(p.is_replicate() or p.is_shard(0) for q in distributed for p in q.placements):
        return None
    mesh = distributed[0].device_mesh
    if mesh.ndim != 1 or len(distributed) != len(params) or any(param.device_mesh != mesh for param in distributed):
        raise ValueError("process_group must be given for parameters that are not all sharded over one 1-D device mesh")
    if any(placement.is_replicate() for param in distributed for placement in param.placements):
        raise ValueError("process_group: sharded and replicated parameters must be projected in separate calls")
    return mesh.get_group()


def orthogonalize_gradients_(
    params: Iterable[Parameter],
    *,
    granularity: Granularity = "tensor",
    rescale: bool = True,
    eps: float = 1e-30,
    foreach: bool | None = None,
) -> None:
    """Make each gradient orthogonal to its weights, in place on ``.grad``; parameters without a gradient are skipped.

    With ``granularity="tensor"`` and ``rescale=True`` this is the official code; ``"global"`` without rescaling is the
    formula of the paper's text, over all ``params`` as one vector; ``"row"`` projects per output unit (dimension 0),
    whose scale a ReLU network can change on its own. One-element tensors and rows are left as they are, nothing of
    them would remain. A gradient that is parallel to its weights up to rounding becomes 0; one that holds inf or NaN
    is not touched. Sharded (DTensor) parameters are projected as whole.

    Args:
        params: The parameters.
        granularity: What counts as one vector.
        rescale: Give the projected gradient the norm of the original one.
        eps: Added to <w, w>.
        foreach: One batched computation in float64 for all tensors instead of one per tensor; default: on accelerators
            only.

    Raises:
        TypeError: a sparse gradient or a complex parameter; the message has its position.
        ValueError: an unknown granularity, ``eps`` negative.
    """
    check_choice(granularity, "granularity", ("tensor", "row", "global"))
    check_number(eps, "eps", low=0)
    chosen = _gather(params)
    _orthogonalize_(chosen, granularity, rescale, eps, foreach, _shard_group(chosen, granularity))


@torch.no_grad()
def _orthogonalize_(
    params: list[Parameter], granularity: Granularity, rescale: bool, eps: float, foreach: bool | None, group: Any
) -> None:
    if foreach is None:
        foreach = any(param.device.type != "cpu" for param in params)
    if granularity == "tensor" and not foreach and group is None:
        params = [
            param
            for param in params
            if param.numel() != 1
            and not (
                param.dtype == torch.float32
                and param.device.type == "cpu"
                and param.grad is not None
                and _project_vector_(_local(param.detach()), _local(param.grad), eps, rescale)
            )
        ]
    params = [param for param in params if param.numel() > 0]
    buckets = _buckets(params, together=foreach)
    if not buckets:
        return
    if foreach or granularity == "global" or group is not None:
        _project_buckets_(buckets, granularity, eps, rescale, group)
    else:
        for bucket in buckets:
            _project_buckets_([bucket], granularity, eps, rescale, None)


class OrthoGrad(torch.optim.Optimizer):
    """Any torch optimizer, stepping with gradients from which :func:`orthogonalize_gradients_` took the weight-scaling
    part.

    ``param_groups``, ``state`` and ``defaults`` are those of the wrapped optimizer itself, so that schedulers,
    checkpoints and gradient scalers work on it. A closure is evaluated before the projection. A param group with
    ``"orthograd": False`` is not projected. Coupled (L2) weight decay is added by the wrapped optimizer after the
    projection; decoupled decay does not interact.

    Args:
        optimizer: The optimizer that steps.
        granularity: As in :func:`orthogonalize_gradients_`; ``"global"`` is over all groups that are projected.
        rescale: As in :func:`orthogonalize_gradients_`.
        eps: As in :func:`orthogonalize_gradients_`.
        foreach: As in :func:`orthogonalize_gradients_`.
        process_group: Group over which every parameter is sharded, where the parameters are plain local shards (FSDP
            with original parameters); found by itself for DTensor parameters. Unsharded and DDP training need none.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer, or needs several evaluations a step (LBFGS).
        ValueError: an unknown granularity, ``eps`` negative.
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
            raise TypeError(
                f"optimizer must not evaluate its closure several times a step, got {type(optimizer).__name__}"
            )
        check_choice(granularity, "granularity", ("tensor", "row", "global"))
        check_number(eps, "eps", low=0)
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

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r})"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        if "optimizer" in self.__dict__:
            self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state dict."""
        self.optimizer.load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate ``closure``, project the gradients, let the wrapped optimizer step; returns the closure's value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = _gather(p for group in self.param_groups if group.get("orthograd", True) for p in group["params"])
        shards = self.process_group or _shard_group(params, self.granularity)
        _orthogonalize_(params, self.granularity, self.rescale, self.eps, self.foreach, shards)
        self.optimizer.step()
        return loss
