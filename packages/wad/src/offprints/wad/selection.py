"""Which unlabeled samples join the labeled ones after a round, and how many."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import eagerly, working_dtype
from offprints.shared.validation import check_number, check_same_device, check_tensor
from offprints.wad.losses import check_class_labels


def polynomial_decay(round: int, alpha: float, total_rounds: int, *, power: int = 2) -> float:
    """The share of the unlabeled samples that is moved after a round, `alpha * (1 - min(r, R) / R) ** power`.

    Step 4 of the method, where R is one less than the number of rounds: nothing moves after the last two. With R = 0
    nothing moves at all.

    Args:
        round: r, counted from 1; at 0 the share is `alpha`.
        alpha: In [0, 1].
        total_rounds: R, at least 0.
        power: At least 1.

    Raises:
        TypeError: not a number, or not an integer.
        ValueError: out of range.

    Example:
        >>> [round(polynomial_decay(r, 0.1, 5), 3) for r in range(1, 7)]
        [0.064, 0.036, 0.016, 0.004, 0.0, 0.0]
    """
    round = check_number(round, "round", low=0, integer=True)
    alpha = check_number(alpha, "alpha", low=0, high=1)
    total_rounds = check_number(total_rounds, "total_rounds", low=0, integer=True)
    power = check_number(power, "power", low=1, integer=True)
    if total_rounds == 0:
        return 0.0
    return float(alpha * (1 - min(round, total_rounds) / total_rounds) ** power)


@eagerly()
def select_reliable(
    logits_u: Float[Tensor, "unlabeled classes"], pseudo_labels: Int[Tensor, " unlabeled"], *, fraction: float
) -> Int[Tensor, " selected"]:
    """Positions of the `int(fraction * U)` samples whose pseudo-labels the student believes most (step 4).

    These are the smallest cross-entropies, in increasing order; of equal ones the first. No gradient flows.

    Args:
        logits_u: `(U, K)` of the student.
        pseudo_labels: `(U,)` integers in [0, K).
        fraction: In [0, 1]; the result is empty where `fraction * U` is below 1.

    Raises:
        TypeError: logits that are not a floating tensor, labels that are not an integer one.
        ValueError: empty, other shapes, labels out of range, NaN, infinities, `fraction` outside [0, 1].

    Example:
        >>> logits = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 0.0]])
        >>> select_reliable(logits, torch.tensor([1, 0, 0]), fraction=0.7)
        tensor([0, 1])
    """
    check_tensor(logits_u, "logits_u", ndim=2, validate=True)
    pseudo_labels = check_class_labels(pseudo_labels, "pseudo_labels", len(logits_u), logits_u.shape[1])
    check_same_device(logits_u, pseudo_labels, names=("logits_u", "pseudo_labels"))
    fraction = check_number(fraction, "fraction", low=0, high=1)
    logits, own = logits_u.detach().to(working_dtype(logits_u)), pseudo_labels.detach()[:, None]
    # The cross-entropy is softplus of how far the other classes are above the label's: the same order, but a sure
    # student's cross-entropies are 0 after rounding, and equal.
    above = logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]
    return above.argsort(stable=True)[: int(fraction * len(above))]
