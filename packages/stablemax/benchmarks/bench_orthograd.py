"""The projection of OrthoGrad on the shapes of a ResNet-18 (62 tensors, 11.7 M elements, float32, one CPU thread).

Beside it: pytorch_optimizer's, per tensor and batched, and the per-tensor algorithm of `reference.py`. Every call first
restores the gradients, so that all contenders project the same ones. Then whole steps: around torch's AdamW as it is
by default and fused, beside the algorithm of `reference.py` around the default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytorch_optimizer
import torch
from torch import Tensor
from torch.nn import Parameter

from offprints.shared.benchmark import Case, compare
from offprints.stablemax import OrthoGrad, orthogonalize_gradients_, reference


def resnet18_shapes() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            first = before if block == 0 else width
            shapes += [(width, first, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if first != width:
                shapes += [(width, first, 1, 1), (width,), (width,)]
        before = width
    return [*shapes, (1000, 512), (1000,)]


def per_tensor(params: list[Parameter]) -> None:
    with torch.no_grad():
        for param in params:
            assert param.grad is not None
            param.grad.copy_(reference.perp_gradient(param, param.grad))


def main() -> None:
    torch.manual_seed(0)
    params = [Parameter(0.05 * torch.randn(shape)) for shape in resnet18_shapes()]
    saved = [0.3 * param.detach() + 0.1 * torch.randn_like(param) for param in params]
    for param in params:
        param.grad = torch.empty_like(param)
    grads = [param.grad for param in params if param.grad is not None]

    def project(method: Callable[[list[Parameter]], object]) -> list[Tensor]:
        torch._foreach_copy_(grads, saved)
        method(params)
        return grads

    def agree(_: list[Tensor], theirs: list[Tensor]) -> None:
        # Both results are the gradients themselves: what the last method left there is compared with ours, made anew.
        expected = [grad.clone() for grad in project(orthogonalize_gradients_)]
        for method in methods.values():
            torch.testing.assert_close(project(method), expected, rtol=1e-4, atol=1e-5)

    def theirs(foreach: bool) -> Callable[[list[Parameter]], object]:
        wrapper = pytorch_optimizer.OrthoGrad(torch.optim.SGD(params, lr=0.1), foreach=foreach)
        return wrapper.apply_orthogonal_gradients  # type: ignore[no-any-return]

    methods = {
        "pytorch_optimizer": theirs(False),
        "pytorch_optimizer, foreach": theirs(True),
        "reference, per tensor": per_tensor,
    }
    contenders = {name: partial(project, method) for name, method in methods.items()}
    contenders["copy of the gradients alone"] = partial(project, len)
    case = Case("OrthoGrad, ResNet-18", partial(project, orthogonalize_gradients_), contenders, agree)

    def step(fused: bool, projection: Callable[[list[Parameter]], object] | None = None) -> Callable[[], list[Tensor]]:
        copies = [Parameter(param.detach().clone()) for param in params]
        adamw = torch.optim.AdamW(copies, lr=1e-4, fused=fused or None)
        optimizer = adamw if projection else OrthoGrad(adamw)

        def call() -> list[Tensor]:
            for copy, grad in zip(copies, saved, strict=True):
                copy.grad = grad.clone()
            if projection:
                projection(copies)
            optimizer.step()
            return []

        return call

    steps = {
        "around AdamW's default": step(False),
        "reference around AdamW's default": step(False, per_tensor),
        "reference around AdamW(fused=True)": step(True, per_tensor),
    }
    whole = Case("OrthoGrad(AdamW(fused=True)) step, ResNet-18", step(True), steps)
    compare([case, whole], Path(__file__).parent / "results" / "orthograd.json", rounds=7, seconds=0.1, threads=1)


if __name__ == "__main__":
    main()
