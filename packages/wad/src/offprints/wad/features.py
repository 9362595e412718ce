"""The space in which a teacher compares samples: unit features of labeled and unlabeled ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import evaluating, float32_region, map_batches, working_dtype
from offprints.wad._checks import as_samples, unit_rows
from offprints.wad.teacher import SimCLRTeacher

BATCH = 1024


def check_teacher(teacher: Any) -> None:
    """Refuse what is neither a module nor a pair.

    Raises:
        TypeError: neither.
        ValueError: a sequence of another length.
    """
    if isinstance(teacher, nn.Module):
        return
    if not isinstance(teacher, (tuple, list)):
        raise TypeError(
            "teacher must be a fitted SimCLRTeacher, a module or the pair (Z_labeled, Z_unlabeled),"
            f" got {type(teacher).__name__}"
        )
    if len(teacher) != 2:
        raise ValueError(f"teacher must be a pair (Z_labeled, Z_unlabeled), got {len(teacher)} items")


def teacher_features(
    teacher: Any, X_labeled: Any, X_unlabeled: Any, device: torch.device
) -> tuple[Float[Tensor, "labeled dim"], Float[Tensor, "unlabeled dim"]]:
    """Unit features of labeled and unlabeled samples.

    Raises:
        NotFittedError: a `SimCLRTeacher` that was not fitted.
        TypeError, ValueError: features of another length or width, not finite, without a direction.
    """
    if isinstance(teacher, nn.Module):
        found = [module_features(teacher, X) for X in (X_labeled, X_unlabeled)]
        return unit_pair(found, ("teacher", "teacher"), device)
    names = ("teacher: Z_labeled", "teacher: Z_unlabeled")
    return paired_features(teacher, names, (len(X_labeled), len(X_unlabeled)), device)


def paired_features(
    pair: Sequence[Any], names: Sequence[str], lengths: Sequence[int], device: torch.device
) -> tuple[Float[Tensor, "labeled dim"], Float[Tensor, "unlabeled dim"]]:
    """Unit features of labeled and unlabeled samples that the user gives; those of several axes as flat rows.

    Raises:
        TypeError, ValueError: features of another length or width, not floating, not finite, without a direction.
    """
    found = [as_samples(z, name).flatten(1) for z, name in zip(pair, names, strict=True)]
    for z, name, length in zip(found, names, lengths, strict=True):
        if len(z) != length:
            raise ValueError(f"{name} must have a row for each of {length} samples, got {len(z)}")
    if found[0].shape[1] != found[1].shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of features,"
            f" got {found[0].shape[1]} and {found[1].shape[1]}"
        )
    return unit_pair(found, names, device)


def unit_pair(found: Sequence[Tensor], names: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of labeled and unlabeled samples as unit rows of one type, float32 or float64.

    Raises:
        ValueError: a row of zeros.
    """
    dtype = working_dtype(*found)
    labeled, unlabeled = (
        unit_rows(z.to(device=device, dtype=dtype), name) for z, name in zip(found, names, strict=True)
    )
    return labeled, unlabeled


def module_features(teacher: nn.Module, X: Any) -> Float[Tensor, "samples dim"]:
    """What a module in evaluation mode makes of samples, one row each.

    Raises:
        NotFittedError: a `SimCLRTeacher` that was not fitted.
        ValueError: no tensor with a row a sample, NaN or infinite features.
    """
    if isinstance(teacher, SimCLRTeacher):
        features = teacher.embed(X)
    else:
        place = next((parameter for parameter in teacher.parameters() if parameter.is_floating_point()), None)
        samples = as_samples(X, "X", dtype=None if place is None else place.dtype)
        device = samples.device if place is None else place.device
        features = outputs_of(teacher, samples, "teacher", device=device).flatten(1)
    if not bool(features.isfinite().all()):
        raise ValueError("teacher must give finite features, got NaN or infinity")
    return features


def outputs_of(module: nn.Module, samples: Tensor, name: str, *, device: torch.device) -> Tensor:
    """What a module in evaluation mode makes of samples, in batches; it gets copies, which it may write to.

    Raises:
        ValueError: it does not return a tensor with a row for each sample.
    """

    def outputs(part: Tensor) -> Tensor:
        found = module(part)
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(part):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name} must return a tensor with a row for each of {len(part)} samples, got {got}")
        return found

    with torch.inference_mode(False), float32_region(device), evaluating(module):
        return map_batches(outputs, samples, batch_size=BATCH, device=device)
