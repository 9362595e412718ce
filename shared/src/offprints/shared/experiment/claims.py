"""Claims: a sentence, what was measured, and what must hold."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from offprints.shared.store.files import number, plain

Relation = Literal[">=", "<=", ">", "<", "=="]

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, measured here.

    A claim is a finding: ``control`` is the same quantity measured with the mechanism switched off, and must not clear
    the bar. A check (``kind="check"``) holds by construction or by a theorem: it is not a finding and needs no control.
    ``measured`` never contains a time: equal seeds give equal claims. ``paper_value`` is the paper's own figure, a
    number or the words it takes; ``spread`` is the spread of ``measured`` over seeds, shown beside it.
    """

    id: str
    statement: str
    measured: float
    relation: Relation
    threshold: float
    paper_value: float | str | None = None
    spread: float | None = None
    control: float | None = None
    control_name: str | None = None
    kind: Literal["claim", "check"] = "claim"

    def __post_init__(self) -> None:
        if self.relation not in get_args(Relation):
            raise ValueError(f"relation must be one of {', '.join(get_args(Relation))}, got {self.relation!r}")
        for name in ("id", "statement"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"{name} of a claim must be words, got {getattr(self, name)!r}")
        if (self.control is None) != (self.control_name is None):
            raise ValueError(f"control and control_name of claim {self.id!r} must go together, got one alone")
        for name in ("measured", "threshold", "paper_value", "spread", "control"):
            value = getattr(self, name)
            optional = name in ("paper_value", "spread", "control")
            if not (optional and value is None) and not (name == "paper_value" and isinstance(value, str)):
                object.__setattr__(self, name, number(value, f"{name} of claim {self.id!r}"))
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold of claim {self.id!r} must be finite, got {self.threshold}")

    @property
    def holds(self) -> bool:
        """Whether the measurement clears the bar and the control, where there is one, does not."""
        return self._clears(self.measured) and self.control_fails is not False

    @property
    def control_fails(self) -> bool | None:
        """Whether the control misses the bar, as it should; None where there is no control."""
        return None if self.control is None else not self._clears(self.control)

    def _clears(self, value: float) -> bool:
        """Whether the relation holds; never where the value is not finite."""
        return math.isfinite(value) and bool(_COMPARE[self.relation](value, self.threshold))

    def to_dict(self) -> dict[str, Any]:
        """As ``result.json`` has it."""
        return plain(asdict(self) | {"holds": self.holds, "control_fails": self.control_fails})
