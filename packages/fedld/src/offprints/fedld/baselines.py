"""What FedLD is compared with: weighted averaging (FedAvg, FedProx, FedBN) and gradient harmonization (FedGH)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from offprints.fedld.states import AggregationReport, combine


class WeightedAverage:
    """FedAvg's server: the mean of the clients by their numbers of examples, buffers included."""

    def aggregate(
        self,
        global_state: Mapping[str, Tensor],
        client_states: Sequence[Mapping[str, Tensor]],
        num_examples: Sequence[float] | None = None,
        *,
        buffer_names: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], AggregationReport]:
        """One round, as `PrincipalGradientAggregator.aggregate`."""
        result = combine(
            global_state,
            client_states,
            num_examples,
            lambda gram, names, share: share.expand(len(names), -1),
            averaged=frozenset(buffer_names),
            keep_steps=(),
        )
        return result.state, result.report

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


class GradientHarmonization:
    """FedGH's server: from the second round on, clients whose updates of a tensor disagree are made orthogonal.

    The clients are sorted by their projection on the tensor's history, the first is paired with the last, and where
    the two disagree each loses its part along the original other; the sums are paired in the same way until one is
    left, and divided by m. (The official code corrects the second of the last pair along the already changed first.)
    """

    def __init__(self) -> None:
        self._round = 0
        self._history: dict[str, Tensor] = {}

    def aggregate(
        self,
        global_state: Mapping[str, Tensor],
        client_states: Sequence[Mapping[str, Tensor]],
        num_examples: Sequence[float] | None = None,
        *,
        buffer_names: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], AggregationReport]:
        """One round, as `PrincipalGradientAggregator.aggregate`."""
        sizes = {name: value.numel() for name, value in global_state.items()}

        def coefficients(gram: Tensor, names: Sequence[str], share: Tensor) -> Tensor:
            m = len(share)
            rows = torch.full((len(names), m), 1 / m, dtype=torch.float64, device="cpu")
            for i, name in enumerate(names):
                if self._round > 0 and sizes[name] > 1 and bool(gram[i, m, m] > 0):
                    rows[i] = harmonized_coefficients(gram[i])
            return rows

        result = combine(
            global_state,
            client_states,
            num_examples,
            coefficients,
            averaged=frozenset(buffer_names),
            history=self._history,
        )
        self._round += 1
        for name, step in result.steps.items():
            past = self._history.get(name)
            self._history[name] = step if past is None else 0.99 * past.to(step) + 0.01 * step
        return result.state, result.report

    def state_dict(self) -> dict[str, Any]:
        """The number of rounds and each tensor's history, copied."""
        return {"round": self._round, "history": {name: past.clone() for name, past in self._history.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._round = int(state["round"])
        self._history = {name: past.clone() for name, past in state["history"].items()}


def harmonized_coefficients(gram: Tensor) -> Tensor:
    """Coefficients of FedGH's step from the Gram matrix of m updates and, last, the history: `[m + 1, m + 1]`."""
    m = len(gram) - 1
    product, past = gram[:m, :m], gram[:m, m]
    left = list(torch.eye(m, dtype=gram.dtype, device=gram.device))
    while len(left) > 1:
        left.sort(key=lambda u: float(u @ past))
        sums = []
        for a, b in zip(left[: len(left) // 2], reversed(left), strict=False):
            both = a @ product @ b
            if both < 0:
                a, b = a - both / (b @ product @ b) * b, b - both / (a @ product @ a) * a
            sums.append(a + b)
        if len(left) % 2:
            sums.append(left[len(left) // 2])
        left = sums
    return left[0] / m


def batch_norm_names(model: nn.Module) -> frozenset[str]:
    """Names of the tensors of the model's batch-norm layers, found by the type of the layer."""
    return frozenset(
        f"{name}.{key}" if name else key
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
        for key in module.state_dict()
    )


def buffer_names(model: nn.Module) -> frozenset[str]:
    """Names of the model's buffers that its state dict has."""
    state = model.state_dict()
    return frozenset(name for name, _ in model.named_buffers(remove_duplicate=False) if name in state)
