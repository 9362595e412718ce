"""A linear layer and its cross-entropy in one, for vocabularies whose logits do not fit in memory."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import Reduction, check_choice, check_labels, check_number, check_tensor
from offprints.stablemax._fused import Options, fused_losses
from offprints.stablemax.losses import any_ignored


def _autocast(tensor: Tensor) -> Tensor:
    """A tensor in the type in which `F.linear` runs under autocast, which leaves double precision alone.

    The loop over blocks is one operation to autograd, so that autocast itself does not see its inputs.
    """
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def _checked(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The arguments in the types in which they are multiplied."""
    check_tensor(hidden, "hidden", min_ndim=1, finite=False)
    check_tensor(weight, "weight", shape=(None, hidden.shape[-1]), finite=False)
    classes = weight.shape[0]
    if classes < 2:
        raise ValueError(f"weight must have at least 2 rows, one per class, got shape {tuple(weight.shape)}")
    if bias is not None:
        check_tensor(bias, "bias", shape=(classes,), finite=False)
    hidden, weight, bias = _autocast(hidden), _autocast(weight), None if bias is None else _autocast(bias)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise ValueError(f"{name} must have the type of hidden, {hidden.dtype}, got {tensor.dtype}")
    target = check_labels(target, "target", num_classes=classes, ignore_index=ignore_index)
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target must have shape {tuple(hidden.shape[:-1])} for hidden {tuple(hidden.shape)}, "
            f"got {tuple(target.shape)}"
        )
    return hidden, weight, bias, target


def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    token_weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    options: Options,
) -> Tensor:
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    check_number(options.chunk_size, "chunk_size", low=1, integer=True)
    check_number(ignore_index, "ignore_index", integer=True)
    check_number(options.label_smoothing, "label_smoothing", low=0, high=1)
    hidden, weight, bias, target = _checked(hidden, weight, bias, target, ignore_index)
    shape, class_weight = target.shape, options.class_weight
    hidden, target = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    if class_weight is not None:
        check_tensor(class_weight, "class_weight", shape=(len(weight),))
    if token_weight is not None:
        check_tensor(token_weight, "token_weight", shape=tuple(shape))
        token_weight = token_weight.reshape(-1).to(working_dtype(hidden))

    kept = target != ignore_index
    labels = target.where(kept, 0)
    if any_ignored(kept):  # 0 times NaN is not 0: what is to be ignored must not reach the products
        hidden = torch.where(kept.unsqueeze(1), hidden, 0)
    factor = None if token_weight is None else torch.where(kept, token_weight, 0)
    if reduction == "none":
        losses = fused_losses(hidden, weight, bias, None, labels, kept, options)
        return (losses if factor is None else losses * factor).reshape(shape)
    ones = torch.ones(1, dtype=working_dtype(hidden), device=hidden.device).expand(len(hidden))
    scale = ones if factor is None else factor
    total = fused_losses(hidden, weight, bias, scale, labels, kept, options)
    if reduction == "sum":
        return total
    if class_weight is None and token_weight is None:
        return total / kept.sum().clamp(min=1)
    counted = scale if class_weight is None else scale * class_weight.to(scale.dtype)[labels]
    counts = kept if token_weight is None else kept & (scale != 0)
    return total / torch.where(counts.any(), torch.where(kept, counted, 0).sum(), 1)


def linear_stablemax_cross_entropy(
    hidden: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    class_weight: Float[Tensor, " classes"] | None = None,
    token_weight: Float[Tensor, "*batch"] | None = None,
) -> Tensor:
    """`stablemax_cross_entropy(F.linear(hidden, weight, bias), target)` without ever holding the logits ``[batch,
    classes]``.

    At most `batch * chunk_size` logits (and at least one row) exist at a time. Rows are taken whole: the loss and
    the gradients of a block come from one pass, the logits are computed once (twice for `reduction="none"`). The
    result does not depend on `chunk_size` beyond rounding. Half types multiply in their own type and add in float32;
    the loss is float32 (float64 for float64 inputs). Second derivatives and the transforms of `torch.func` are right,
    but hold whole logits.

    Args:
        hidden: Inputs of the layer, ``[N, D]``, ``[B, T, D]``, or ``[D]`` of a single row.
        weight: Weights of the layer.
        target: Labels, of the shape of `hidden` without its last axis.
        bias: Bias of the layer.
        chunk_size: Bound on the logits that exist at a time, divided by the number of rows.
        ignore_index: Label of rows that do not count.
        reduction: `"mean"`, `"sum"` or `"none"`.
        label_smoothing: As in `stablemax_cross_entropy`.
        class_weight: Weights of the classes, `weight` of `stablemax_cross_entropy`.
        token_weight: Factors of the single losses. The mean divides by the sum of the weights that count, of the label
            times of the token; it is 0 where no token has a weight, as where all labels are ignored.

    Raises:
        TypeError: a floating argument that is not floating, `target` not of an integer type.
        ValueError: empty batch, fewer than 2 classes, shapes or types that do not fit, a label outside [0, classes)
            that is not `ignore_index`, `chunk_size` < 1, an unknown reduction, `label_smoothing` outside [0, 1].

    Example:
        >>> hidden, weight = torch.ones(2, 4), torch.zeros(5, 4)
        >>> linear_stablemax_cross_entropy(hidden, weight, torch.tensor([0, 3]))  # log 5
        tensor(1.6094)
    """
    options = Options("stablemax", chunk_size, label_smoothing, class_weight)
    return _linear_cross_entropy(hidden, weight, target, bias, token_weight, ignore_index, reduction, options)


def linear_exact_cross_entropy(
    hidden: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    class_weight: Float[Tensor, " classes"] | None = None,
    token_weight: Float[Tensor, "*batch"] | None = None,
) -> Tensor:
    """`exact_cross_entropy(F.linear(hidden, weight, bias), target)` without ever holding the logits ``[batch,
    classes]``.

    Arguments, memory and errors are those of `linear_stablemax_cross_entropy`.

    Raises:
        TypeError: as `linear_stablemax_cross_entropy`.
        ValueError: as `linear_stablemax_cross_entropy`.

    Example:
        >>> hidden, weight = torch.ones(1, 2, 4), torch.zeros(5, 4)
        >>> linear_exact_cross_entropy(hidden, weight, torch.tensor([[0, -100]]), reduction="none")
        tensor([[1.6094, 0.0000]])
    """
    options = Options("softmax", chunk_size, label_smoothing, class_weight)
    return _linear_cross_entropy(hidden, weight, target, bias, token_weight, ignore_index, reduction, options)
