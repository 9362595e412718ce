"""Several machines: what they must have in common before sums are added, and how one that has seen nothing joins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from offprints.aef_ocl._gram import spread
from offprints.aef_ocl._labels import Classes
from offprints.aef_ocl._parameters import check_parameters, place
from offprints.aef_ocl._regions import twin, without_graph
from offprints.aef_ocl.buffer import fingerprint
from offprints.aef_ocl.pseudo_features import PseudoFeatureGenerator
from offprints.aef_ocl.ridge import RecursiveRidge
from offprints.shared.distributed import gather, world_size
from offprints.shared.estimators import all_or_nothing


class Mergeable:
    """The part of the classifier that adds what others have seen."""

    ridge_: RecursiveRidge
    generator_: PseudoFeatureGenerator
    _labels: Classes
    _keep: Callable[[Classes], Self]

    @all_or_nothing
    @without_graph
    def merge_(self, other: Any) -> Self:
        """Add what another one has seen, as if its rows had come here. Either may have seen nothing.

        The other is left alone; classes may differ. Backbones are not compared.

        Raises:
            TypeError: ``other`` is not an AEFOCLClassifier, or its labels are of another kind.
            ValueError: other sizes, another gamma or type, another buffer, damaged sums.
        """
        if not isinstance(other, Mergeable):
            raise TypeError(f"other must be an AEFOCLClassifier, got {type(other).__name__}")
        told = outline(other)
        if told is None:
            return self
        if "classes_" not in vars(self):
            join(self, told)
        refuse_differences([signature(self), signature(other)], ["this one", "other"])
        known = self._labels.joined(other._labels.values, "other")
        mine, its = (known.places(one._labels.values) for one in (self, other))
        generator, added = twin(self.generator_), twin(other.generator_)
        generator._spread(mine, len(known))
        added._spread(its, len(known))
        generator.merge_(added)
        self.ridge_._absorb(other.ridge_, mine, its, len(known))
        self.generator_ = generator
        return self._keep(known)

    @all_or_nothing
    @without_graph
    def all_reduce_(self, group: Any = None) -> Self:
        """Merge those of all processes of torch's process group; all then hold the whole. Call it once.

        Some may have seen nothing, or other classes. Where a process ends before it is done, the others get the error
        of the process group and keep what they had.

        Raises:
            TypeError, ValueError: on every process, where they do not fit, as in `merge_`; it says which one.
        """
        if world_size(group) <= 1 or (known := meet(self, group)) is None:
            return self
        places = known.places(self._labels.values)
        ridge, generator = twin(self.ridge_), twin(self.generator_)
        ridge._columns = spread(ridge._columns, places, len(known))
        generator._spread(places, len(known))
        ridge.all_reduce_(group)
        generator.all_reduce_(group)
        gather(None, group)  # nobody keeps the whole before all have it
        self.ridge_, self.generator_ = ridge, generator
        return self._keep(known)


def signature(model: Any) -> dict[str, Any]:
    """What has to be the same for sums to be added.

    Raises:
        ValueError: its sums are damaged.
    """
    check_sums(model)
    return {
        "number of features": model.generator_.in_features,
        "size of X": model.n_features_in_,
        "names of features": getattr(model, "feature_names_in_", np.array([])).tolist(),
        "size of the buffer": model.ridge_.in_features,
        "gamma": model.ridge_.gamma,
        "dtype": str(model.ridge_._matrix.dtype),
        "buffer (its matrix; see random_state)": fingerprint(model.buffer_),
    }


def check_sums(model: Any) -> None:
    """Refuse sums that no stream gives: NaN or infinite ones, or another number of samples here than there."""
    for part in (model.ridge_, model.generator_):
        for name, value in part.named_buffers():
            if not bool(value.isfinite().all()):
                raise ValueError(f"the sums of {type(part).__name__} must be finite, {name.strip('_')} is not")
    seen, counted = model.ridge_.n_samples_seen_, int(model.generator_.count_.sum())
    if seen != counted or bool((model.generator_._count < 0).any()):
        raise ValueError(f"ridge and generator must have seen the same samples, got {seen} and {counted}")


def outline(model: Any) -> dict[str, Any] | None:
    """What one that has seen nothing needs in order to join; None of one that has seen nothing."""
    if "classes_" not in vars(model):
        return None
    return {
        "d": model.generator_.in_features,
        "n_features_in_": model.n_features_in_,
        "names": vars(model).get("feature_names_in_"),
        "seed": model._seed,
        "of_tensors": model._of_tensors,
        "labels": model._labels.values,
    }


def join(model: Any, told: Mapping[str, Any]) -> None:
    """Begin, with nothing seen, beside one that has begun."""
    check_parameters(model)
    like = torch.zeros(1, told["d"], dtype=model.dtype, device=place(model, None))
    model._begin(like, None, seed=told["seed"])
    model.n_features_in_, model._of_tensors = told["n_features_in_"], told["of_tensors"]
    if told["names"] is not None:
        model.feature_names_in_ = told["names"].copy()
    model._keep(Classes(told["labels"][:0]))


def refuse_differences(signatures: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Refuse to add sums that do not belong together."""
    for its, name in zip(signatures[1:], names[1:], strict=True):
        for what, value in signatures[0].items():
            if its[what] != value:
                raise ValueError(f"{name} must have the same {what} as {names[0]}, {value}, got {its[what]}")


def meet(model: Any, group: Any) -> Classes | None:
    """Compare all processes, of which those that have seen nothing join; the classes of all, None if there are none.

    Raises:
        TypeError, ValueError: the same on every process, and it says which one does not fit.
    """
    outlines = gather(outline(model), group)
    told = [one for one in outlines if one is not None]
    if not told:
        return None
    answer: tuple[dict[str, Any], str]
    try:
        if "classes_" not in vars(model):
            join(model, told[0])
        answer = signature(model), ""
    except Exception as error:  # told to all: none waits for one that has stopped
        answer = {}, f"{type(error).__name__}: {error}"
    answers = gather(answer, group)
    for number, (_, text) in enumerate(answers):
        if text:
            raise ValueError(f"process {number} cannot take part: {text}")
    refuse_differences([its for its, _ in answers], [f"process {number}" for number in range(len(answers))])
    known = Classes(np.zeros(0, dtype=np.int64))
    for number, one in enumerate(outlines):
        if one is not None:
            known = known.joined(one["labels"], f"process {number}")
    return known
