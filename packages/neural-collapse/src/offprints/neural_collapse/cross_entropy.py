"""Cross-entropy with equal class sizes: the best simplex ETF, and a flat layout that deep heads may prefer to it.

The best simplex ETF is the optimum *within* the family of ETFs. With one or two linear layers, minimization of the
whole objective ends there; with three and more it ends lower, and even the regular polygon in a plane can be lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from offprints.neural_collapse._inputs import check_decay, check_decays
from offprints.shared.validation import check_number

_STEPS = 500


def ce_etf_solution(
    num_classes: int, samples_per_class: int, *, weight_decay: float | Sequence[float], feature_decay: float
) -> tuple[float, float]:
    """The best simplex ETF for cross-entropy: the gap between the right logit and the others, and the objective.

    omega >= 0 minimizes log(1 + (K-1) e^(-omega)) + (K-1)(M+1)/2 (lambda_H prod_j lambda_Wj n omega^2)^(1/(M+1)); where
    no gap is better than log K, the value of the zero solution, it is 0. For M >= 3 layers the objective of the whole
    problem can be lower than that of any ETF: see `offprints.neural_collapse.cross_entropy.ce_polygon_solution`.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        weight_decay: lambda_W1 to lambda_WM; a number means one layer.
        feature_decay: lambda_H.

    Raises:
        TypeError: numbers of the wrong kind.
        ValueError: ``num_classes`` < 2, ``samples_per_class`` < 1, a decay that is not positive and finite.

    Example:
        >>> omega, objective = ce_etf_solution(4, 10, weight_decay=[1e-3] * 3, feature_decay=1e-3)
        >>> round(omega, 3), round(objective, 6)
        (7.326, 0.030852)
    """
    K, scale, M = _checked(num_classes, samples_per_class, weight_decay, feature_decay)

    def gain(omega: float) -> tuple[float, float]:  # log of minus the slope of the loss, and its derivative
        tail = (K - 1) * math.exp(-omega)
        return math.log(K - 1) - omega - math.log1p(tail), -1 / (1 + tail)

    omega = _largest_root(gain, (K - 1) * scale, M)
    objective = math.log1p((K - 1) * math.exp(-omega)) + (K - 1) * (M + 1) / 2 * scale * omega ** (2 / (M + 1))
    return (omega, objective) if omega > 0 and objective < math.log(K) else (0.0, math.log(K))


def ce_polygon_solution(
    num_classes: int, samples_per_class: int, *, weight_decay: float | Sequence[float], feature_decay: float
) -> tuple[float, float]:
    """The best regular polygon for cross-entropy: the classes lie on a circle, and all layers have rank 2.

    The logits of class k are amplitude * cos(2 pi (k - l) / K). It shows that the simplex ETF is not the global
    minimizer of deep heads: from M = 3 layers on, its objective can be below that of `ce_etf_solution`. (It need not be
    the global minimizer either.)

    Args:
        num_classes: K, at least 3: with two classes there is no polygon.
        samples_per_class: n, at least 1.
        weight_decay: lambda_W1 to lambda_WM; a number means one layer.
        feature_decay: lambda_H.

    Returns:
        The amplitude, 0 where the zero solution is better, and the objective.

    Raises:
        TypeError: numbers of the wrong kind.
        ValueError: ``num_classes`` < 3, ``samples_per_class`` < 1, a decay that is not positive and finite.

    Example:
        >>> from offprints.neural_collapse.cross_entropy import ce_polygon_solution
        >>> round(ce_polygon_solution(4, 10, weight_decay=[1e-3] * 3, feature_decay=1e-3)[1], 6)
        0.028436
    """
    check_number(num_classes, "num_classes", low=3, integer=True)
    K, scale, M = _checked(num_classes, samples_per_class, weight_decay, feature_decay)
    gaps = [1 - math.cos(2 * math.pi * k / K) for k in range(K)]
    factor = (K / 2) ** (2 / (M + 1))  # both singular values of the cosines are K / 2

    def loss(amplitude: float) -> float:
        return math.log1p(math.fsum(math.exp(-amplitude * gap) for gap in gaps[1:]))

    def gain(amplitude: float) -> tuple[float, float]:
        terms = [math.exp(-amplitude * (gap - gaps[1])) for gap in gaps]
        rest = [gap * term for gap, term in zip(gaps, terms, strict=True)]
        total, first = math.fsum(terms), math.fsum(rest)  # terms[0] may be large, the quotient is not
        second = math.fsum(gap * part for gap, part in zip(gaps, rest, strict=True))
        return math.log(first) - math.log(total), -second / first + first / total

    amplitude = _largest_root(gain, 2 * scale * factor, M, limit=300 / gaps[1])
    objective = loss(amplitude) + (M + 1) * scale * factor * amplitude ** (2 / (M + 1))
    return (amplitude, objective) if amplitude > 0 and objective < math.log(K) else (0.0, math.log(K))


def _checked(
    num_classes: int, samples_per_class: int, weight_decay: float | Sequence[float], feature_decay: float
) -> tuple[int, float, int]:
    """K, (lambda_H prod_j lambda_Wj n)^(1/(M+1)) and M."""
    K = check_number(num_classes, "num_classes", low=2, integer=True)
    n = check_number(samples_per_class, "samples_per_class", low=1, integer=True)
    decays, feature_decay = check_decays(weight_decay), check_decay(feature_decay, "feature_decay")
    M = len(decays)
    logs = math.log(feature_decay) + math.fsum(map(math.log, decays)) + math.log(n)
    return K, math.exp(logs / (M + 1)), M


def _largest_root(gain: Callable[[float], tuple[float, float]], scale: float, M: int, limit: float = 1e300) -> float:
    """The largest stationary point of loss(t) + (M+1)/2 scale t^(2/(M+1)), or 0 where there is none.

    There log(-loss'(t)) = log(scale) + (2/(M+1) - 1) log t. The difference of the two sides is concave in t for the
    simplex ETF, so that Newton's method, started where it is negative, descends to the largest root.
    """
    exponent = 1 - 2 / (M + 1)

    def difference(t: float) -> tuple[float, float]:
        value, slope = gain(t)
        return value - math.log(scale) + exponent * math.log(t), slope + exponent / t

    t = 1.0
    while difference(t)[0] >= 0 or difference(t)[1] >= 0:
        t *= 2
        if t > limit:
            return 0.0
    for _ in range(_STEPS):
        value, slope = difference(t)
        if slope >= 0:  # beyond the maximum: no root
            return 0.0
        step = value / slope
        if step >= t:
            return 0.0
        t -= step
        if abs(step) <= 1e-15 * t:
            break
    return t
