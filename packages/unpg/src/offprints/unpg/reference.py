"""UNPG as the paper and its code have it, in plain steps: read it first.

Every negative pair of the batch is an entry of every row's softmax. The tests show that the package equals it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Head = Literal["cosface", "arcface", "magface"]


def magface_margin(norm: Tensor) -> Tensor:
    """The margin of MagFace grows with the length of the embedding, from 0.45 at 10 to 0.8 at 110."""
    return (0.8 - 0.45) / (110 - 10) * (norm.clamp(10, 110) - 10) + 0.45


def margin_cosines(x: Tensor, y: Tensor, w: Tensor, head: Head, margin: float) -> Tensor:
    """Step 1: cosines `(B, C)` of embeddings and class weights, with the margin on the entry of the own class."""
    cosines = (x / x.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T
    rows = []
    for i, own in enumerate(y.tolist()):
        c = cosines[i, own]
        if head == "cosface":
            c = c - margin
        elif head == "arcface":
            c = torch.cos(torch.acos(c) + margin)
        elif c > 0:  # MagFace: an easy margin
            c = torch.cos(torch.acos(c) + magface_margin(x[i].norm()))
        rows.append(torch.cat([cosines[i, :own], c[None], cosines[i, own + 1 :]]))
    return torch.stack(rows)


def pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Steps 2 and 3: similarities of the pairs p < q with equal and with different labels, row by row."""
    units = x / x.norm(dim=1, keepdim=True)
    positive: list[Tensor] = []
    negative: list[Tensor] = []
    for p in range(len(y)):
        for q in range(p + 1, len(y)):
            (positive if y[p] == y[q] else negative).append(units[p] @ units[q])
    empty = x.new_zeros(0)
    return torch.stack(positive) if positive else empty, torch.stack(negative) if negative else empty


def box_and_whisker(values: Tensor, whisker: float) -> Tensor:
    """Step 4: the values between the whiskers, sorted."""
    if len(values) == 0:
        return values
    values = values.sort().values
    q1, q3 = values[int(0.25 * len(values))].item(), values[int(0.75 * len(values))].item()
    low, high = q1 - whisker * (q3 - q1), q3 + whisker * (q3 - q1)
    return values[(values >= low) & (values <= high)]


def unpg_loss(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    head: Head,
    *,
    scale: float = 64.0,
    margin: float = 0.5,
    whisker: float | None = 1.5,
    pair_negatives: bool = True,
    lambda_g: float = 35.0,
) -> Tensor:
    """Step 5: one softmax over the classes and the kept negative pairs, for every row."""
    cosines = margin_cosines(x, y, w, head, margin)
    negatives = pairs(x, y)[1] if pair_negatives else x.new_zeros(0)
    kept = negatives if whisker is None else box_and_whisker(negatives, whisker)
    total = x.new_zeros(())
    for i, own in enumerate(y.tolist()):
        logits = scale * torch.cat([cosines[i], kept])
        total = total - torch.log_softmax(logits, 0)[own]
    loss = total / len(y)
    if head == "magface":  # step 6: its regularizer prefers long embeddings
        a = x.norm(dim=1).clamp(10, 110)
        loss = loss + lambda_g * (a / 110**2 + 1 / a).mean()
    return loss
