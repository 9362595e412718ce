"""Conversion of a finished network to Non-scaling LayerNorm, each replacement checked by its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from offprints.lct.norms import NonScalingLayerNorm
from offprints.shared.device import evaluating
from offprints.shared.validation import check_tensor

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def replace_norms(
    network: nn.Module,
    example: Tensor,
    *example_args: Any,
    types: Sequence[type[nn.Module]] = (nn.GroupNorm, nn.LayerNorm),
) -> nn.Module:
    """Replace every normalization of a network by :class:`NonScalingLayerNorm`, in place.

    One forward pass of the example finds the shapes: a LayerNorm keeps its own ``normalized_shape``, any other type
    gets its input's shape without the batch axis. Each keeps its eps, device, type and hooks; the new biases are 0, and
    frozen where all of the old parameters were. A norm without a bias stays one without a bias. Modes, running
    statistics and random streams are as before.

    Whether a subclass is nothing but its base class is decided by its output on numbers of the example's shape. One
    that does more keeps it: a LayerNorm over the channels of ``[B, C, H, W]`` stays over the channels, submodules that
    follow the normalization (the activation of timm's GroupNormAct) still follow it, and any other keeps its own
    ``forward``, with its scale fixed at 1, one group, and one bias a channel. What is none of these is refused, and
    then nothing is changed.

    Args:
        network: Any module that is called as ``network(example, *example_args)``; a U-Net of ``diffusers`` too.
        example: Input of the resolution to train at, on the network's device.
        *example_args: Further arguments, such as noise levels.
        types: What to replace, subclasses included.

    Returns:
        The network (the new normalization where ``network`` itself is one of ``types``).

    Raises:
        TypeError: ``network`` is not a module, ``example`` not a tensor, ``types`` not classes of modules.
        ValueError: nothing to replace, a normalization that the example does not reach, one used at two shapes, or a
            subclass whose output cannot be kept.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.GroupNorm(2, 8))
        >>> replace_norms(network, torch.zeros(1, 4, 16, 16))[1]
        NonScalingLayerNorm((8, 16, 16), eps=1e-05, bias=True, channel_bias=False)
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    check_tensor(example, "example", floating=False, finite=False)
    kinds = tuple(types) if isinstance(types, Sequence) else (types,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"types must hold classes of modules, got {kind!r}")
    norms = {module: name for name, module in network.named_modules() if isinstance(module, kinds)}
    if not norms:
        raise ValueError(f"network holds none of types {', '.join(kind.__name__ for kind in kinds)}")
    # A network may work in place: it gets copies.
    args = (arg.clone() if isinstance(arg, Tensor) else arg for arg in (example, *example_args))
    inputs = _inputs(network, norms, tuple(args))
    with evaluating(network):
        new = {module: _replacement(module, norms[module], x, kinds) for module, x in inputs.items()}
    built = {module: make() for module, make in new.items() if make is not None}  # nothing is changed before all are
    for module in new:
        made = built[module] if module in built else _fixed(module)
        for parent in list(network.modules()):
            for name, child in list(parent._modules.items()):
                if child is module:
                    parent._modules[name] = made
        network = made if network is module else network
    return network


def _inputs(network: nn.Module, norms: dict[nn.Module, str], args: tuple[Any, ...]) -> dict[nn.Module, Tensor]:
    """An input of each normalization in a pass of the example."""
    found: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*inputs, *kwargs.values())
        if len(given) != 1 or not isinstance(given[0], Tensor):
            raise ValueError(f"network calls {norms[module]!r} with more than a tensor: leave it out of types")
        x = given[0].detach()
        own = getattr(module, "normalized_shape", None)
        before = found.setdefault(module, x)
        if own is None and before.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"network uses {norms[module]!r} at two shapes, {tuple(before.shape[1:])} and {tuple(x.shape[1:])}: "
                "a bias of one shape cannot serve both"
            )

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in norms]
    try:
        # Hooks keep torch's Transformer layers off the path that does not call their norms.
        with evaluating(network), torch.random.fork_rng(devices=[args[0].device] if args[0].is_cuda else []):
            network(*args)
    finally:
        for hook in hooks:
            hook.remove()
    missed = [name for module, name in norms.items() if module not in found]
    if missed:
        raise ValueError(f"example does not reach the normalization {', '.join(missed)} of network")
    return found


class ConvertedNorm(NonScalingLayerNorm):
    """The norm that replaces a subclass: over the channels of ``[B, C, ...]`` or not, its submodules after it."""

    over_channels = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, add the bias, apply the submodules."""
        y = super().forward(x.movedim(1, -1)).movedim(-1, 1) if self.over_channels else super().forward(x)
        return _after(y, self._modules)


def _replacement(
    module: nn.Module, name: str, example: Tensor, kinds: tuple[type[nn.Module], ...]
) -> Callable[[], nn.Module] | None:
    """What makes the replacement of a module, None where it stays and is fixed; nothing is changed yet."""
    base: Any = next(kind for kind in (nn.GroupNorm, nn.LayerNorm, *kinds) if isinstance(module, kind))
    x = _numbers_like(example)
    expected = _call(module.forward, x)

    def core(x: Tensor) -> Tensor:
        result: Tensor = base.forward(module, x)
        return result

    def core_of_float32(x: Tensor) -> Tensor:
        return core(x.float())

    def core_over_channels(x: Tensor) -> Tensor:
        return core(x.movedim(1, -1)).movedim(-1, 1)

    for compute in (core, core_of_float32, core_over_channels):
        over_channels = compute is core_over_channels
        if over_channels and not (base is nn.LayerNorm and x.ndim > 2):
            continue
        plain = _call(compute, x)
        for parts in ({}, module._modules):
            if isinstance(plain, Tensor) and _same(_call(partial(_after, parts=parts), plain), expected):
                return partial(_made, module, x, over_channels=over_channels, parts=parts)
    if isinstance(module, nn.GroupNorm | nn.LayerNorm) and _obeys(module, x):
        return None
    raise ValueError(
        f"network's {name or 'normalization'} ({type(module).__name__}) does more than {base.__name__}, in a way that "
        "cannot be kept: replace it by hand, or leave it out of types"
    )


def _after(x: Tensor, parts: Mapping[str, nn.Module | None]) -> Tensor:
    for part in parts.values():
        x = x if part is None else part(x)
    return x


def _numbers_like(example: Tensor) -> Tensor:
    """Numbers without symmetry, of the example's shape: the example itself may be all zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(example.shape, generator=generator) * 2 + 1
    return x.to(device=example.device, dtype=example.dtype)


def _call(fn: Callable[[Tensor], Any], x: Tensor) -> Any:
    """The result; None where it fails."""
    try:
        return fn(x.clone())
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return None


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in (a, b))
    return torch.allclose(a.double().cpu(), b.double().cpu(), rtol=2e-2 if half else 1e-4, atol=2e-2 if half else 1e-5)


def _made(
    module: nn.Module, x: Tensor, *, over_channels: bool, parts: Mapping[str, nn.Module | None]
) -> NonScalingLayerNorm:
    """A new norm in place of a module."""
    shape = getattr(module, "normalized_shape", x.shape[1:])
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    owned = next((t for t in own if t.is_floating_point()), None)
    device, dtype = (x.device, None) if owned is None else (owned.device, owned.dtype)
    bias: Tensor | None = getattr(module, "bias", None)
    eps = getattr(module, "eps", 1e-5)
    eps = torch.finfo(dtype or torch.get_default_dtype()).eps if eps is None else eps  # as RMSNorm reads None
    made = ConvertedNorm if over_channels or parts else NonScalingLayerNorm
    norm = made(tuple(shape), eps=eps, bias=isinstance(bias, Tensor), device=device, dtype=dtype)
    norm.training = module.training
    if norm.bias is not None and isinstance(bias, Tensor):
        norm.bias.requires_grad_(bias.requires_grad)
    if isinstance(norm, ConvertedNorm):
        norm.over_channels = over_channels
        for name, part in parts.items():
            norm.add_module(name, part)
    for hooks in HOOKS:  # the same dictionaries, so that handles still remove from them
        norm.__dict__[hooks] = module.__dict__[hooks]
    return norm


def _obeys(module: nn.GroupNorm | nn.LayerNorm, x: Tensor) -> bool:
    """Whether the subclass's own forward takes its groups and its scale from the attributes of its base class."""
    tensors = [t for t in (module.weight, module.bias) if t is not None]
    kept, groups = [t.detach().clone() for t in tensors], getattr(module, "num_groups", 0)
    other = x.clone()
    other[:, : x.shape[1] // max(groups, 2)] *= 3  # some channels, whole groups of them
    try:
        with torch.no_grad():
            for t in tensors:
                t.zero_()
            if module.weight is not None:
                if not _same(_call(module.forward, x), _call(module.forward, other)):
                    return False  # something is left where the scale is 0
                module.weight.fill_(1)
        if groups:
            module.num_groups = 1
        plain = _call(module.forward, x)
        # One group over all entries of a sample: a common factor is not seen, that of some channels is.
        return _same(plain, _call(module.forward, 3 * x)) and not _same(plain, _call(module.forward, other))
    finally:
        if groups:
            module.num_groups = groups
        with torch.no_grad():
            for t, values in zip(tensors, kept, strict=True):
                t.copy_(values)


def _fixed(module: nn.Module) -> nn.Module:
    """The module with its own forward: scale 1, one group, bias 0."""
    scale = module._parameters.pop("weight", None)
    if scale is not None:
        module.register_buffer("weight", torch.ones_like(scale, requires_grad=False), persistent=False)
    if isinstance(module.bias, Tensor):
        with torch.no_grad():
            module.bias.zero_()
    if isinstance(module, nn.GroupNorm):
        module.num_groups = 1
    return module
