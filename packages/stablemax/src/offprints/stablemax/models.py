"""The paper's models for algorithmic data: a bias-free ReLU network and a one-layer transformer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.validation import check_labels, check_number, check_tensor


class GrokMLP(nn.Module):
    """Linear-ReLU layers and a linear head, torch's initialization; logits are multiplied by ``alpha``.

    Modular arithmetic takes ``bias=False`` (the network is then positively homogeneous in its weights), sparse parity
    ``bias=True``.

    Raises:
        ValueError: a width < 1, or `alpha` not positive.

    Example:
        >>> GrokMLP(14, 7, hidden=(32,))(modular_arithmetic(7)[0]).shape
        torch.Size([49, 7])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (200, 200),
        bias: bool = False,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        check_number(in_features, "in_features", low=1, integer=True)
        check_number(out_features, "out_features", low=1, integer=True)
        check_number(alpha, "alpha", low=0, open_low=True)
        for width in hidden:
            check_number(width, "hidden", low=1, integer=True)
        widths = (in_features, *hidden, out_features)
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=bias) for before, after in pairwise(widths))
        self.in_features = in_features
        self.alpha = alpha

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of ``x``."""
        check_tensor(x, "x", shape=(None, self.in_features), finite=False)
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x must have the type of the weights, {dtype}, got {x.dtype}")
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        logits: Tensor = self.layers[-1](x)
        return logits if self.alpha == 1 else logits * self.alpha


class GrokTransformer(nn.Module):
    """Embedding, ``num_layers`` torch encoder layers without positional code, and a linear head on the last position.

    Raises:
        ValueError: a size < 1, `d_model` not divisible by `num_heads`, `dropout` outside [0, 1].

    Example:
        >>> model = GrokTransformer(7, d_model=16, num_heads=2)
        >>> model(modular_arithmetic(7, encoding="index")[0]).shape
        torch.Size([49, 7])
    """

    def __init__(
        self,
        vocab_size: int = 113,
        *,
        d_model: int = 128,
        num_heads: int = 4,
        num_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "d_model": d_model, "num_heads": num_heads, "num_layers": num_layers}
        for name, value in sizes.items():
            check_number(value, name, low=1, integer=True)
        check_number(dropout, "dropout", low=0, high=1)
        if d_model % num_heads:
            raise ValueError(f"d_model must be divisible by num_heads, got {d_model} and {num_heads}")
        self.embedding = nn.Embedding(vocab_size, d_model)
        layer = nn.TransformerEncoderLayer(d_model, num_heads, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocab"]:
        """Logits at the last position of ``tokens``."""
        tokens = check_labels(tokens, "tokens", num_classes=self.embedding.num_embeddings)
        if tokens.ndim != 2:
            raise ValueError(f"tokens must have shape (batch, length), got {tuple(tokens.shape)}")
        logits: Tensor = self.head(self.encoder(self.embedding(tokens))[:, -1])
        return logits
