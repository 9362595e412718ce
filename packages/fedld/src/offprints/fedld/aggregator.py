"""The server of FedLD: global weights from those of the clients, round by round."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from offprints.fedld.principal import Rule, check_rule, principal_coefficients
from offprints.fedld.states import AggregationReport, buffer_names_of, check_max_norm, check_state, combine
from offprints.shared.validation import check_choice, check_number


class PrincipalGradientAggregator:
    """Principal-direction aggregation of the clients' state dicts (the paper's server step).

    Each tensor of the model moves by `principal_aggregate` of the clients' updates, unweighted: client sizes play no
    role but for buffers. The first rounds take the plain mean of the updates, and so do later ones for tensors of one
    element and for those whose steps were exactly zero until then.

    A client whose state has other keys, shapes or kinds of types, NaN or infinity, no positive number of examples, or
    too long an update is left out, with a warning of the logger `offprints.fedld` and a line of the report.

    Args:
        k_proportion: Share of the principal directions that is kept.
        rule: "signed", the official one, or "projection"; see `principal_aggregate`.
        warmup_rounds: First rounds that take the plain mean. With 0 the first is not a mean either; its zero test has
            no history and is left out.
        server_lr: Factor of the step. The official step is shorter than the mean update (by a quarter with 5 clients,
            by half with 7).
        buffers: With "average" the integer tensors and those of `buffer_names` (running statistics) are averaged by
            `num_examples`; with "principal" floating buffers are treated like weights, as the official code does, which
            can make a running variance negative. Integers are averaged and rounded either way.
        on_bad_update: "reject", or "raise" a ValueError at the first bad client.
        max_update_norm: Largest norm of a client's update, over the floating tensors that are not averaged as buffers,
            all together; None: any.

    Raises:
        TypeError, ValueError: An argument of another kind or out of its range.

    Example:
        >>> server = PrincipalGradientAggregator()
        >>> before = {"weight": torch.zeros(2)}
        >>> clients = [{"weight": torch.tensor([1.0, 1.0])}, {"weight": torch.tensor([3.0, float("nan")])}]
        >>> after, report = server.aggregate(before, clients)
        >>> after["weight"], report.rejected
        (tensor([1., 1.]), {1: 'weight is not finite'})
    """

    def __init__(
        self,
        *,
        k_proportion: float = 0.8,
        rule: Rule = "signed",
        warmup_rounds: int = 1,
        server_lr: float = 1.0,
        buffers: Literal["average", "principal"] = "average",
        on_bad_update: Literal["reject", "raise"] = "reject",
        max_update_norm: float | None = None,
    ) -> None:
        check_rule(k_proportion, rule)
        check_number(warmup_rounds, "warmup_rounds", low=0, integer=True)
        check_number(server_lr, "server_lr", low=0, open_low=True)
        check_choice(buffers, "buffers", ("average", "principal"))
        check_choice(on_bad_update, "on_bad_update", ("reject", "raise"))
        check_max_norm(max_update_norm)
        self.k_proportion = k_proportion
        self.rule: Rule = rule
        self.warmup_rounds = warmup_rounds
        self.server_lr = server_lr
        self.buffers = buffers
        self.on_bad_update = on_bad_update
        self.max_update_norm = max_update_norm
        self._round = 0
        # The history of a tensor is asked only whether it is zero: kept are the names of those that have moved.
        self._moved: set[str] = set()

    def aggregate(
        self,
        global_state: Mapping[str, Tensor],
        client_states: Sequence[Mapping[str, Tensor]],
        num_examples: Sequence[float] | None = None,
        *,
        buffer_names: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], AggregationReport]:
        """One round: the new global state and who was in it. The arguments are left as they are.

        Half types are combined in float32, Gram matrices and eigenvectors in float64. The result does not depend on the
        order of the clients, up to rounding.

        Args:
            global_state: What the clients started from. Its types, its devices and its order are those of the result.
            client_states: The clients' state dicts after their training.
            num_examples: Their numbers of examples, for the buffers; None: all the same.
            buffer_names: Which tensors are buffers: for a model, `dict(model.named_buffers())`.

        Raises:
            TypeError: An argument is of another kind.
            ValueError: No client, or none that is valid; `global_state` is not finite; `num_examples` has another
                length; an unknown name among `buffer_names`; a bad client, with `on_bad_update="raise"`.
        """
        check_state(global_state, "global_state")
        averaged = buffer_names_of(global_state, buffer_names) if self.buffers == "average" else frozenset()
        unmoved = global_state.keys() - self._moved
        sizes = {name: value.numel() for name, value in global_state.items()}

        def coefficients(gram: Tensor, names: Sequence[str], share: Tensor) -> Tensor:
            mean = torch.full(gram.shape[:2], 1 / len(share), dtype=torch.float64, device="cpu")
            if self._round < self.warmup_rounds or not names:
                return mean
            first = self._round == 0  # without a warm-up: there is no history to ask
            principal = [sizes[name] > 1 and (first or name in self._moved) for name in names]
            which = torch.tensor(principal, device="cpu").unsqueeze(1)
            a = principal_coefficients(gram, k_proportion=self.k_proportion, rule=self.rule)
            return torch.where(which, a, mean)

        result = combine(
            global_state,
            client_states,
            num_examples,
            coefficients,
            averaged=averaged,
            server_lr=self.server_lr,
            max_update_norm=self.max_update_norm,
            on_bad_update=self.on_bad_update,
            keep_steps=unmoved,
        )
        self._round += 1
        self._moved |= {name for name, step in result.steps.items() if bool(step.any())}
        return result.state, result.report

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of rounds so far and the names of the tensors that have moved."""
        return {"round": self._round, "moved": sorted(self._moved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            TypeError: `state` is not a mapping.
            ValueError: It has other keys, or values that no `state_dict` has.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {type(state).__name__}")
        if set(state) != {"round", "moved"}:
            raise ValueError(f"state must have the keys 'round' and 'moved', got {sorted(map(str, state))}")
        check_number(state["round"], "state['round']", low=0, integer=True)
        moved = state["moved"]
        if isinstance(moved, (str, bytes)) or not isinstance(moved, Collection):
            raise ValueError(f"state['moved'] must be a list of names, got {moved!r}")
        self._round, self._moved = int(state["round"]), set(moved)

    def __repr__(self) -> str:
        names = ("k_proportion", "rule", "warmup_rounds", "server_lr", "buffers", "on_bad_update", "max_update_norm")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
