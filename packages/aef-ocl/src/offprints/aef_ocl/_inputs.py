"""From what the classifier is given to rows of the ridge regression: a backbone's input, its features, the buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.aef_ocl._regions import plain_region
from offprints.shared.device import evaluating, map_batches
from offprints.shared.tables import is_sparse, shared_memory
from offprints.shared.validation import check_tensor

IMAGES = 256  # a backbone's batch


def as_inputs(X: Any, estimator: Any, reset: bool) -> Tensor:
    """A backbone's input ``[n, ...]``: of any numbers, which it is for the backbone to understand."""
    if is_sparse(X) or (isinstance(X, Tensor) and X.layout != torch.strided):
        raise TypeError("X must be dense, sparse input is not supported: make it dense")
    if X is None or isinstance(X, (str, bytes, set, bool, int, float, complex, np.generic, Mapping)):
        raise TypeError(f"X must be an array or a tensor, got {type(X).__name__}")
    if not isinstance(X, Tensor):
        if np.ma.is_masked(X):
            raise ValueError("X must not have masked entries: fill them in first")
        try:
            array = np.asarray(X)
        except ValueError:
            raise ValueError("X must have rows of equal length") from None
        if array.dtype.kind not in "iufb":
            raise TypeError(f"X must hold numbers, got {array.dtype}")
        X = shared_memory(array.astype(array.dtype.newbyteorder("="), copy=False))
    check_tensor(X, "X", min_ndim=2, floating=False)
    width = X[0].numel()
    if reset:  # the bookkeeping of scikit-learn's validation, for what has no names of columns
        estimator.n_features_in_ = width
        vars(estimator).pop("feature_names_in_", None)
    elif width != estimator.n_features_in_:
        name = type(estimator).__name__
        raise ValueError(
            f"X has {width} features, but {name} is expecting {estimator.n_features_in_} features as input"
        )
    return X.detach()


def features_of(backbone: nn.Module, inputs: Tensor, place: torch.device) -> Tensor:
    """The backbone's features ``[n, d]``, finite; more axes are flattened. One without tensors runs at ``place``.

    It gets floating input in the type of its parameters, and a copy, for it may write to its input.
    """
    own = [*backbone.parameters(), *backbone.buffers()]
    device = own[0].device if own else place
    dtype = next((part.dtype for part in own if part.dtype.is_floating_point), inputs.dtype)

    def made(batch: Tensor) -> Tensor:
        features = backbone(batch.to(dtype) if batch.is_floating_point() else batch)
        if not isinstance(features, Tensor):
            kind = type(features).__name__
            raise TypeError(f"backbone must return a tensor [B, d], got {kind}: wrap it in a module that picks one")
        return features.flatten(1) if features.ndim > 1 else features

    with plain_region(device), evaluating(backbone):
        features = map_batches(made, inputs, batch_size=IMAGES, device=device)
    return check_tensor(features, "X (as the backbone turns it into features)", ndim=2)


def expanded(buffer: nn.Module, features: Tensor, dtype: torch.dtype) -> Tensor:
    """The buffer's rows ``[n, D]`` of features on its device; one without a type of its own gets ``dtype``."""
    parts = (*buffer.parameters(), *buffer.buffers())
    dtype = next((part.dtype for part in parts if part.dtype.is_floating_point), dtype)
    with plain_region(features.device), evaluating(buffer):
        rows = buffer(features.to(dtype=dtype, copy=True))  # it may write to its input
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(features):
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"buffer must turn [B, d] into [B, D], got {got} from {tuple(features.shape)}")
    return rows
