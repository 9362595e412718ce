"""The training of the clusterer: an adapter of features and a head, on two views of each sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.protogcd.head import PrototypeHead
from offprints.protogcd.objective import ProtoGCDLoss, ProtoGCDOutput
from offprints.shared.datasets import tensor_batches
from offprints.shared.device import (
    float32_default,
    float32_region,
    local_seed,
    make_generator,
    map_batches,
    training_region,
)
from offprints.shared.validation import check_tensor

ROWS = 4096  # at a time, where nothing is trained


class Adapter(nn.Module):
    """A user's module that maps samples to features: what it returns is checked, what it gets is a copy."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, samples: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows dim"]:
        """Features of samples."""
        features = self.module(samples.clone())
        check_tensor(features, "what adapter returns", ndim=2, finite=False)
        if len(features) != len(samples):
            raise ValueError(f"adapter must return a row for each of {len(samples)} samples, got {len(features)}")
        return features


class Cosines(nn.Module):
    """A head without its projections."""

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows K"]:
        """The logits."""
        return self.head.cosines(features)


def layers(*widths: int) -> nn.Sequential:
    """Linear layers with GELU between them."""
    parts: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        parts += [nn.Linear(inner, outer), nn.GELU()]
    return nn.Sequential(*parts[:-1])


def features_of(adapter: nn.Module, samples: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows dim"]:
    """Finite features, without a graph."""
    return check_tensor(map_batches(Adapter(adapter), samples, batch_size=ROWS), "what adapter returns", ndim=2)


def logits_of(
    adapter: nn.Module, head: PrototypeHead, samples: Float[Tensor, "rows *shape"]
) -> Float[Tensor, "rows K"]:
    """Cosines of samples to the prototypes, without a graph."""
    model = nn.Sequential(Adapter(adapter), Cosines(head))
    with torch.inference_mode(False), float32_region(samples.device):
        return map_batches(model, samples, batch_size=ROWS)


def train(
    adapter: nn.Module,
    head: PrototypeHead,
    criterion: ProtoGCDLoss,
    labels: Int[Tensor, " rows"],
    view: Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch *shape"]],
    *,
    lr: float,
    batch_size: int,
) -> list[dict[str, float]]:
    """Train both in place with Adam, `criterion.total_epochs` times on all samples but for the rest of a batch.

    Args:
        adapter: Maps samples to features.
        head: Of these.
        criterion: The objective.
        labels: -1 for samples without a label.
        view: A random view of the samples of these numbers.
        lr: Learning rate.
        batch_size: Samples of a step.

    Returns:
        One record a step.

    Raises:
        ValueError: It diverges before the last step.
    """
    device = labels.device
    trained = [p for p in (*adapter.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, fused=device.type in ("cpu", "cuda"))
    places, batch = torch.arange(len(labels), device=device), min(batch_size, len(labels))
    orders, adapted = make_generator(drawn_seed()), Adapter(adapter)
    history: list[dict[str, float]] = []
    for epoch in range(criterion.total_epochs):
        outputs = []
        for (rows,) in tensor_batches(places, batch_size=batch, generator=orders, drop_last=True):
            projections, logits, prototypes = head(adapted(torch.cat([view(rows), view(rows)])))
            # Looked at on the CPU alone: an accelerator is not waited for.
            if device.type == "cpu" and not (logits.isfinite().all() and projections.isfinite().all()):
                raise ValueError(diverged(lr))
            output = criterion(logits, projections, prototypes, labels[rows], labels[rows] >= 0, epoch=epoch)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            outputs.append(torch.stack([part.detach() for part in output[:-1]]))
        for values in torch.stack(outputs).tolist():
            record = dict(zip(ProtoGCDOutput._fields, [*values, output.ratio], strict=True))
            history.append({"step": len(history) + 1, "epoch": epoch, **record})
    optimizer.zero_grad()
    return history


def diverged(lr: float) -> str:
    """What is said of a training whose numbers are not finite any more."""
    return f"lr={lr:g} makes the training diverge: lower lr, or scale X"


def drawn_seed() -> int:
    """A seed from torch's global stream."""
    return int(torch.randint(2**31, (), device="cpu"))


@contextmanager
def undisturbed(random_state: int | None, device: torch.device) -> Iterator[None]:
    """Gradients, float32 and seeded streams, whatever is set outside."""
    seed = drawn_seed() if random_state is None else int(random_state)
    # As a context every call inside is slower, so that it is one only where it is needed.
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        float32_default(),
        training_region(device),
        torch.device("cpu") if elsewhere else nullcontext(),
        local_seed(seed),
    ):
        yield
