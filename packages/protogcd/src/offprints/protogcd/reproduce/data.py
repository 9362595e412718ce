"""The data of the presets: bundled scans for `quick`, a downloaded set for `medium` and `paper`. REPLACE."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from offprints.shared.datasets import digits, vision_dataset

Source = Literal["digits", "fashion_mnist"]


def load_images(source: Source, count: int, *, download: bool) -> Tensor:
    """The first `count` pictures of class 0, flat, in [0, 1]."""
    if source == "digits":
        images, labels = digits()
    else:
        dataset = vision_dataset("fashion_mnist", "train", download=download)
        pairs = [(torch.from_numpy(np.array(image)), label) for image, label in DataLoader(dataset, batch_size=None)]
        images = torch.stack([image for image, _ in pairs]).flatten(1) / 255
        labels = torch.tensor([label for _, label in pairs])
    return images[labels == 0][:count]
