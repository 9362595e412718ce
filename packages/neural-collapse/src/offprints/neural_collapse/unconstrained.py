"""The unconstrained feature model of a deep linear head: its objective, and its global minimizers as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.neural_collapse._inputs import check_class_counts, check_decay, check_decays, check_dims, check_dtype
from offprints.neural_collapse.closed_form import gof_solution
from offprints.neural_collapse.cross_entropy import ce_etf_solution
from offprints.neural_collapse.frames import orthonormal, zero_sum_basis
from offprints.shared.device import make_generator, working_dtype
from offprints.shared.validation import check_bool, check_choice, check_number

LOSSES = ("mse", "ce")


@dataclass(frozen=True, eq=False)
class UFMState:
    """Weights, features and bias of the unconstrained feature model.

    Attributes:
        weights: W_1, nearest the features, to W_M; each ``[out, in]``.
        features: ``[N, d_1]``, sorted by class.
        bias: ``[K]``, or None.
        labels: ``[N]``.
        loss: The objective.

    Example:
        >>> state = global_minimizer([3, 2], [4, 4], weight_decay=[1e-2, 1e-2], feature_decay=1e-2)
        >>> [tuple(W.shape) for W in state.weights], tuple(state.features.shape)
        ([(4, 4), (2, 4)], (5, 4))
    """

    weights: list[Float[Tensor, "out inner"]]
    features: Float[Tensor, "samples dim"]
    bias: Float[Tensor, " classes"] | None
    labels: Int[Tensor, " samples"]
    loss: float

    def state_dict(self) -> dict[str, Tensor]:
        """The same as a state of `DeepLinearUFM`: ``model.load_state_dict(state.state_dict())``."""
        found = {f"weights.{j}": W for j, W in enumerate(self.weights)}
        found |= {"features": self.features, "labels": self.labels}
        return found if self.bias is None else found | {"bias": self.bias}


def _labels(counts: Sequence[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _shapes(dims: Sequence[int], num_classes: int) -> list[tuple[int, int]]:
    """(out, in) of W_1 to W_M."""
    return list(zip([*dims[1:], num_classes], dims, strict=True))


def global_minimizer(
    class_counts: Sequence[int],
    dims: Sequence[int],
    *,
    weight_decay: float | Sequence[float],
    feature_decay: float,
    bias: bool = False,
    loss: str = "mse",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> UFMState:
    """A global minimizer of `DeepLinearUFM.objective`, randomly rotated, without any optimization.

    - ``"mse"``, no bias: the general orthogonal frame of `gof_solution`, for any class sizes, depth and decays. A layer
      narrower than the number of classes keeps the largest classes.
    - ``"mse"`` with bias, equal class sizes: b = 1/K, and a simplex ETF in the K - 1 directions that remain.
    - ``"ce"``, equal class sizes: the best simplex ETF of `ce_etf_solution`. For M >= 3 layers this is a stationary
      point but **not** the global minimizer in general.

    Args:
        class_counts: Samples of each class.
        dims: d_1 to d_M, the widths of the layers' inputs; d_1 is that of the features.
        weight_decay: lambda_W1 to lambda_WM; a number means one layer.
        feature_decay: lambda_H.
        bias: Whether the last layer has a bias; it is not regularized.
        loss: ``"mse"`` or ``"ce"``.
        seed: Of the rotations: all of them are global minimizers.
        dtype: Type of the tensors; computed in float64.

    Raises:
        TypeError: numbers of the wrong kind, ``bias`` not a boolean, ``dtype`` not floating.
        ValueError: fewer than 2 classes, a count < 1, unequal counts with a bias or cross-entropy, a decay that is not
            positive and finite, ``dims`` not one width per layer, for cross-entropy one below K - 1, an unknown loss.

    Example:
        >>> options = {"weight_decay": [5e-3, 5e-3], "feature_decay": 5e-3}
        >>> model = DeepLinearUFM([20, 10, 5], [8, 8], **options)
        >>> model.load_state_dict(global_minimizer([20, 10, 5], [8, 8], **options).state_dict())
        <All keys matched successfully>
        >>> gradients = torch.autograd.grad(model.objective(), list(model.parameters()))
        >>> max(g.abs().max().item() for g in gradients) < 1e-12
        True
    """
    check_choice(loss, "loss", LOSSES)
    bias = check_bool(bias, "bias")
    balanced_for = "cross-entropy" if loss == "ce" else "a bias" if bias else None
    counts = check_class_counts(class_counts, balanced_for=balanced_for)
    decays, feature_decay = check_decays(weight_decay), check_decay(feature_decay, "feature_decay")
    dims, dtype, generator = check_dims(dims, len(decays)), check_dtype(dtype), make_generator(seed)
    K = len(counts)
    if loss == "ce" and min(dims) < K - 1:
        raise ValueError(f"dims must be at least K - 1 = {K - 1} for cross-entropy, got {min(dims)}")

    # The classes' side: directions `ends` in the space of logits, and how far each goes through W_1 and the features.
    bias_values = None
    if loss == "mse" and not bias:
        rank = min(K, *dims)
        solution = gof_solution(counts, weight_decay=decays, feature_decay=feature_decay, rank=rank)
        kept = solution.ww.argsort(descending=True, stable=True)[:rank].sort().values
        ends = torch.eye(K, dtype=torch.float64)[:, kept]
        first, means, value = solution.singular_values[kept], solution.hh[kept].sqrt(), solution.loss
    else:
        ends = zero_sum_basis(K, generator)[:, : min(dims)]
        rank, n = ends.shape[1], counts[0]
        if loss == "mse":
            solution = gof_solution(counts, weight_decay=decays, feature_decay=feature_decay)
            scales = (solution.singular_values[0].item(), solution.hh[0].sqrt().item())
            # `rank` directions of K reach the minimum of a class, K - 1 - rank stay at 1/K each, the bias takes one.
            value = rank / K * solution.loss + (K - 1 - rank) / (2 * K)
            bias_values = torch.full((K,), 1 / K, dtype=torch.float64)
        else:
            omega, value = ce_etf_solution(K, n, weight_decay=decays, feature_decay=feature_decay)
            # All layers and the features carry the same penalty: lambda_Wj s_j^2 = lambda_H n |mean|^2 = tau.
            logs = math.log(feature_decay) + math.fsum(map(math.log, decays)) + math.log(n)
            tau = math.exp((logs + 2 * math.log(omega)) / (len(decays) + 1)) if omega > 0 else 0.0
            scales = (math.sqrt(tau / decays[0]), math.sqrt(tau / feature_decay / n))
            bias_values = torch.zeros(K, dtype=torch.float64) if bias else None
        first, means = (torch.full((rank,), scale, dtype=torch.float64) for scale in scales)

    sides = [*(orthonormal(d, rank, generator) for d in dims), ends]
    weights = [(sides[j + 1] * (first * math.sqrt(decays[0] / decays[j]))) @ sides[j].T for j in range(len(decays))]
    labels = _labels(counts)
    class_means = (ends * means) @ sides[0].T
    return UFMState(
        weights=[W.to(dtype) for W in weights],
        features=class_means.to(dtype)[labels],
        bias=None if bias_values is None else bias_values.to(dtype),
        labels=labels,
        loss=value,
    )


class DeepLinearUFM(nn.Module):
    """The unconstrained feature model: features that are free parameters, followed by M linear layers.

    Its `objective` is, with the features H in rows and the one-hot labels Y, 1/(2N) ||H W_1^T ... W_M^T + b - Y||^2 (or
    the mean cross-entropy) + sum_j lambda_Wj/2 ||W_j||^2 + lambda_H/2 ||H||^2. Class sizes may be unequal whatever the
    loss. Weights and features start as N(0, init_std^2), the bias at 0.

    Args:
        class_counts: Samples of each class; the features are sorted by class.
        dims: d_1 to d_M, the widths of the layers' inputs.
        weight_decay: lambda_W1 to lambda_WM; a number means one layer.
        feature_decay: lambda_H.
        loss: ``"mse"`` or ``"ce"``.
        bias: Whether the last layer has a bias; it is not regularized.
        init_std: Standard deviation of the initial values.
        seed: Of the initial values.
        dtype: Type of the parameters.

    Attributes:
        weights: W_1 to W_M, each ``[out, in]``.
        features: ``[N, d_1]``.
        bias: ``[K]``, or None.
        labels: ``[N]``, a buffer.

    Raises:
        TypeError: numbers of the wrong kind, ``bias`` not a boolean, ``dtype`` not floating.
        ValueError: fewer than 2 classes, a count < 1, a decay that is not positive and finite, ``dims`` not one width
            per layer, ``init_std`` negative, an unknown loss.

    Example:
        >>> model = DeepLinearUFM([20, 10, 5], [8, 8], weight_decay=[5e-3, 5e-3], feature_decay=5e-3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> model.objective().backward()
        >>> optimizer.step()
        >>> model().shape, model.product().shape
        (torch.Size([35, 3]), torch.Size([3, 8]))
    """

    labels: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        class_counts: Sequence[int],
        dims: Sequence[int],
        *,
        weight_decay: float | Sequence[float],
        feature_decay: float,
        loss: str = "mse",
        bias: bool = False,
        init_std: float = 0.1,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        check_choice(loss, "loss", LOSSES)
        counts, self.weight_decay = check_class_counts(class_counts), check_decays(weight_decay)
        self.feature_decay, self.loss = check_decay(feature_decay, "feature_decay"), loss
        dims, dtype = check_dims(dims, len(self.weight_decay)), check_dtype(dtype)
        init_std, bias = check_number(init_std, "init_std", low=0), check_bool(bias, "bias")
        generator, self.num_classes = make_generator(seed), len(counts)

        def draw(*shape: int) -> nn.Parameter:
            # Drawn in float64 whatever the type: one seed is one starting point.
            return nn.Parameter((init_std * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype))

        self.weights = nn.ParameterList([draw(*shape) for shape in _shapes(dims, self.num_classes)])
        self.features = draw(sum(counts), dims[0])
        self.register_parameter("bias", nn.Parameter(torch.zeros(self.num_classes, dtype=dtype)) if bias else None)
        self.register_buffer("labels", _labels(counts))

    def product(self, start: int = 0) -> Float[Tensor, "classes dim"]:
        """W_M ... W_{start+1}, the classifier that the input of layer ``start`` (counted from 0) sees.

        Raises:
            ValueError: ``start`` is not the number of a layer.
        """
        return chain([*self.weights][check_number(start, "start", low=0, high=len(self.weights) - 1, integer=True) :])

    def forward(self) -> Float[Tensor, "samples classes"]:
        """The logits of all samples."""
        return F.linear(self.features, self.product(), self.bias)

    def objective(self) -> Float[Tensor, ""]:
        """The regularized loss of all samples, a scalar; half types are computed in float32."""
        dtype = working_dtype(self.features)
        weights, features = [W.to(dtype) for W in self.weights], self.features.to(dtype)
        logits = F.linear(features, chain(weights), None if self.bias is None else self.bias.to(dtype))
        if self.loss == "mse":
            targets = F.one_hot(self.labels, self.num_classes).to(logits.dtype)
            fit = (logits - targets).square().sum() / (2 * len(logits))
        else:
            fit = F.cross_entropy(logits, self.labels)
        for decay, W in zip(self.weight_decay, weights, strict=True):
            fit = fit + decay / 2 * W.square().sum()
        return fit + self.feature_decay / 2 * features.square().sum()


def chain(weights: Sequence[Tensor]) -> Float[Tensor, "out inner"]:
    """W_M ... W_1 of ``[W_1, ..., W_M]``, from the side of the classes, which is the small one."""
    result = weights[-1]
    for W in reversed(weights[:-1]):
        result = result @ W
    return result
