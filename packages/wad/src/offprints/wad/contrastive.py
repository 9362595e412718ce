"""The teacher's loss: NT-Xent of two views, without labels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_number, check_same_device, check_same_shape, check_tensor
from offprints.wad._checks import normalized, require


def nt_xent(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"], *, temperature: float = 0.5
) -> Float[Tensor, ""]:
    """Normalized temperature-scaled cross-entropy of the projections of two views of a batch (step 1, SimCLR).

    Each of the 2B projections is to find its other view among the 2B - 1 others: the mean over them of
    `-log(exp(cos(z, z') / temperature) / sum over the others of exp(cos / temperature))`. Computed by log-sum-exp, so
    that small temperatures keep their digits; half types in float32, and then returned in float32. Rows need not have
    length 1. One pair alone has nothing to be told from: 0.

    Args:
        z1: `(B, D)` projections of the first view.
        z2: `(B, D)` of the second, in the same order.
        temperature: Of the cosines, positive.

    Raises:
        TypeError: not floating tensors; `temperature` not a number.
        ValueError: other shapes, empty, NaN or infinite, rows of zeros, `temperature` not positive.

    Example:
        >>> z = torch.eye(3)
        >>> nt_xent(z, z, temperature=0.5)
        tensor(0.4327)
    """
    check_tensor(z1, "z1", ndim=2)
    check_tensor(z2, "z2", ndim=2)
    check_same_shape(z1, z2, ("z1", "z2"))
    check_same_device(z1, z2, names=("z1", "z2"))
    temperature = check_number(temperature, "temperature", low=0, open_low=True)
    for z, name in ((z1, "z1"), (z2, "z2")):
        require((z.detach() != 0).any(1).all(), f"{name} must have no rows of zeros, which have no direction")
    return contrastive_loss(z1, z2, temperature)


def contrastive_loss(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"], temperature: float
) -> Float[Tensor, ""]:
    """The same of arguments that a training makes: nothing waits for an accelerator."""
    dtype = working_dtype(z1, z2)
    with float32_region(z1.device):
        z = normalized(torch.cat([z1.to(dtype), z2.to(dtype)]))
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
        other = torch.arange(len(z), device=z.device).roll(len(z1))
        return F.cross_entropy(logits, other)
