"""Equal to the authors' implementation on the golden data; golden/README.md says where the numbers come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from offprints.susana import (
    compute_prototypes,
    icnn_loss,
    icnn_score,
    original_icnn_score,
    proto_triplet_loss,
    prototypical_logits,
)

TOLERANCE = {torch.float64: {"rtol": 1e-6, "atol": 1e-9}, torch.float32: {"rtol": 2e-4, "atol": 2e-6}}


@pytest.fixture
def data(golden) -> dict[str, Tensor]:
    return golden("golden")


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), **TOLERANCE[found.dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["self", "self_w10", "self_k3", "separated", "separated_w8", "cross_dropnearest"])
def test_icnn(data: dict[str, Tensor], name: str, dtype: torch.dtype) -> None:
    window = int(data[f"{name}_window"])
    settings: dict[str, Any] = {"k": int(data[f"{name}_k"]), "window": None if window < 0 else window}
    x = data[f"{name}_x"].to(dtype, copy=True).requires_grad_()
    variables, gradients = [x], [data[f"{name}_grad_x"]]
    if f"{name}_z" in data:
        z = data[f"{name}_z"].to(dtype, copy=True).requires_grad_()
        settings |= {"target": z, "target_labels": data[f"{name}_yz"], "drop_nearest": True}
        variables, gradients = [x, z], [*gradients, data[f"{name}_grad_z"]]
    near(icnn_score(x, data[f"{name}_y"], **settings).detach(), data[f"{name}_score"])
    loss = icnn_loss(x, data[f"{name}_y"], **settings)
    near(loss.detach(), data[f"{name}_loss"])
    for found, expected in zip(torch.autograd.grad(loss, variables), gradients, strict=True):
        near(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["trip", "trip_m1"])
def test_proto_triplet(data: dict[str, Tensor], name: str, dtype: torch.dtype) -> None:
    q, p = (data[f"{name}_{key}"].to(dtype, copy=True).requires_grad_() for key in "qp")
    margin = float(data[f"{name}_margin"])
    loss = proto_triplet_loss(q, data[f"{name}_yq"], p, data[f"{name}_yp"], margin=margin)
    near(loss.detach(), data[f"{name}_loss"])
    for found, key in zip(torch.autograd.grad(loss, (q, p)), "qp", strict=True):
        near(found, data[f"{name}_grad_{key}"])


@pytest.mark.parametrize("name", ["orig", "orig_p1"])
def test_first_generation(data: dict[str, Tensor], name: str) -> None:
    k, p, q, r = data[f"{name}_kpqr"].tolist()
    for with_omega, key in ((False, "score"), (True, "score_omega")):
        x, y = data[f"{name}_x"], data[f"{name}_y"]
        near(original_icnn_score(x, y, k=k, p=p, q=q, r=r, include_omega=with_omega), data[f"{name}_{key}"])


def test_prototypes(data: dict[str, Tensor]) -> None:
    prototypes = compute_prototypes(data["proto_s"], data["proto_ys"])
    near(prototypes, data["proto_p"])
    near(prototypical_logits(data["proto_q"], prototypes), data["proto_neg_sq"])
    near(prototypical_logits(data["proto_q"], prototypes, metric="euclidean"), data["proto_neg_dist"])
