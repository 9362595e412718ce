"""
A model that meets weather it has never seen
============================================

A trained classifier answers a stream of images whose corruption keeps changing: noise, fog, contrast, pixels. Labels
never come. What can a wrapper that adapts the model as it answers do about it, and what does it risk?
"""

import copy

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from offprints.cotta import (
    BNAdapt,
    CorruptionStream,
    CoTTA,
    ImageAugmentation,
    Source,
    Tent,
    source_confidence_threshold,
)

# %%
# A source model
# --------------
# Scanned digits as color images of 32 by 32, and a small network with batch normalization. Half of its batches are seen
# through the views that CoTTA averages over later; flips are left out, since they turn digits into others.

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
images = 0.15 + 0.7 * F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
labels = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1397], order[1397:]


def block(channels, width):
    """A convolution that halves the image."""
    return nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()


torch.manual_seed(0)
views = ImageAugmentation(flip_probability=0)
layers = [*block(3, 16), *block(16, 32), *block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
model = nn.Sequential(*layers)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(8):
    for number, batch in enumerate(train[torch.randperm(len(train))].split(64)):
        seen = views(images[batch], 1)[0] if number % 2 else images[batch]
        optimizer.zero_grad()
        F.cross_entropy(model(seen), labels[batch]).backward()
        optimizer.step()
model.eval()
with torch.no_grad():
    print(f"error on clean images: {float((model(images[test]).argmax(1) != labels[test]).float().mean()):.1%}")

# %%
# The stream
# ----------
# Five corruptions at the highest severity, one after the other, in batches of 40. `CorruptionStream` makes them from
# any images. Each wrapper answers a batch and then adapts; the model is never reset.

KINDS = ["gaussian_noise", "defocus_blur", "fog", "contrast", "pixelate"]
threshold = source_confidence_threshold(model, images[train].split(64), quantile=0.01)
stream = CorruptionStream(images[test], labels[test], corruptions=KINDS, severity=5, batch_size=40)
WRAPPERS = {
    "source": (Source, "#999999"),
    "batch statistics": (BNAdapt, "#e69f00"),
    "TENT": (Tent, "#009e73"),
    "CoTTA": (
        lambda net: CoTTA(net, augmentation=views, num_augmentations=4, confidence_threshold=threshold, seed=0),
        "#0072b2",
    ),
}
errors = {}
for name, (wrap, _) in WRAPPERS.items():
    adapted = wrap(copy.deepcopy(model))
    wrong = [(adapted(batch.x).argmax(1) != batch.y).float().mean() for batch in stream]
    errors[name] = torch.stack(wrong).view(len(KINDS), -1)
    print(f"{name}: mean error {float(errors[name].mean()):.1%}")

# %%
# The error along the stream
# --------------------------
# Each point is one corruption. On a stream as short as this one all of the gain comes from the statistics of the batch:
# compare on your own stream before you choose the method that costs most.

figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
for name, (_, color) in WRAPPERS.items():
    label = f"{name}: {float(errors[name].mean()):.0%}"
    axes.plot(range(len(KINDS)), 100 * errors[name].mean(1), "o-", color=color, label=label)
axes.set_xticks(range(len(KINDS)), [kind.replace("_", "\n") for kind in KINDS])
axes.set(ylabel="error, %", ylim=(0, None), title="Severity 5, one corruption after the other")
axes.legend(frameon=False, title="mean error")
figure.show()
