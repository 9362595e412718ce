"""`check_sampler`: a function from noise to samples.

::

    check_sampler(lambda noise: pndm_sample(model, noise, schedule=schedule, num_steps=5), torch.randn(4, 3))
    check_sampler(lambda noise, generator: consistency_sample(model, noise, generator=generator), noise)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offprints.shared.testing._hostile import check_networks
from offprints.shared.testing._properties import (
    Skip,
    assert_equal,
    assert_near,
    expect_error,
    generator,
    parts_of,
    random_state_untouched,
    run_properties,
    seed_globally,
    simulated_accelerator,
    strided,
)
from offprints.shared.testing.arguments import check_arguments


def check_sampler(fn: Callable[..., Tensor], noise: Tensor, *, skip: Skip | None = None) -> None:
    """Check a sampler.

    Properties, in order: *shape and dtype* (the noise's; float32 and float64), *no graph*, *noise unchanged*,
    *determinism* (whatever the global seeds, which are left alone), *generator* (another seed gives other samples),
    *rows* (a sample depends on its own row of the noise alone), *batch split* (only without a generator: the rows one
    by one give the same samples), *non-contiguous noise*, *device*, *errors* (integers, NaN, no rows), *networks*
    (where `fn` has a parameter `model` with a default: one that works in place gives the same samples and leaves the
    noise alone; one that returns another type gives the same samples in the noise's, or is refused; NaN is refused or
    stays NaN; a number, one row, one column and None are refused, naming the model), *arguments* (`check_arguments`:
    name the parameter of a lambda as the sampler names its own).

    Args:
        fn: ``fn(noise)`` or, where it draws more, ``fn(noise, generator=...)``; ``lambda noise, model=model: ...`` has
            its model tried as well. Its model should have a parameter that
            requires a gradient and follow the noise's dtype and device: ``lambda x, t: theta.to(x) * x``.
        noise: ``[B, ...]`` with B >= 2, floating.
        skip: Property to reason; of arguments and networks also a part: ``{"arguments: noise: huge": "reason",
            "networks: nothing": "reason"}``.
    """
    if noise.ndim < 1 or len(noise) < 2:
        raise ValueError(f"noise needs at least two rows, got the shape {tuple(noise.shape)}")
    draws = "generator" in inspect.signature(fn).parameters

    def sample(x: Tensor, seed: int = 0) -> Tensor:
        options: dict[str, Any] = {"generator": generator(seed)} if draws else {}
        return fn(x, **options)

    def check_shape() -> None:
        for dtype in (torch.float32, torch.float64):
            result = sample(noise.to(dtype))
            if result.shape != noise.shape or result.dtype != dtype:
                raise AssertionError(
                    f"{dtype} noise {tuple(noise.shape)} gives {result.dtype} samples {tuple(result.shape)}"
                )
            if not result.isfinite().all():
                raise AssertionError(f"{dtype} noise gives samples that are not finite")

    def check_graph() -> None:
        if sample(noise.detach().clone().requires_grad_()).requires_grad:
            raise AssertionError("the samples hold a graph")

    def check_unchanged() -> None:
        given = noise.clone()
        sample(given)
        assert_equal(given, noise, "the noise was changed")

    def check_determinism() -> None:
        results = []
        for seed in (1, 2):
            seed_globally(seed)
            with random_state_untouched():
                results.append(sample(noise))
        assert_equal(results[1], results[0], "the same noise and generator give other samples")

    def check_generator() -> None:
        if draws and torch.equal(sample(noise, 1), sample(noise, 2)):
            raise AssertionError("the generator has no effect")

    def check_rows() -> None:
        other = torch.cat([noise[:1], noise[1:].flip(0) + 0.5])
        _near(sample(other)[:1], sample(noise)[:1], "the first sample changes with the other rows of the noise")

    def check_split() -> None:
        if not draws:
            _near(torch.cat([sample(row[None]) for row in noise]), sample(noise), "row by row against the whole batch")

    def check_strides() -> None:
        _near(sample(strided(noise)), sample(noise), "strided noise gives other samples")

    def check_device() -> None:
        if torch.cuda.is_available():
            result = sample(noise.cuda())
            _near(result.cpu(), sample(noise), "CUDA against CPU")
            if not result.is_cuda:
                raise AssertionError(f"CUDA noise gives samples on {result.device}")
            return
        with simulated_accelerator() as to_cuda:
            result = sample(to_cuda(noise))
            if not result.is_cuda:
                raise AssertionError(f"CUDA noise gives samples on {result.device}")

    def check_bad() -> None:
        spoiled = noise.clone()
        spoiled.view(-1)[0] = torch.nan
        expect_error(TypeError, "integer noise", sample, noise.long())
        expect_error(ValueError, "NaN in the noise", sample, spoiled)
        expect_error(ValueError, "noise of no rows", sample, noise[:0])

    def make_inputs(draw: torch.Generator) -> dict[str, Any]:
        return {next(iter(inspect.signature(fn).parameters)): noise.clone(), **({"generator": draw} if draws else {})}

    def check_all_arguments() -> None:
        # What the noise's other axes may be is the model's affair, and so are its errors.
        name = next(iter(inspect.signature(fn).parameters))
        shapes = ("one more axis", "one axis fewer", "no classes", "one class fewer")[: 4 if noise.ndim > 1 else 2]
        models = {f"{name}: {shape}": "the model's" for shape in shapes}
        check_arguments(fn, make_inputs, skip={**models, **parts_of(skip, "arguments")})

    def check_models() -> None:
        parameter = inspect.signature(fn).parameters.get("model")
        if parameter is None or not callable(parameter.default):
            return

        def call(model: Callable[..., Any]) -> Tensor:
            given = noise.clone()
            samples = fn(given, model=model, **({"generator": generator(0)} if draws else {}))
            assert_equal(given, noise, "the noise was changed")
            return samples

        check_networks(call, parameter.default, "model", parts_of(skip, "networks"))

    properties: dict[str, Callable[[], None]] = {
        "shape and dtype": check_shape,
        "no graph": check_graph,
        "noise unchanged": check_unchanged,
        "determinism": check_determinism,
        "generator": check_generator,
        "rows": check_rows,
        "batch split": check_split,
        "non-contiguous noise": check_strides,
        "device": check_device,
        "errors": check_bad,
        "networks": check_models,
        "arguments": check_all_arguments,
    }
    run_properties("check_sampler", fn, properties, skip, parts=("arguments", "networks"))


def _near(actual: Tensor, expected: Tensor, what: str) -> None:
    # Kernels differ by batch size in the last bits; a sampler repeats them tens of times.
    tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-9
    scale = float(expected.abs().max())
    assert_near(actual, expected, what, rtol=tolerance, atol=tolerance * max(1.0, scale))
