"""The classifier's state: tensors and plain values alone, which stand for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from offprints.aef_ocl._labels import Classes
from offprints.aef_ocl.buffer import fingerprint

if TYPE_CHECKING:
    from offprints.aef_ocl.classifier import AEFOCLClassifier

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


def pack(model: AEFOCLClassifier) -> dict[str, Any]:
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


def unpack(model: AEFOCLClassifier, state: Mapping[str, Any]) -> None:
    """Put a state into a classifier, whose own one is forgotten."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping from state_dict, got {type(state).__name__}")
    if missing := [name for name in PARTS if name not in state]:
        raise ValueError(f"state lacks {', '.join(missing)}")
    for name, given in (("backbone", state["backbone"]), ("buffer", isinstance(state["buffer"], str))):
        if given != (getattr(model, name) is not None):
            needs = f"was made with a {name}: give it" if given else f"was made without a {name}: give none"
            raise ValueError(f"state {needs} at construction")
    model._forget()
    for name in PARAMETERS:
        setattr(model, name, state["params"][name])
    model.dtype = getattr(torch, state["dtype"])
    model._check_parameters()
    d, device = state["features"], model._place(None)
    model._begin(torch.zeros(1, d, dtype=model.dtype, device=device), None, seed=state["seed"])
    if isinstance(state["buffer"], str):
        if fingerprint(model.buffer_) != state["buffer"]:
            raise ValueError("state was made with another buffer than that of this object")
    else:
        model.buffer_.load_state_dict(state["buffer"])
    model._seed = state["seed"]
    model.ridge_.load_state_dict(state["ridge"])
    model.generator_.load_state_dict(state["generator"])
    model.n_features_in_, model._of_tensors = state["n_features_in"], state["of_tensors"]
    if state["feature_names"] is not None:
        model.feature_names_in_ = np.array(state["feature_names"], dtype=object)
    model._keep(Classes(np.array(state["labels"], dtype=np.dtype(state["label_type"]))))
    if state["balanced"] is not None:
        model._balanced, model._forced = {"weights": state["balanced"].to(device=device, copy=True)}, True


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose tensors later batches do not change."""
    return {name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in state.items()}
