"""Every line of what is refused that no other file of tests has: an error that names the argument."""

import numpy as np
import torch

from offprints.fedld import (
    MarginControlLoss,
    PrincipalGradientAggregator,
    dirichlet_partition,
    loss_decomposition,
    margin_control_loss,
    principal_aggregate,
    principal_coefficients,
    shard_partition,
)
from offprints.shared.testing import check_errors

NAN = float("nan")


def test_losses() -> None:
    z, y = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    check_errors(
        [
            (lambda: margin_control_loss([[0.0]], y), TypeError, "logits"),
            (lambda: margin_control_loss(z.long(), y), TypeError, "logits"),
            (lambda: margin_control_loss(z[0], y), ValueError, "logits"),
            (lambda: margin_control_loss(z[:0], y[:0]), ValueError, "logits"),
            (lambda: margin_control_loss(z[:, :0], y), ValueError, "logits"),
            (lambda: margin_control_loss(z + NAN, y), ValueError, "logits"),
            (lambda: margin_control_loss(z, y.tolist()), TypeError, "target"),
            (lambda: margin_control_loss(z, y.float()), TypeError, "target"),
            (lambda: margin_control_loss(z, y[:2]), ValueError, "target"),
            (lambda: margin_control_loss(z, y[:, None]), ValueError, "target"),
            (lambda: margin_control_loss(z, y + 1), ValueError, "target"),
            (lambda: margin_control_loss(z, y, penalty=-0.1), ValueError, "penalty"),
            (lambda: margin_control_loss(z, y, penalty=NAN), ValueError, "penalty"),
            (lambda: margin_control_loss(z, y, penalty="0.1"), TypeError, "penalty"),
            (lambda: margin_control_loss(z, y, per_sample=1), TypeError, "per_sample"),
            (lambda: margin_control_loss(z, y, reduction="sum"), ValueError, "reduction"),
            (lambda: margin_control_loss(z, y, reduction="none"), ValueError, "reduction"),
            (lambda: margin_control_loss(z, y, per_sample=True, reduction="all"), ValueError, "reduction"),
            (lambda: MarginControlLoss(penalty=-1.0), ValueError, "penalty"),
            (lambda: MarginControlLoss(reduction="none"), ValueError, "reduction"),
        ]
    )


def test_aggregation() -> None:
    updates = torch.ones(3, 4)
    check_errors(
        [
            (lambda: principal_aggregate([[1.0]]), TypeError, "updates"),
            (lambda: principal_aggregate(updates.long()), TypeError, "updates"),
            (lambda: principal_aggregate(updates[0]), ValueError, "updates"),
            (lambda: principal_aggregate(updates[:0]), ValueError, "updates"),
            (lambda: principal_aggregate(updates[:, :0]), ValueError, "updates"),
            (lambda: principal_aggregate(updates * NAN), ValueError, "updates"),
            (lambda: principal_aggregate(updates, k_proportion=0.0), ValueError, "k_proportion"),
            (lambda: principal_aggregate(updates, k_proportion=1.01), ValueError, "k_proportion"),
            (lambda: principal_aggregate(updates, k_proportion=NAN), ValueError, "k_proportion"),
            (lambda: principal_aggregate(updates, rule="calibrated"), ValueError, "rule"),
            (lambda: principal_coefficients(updates), ValueError, "gram"),
            (lambda: principal_coefficients(updates[0]), ValueError, "gram"),
            (lambda: PrincipalGradientAggregator(k_proportion=2), ValueError, "k_proportion"),
            (lambda: PrincipalGradientAggregator(rule=None), ValueError, "rule"),
            (lambda: PrincipalGradientAggregator(warmup_rounds=-1), ValueError, "warmup_rounds"),
            (lambda: PrincipalGradientAggregator(warmup_rounds=1.5), TypeError, "warmup_rounds"),
            (lambda: PrincipalGradientAggregator(server_lr=0), ValueError, "server_lr"),
            (lambda: PrincipalGradientAggregator(buffers="keep"), ValueError, "buffers"),
            (lambda: PrincipalGradientAggregator(on_bad_update="ignore"), ValueError, "on_bad_update"),
            (lambda: PrincipalGradientAggregator(max_update_norm=0.0), ValueError, "max_update_norm"),
        ]
    )


def test_decomposition_and_partitions() -> None:
    y = np.arange(12) % 3
    check_errors(
        [
            (lambda: loss_decomposition([], [], 0.0), ValueError, "local"),
            (lambda: loss_decomposition([1.0], [1.0, 2.0], 0.0), ValueError, "local and cross"),
            (lambda: loss_decomposition([1.0], [NAN], 0.0), ValueError, "cross[0]"),
            (lambda: loss_decomposition([1.0], [1.0], NAN), ValueError, "global_"),
            (lambda: loss_decomposition([1.0], [1.0], 0.0, [0.0]), ValueError, "weights"),
            (lambda: loss_decomposition([1.0], [1.0], 0.0, [-1.0]), ValueError, "weights[0]"),
            (lambda: loss_decomposition(torch.ones(1, 1), [1.0], 0.0), ValueError, "local"),
            (lambda: dirichlet_partition(y, 3, alpha=0.0), ValueError, "alpha"),
            (lambda: dirichlet_partition(y, 3, alpha=-1.0), ValueError, "alpha"),
            (lambda: dirichlet_partition(y, 3, alpha=float("inf")), ValueError, "alpha"),
            (lambda: dirichlet_partition(y, 0, alpha=1.0), ValueError, "num_clients"),
            (lambda: dirichlet_partition(y, 13, alpha=1.0), ValueError, "num_clients"),
            (lambda: dirichlet_partition(y, 4, alpha=1.0, min_size=4), ValueError, "num_clients"),
            (lambda: dirichlet_partition(y, 2, alpha=1.0, min_size=-1), ValueError, "min_size"),
            (lambda: dirichlet_partition(y, 2, alpha=1.0, seed=-1), ValueError, "seed"),
            (lambda: dirichlet_partition(y + 0.5, 2, alpha=1.0), TypeError, "labels"),
            (lambda: dirichlet_partition(y[:0], 2, alpha=1.0), ValueError, "labels"),
            (lambda: dirichlet_partition(np.ma.masked_array(y, y > 1), 2, alpha=1.0), TypeError, "labels"),
            (lambda: shard_partition(y, 3, classes_per_client=0), ValueError, "classes_per_client"),
            (lambda: shard_partition(y, 3, classes_per_client=4), ValueError, "classes_per_client"),
            (lambda: shard_partition(y, 2, classes_per_client=1), ValueError, "num_clients * classes_per_client"),
            (lambda: shard_partition(y[:3], 3, classes_per_client=2), ValueError, "labels"),
            (lambda: shard_partition(y, 0, classes_per_client=1), ValueError, "num_clients"),
        ]
    )
