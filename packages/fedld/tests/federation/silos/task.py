"""Model, data and settings of the silos."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from offprints.fedld import LocalConfig

CONFIG = LocalConfig(lr=0.1)
BATCH = 8
SEED = 3
ROUNDS = 3
SIZES = (18, 24, 12)


def model_fn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))


def tensors_of(partition: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(SIZES[partition], 4, generator=torch.Generator().manual_seed(partition)) + 0.3 * partition
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def data_fn(partition: int, partitions: int) -> tuple[DataLoader, DataLoader]:
    assert partitions == len(SIZES)
    dataset = TensorDataset(*tensors_of(partition))
    return DataLoader(dataset, BATCH, shuffle=True), DataLoader(dataset, BATCH)
