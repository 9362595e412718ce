"""Self-labeling with progressive partial transport: the training objective of P²OT and SP²OT."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.distributed import all_reduce_, rank, world_size
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_labels,
    check_number,
    check_same_device,
    check_tensor,
)
from offprints.sp2ot._problem import as_batch, check_transport, relative_sizes
from offprints.sp2ot._sparse import as_coo, both_ways, check_similarity, sub_matrix
from offprints.sp2ot.bank import LogitBank, keep_wide
from offprints.sp2ot.schedule import KINDS, rho_schedule
from offprints.sp2ot.semantic import majorize
from offprints.sp2ot.transport import solve, warn_unconverged

OUTER_TOL = 1e-6
TOL = 1e-10
SMALLEST_EPSILON = 1e-6  # costs are logarithms of probabilities: smoothing below this resolves nothing


class SP2OTOutput(NamedTuple):
    """What :class:`SP2OTLoss` returns.

    Attributes:
        loss: Sum over heads.
        per_head: ``(heads,)``, detached. A head's mean of this over an epoch, divided by ``rho``, selects the best.
        pseudo_labels: ``[view][head]`` of ``(batch, clusters)``; rows sum to the confidence of a sample.
        rho: Share of the mass that was transported.

    Example:
        >>> criterion = SP2OTLoss(num_clusters=2, total_steps=10)
        >>> output = criterion([torch.zeros(3, 2), torch.zeros(3, 2)])
        >>> len(output.pseudo_labels), output.pseudo_labels[0][0].shape
        (2, torch.Size([3, 2]))
    """

    loss: Float[Tensor, ""]
    per_head: Float[Tensor, " heads"]
    pseudo_labels: list[list[Float[Tensor, "batch clusters"]]]
    rho: float


class SP2OTLoss(nn.Module):
    """Cross-entropy of each view of a batch with the pseudo-labels of the other views.

    The pseudo-labels of every view and head are a solution of :func:`semantic_partial_ot` (of :func:`partial_ot`
    without a similarity) for the share ``rho`` that the schedule gives, all problems in one call and without a
    gradient. Their rows sum to less than 1: the unsure samples weigh little.

    In training mode every call advances the schedule, the banks and the potentials that the next problems start from,
    all of them part of the ``state_dict``; in evaluation mode nothing changes. Where ``torch.distributed`` is running,
    the batches of all ranks, of equal size, form one problem, whose labels every rank takes its rows of.

    Args:
        num_clusters: Columns of the logits.
        total_steps: Steps of the schedule.
        num_heads: Heads.
        similarity: ``(N, N)`` graph of the whole data set, dense or sparse; None: plain P²OT.
        semantic_weight: Weight of the similarity; 1000 is made for problems of 5120 samples, ``0.195 N`` in general.
        epsilon: Smoothing of the transport, at least 1e-6.
        gamma: Weight of the clusters' sizes.
        rho_base, rho_upper, rho_kind: The schedule, see :func:`rho_schedule`.
        bank_size: Rows of the :class:`LogitBank` that each head solves on, ``banks[head]``; 0: the batch alone. Fill it
            before training with ``banks[head].push(logits, index)``.
        decay: Multiply the semantic weight by ``1 - rho``.
        outer_iterations: Largest number of steps of the semantic term.
        max_iterations: Largest number of steps of the transport solver.
        prior: ``(num_clusters,)`` relative sizes to ask for in place of equal ones.

    Potentials and banks stay in float32 or float64 when the module is made half: their range does not fit a half type.

    Raises:
        TypeError, ValueError: a number out of range, an unknown ``rho_kind``, a similarity that is not a square matrix.

    Example:
        >>> criterion = SP2OTLoss(num_clusters=3, total_steps=100)
        >>> logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
        >>> output = criterion([logits, logits])
        >>> output.pseudo_labels[0][0].sum(), round(output.rho, 4)
        (tensor(0.3182), 0.1061)
    """

    step: Tensor
    column_potential: Tensor
    similarity: Tensor | None
    prior: Tensor | None

    def __init__(
        self,
        *,
        num_clusters: int,
        total_steps: int,
        num_heads: int = 1,
        similarity: Float[Tensor, "n n"] | None = None,
        semantic_weight: float = 1000.0,
        epsilon: float = 0.1,
        gamma: float = 1.0,
        rho_base: float = 0.1,
        rho_upper: float = 1.0,
        rho_kind: Literal["sigmoid", "linear", "constant"] = "sigmoid",
        bank_size: int = 0,
        decay: bool = True,
        outer_iterations: int = 100,
        max_iterations: int = 1000,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_clusters = check_number(num_clusters, "num_clusters", low=1, integer=True)
        self.total_steps = check_number(total_steps, "total_steps", low=1, integer=True)
        self.num_heads = check_number(num_heads, "num_heads", low=1, integer=True)
        self.semantic_weight = check_number(semantic_weight, "semantic_weight", low=0)
        self.rho_base = check_number(rho_base, "rho_base", low=0, high=1, open_low=True)
        self.rho_upper = check_number(rho_upper, "rho_upper", low=rho_base, high=1)
        check_choice(rho_kind, "rho_kind", KINDS)
        self.rho_kind = rho_kind
        self.bank_size = check_number(bank_size, "bank_size", low=0, integer=True)
        self.decay = check_bool(decay, "decay")
        self.outer_iterations = check_number(outer_iterations, "outer_iterations", low=1, integer=True)
        check_number(epsilon, "epsilon", low=SMALLEST_EPSILON)
        check_transport(1.0, epsilon, gamma, "newton", 0.0, max_iterations)
        self.epsilon, self.gamma, self.max_iterations = float(epsilon), float(gamma), int(max_iterations)
        shares = relative_sizes(prior, self.num_clusters)
        self.banks = nn.ModuleList(LogitBank(num_clusters, bank_size) for _ in range(num_heads if bank_size else 0))
        if similarity is not None:
            check_similarity(similarity)
            similarity = as_coo(similarity)
        self.register_buffer("similarity", similarity, persistent=False)
        self.register_buffer("prior", shares, persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("column_potential", torch.zeros(num_heads, num_clusters + 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SP2OTLoss:
        return cast("SP2OTLoss", super()._apply(keep_wide(fn), recurse))  # type: ignore[no-untyped-call]

    @property
    def rho(self) -> float:
        """Share of the mass that the next call transports."""
        return rho_schedule(
            int(self.step),
            self.total_steps,
            base=self.rho_base,
            upper=self.rho_upper,
            kind=self.rho_kind,
        )

    def forward(
        self,
        logits: Sequence[Float[Tensor, "batch clusters"]] | Sequence[Sequence[Float[Tensor, "batch clusters"]]],
        index: Int[Tensor, " batch"] | None = None,
    ) -> SP2OTOutput:
        """The loss of one batch.

        Args:
            logits: ``[view]``, or ``[view][head]``, of ``(batch, clusters)``; at least two views.
            index: ``(batch,)`` numbers of the samples in the data set; needed with a bank or a similarity.

        Raises:
            TypeError: logits that are no floating tensors, an index that is no integer one.
            ValueError: fewer than two views, another number of heads or clusters, shapes that differ, logits that are
                not finite, an index that is missing or out of range, a batch larger than the bank.

        Warns:
            sklearn.exceptions.ConvergenceWarning: a transport problem was not solved.
        """
        views = self._check_logits(logits)
        index = self._check_index(index, views[0][0])
        rho = self.rho
        with torch.no_grad(), float32_region(views[0][0].device):
            labels = self._pseudo_labels(torch.stack([torch.stack(heads).detach() for heads in views]), index, rho)
        if self.training:
            self.step.add_(1)

        log_p = torch.stack([torch.stack([head.to(labels.dtype).log_softmax(1) for head in heads]) for heads in views])
        # The sum over ordered pairs of different views: all pairs, less each view with itself.
        pairs = (log_p.sum(0) * labels.sum(0)).sum(-1) - (log_p * labels).sum((0, -1))
        per_head = -pairs.mean(-1)
        pseudo_labels = [list(heads.unbind()) for heads in labels.unbind()]
        return SP2OTOutput(per_head.sum(), per_head.detach(), pseudo_labels, rho)

    def _check_logits(self, logits: Any) -> list[list[Tensor]]:
        if isinstance(logits, Tensor) or not isinstance(logits, Sequence):
            raise TypeError(f"logits must be a sequence of views, got {type(logits).__name__}")
        if len(logits) < 2:
            raise ValueError(f"logits must hold at least two views, got {len(logits)}")
        views = [[view] if not isinstance(view, Sequence) else list(view) for view in logits]
        for heads in views:
            for head in heads:
                check_tensor(head, "logits", ndim=2)
            if len(heads) != self.num_heads:
                raise ValueError(f"logits must hold {self.num_heads} heads of every view, got {len(heads)}")
        first = views[0][0]
        for heads in views:
            for head in heads:
                check_tensor(head, "logits", shape=(len(first), self.num_clusters), finite=False)
                check_same_device(first, head, names=("logits of the first view", "of the others"))
        return views

    def _check_index(self, index: Tensor | None, like: Tensor) -> Tensor:
        needed = self.bank_size > 0 or (self.similarity is not None and self.semantic_weight > 0)
        if index is None:
            if needed:
                raise ValueError("index must be given where there is a bank or a similarity, got None")
            return torch.zeros(len(like), dtype=torch.int64, device=like.device)
        total = None if self.similarity is None else len(self.similarity)
        index = check_labels(index, "index", length=len(like), num_classes=total)
        if index.ndim != 1:
            raise ValueError(f"index must have one dimension, got shape {tuple(index.shape)}")
        if 0 < self.bank_size < len(like) * world_size():
            raise ValueError(
                f"logits must have at most bank_size={self.bank_size} rows, got {len(like) * world_size()}"
            )
        return index.to(like.device)

    def _pseudo_labels(
        self, logits: Float[Tensor, "views heads batch clusters"], index: Int[Tensor, " batch"], rho: float
    ) -> Float[Tensor, "views heads batch clusters"]:
        views, heads, batch = logits.shape[:3]
        dtype = working_dtype(logits)
        mine = slice(0, batch)
        if world_size() > 1:
            logits, index = _of_all_ranks(logits, dim=2), _of_all_ranks(index, dim=0)
            mine = slice(rank() * batch, (rank() + 1) * batch)
        rows = torch.arange(len(index), device=index.device)
        # A call that is refused changes nothing.
        banks = copy.deepcopy(self.banks) if self.bank_size else self.banks
        if self.bank_size:
            logits, index, rows = _through_banks(banks, logits, index)
        cost = -as_batch(logits.flatten(0, 1)).log_softmax(-1)
        init = as_batch(self.column_potential.repeat(views, 1), axes=2)
        transport: dict[str, Any] = {
            "epsilon": self.epsilon,
            "gamma": self.gamma,
            "prior": self.prior,
            "method": "newton",
            "tol": TOL,
            "max_iterations": self.max_iterations,
        }
        if self.similarity is not None and self.semantic_weight > 0:
            graph = both_ways(sub_matrix(self.similarity, index))
            semantic, residual = majorize(
                cost,
                graph,
                None,
                rho=rho,
                weight=self.semantic_weight * (1 - rho) if self.decay else self.semantic_weight,
                outer_iterations=self.outer_iterations,
                outer_tol=OUTER_TOL,
                damping=1.0,
                init=init,
                **transport,
            )
            labels, potential = semantic.pseudo_labels, semantic.column_potential
        else:
            plain = solve(cost, rho=rho, init=init, **transport)
            labels, potential, residual = plain.pseudo_labels, plain.column_potential, plain.residual
        if residual > TOL:
            warn_unconverged(residual, TOL, self.max_iterations)
        if self.training:
            self.column_potential.copy_(potential[-heads:])
            for kept, pushed in zip(self.banks.buffers(), banks.buffers(), strict=True):
                kept.copy_(pushed)
        return labels[:, rows[mine].to(labels.device)].to(logits.device, dtype).unflatten(0, (views, heads))


def _through_banks(banks: nn.ModuleList, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All that the banks hold in place of a batch, and the rows of the batch in it.

    The first view goes in as new, the others in its place.
    """
    stored = []
    for view, of_view in enumerate(logits):
        snapshots = []
        for bank, of_head in zip(banks, of_view, strict=True):
            rows = cast("LogitBank", bank).push(of_head, index, replace_last=view > 0)
            snapshot, all_index = cast("LogitBank", bank).snapshot()
            snapshots.append(snapshot)
        stored.append(torch.stack(snapshots))
    return torch.stack(stored), all_index, rows


def _of_all_ranks(x: Tensor, *, dim: int) -> Tensor:
    """The tensors of all ranks, one after another along an axis."""
    parts = x.new_zeros(world_size(), *x.shape)
    parts[rank()] = x
    all_reduce_(parts)
    return torch.cat(parts.unbind(), dim)
