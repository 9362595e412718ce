"""The classifier's state: tensors and plain values alone, which stand for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from offprints.aef_ocl._labels import Classes
from offprints.aef_ocl._machines import check_sums
from offprints.aef_ocl._parameters import check_parameters, place
from offprints.aef_ocl._regions import without_graph
from offprints.aef_ocl.buffer import fingerprint
from offprints.shared.estimators import all_or_nothing, check_fitted

PARTS = (
    "params",
    "dtype",
    "seed",
    "labels",
    "label_type",
    "of_tensors",
    "features",
    "size",
    "n_features_in",
    "feature_names",
    "backbone",
    "buffer",
    "ridge",
    "generator",
    "balanced",
)
PARAMETERS = ("buffer_size", "gamma", "noise", "balance", "solver", "random_state")


class Resumable:
    """The part of the classifier that is saved and goes on."""

    def state_dict(self) -> dict[str, Any]:
        """All that was learned and the parameters in force, as tensors and plain values; a copy.

        ``torch.load(weights_only=True)`` reads it. A user's backbone and buffer are not in it.

        Raises:
            NotFittedError: before the first batch.
        """
        check_fitted(self, "classes_")
        return pack(self)

    @all_or_nothing
    @without_graph
    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Go on, bit for bit, where `state_dict` was taken; the saved parameters replace those of this object.

        Raises:
            TypeError: ``state`` is not a mapping.
            ValueError: it lacks something or is damaged; it needs a backbone or a buffer that this object does not
                have, or has none for the one that this object has.
        """
        unpack(self, state)
        return self


def pack(model: Any) -> dict[str, Any]:
    """The state of a fitted classifier."""
    own = model._own_buffer
    auto = model.solver == "auto" and model.ridge_.solver == "cholesky"
    names = vars(model).get("feature_names_in_")
    values = model._labels.values
    return {
        "params": {
            "buffer_size": model.ridge_.in_features if own else model.buffer_size,
            "gamma": model.ridge_.gamma,
            "noise": model.generator_.noise,
            "balance": bool(model.balance),
            "solver": "auto" if auto else model.ridge_.solver,
            "random_state": None if model.random_state is None else int(model.random_state),
        },
        "dtype": str(model.ridge_._matrix.dtype).removeprefix("torch."),
        "seed": model._seed,
        "labels": values.tolist(),
        "label_type": "object" if values.dtype.kind == "O" else values.dtype.str,
        "of_tensors": model._of_tensors,
        "features": model.generator_.in_features,
        "size": model.ridge_.in_features,
        "n_features_in": model.n_features_in_,
        "feature_names": None if names is None else [str(name) for name in names],
        "backbone": model.backbone is not None,
        "buffer": copied(model.buffer_.state_dict()) if own else fingerprint(model.buffer_),
        "ridge": copied(model.ridge_.state_dict()),
        "generator": copied(model.generator_.state_dict()),
        "balanced": model._balanced["weights"].cpu().clone() if model._forced else None,
    }


def unpack(model: Any, state: Mapping[str, Any]) -> None:
    """Put a state into a classifier, whose own one is forgotten.

    Raises:
        TypeError, ValueError: as `Resumable.load_state_dict`.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping from state_dict, got {type(state).__name__}")
    if missing := [name for name in PARTS if name not in state]:
        raise ValueError(f"state lacks {', '.join(missing)}")
    for name, given in (("backbone", state["backbone"]), ("buffer", isinstance(state["buffer"], str))):
        if given != (getattr(model, name) is not None):
            needs = f"was made with a {name}: give it" if given else f"was made without a {name}: give none"
            raise ValueError(f"state {needs} at construction")
    model._forget()
    try:
        restore(model, state)
        check_sums(model)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"state must be one of state_dict, undamaged: {error}") from error


def restore(model: Any, state: Mapping[str, Any]) -> None:
    """Put the parts of a state in their places."""
    for name in PARAMETERS:
        setattr(model, name, state["params"][name])
    model.dtype = getattr(torch, state["dtype"])
    check_parameters(model)
    d, device = state["features"], place(model, None)
    model._begin(torch.zeros(1, d, dtype=model.dtype, device=device), None, seed=state["seed"])
    if isinstance(state["buffer"], str):
        if fingerprint(model.buffer_) != state["buffer"]:
            raise ValueError("it was made with another buffer than that of this object")
    else:
        model.buffer_.load_state_dict(state["buffer"])
    model._seed = int(state["seed"])
    model.ridge_.load_state_dict(state["ridge"])
    model.generator_.load_state_dict(state["generator"])
    model.n_features_in_, model._of_tensors = int(state["n_features_in"]), bool(state["of_tensors"])
    if state["feature_names"] is not None:
        model.feature_names_in_ = np.array(state["feature_names"], dtype=object)
    labels = np.array(state["labels"], dtype=np.dtype(state["label_type"]))
    widths = (len(model.generator_.count_), model.ridge_._columns.shape[1])
    if labels.shape != np.unique(labels).shape or widths != (len(labels), len(labels)):
        raise ValueError(f"it has {len(labels)} labels, moments of {widths[0]} classes, weights of {widths[1]}")
    if state["features"] != model.generator_.in_features or state["size"] != model.ridge_.in_features:
        raise ValueError(f"features and size must be {model.generator_.in_features} and {model.ridge_.in_features}")
    model._keep(Classes(labels))
    if state["balanced"] is not None:
        balanced = state["balanced"].to(device=device, dtype=model.dtype, copy=True)
        if balanced.shape != model.ridge_._columns.shape or not bool(balanced.isfinite().all()):
            raise ValueError(f"balanced must be finite weights of shape {tuple(model.ridge_._columns.shape)}")
        model._balanced, model._forced = {"weights": balanced}, True


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose tensors later batches do not change."""
    return {name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in state.items()}
