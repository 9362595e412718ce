"""A client: its local training and its evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset, default_collate

from offprints.fedld.losses import margin_control
from offprints.shared.device import evaluating, make_generator, modes_kept, resolve_device, working_dtype
from offprints.shared.validation import check_labels, check_number, check_tensor

EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class LocalConfig:
    """How a client trains in one round; each round has a fresh optimizer.

    Attributes:
        epochs: Passes over the client's data.
        lr: Of SGD.
        momentum: Of SGD.
        weight_decay: Of SGD.
        penalty: Weight of the margin control term; 0 is plain cross-entropy.
        proximal: FedProx's mu: `mu / 2 * ||w - w_global||^2` is added to the loss.
        batch_size: In `simulate`; elsewhere the loader has its own.
        warmup_steps: First steps of each local training, over which the learning rate rises linearly.

    Raises:
        TypeError, ValueError: A number of another kind or out of its range.

    Example:
        >>> LocalConfig(epochs=2, penalty=0.0).lr
        0.01
    """

    epochs: int = 1
    lr: float = 0.01
    momentum: float = 0.5
    weight_decay: float = 5e-4
    penalty: float = 0.1
    proximal: float = 0.0
    batch_size: int = 50
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, integer = getattr(self, field.name), field.name in ("epochs", "batch_size", "warmup_steps")
            least = 1 if field.name in ("epochs", "batch_size") else 0
            check_number(value, field.name, low=least, open_low=field.name == "lr", integer=integer)


def train_client(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    config: LocalConfig,
    *,
    global_state: Mapping[str, Tensor] | None = None,
    device: str | torch.device = "auto",
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a client's model in place, by SGD on `margin_control_loss` and the proximal term.

    NaN in data or logits does not stop it: the client's state then has NaN, which the server rejects. Random draws
    (the order of the loader, dropout) are those of the global streams.

    Args:
        model: Classifier of logits `[B, K]`; it is moved to `device`, and its mode is put back at the end.
        loader: Batches of inputs and integer labels; gone through `config.epochs` times.
        config: How to train.
        global_state: State dict to start from, and the center of the proximal term; None: the weights as they are.
        device: Where to train; "auto" is an accelerator if there is one.

    Returns:
        Copies of the state dict; and `train_loss`, the mean over the samples of the last epoch with all terms, and
        `num_examples`, those of one epoch.

    Raises:
        TypeError: An argument, a batch or what the model returns is of another kind.
        ValueError: `global_state` does not fit, `loader` has no batch, a label is out of range, the model has nothing
            to train.

    Example:
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
        >>> state, metrics = train_client(torch.nn.Linear(3, 2), [(x[:4], y[:4]), (x[4:], y[4:])], LocalConfig())
        >>> sorted(state), metrics["num_examples"]
        (['bias', 'weight'], 8.0)
    """
    check_model(model)
    if not isinstance(config, LocalConfig):
        raise TypeError(f"config must be a LocalConfig, got {type(config).__name__}")
    _check_loader(loader)
    place = resolve_device(device)
    if global_state is not None:
        load(model, global_state, "global_state")
    model.to(place)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("model must have parameters that require gradients, got none")
    centers = [parameter.detach().clone() for parameter in parameters] if config.proximal else []
    optimizer = torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay)
    step, total, count = 0, torch.zeros((), dtype=torch.float32, device=place), 0
    with training(model):
        for _ in range(config.epochs):
            total, count = torch.zeros_like(total), 0
            for inputs, labels in batches(loader, place):
                optimizer.zero_grad()
                logits = logits_of(model, inputs, labels)
                labels = check_labels(labels, "labels of loader", num_classes=logits.shape[1])
                if config.penalty:
                    loss = margin_control(logits, labels, config.penalty)
                else:
                    loss = F.cross_entropy(logits, labels)
                loss.backward()
                value = loss.detach()
                if centers:
                    value = value + _pull(parameters, centers, config.proximal)
                if step < config.warmup_steps:
                    optimizer.param_groups[0]["lr"] = config.lr * (step + 1) / config.warmup_steps
                elif step == config.warmup_steps:
                    optimizer.param_groups[0]["lr"] = config.lr
                optimizer.step()
                step, total, count = step + 1, total + value.float() * len(labels), count + len(labels)
            if not count:
                raise ValueError("loader must yield at least one batch with a sample in each epoch, got none")
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return state, {"train_loss": float(total) / count, "num_examples": float(count)}


def _check_loader(loader: object) -> None:
    if isinstance(loader, (str, bytes)) or not isinstance(loader, Iterable):
        raise TypeError(f"loader must be an iterable of batches (inputs, labels), got {type(loader).__name__}")


@torch.no_grad()
def _pull(parameters: list[nn.Parameter], centers: list[Tensor], mu: float) -> Tensor:
    """Add the gradient of FedProx's term, `mu (w - w_global)`, and return its value."""
    pairs = [(w, w - center) for w, center in zip(parameters, centers, strict=True) if w.grad is not None]
    for w, away in pairs:
        assert w.grad is not None
        w.grad.add_(away, alpha=mu)
    squares = [away.float().square().sum() for _, away in pairs]
    return mu / 2 * torch.stack(squares).sum() if squares else torch.zeros((), device=centers[0].device)


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Training mode and gradients inside, whatever surrounds it; the mode of every part is put back."""
    with modes_kept(model), torch.inference_mode(False), torch.enable_grad():
        model.train()
        yield


def load(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict, in words that name the argument where it does not fit."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a state dict, got {type(state).__name__}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{name} must be a state dict of the model: {error}") from None


def batches(loader: Iterable[Any], place: torch.device) -> Iterator[tuple[Any, Tensor]]:
    """The loader's batches on the device."""
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"loader must yield pairs (inputs, labels), got {type(batch).__name__}")
        inputs, labels = batch
        if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor):
            raise TypeError(f"loader must yield tensors, got {type(inputs).__name__} and {type(labels).__name__}")
        yield inputs.to(place), labels.to(place)


def logits_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The model's logits `[B, K]`, one row for each label."""
    logits = model(inputs)
    check_tensor(logits, "output of model", ndim=2, finite=False)
    check_tensor(labels, "labels of loader", shape=(len(logits),), floating=False)
    return logits


def evaluate(model: nn.Module, loader: Iterable[Any], place: torch.device) -> tuple[float, float, int]:
    """Cross-entropy and accuracy of a model, means over the samples, and their number."""
    loss: Any = 0.0
    hits: Any = 0
    count = 0
    with evaluating(model):
        for inputs, labels in batches(loader, place):
            logits = logits_of(model, inputs, labels)
            labels = check_labels(labels, "labels of loader", num_classes=logits.shape[1])
            loss = loss + F.cross_entropy(logits.to(working_dtype(logits)), labels, reduction="sum")
            hits = hits + (logits.argmax(1) == labels).sum()
            count += len(labels)
    if not count:
        raise ValueError("loader must yield at least one sample to evaluate on, got none")
    return float(loss) / count, float(hits) / count, count


class ClientLoader:
    """Batches of a client's data, in an order drawn from torch's global stream at every pass.

    The order is that of `DataLoader(data, batch_size, shuffle=True)` at the same state of the stream, so that a Flower
    client with such a loader trains as `simulate` does. A last batch of one sample, on which batch norm cannot train,
    is joined to the one before.

    Args:
        data: A pair of tensors, or a data set of pairs.
        batch_size: Samples of a batch.
        shuffle: False: as they come, for evaluation.
        name: The argument's name, for errors.
    """

    def __init__(self, data: Any, batch_size: int, *, shuffle: bool = True, name: str = "client_data") -> None:
        if isinstance(data, TensorDataset):
            data = data.tensors
        if isinstance(data, (tuple, list)):
            if len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
                raise TypeError(f"{name} must be a pair of tensors (inputs, labels) or a Dataset")
            inputs, labels = data
            check_tensor(inputs, f"inputs of {name}", min_ndim=1, floating=False, finite=False)
            check_labels(labels, f"labels of {name}", length=len(inputs))
            check_tensor(labels, f"labels of {name}", ndim=1, floating=False)
        elif not (isinstance(data, Dataset) and hasattr(data, "__len__")):
            raise TypeError(f"{name} must be a pair of tensors or a Dataset with a length, got {type(data).__name__}")
        self.data = data
        self.shuffle = shuffle
        self.size = len(data[1]) if isinstance(data, (tuple, list)) else len(data)
        if not self.size:
            raise ValueError(f"{name} must hold at least one sample, got none")
        starts = list(range(0, self.size, batch_size))
        if shuffle and len(starts) > 1 and self.size - starts[-1] == 1:
            starts.pop()
        self.cuts = starts[1:]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order() if self.shuffle else torch.arange(self.size, device="cpu")
        for chosen in order.tensor_split(self.cuts):
            if isinstance(self.data, (tuple, list)):
                inputs, labels = self.data
                yield inputs[chosen.to(inputs.device)], labels[chosen.to(labels.device)]
            else:
                yield default_collate([self.data[i] for i in chosen.tolist()])

    def _order(self) -> Tensor:
        torch.empty((), dtype=torch.int64, device="cpu").random_()  # what DataLoader draws for its workers
        seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        return torch.randperm(self.size, generator=make_generator(seed), device="cpu")


def client_seed(seed: int, round_number: int, client: int) -> int:
    """The seed of the global streams in one client's training: of the run, the round and the client alone."""
    return int(np.random.SeedSequence(seed, spawn_key=(round_number, client)).generate_state(1)[0])


def check_model(model: object) -> None:
    """Refuse what is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
