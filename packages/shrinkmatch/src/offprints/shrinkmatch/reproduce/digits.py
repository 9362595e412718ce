"""Scanned digits with one or three labels a class: the quick preset's data and trainings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from offprints.shared.datasets import digits
from offprints.shared.device import local_seed, make_generator
from offprints.shrinkmatch import split_labels
from offprints.shrinkmatch._networks import moments
from offprints.shrinkmatch.reproduce.training import Method, Recipe, Trainer
from offprints.shrinkmatch.views import ImageViews

TEST_IMAGES = 500
WIDTH = 128


def perceptron() -> nn.Module:
    """8 x 8 pixels to 128 features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())


def train_digits(seed: int, method: Method, per_class: int, recipe: Recipe) -> dict[str, Any]:
    """One training; test images, labels, weights, batches and views depend on the seed alone."""
    images, labels = digits(layout="image")
    order = torch.randperm(len(images), generator=make_generator(seed))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    x, y = images[train], labels[train]
    labeled, unlabeled = (torch.from_numpy(rows) for rows in split_labels(y, per_class, seed=seed))
    views = ImageViews(moments(x[unlabeled])[1])
    draws = make_generator(seed)
    with local_seed(seed):
        trainer = Trainer(perceptron(), WIDTH, 10, method, recipe, "cpu")
        for _ in range(recipe.steps):
            rows = labeled[torch.randint(len(labeled), (recipe.batch_size,), generator=draws)]
            u = unlabeled[torch.randint(len(unlabeled), (recipe.mu * recipe.batch_size,), generator=draws)]
            trainer.step(views.weak(x[rows]), y[rows], views.weak(x[u]), views.strong(x[u]), y[u])
    return {"accuracy": trainer.accuracy(images[test], labels[test]), **trainer.results()}
