"""The checks that every package of this workspace passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from offprints.shared.testing import check_estimator, check_loss, check_module, check_package
from offprints.sp2ot import CosineHead, LogitBank, SP2OTClusterer, SP2OTLoss, SP2OTOutput

PUBLIC = [
    "CosineHead",
    "LogitBank",
    "SP2OTClusterer",
    "SP2OTLoss",
    "SP2OTOutput",
    "SemanticTransportResult",
    "TransportResult",
    "TransportValue",
    "cluster_scores",
    "knn_similarity",
    "long_tailed_counts",
    "long_tailed_indices",
    "partial_ot",
    "rho_schedule",
    "semantic_partial_ot",
    "transport_value",
]


def test_package() -> None:
    check_package("sp2ot", public=PUBLIC)


def two_views(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(7, 4, generator=generator).requires_grad_(),
        torch.randn(7, 4, generator=generator).requires_grad_(),
    )


def test_loss() -> None:
    loss = SP2OTLoss(num_clusters=4, total_steps=10).eval()

    def of_two(a: Tensor, b: Tensor) -> SP2OTOutput:
        return loss([a, b])

    reason = "the pseudo-labels carry no gradient: test_losses has the gradient of fixed ones"
    skip = dict.fromkeys(("gradcheck", "double backward"), reason)
    skip["torch.func"] = "the solver of the pseudo-labels decides by value when it is done"
    skip["arguments"] = "the loss calls them logits"
    check_loss(of_two, two_views, skip=skip)


@pytest.mark.filterwarnings("ignore:semantic", "ignore:partial")
def test_loss_module() -> None:
    loss = SP2OTLoss(num_clusters=4, total_steps=10, similarity=torch.eye(9), semantic_weight=2.0, bank_size=7)

    def inputs(generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        return [torch.randn(5, 4, generator=generator) for _ in range(2)], torch.arange(5)

    check_module(loss, inputs)


def test_head() -> None:
    check_module(CosineHead(6, 4), lambda generator: (torch.randn(5, 6, generator=generator),))


def test_bank_state() -> None:
    class Pushes(torch.nn.Module):
        """A module whose call pushes into a copy and returns all that is stored."""

        def __init__(self) -> None:
            super().__init__()
            self.bank = LogitBank(3, 4)

        def forward(self, logits: Tensor, index: Tensor) -> Tensor:
            import copy

            bank = copy.deepcopy(self.bank)
            rows = bank.push(logits, index)
            return bank.snapshot()[0][rows]

    inputs = lambda generator: (torch.randn(3, 3, generator=generator), torch.arange(3))  # noqa: E731
    check_module(Pushes(), inputs, skip={"device": "rows in use are counted, so values are needed"})


@pytest.mark.filterwarnings("ignore:semantic", "ignore:partial")
def test_clusterer() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 5, generator=generator) + 3 * torch.eye(5)[torch.arange(24) % 3]
    refused = {"check_do_not_raise_errors_in_init_or_set_params": "impossible hyperparameters are refused at once"}
    of_classifiers = "scikit-learn asks whatever has predict_proba for the tags of a classifier"
    refused |= {f"check_estimator_sparse_{kind}": of_classifiers for kind in ("array", "matrix")}
    skip = {
        "bad data": "integers are features; what is refused is in test_bad_inputs",
        "arguments: parameters: semantic_weight: a number": "a weight, as well as the word in its place",
    }
    check_estimator(SP2OTClusterer(3, max_steps=2), (x.numpy(),), expected_failed_checks=refused, skip=skip)
