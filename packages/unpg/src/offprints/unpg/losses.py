"""The unified loss: cross-entropy whose denominator also has the negative pairs of the batch (step 5)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.distributed import world_size
from offprints.shared.validation import Reduction, check_bool, check_labels, check_number, check_tensor, reduce
from offprints.unpg._classes import class_terms
from offprints.unpg._collectives import count_rows, gather_rows
from offprints.unpg._geometry import directions
from offprints.unpg.heads import MarginHead, check_batch
from offprints.unpg.pairs import pair_logsumexp
from offprints.unpg.sharding import ShardedMarginHead


def unified_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    extra_negatives: Float[Tensor, " extra"] | None = None,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute `-log(exp(l_iy) / (sum_j exp(l_ij) + sum_v exp(v)))` of each row i, step 5.

    It is the cross-entropy of the logits with the extra negatives appended to every row. As they are the same for all
    rows they become one column, their logsumexp, and not `(B, M)`. Half types are computed and returned in float32.

    Args:
        logits: `(B, C)`, scaled, with the margin on the target.
        labels: `(B,)` in [0, C).
        extra_negatives: `(M,)`, scaled; None or empty for the plain cross-entropy.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: `logits` or `extra_negatives` is no floating tensor, `labels` no integer one.
        ValueError: shapes that do not fit, an empty batch, values that are not finite, a label out of range, an unknown
            `reduction`.

    Example:
        >>> logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> loss = unified_cross_entropy(logits, labels, torch.zeros(5))
        >>> round(loss.exp().item(), 4)  # of 3 + 5 equal terms
        8.0
    """
    check_tensor(logits, "logits", ndim=2)
    labels = check_labels(labels, "labels", length=len(logits), num_classes=logits.shape[1])
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape ({len(logits)},), got {tuple(labels.shape)}")
    dtype = working_dtype(logits)
    extra = None
    if extra_negatives is not None:
        check_tensor(extra_negatives, "extra_negatives", ndim=1, allow_empty=True)
        dtype = working_dtype(logits, extra_negatives)
        if len(extra_negatives) > 0:
            extra = extra_negatives.to(dtype).logsumexp(0)
    with float32_region(logits.device):
        return reduce(_row_losses(logits.to(dtype), labels.to(logits.device), extra), reduction)


def _row_losses(logits: Tensor, labels: Tensor, extra: Tensor | None) -> Float[Tensor, " batch"]:
    """Cross-entropy of each row, with one more class whose logit `extra` all rows share."""
    if extra is not None:
        logits = torch.cat([logits, extra.expand(len(logits), 1)], 1)
    return F.cross_entropy(logits, labels, reduction="none")


def _two_sided(others: Tensor, target: Tensor, extra: Tensor | None) -> Float[Tensor, " batch"]:
    """The same from the logsumexp of the other classes and the logit of the own.

    Not by `logaddexp`, whose second derivative is undefined where its arguments are far apart.
    """
    if extra is not None:
        others = torch.stack([others, extra.expand_as(others)]).logsumexp(0)
    return -F.logsigmoid(target - others)


def _to_be_called(head: MarginHead) -> bool:
    """Whether the head is called as a module, or its classes are computed in blocks, which is faster.

    It is called for a forward or hooks of its own, for the compiler, and for forward-mode derivatives, which the blocks
    do not have.
    """
    own = type(head).forward is not MarginHead.forward or "forward" in vars(head)
    hooks = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    return own or bool(hooks) or torch.compiler.is_compiling() or forward_ad._current_level >= 0


class MarginLoss(nn.Module):
    """The loss of a margin head alone: the baseline, `UNPGLoss` without the negative pairs of the batch.

    Attributes:
        head: The head; its parameters are the module's.

    Args:
        head: A `MarginHead` or `ShardedMarginHead`.
        class_chunk: Classes per block. `(B, C)` is then never stored: the cosines are computed again in backward. The
            head is not called, so that a head with its own `forward` needs None. Without it a head with a `forward` or
            hooks of its own is called, and the cosines of any other are computed once, in blocks too.

    Raises:
        TypeError: `head` is none.
        ValueError: `class_chunk` < 1, or a head with its own `forward` and `class_chunk`.

    Example:
        >>> loss = MarginLoss(CosFaceHead(8, 5))
        >>> loss(torch.randn(3, 8), torch.tensor([4, 0, 1])).shape
        torch.Size([])
    """

    def __init__(self, head: MarginHead | ShardedMarginHead, *, class_chunk: int | None = None) -> None:
        super().__init__()
        if not isinstance(head, MarginHead | ShardedMarginHead):
            raise TypeError(f"head must be a MarginHead or a ShardedMarginHead, got {type(head).__name__}")
        if class_chunk is not None:
            class_chunk = check_number(class_chunk, "class_chunk", low=1, integer=True)
            if isinstance(head, MarginHead) and type(head).forward is not MarginHead.forward:
                raise ValueError(f"class_chunk must be None for a head with its own forward, {type(head).__name__}")
        self.head = head
        self.class_chunk = class_chunk

    def forward(self, embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch, and the head's regularizer; in float32 for half types.

        Under `torch.distributed` it is the mean over this rank's rows; with a sharded head, over the rows of all. Where
        pairs are gathered it is weighted by their number, so that the mean of the ranks is that of all rows.

        Raises:
            TypeError: `embeddings` is no floating tensor, `labels` no integer one.
            ValueError: not `(B, d)` and `(B,)`, an empty batch, values that are not finite, a label out of range.
        """
        head = self.head
        if isinstance(head, ShardedMarginHead):
            if head.world > 1:
                return self._over_ranks(head, embeddings, labels)
            head = head.head
        labels = check_batch(head, embeddings, labels)
        with float32_region(embeddings.device):
            x = embeddings.to(working_dtype(embeddings, head.weight))
            unit = directions(x)
            extra, weight = self._pairs(unit, labels, head.scale)
            if self.class_chunk is None and _to_be_called(head):
                cosine, regularizer = head(x, labels)
                losses = _row_losses(head.scale * cosine, labels, extra)
            else:
                others, target = class_terms(unit, head.weight, labels, head.scale, self.class_chunk)
                losses = _two_sided(others, head.scale * head.target_cosine(target, x), extra)
                regularizer = head.regularizer(x)
            loss = losses.mean() + regularizer
            return loss if weight == 1 else weight * loss

    def _over_ranks(self, head: ShardedMarginHead, embeddings: Tensor, labels: Tensor) -> Tensor:
        labels = check_batch(head.head, embeddings, labels)
        with float32_region(embeddings.device):
            x, labels, counts = head.all_rows(embeddings, labels)
            others, target = head.class_logits(x, labels, self.class_chunk)
            extra = self._pairs_of_all(directions(x), labels, counts, head)
            return _two_sided(others, target, extra).mean() + head.head.regularizer(x)

    def _pairs(self, x: Tensor, labels: Tensor, scale: float) -> tuple[Tensor | None, float]:
        """The pairs' logit, and what to weight this rank's mean with."""
        return None, 1

    def _pairs_of_all(self, x: Tensor, labels: Tensor, counts: list[int], head: ShardedMarginHead) -> Tensor | None:
        """The pairs' logit for the rows of all ranks: one, or one for each row."""
        return None

    def extra_repr(self) -> str:
        """Show the options in the module's representation."""
        return f"class_chunk={self.class_chunk}"


class UNPGLoss(MarginLoss):
    """The unified loss, step 5: every row's softmax has the negative pairs of the batch as further negatives.

    `-(1/B) sum_i log(exp(s c_iy) / (sum_j exp(s c_ij) + sum_v exp(s v)))`, with the head's cosines c, its margin and
    scale s, and v the similarities of the batch's pairs of different classes between the whiskers (`iqr_filter`), plus
    the head's regularizer. All rows share one logsumexp of the pairs. A batch of one class gives `MarginLoss`.

    Under `torch.distributed` the pairs are those of all ranks' rows, with gradient, so that the ranks' mean of losses
    and of gradients, as `DistributedDataParallel` takes it, is the value of one process with the whole batch, also
    where the ranks have unequal numbers of rows.

    Attributes:
        head: The head; its parameters are the module's.

    Args:
        head: A `MarginHead` or `ShardedMarginHead`.
        whisker: Of the filter, at least 0; the paper has 1.5 for MS1MV2 and 1.0 for K-FACE. None: no filter.
        class_chunk: Classes per block; see `MarginLoss`.
        gather: Whether pairs are made of all ranks' rows, or of each rank's own.

    Raises:
        TypeError: `head` is none, `gather` no boolean.
        ValueError: `whisker` < 0, `class_chunk` < 1, or a head with its own `forward` and `class_chunk`.

    Example:
        >>> loss = UNPGLoss(ArcFaceHead(8, 5, scale=16.0))
        >>> x, y = torch.randn(6, 8), torch.tensor([4, 0, 1, 0, 2, 2])
        >>> bool(loss(x, y) > MarginLoss(loss.head)(x, y))
        True
    """

    def __init__(
        self,
        head: MarginHead | ShardedMarginHead,
        *,
        whisker: float | None = 1.5,
        class_chunk: int | None = None,
        gather: bool = True,
    ) -> None:
        super().__init__(head, class_chunk=class_chunk)
        self.whisker = None if whisker is None else float(check_number(whisker, "whisker", low=0))
        self.gather = check_bool(gather, "gather")

    def _pairs(self, x: Tensor, labels: Tensor, scale: float) -> tuple[Tensor | None, float]:
        ranks = world_size() if self.gather else 1
        if ranks == 1:
            return pair_logsumexp(x, labels, scale, self.whisker), 1
        rows = count_rows(x)
        everything = gather_rows(x, rows), gather_rows(labels, rows)
        return pair_logsumexp(*everything, scale, self.whisker), ranks * len(x) / sum(rows.counts)

    def _pairs_of_all(self, x: Tensor, labels: Tensor, counts: list[int], head: ShardedMarginHead) -> Tensor:
        if self.gather:
            return pair_logsumexp(x, labels, head.scale, self.whisker)
        # The rows of all ranks are here already, and each rank's pairs can be computed from them.
        parts = zip(x.split(counts), labels.split(counts), strict=True)
        logits = [pair_logsumexp(*part, head.scale, self.whisker) for part in parts]
        return torch.cat([logit.expand(count) for logit, count in zip(logits, counts, strict=True)])

    def extra_repr(self) -> str:
        """Show the options in the module's representation."""
        return f"whisker={self.whisker}, {super().extra_repr()}, gather={self.gather}"
