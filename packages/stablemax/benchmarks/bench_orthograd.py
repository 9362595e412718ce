"""The projection of OrthoGrad on the shapes of a ResNet-18 (62 tensors, 11.7 M elements, float32, one CPU thread).

Beside it: pytorch_optimizer's, per tensor and batched, and a plain rendering of the official per-tensor algorithm,
written for this benchmark. Every call first restores the gradients, so that all contenders project the same ones.
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
from offprints.stablemax import orthogonalize_gradients_


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
            w, g = param.view(-1), param.grad.view(-1)
            rest = g - torch.dot(w, g) / (torch.dot(w, w) + 1e-30) * w
            param.grad.copy_((rest * (g.norm() / (rest.norm() + 1e-30))).view_as(param))


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

    methods = {"pytorch_optimizer": theirs(False), "pytorch_optimizer, foreach": theirs(True), "per tensor": per_tensor}
    contenders = {name: partial(project, method) for name, method in methods.items()}
    contenders["copy of the gradients alone"] = partial(project, len)
    case = Case("OrthoGrad, ResNet-18", partial(project, orthogonalize_gradients_), contenders, agree)
    compare([case], Path(__file__).parent / "results" / "orthograd.json", rounds=7, seconds=0.1, threads=1)


if __name__ == "__main__":
    main()
