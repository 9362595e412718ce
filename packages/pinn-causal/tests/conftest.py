"""Fixtures of this package's tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offprints.pinn_causal import MLP, ModifiedMLP


@pytest.fixture
def official() -> Callable[..., nn.Module]:
    """``official(data, prefix, hidden, embedding, outputs)``: a network with the weights of the golden data."""

    def build(
        data: dict[str, Tensor], prefix: str, hidden: tuple[int, ...], embedding: nn.Module | None, outputs: int
    ) -> nn.Module:
        make = MLP if f"{prefix}gate_u_W" not in data else ModifiedMLP
        inputs = 1 if embedding is None else embedding.in_features
        net = make(inputs, hidden, outputs, embedding=embedding).double()
        layers = {f"{i}": layer for i, layer in enumerate(net.layers)}
        names = {layer: (f"{prefix}W{i}", f"{prefix}b{i}") for i, layer in layers.items()}
        if isinstance(net, ModifiedMLP):
            names |= {
                net.gate_u: (f"{prefix}gate_u_W", f"{prefix}gate_u_b"),
                net.gate_v: (f"{prefix}gate_v_W", f"{prefix}gate_v_b"),
            }
        with torch.no_grad():
            for layer, (weight, bias) in names.items():
                layer.weight.copy_(data[weight].T)
                layer.bias.copy_(data[bias])
        return net

    return build
