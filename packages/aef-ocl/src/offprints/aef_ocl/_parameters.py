"""The classifier's parameters: checked when a batch comes, and kept from the first one on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from offprints.aef_ocl._regions import check_dtype
from offprints.shared.device import resolve_device
from offprints.shared.validation import check_bool, check_choice, check_number

if TYPE_CHECKING:
    from offprints.aef_ocl.classifier import AEFOCLClassifier


def check_parameters(model: AEFOCLClassifier) -> None:
    """Refuse a parameter that no stream can be seen with."""
    for name in ("backbone", "buffer"):
        module = getattr(model, name)
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(module).__name__}")
    check_number(model.buffer_size, "buffer_size", low=1, integer=True)
    check_number(model.gamma, "gamma", low=0, open_low=True)
    check_number(model.noise, "noise", low=0)
    check_bool(model.balance, "balance")
    check_choice(model.solver, "solver", ("auto", "cholesky", "recursive"))
    if model.random_state is not None:
        check_number(model.random_state, "random_state", low=0, high=2**63, open_high=True, integer=True)
    check_dtype(model.dtype)
    place(model, None)


def check_kept(model: AEFOCLClassifier) -> None:
    """Refuse a parameter that was changed after the first batch: the sums are those of the old one."""
    solver = "cholesky" if model.solver == "auto" else model.solver
    pairs: dict[str, tuple[Any, Any]] = {
        "gamma": (model.gamma, model.ridge_.gamma),
        "noise": (model.noise, model.generator_.noise),
        "solver": (solver, model.ridge_.solver),
        "dtype": (model.dtype, model.ridge_._matrix.dtype),
    }
    if model._own_buffer:
        pairs["buffer_size"] = model.buffer_size, model.ridge_.in_features
        if model.random_state is not None:
            pairs["random_state"] = model.random_state, model._seed
    for name, (new, old) in pairs.items():
        if new != old:
            raise ValueError(f"{name} must stay what it was at the first batch, {old}, until fit is called, got {new}")


def place(model: AEFOCLClassifier, X: Any) -> torch.device:
    """Where the sums lie."""
    device = resolve_device(model.device, like=X if isinstance(X, Tensor) else None)
    automatic = model.device is None or model.device == "auto"
    if device.type == "mps" and automatic and model.dtype == torch.float64:
        return torch.device("cpu")
    return device
