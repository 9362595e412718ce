"""A head whose classes are spread over the processes, as partial FC does (without its sampling)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.distributed import rank, world_size
from offprints.shared.validation import check_number
from offprints.unpg._classes import among, class_terms
from offprints.unpg._collectives import (
    count_rows,
    gather_rows,
    max_over_ranks,
    scale_gradient,
    sum_over_ranks,
)
from offprints.unpg._geometry import directions
from offprints.unpg.heads import HeadOutput, MarginHead, check_batch, cosines_with_margin

BLOCK = 2**14  # rows that are drawn at a time


class ShardedMarginHead(nn.Module):
    """A margin head of which each rank keeps its share of the classes; used in place of the head by the losses.

    Classes are split contiguously in the order of the ranks, in sizes as `numpy.array_split` gives. Full rows of
    cosines are never assembled: the losses reduce a maximum and a sum of exponentials over ranks, and are then the mean
    over the rows of all ranks, the same on every rank. The ranks' batches may differ in size. In one process, this is
    the plain head.

    The gradient of the weights is that of the whole loss and must not be averaged: keep this module out of
    `DistributedDataParallel`, and wrap the network alone, whose averaged gradients are then right.

    Initial weights are drawn for all classes in order, and only those of this rank are kept: with one seed on every
    rank they are those of the plain head.

    Attributes:
        weight: `(C_rank, d)`, the rows of the classes from `first` on.
        scale: As of the head.

    Args:
        head_type: `CosFaceHead`, `ArcFaceHead`, `MagFaceHead` or another subclass of `MarginHead` that keeps `forward`.
        in_features: Width d of the embeddings.
        num_classes: Number C of all classes, at least 2 and one for every rank.
        process_group: The ranks; default: all of them.
        head_kwargs: Hyperparameters of the head.

    Raises:
        TypeError: `head_type` is no such class; an unknown hyperparameter.
        ValueError: fewer classes than ranks, and what the head refuses.

    Example:
        >>> head = ShardedMarginHead(ArcFaceHead, 8, 5, margin=0.3)
        >>> head.weight.shape, head.first
        (torch.Size([5, 8]), 0)
    """

    def __init__(
        self,
        head_type: type[MarginHead],
        in_features: int,
        num_classes: int,
        *,
        process_group: Any = None,
        **head_kwargs: Any,
    ) -> None:
        super().__init__()
        if not (isinstance(head_type, type) and issubclass(head_type, MarginHead)):
            raise TypeError(f"head_type must be a subclass of MarginHead, got {head_type!r}")
        if head_type.forward is not MarginHead.forward:
            raise TypeError(f"head_type must keep the forward of MarginHead, {head_type.__name__} has its own")
        self.process_group = process_group
        self.world, number = world_size(process_group), rank(process_group)
        num_classes = check_number(num_classes, "num_classes", low=max(2, self.world), integer=True)
        share, more = divmod(num_classes, self.world)
        self.first = number * share + min(number, more)
        count = share + (number < more)
        with torch.random.fork_rng(devices=[]):  # its own draws are replaced
            self.head = head_type(in_features, max(2, count), **head_kwargs)
        self.head.num_classes = num_classes
        self.head.weight = nn.Parameter(self.head.weight.detach()[:count].clone())
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_take_share)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        """The rows of this rank."""
        return self.head.weight

    @property
    def scale(self) -> float:
        """What the losses multiply the cosines with."""
        return self.head.scale

    @property
    def num_classes(self) -> int:
        """Number of the classes of all ranks."""
        return self.head.num_classes

    @property
    def in_features(self) -> int:
        """Width of the embeddings."""
        return self.head.in_features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the class weights as the plain head does."""
        stop = self.first + len(self.weight)
        for start in range(0, self.num_classes, BLOCK):
            rows = self.weight.new_empty(min(BLOCK, self.num_classes - start), self.in_features)
            self.head.draw_rows_(rows)
            low, high = max(start, self.first), min(start + len(rows), stop)
            if low < high:
                self.weight[low - self.first : high - self.first] = rows[low - start : high - start]

    @torch.no_grad()
    def full_weight(self) -> Float[Tensor, "classes dim"]:
        """Return the weights of all classes, `(C, d)`, on every rank: the state of the plain head. A collective.

        `load_state_dict` takes the state of a plain head, and keeps this rank's share of it.
        """
        if self.world == 1:
            return self.weight.detach().clone()
        weight = self.weight.detach()
        return gather_rows(weight, count_rows(weight, self.process_group), self.process_group)

    def forward(self, embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> HeadOutput:
        """Compute the cosines of the rows of all ranks with this rank's classes, `(B_global, C_rank)`. A collective.

        Raises:
            TypeError, ValueError: as the head.
        """
        if self.world == 1:
            output: HeadOutput = self.head(embeddings, labels)
            return output
        labels = check_batch(self.head, embeddings, labels)
        with float32_region(embeddings.device):
            x, labels, _ = self.all_rows(embeddings, labels)
            cosine = cosines_with_margin(self.head, scale_gradient(x, self.world), labels, self.first)
            return HeadOutput(cosine, self.head.regularizer(x))

    def all_rows(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Gather the rows and labels of all ranks, and how many each has."""
        x = embeddings.to(working_dtype(embeddings, self.weight))
        rows = count_rows(x, self.process_group)
        x, labels = (gather_rows(part, rows, self.process_group) for part in (x, labels))
        return x, labels, rows.counts

    def class_logits(
        self, x: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"], class_chunk: int | None
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Reduce over ranks: the logsumexp of the other classes' logits, and the logit of the own, of each row.

        Each rank has the gradient of its own classes alone for the rows, together once; the losses of all ranks are
        averaged, hence it counts as often as there are ranks.
        """
        x = scale_gradient(x, self.world)
        others, cosine = class_terms(directions(x), self.weight, labels, self.scale, class_chunk, self.first)
        target = self.scale * self.head.target_cosine(cosine, x)
        own, _ = among(labels, self.first, len(self.weight))
        top = max_over_ranks(others, self.process_group)
        terms = torch.stack([(others - top).exp(), torch.where(own, target, 0)])
        total, logit = sum_over_ranks(terms, self.process_group)
        return top + total.log(), logit

    def extra_repr(self) -> str:
        """Show the share of this rank in the module's representation."""
        return f"classes {self.first} to {self.first + len(self.weight) - 1} of {self.num_classes}"


def _take_share(module: ShardedMarginHead, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Accept the state of a plain head, and full weights: keep this rank's rows."""
    own = f"{prefix}head.weight"
    if f"{prefix}weight" in state and own not in state:
        state[own] = state.pop(f"{prefix}weight")
    whole = state.get(own)
    if isinstance(whole, Tensor) and len(whole) == module.num_classes:
        state[own] = whole[module.first : module.first + len(module.weight)]
