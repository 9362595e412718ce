"""Step 5 in the classifier: its weights with every class filled up to the largest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from offprints.aef_ocl._regions import plain_region
from offprints.shared.device import make_generator

if TYPE_CHECKING:
    from offprints.aef_ocl.classifier import AEFOCLClassifier


def balanced_weights(
    model: AEFOCLClassifier, normals: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """The weights of real and pseudo-features; the running sums stay as they are."""
    if generator is None:
        entropy = np.random.SeedSequence([model._seed, model.ridge_.n_samples_seen_])
        generator = make_generator(int(entropy.generate_state(1, np.uint64)[0] >> 1))
    with plain_region(model._device()):
        ridge = None
        for features, labels in model.generator_._chunks(None, generator, normals):
            if len(labels):
                ridge = model.ridge_._twin() if ridge is None else ridge
                for part, number in zip(features.split(model._rows()), labels.split(model._rows()), strict=True):
                    ridge.partial_fit(model._expand(part), number)
        if ridge is None:
            return model.ridge_.weight
        try:
            return ridge.weight
        except np.linalg.LinAlgError as error:
            noise = model.generator_.noise
            raise np.linalg.LinAlgError(f"with pseudo-features, noise={noise:g}: {error}") from error
