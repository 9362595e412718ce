"""Full-batch training on algorithmic data until a network groks, as in the paper's experiments (section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.device import local_seed, make_generator, resolve_device
from offprints.shared.validation import check_choice, check_number
from offprints.stablemax.data import modular_arithmetic, sparse_parity
from offprints.stablemax.diagnostics import nlm_alignment, softmax_collapse_fraction, zero_gradient_fraction
from offprints.stablemax.losses import exact_cross_entropy, stablemax_cross_entropy
from offprints.stablemax.models import GrokMLP, GrokTransformer
from offprints.stablemax.orthograd import Granularity, OrthoGrad

Task = Literal["add", "subtract", "multiply", "divide", "square_sum", "parity"]
LossName = Literal["softmax", "exact", "stablemax"]
SOFTMAX_TYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(kw_only=True)
class GrokConfig:
    """One training run. Defaults are the paper's: modular addition, p = 113, full batch, AdamW without weight decay.

    Attributes:
        task: Operation modulo ``p``, or sparse parity.
        p: The modulus.
        train_fraction: Share of the pairs (or samples) to train on.
        model: ``"mlp"``, or ``"transformer"`` on pairs of integers (modular arithmetic only).
        loss: ``"softmax"`` in ``softmax_dtype``, ``"exact"`` (absorption-free softmax) or ``"stablemax"``.
        softmax_dtype: Type of the log-softmax of ``"softmax"``.
        optimizer: ``"adamw"`` or ``"sgd"``.
        lr: Learning rate; divided by ``alpha`` squared.
        beta2: AdamW's second decay rate.
        adam_eps: AdamW's epsilon; a large one stops training when gradients get small, which mimics collapse.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of the optimizer.
        orthograd: Project the gradients (perpGrad).
        granularity: Granularity of the projection.
        hidden: Widths of the MLP.
        alpha: Factor of the logits.
        dtype: Type of the weights.
        num_parity: Bits that decide the parity.
        num_noise: Bits that do not matter.
        num_samples: Rows of the parity task.
        steps: Optimizer steps.
        log_every: Steps between two entries of the history.
        seed: Seed of the split and of the initialization.
        device: `"auto"` or a torch device.

    Example:
        >>> config = GrokConfig(p=11, steps=20, orthograd=True)
        >>> config.loss, config.lr
        ('softmax', 0.01)
    """

    task: Task = "add"
    p: int = 113
    train_fraction: float = 0.4
    model: Literal["mlp", "transformer"] = "mlp"
    loss: LossName = "softmax"
    softmax_dtype: Literal["float16", "float32", "float64"] = "float32"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 0.01
    beta2: float = 0.99
    adam_eps: float = 1e-25
    momentum: float = 0.0
    weight_decay: float = 0.0
    orthograd: bool = False
    granularity: Granularity = "tensor"
    hidden: Sequence[int] = (200, 200)
    alpha: float = 1.0
    dtype: Literal["float32", "float64"] = "float32"
    num_parity: int = 3
    num_noise: int = 40
    num_samples: int = 2000
    steps: int = 1000
    log_every: int = 25
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choice(self.task, "task", ("add", "subtract", "multiply", "divide", "square_sum", "parity"))
        check_choice(self.model, "model", ("mlp", "transformer"))
        check_choice(self.loss, "loss", ("softmax", "exact", "stablemax"))
        check_choice(self.softmax_dtype, "softmax_dtype", tuple(SOFTMAX_TYPES))
        check_choice(self.optimizer, "optimizer", ("adamw", "sgd"))
        check_choice(self.granularity, "granularity", ("tensor", "row", "global"))
        check_choice(self.dtype, "dtype", ("float32", "float64"))
        check_number(self.train_fraction, "train_fraction", low=0, high=1, open_low=True, open_high=True)
        check_number(self.lr, "lr", low=0, open_low=True)
        check_number(self.beta2, "beta2", low=0, high=1, open_high=True)
        check_number(self.steps, "steps", low=1, integer=True)
        check_number(self.log_every, "log_every", low=1, integer=True)
        for name in ("adam_eps", "momentum", "weight_decay"):
            check_number(getattr(self, name), name, low=0)
        if self.model == "transformer" and self.task == "parity":
            raise ValueError("model must be 'mlp' for task 'parity', got 'transformer'")


@dataclass
class GrokResult:
    """What `train_grokking` returns.

    Attributes:
        history: Arrays of equal length: ``step``, ``train_loss``, ``train_accuracy``, ``test_loss``,
            ``test_accuracy``, ``collapse`` and ``zero_gradient`` (of the training set, in the precision of the
            softmax), ``weights_l2``, ``nlm_alignment``.
        model: The trained network.
        grokked_at: First logged step with a test accuracy of at least 0.95, or None.

    Example:
        >>> result = train_grokking(GrokConfig(p=11, steps=20, hidden=(16,), device="cpu"))
        >>> result.grokked_at is None
        True
    """

    history: dict[str, np.ndarray] = field(repr=False)
    model: nn.Module = field(repr=False)
    grokked_at: int | None


def _data(config: GrokConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if config.task == "parity":
        return sparse_parity(
            config.num_samples, num_parity=config.num_parity, num_noise=config.num_noise, generator=generator
        )
    return modular_arithmetic(config.p, config.task, encoding="index" if config.model == "transformer" else "one_hot")


def _model(config: GrokConfig, inputs: Tensor) -> nn.Module:
    if config.model == "transformer":
        return GrokTransformer(config.p)
    classes = 2 if config.task == "parity" else config.p
    bias = config.task == "parity"  # without biases the arithmetic network is homogeneous, as in the official code
    return GrokMLP(inputs.shape[1], classes, hidden=config.hidden, bias=bias, alpha=config.alpha)


def _optimizer(config: GrokConfig, model: nn.Module) -> torch.optim.Optimizer:
    lr = config.lr / config.alpha**2
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=lr,
            betas=(0.9, config.beta2),
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=next(model.parameters()).device.type in ("cpu", "cuda"),  # several times faster
        )
    return OrthoGrad(optimizer, granularity=config.granularity) if config.orthograd else optimizer


def _loss(config: GrokConfig, logits: Tensor, target: Tensor) -> Tensor:
    match config.loss:
        case "stablemax":
            return stablemax_cross_entropy(logits, target)
        case "exact":
            return exact_cross_entropy(logits, target)
        case _:
            return F.nll_loss(torch.log_softmax(logits.to(SOFTMAX_TYPES[config.softmax_dtype]), 1), target).float()


def train_grokking(
    config: GrokConfig, *, callback: Callable[[dict[str, float]], bool | None] | None = None
) -> GrokResult:
    """Train a network on the full batch and watch it grok or collapse.

    The split is drawn on the CPU from ``config.seed``, the initialization and dropout follow it; global random streams
    are untouched.

    Args:
        config: The run.
        callback: Called with each entry of the history; training ends early when it returns True.

    Raises:
        ValueError: ``config.device`` is not available.
        FloatingPointError: the loss became NaN or infinite; the message names the step.

    Example:
        >>> result = train_grokking(GrokConfig(p=11, steps=20, log_every=10, hidden=(16,), device="cpu"))
        >>> [int(step) for step in result.history["step"]]
        [0, 10, 20]
    """
    device = resolve_device(config.device)
    generator = make_generator(config.seed)
    inputs, labels = _data(config, generator)
    order = torch.randperm(len(labels), generator=generator)
    num_train = int(config.train_fraction * len(labels))
    if num_train == 0:
        raise ValueError(f"train_fraction {config.train_fraction} leaves no sample of {len(labels)} to train on")
    with local_seed(config.seed):
        dtype = getattr(torch, config.dtype)
        inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        train_x, test_x = (inputs[part].to(device) for part in (order[:num_train], order[num_train:]))
        train_y, test_y = (labels[part].to(device) for part in (order[:num_train], order[num_train:]))
        model = _model(config, inputs).to(device=device, dtype=dtype)
        optimizer = _optimizer(config, model)
        history: dict[str, list[float]] = {}
        grokked_at = None
        for step in range(config.steps + 1):
            optimizer.zero_grad()
            logits = model(train_x)
            loss = _loss(config, logits, train_y)
            loss.backward()
            if step % config.log_every == 0 or step == config.steps:
                entry = _measure(config, model, logits, loss, train_y, test_x, test_y) | {"step": float(step)}
                if not np.isfinite(entry["train_loss"]):
                    raise FloatingPointError(f"the training loss is {entry['train_loss']} at step {step}")
                for name, value in entry.items():
                    history.setdefault(name, []).append(value)
                if grokked_at is None and entry["test_accuracy"] >= 0.95:
                    grokked_at = step
                if callback is not None and callback(entry):
                    break
            if step < config.steps:
                optimizer.step()
    return GrokResult({name: np.array(values) for name, values in history.items()}, model, grokked_at)


@torch.no_grad()
def _measure(
    config: GrokConfig, model: nn.Module, logits: Tensor, loss: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> dict[str, float]:
    was_training = model.training
    model.eval()
    test_logits = torch.cat([model(part) for part in test_x.split(8192)])
    model.train(was_training)
    precision = SOFTMAX_TYPES[config.softmax_dtype]
    weights = torch.cat([parameter.reshape(-1) for parameter in model.parameters()])
    return {
        "train_loss": float(loss),
        "train_accuracy": float((logits.argmax(1) == train_y).double().mean()),
        "test_loss": float(_loss(config, test_logits, test_y)),
        "test_accuracy": float((test_logits.argmax(1) == test_y).double().mean()),
        "collapse": softmax_collapse_fraction(logits, dtype=precision),
        "zero_gradient": zero_gradient_fraction(logits, train_y, dtype=precision),
        "weights_l2": float(weights.norm()),
        "nlm_alignment": float(nlm_alignment(model.parameters())),  # type: ignore[arg-type]
    }
