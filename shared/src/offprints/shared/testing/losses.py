"""`check_loss`: what users of torch expect of a loss, for functions and modules.

::

    def inputs(generator):
        return torch.randn(7, 4, generator=generator), torch.randint(4, (7,), generator=generator)

    check_loss(comp_sum_loss, inputs)                      # a function
    check_loss(CompSumLoss(tau=2.0), inputs)               # an instance of a module
    check_loss(partial(cauchy_loss, c=0.1), images, skip={"torch.compile": "calls numba"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from offprints.shared.testing._loss_case import LossCase, MakeInputs
from offprints.shared.testing._loss_paths import LossPaths
from offprints.shared.testing._properties import Skip, cast, parts_of, run_properties
from offprints.shared.testing.arguments import check_arguments


def check_loss(
    loss: Callable[..., Any],
    make_inputs: MakeInputs,
    *,
    nan: Literal["raise", "propagate"] = "raise",
    reductions: Sequence[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    special: Mapping[str, MakeInputs] | None = None,
    backend: str = "aot_eager",
    skip: Skip | None = None,
) -> None:
    """Check a loss, property by property.

    Properties, in order: *output* (floating, finite, in the input's dtype, with a gradient), *inputs unchanged*,
    *determinism* (and the global random state is left alone), *reductions*, *batch permutation*, *non-contiguous input*
    (at all points), *types*, *shapes*, *empty batch*, *NaN*, *precision* (float32, bfloat16, autocast), *device*,
    *gradcheck* (float64).

    Then, at ordinary and at special points, that every path gives the same value and the same gradients: *special
    points* (finite; float32 and float64), *half types* (what float32 gives for the rounded
    inputs, rounded), *double backward* (gradients under ``create_graph`` are those without; the second derivative is
    finite and, at ordinary points, that of finite differences; a clear refusal passes), *torch.func* (``grad``, and
    ``vmap`` of value and gradient over several draws and, with the reduction "none", over the batch), *torch.compile*
    (graph breaks are allowed).

    Last, *networks* (a module or function among the arguments that works in place, returns another type, NaN, another
    shape or nothing, as in `check_sampler`) and *arguments* (`check_arguments` on float32 inputs).

    Args:
        loss: A function or an ``nn.Module`` instance (bind hyperparameters with ``functools.partial``). What it returns
            is a tensor or something with a tensor ``.loss``.
        make_inputs: ``make_inputs(generator)`` draws the positional arguments on the CPU. The first axis of the first
            tensor is the batch, and so is the first axis of every tensor of that length: give other axes other lengths.
            Tensors in lists, tuples and dicts count as well.
            Gradients are checked for floating tensors that require them, or, where none does, for the first floating
            tensor. Keep inputs small (gradcheck evaluates twice per entry) and away from kinks and ties.
        nan: A NaN in a floating input is a ValueError, or ends up in the result.
        reductions: None: "mean", "sum" and "none" where the loss has a `reduction` (a keyword, or an attribute of the
            module).
        kwargs: Keyword arguments of every call.
        special: Name to `make_inputs` of the points where a seam or a mask lies: ties, all-masked rows, ignored rows
            with NaN, zeros, one-sided infinities. The loss has a value there.
        backend: Of ``torch.compile``; "inductor" in a test marked slow.
        skip: Property to reason; of arguments and networks also a part: ``{"arguments: tau: inf": "reason",
            "networks: NaN": "reason"}``.
    """
    case = LossCase(loss, make_inputs, dict(kwargs or {}))
    if reductions is None:
        reductions = ("mean", "sum", "none") if case.has_reduction() else ()
    paths = LossPaths(case, dict(special or {}), "none" if "none" in reductions else None)
    properties: dict[str, Callable[[], None]] = {
        "output": case.check_output,
        "inputs unchanged": case.check_inputs_unchanged,
        "determinism": case.check_determinism,
        "reductions": lambda: case.check_reductions(reductions),
        "batch permutation": lambda: case.check_permutation(reductions),
        "non-contiguous input": paths.check_strides,
        "types": case.check_types,
        "shapes": case.check_shapes,
        "empty batch": case.check_empty,
        "NaN": lambda: case.check_nan(nan),
        "precision": case.check_precision,
        "device": case.check_device,
        "gradcheck": case.check_gradient,
        "special points": paths.check_special,
        "half types": paths.check_half,
        "double backward": paths.check_double_backward,
        "torch.func": paths.check_func,
        "torch.compile": lambda: paths.check_compile(backend),
        "networks": lambda: case.check_networks(parts_of(skip, "networks")),
        "arguments": lambda: check_arguments(
            loss,
            lambda g: cast(tuple(make_inputs(g)), torch.float32),
            kwargs=kwargs,
            nan=nan,
            skip=parts_of(skip, "arguments"),
        ),
    }
    run_properties("check_loss", loss, properties, skip, parts=("arguments", "networks"))
