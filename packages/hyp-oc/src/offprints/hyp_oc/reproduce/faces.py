"""The quick preset's data: faces and what is no face, 25 x 25 pixels, as histograms of oriented gradients."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from offprints.hyp_oc.reproduce.fits import Split
from offprints.shared.extras import require

FACES = 100  # of the 200 pictures, the first


@functools.cache
def hog_features() -> Tensor:
    """Features `(200, d)` of scikit-image's subset of Labeled Faces in the Wild: 100 faces, then 100 others."""
    data = require("skimage.data", package="hyp-oc", extra="claims")
    hog = require("skimage.feature", package="hyp-oc", extra="claims").hog
    options = {"orientations": 8, "pixels_per_cell": (5, 5), "cells_per_block": (2, 2)}
    found = [hog(picture, **options) for picture in data.lfw_subset()]
    return torch.from_numpy(np.stack(found).astype(np.float32))


def face_split(features: Tensor, n_fit: int, seed: int) -> Split:
    """Some faces to fit; the others and all that is no face to test."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(FACES))
    return Split(features[order[:n_fit]], features[order[n_fit:]], features[FACES:])
