"""A clusterer for imbalanced data on scikit-learn's conventions."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor, nn

from offprints.shared.device import local_seed, make_generator, map_batches, resolve_device
from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.validation import check_choice, check_number, check_tensor
from offprints.sp2ot.graph import knn_similarity
from offprints.sp2ot.head import CosineHead
from offprints.sp2ot.losses import SP2OTLoss

PAPER_WEIGHT = 1000 / 5120  # of the semantic term, per sample of the transport problem
BANK_BATCHES = 10
PREDICT_BATCH = 4096


class SP2OTClusterer(ClusterMixin, BaseEstimator):
    """Cluster features whose classes have very different sizes.

    Prototypes, and an encoder if there is one, are trained with :class:`SP2OTLoss` on two noisy views of the features:
    a share of the samples that grows from ``rho_base`` to ``rho_upper`` is given soft labels, neighbors alike, with
    cluster sizes that are only softly asked to be equal.

    Args:
        n_clusters: ``K``.
        semantic_weight: Of the graph of neighbors; ``"auto"``: the paper's 1000 for 5120 samples, in proportion to
            the samples of a transport problem; 0: P²OT.
        n_neighbors: Of the graph; fewer where there are fewer samples.
        epsilon, gamma: Smoothing and weight of equal sizes, see :func:`partial_ot`.
        rho_base, rho_upper: Ends of the sigmoid schedule.
        max_steps: Optimization steps.
        lr: Of Adam.
        batch_size: Samples of a step; None: all. Transport problems of smaller batches are solved on a memory of the
            last ten.
        init: Prototypes to start from: k-means centers, random ones, or a tensor ``(K, D)``.
        noise: Standard deviation of the views' noise, relative to that of the features.
        encoder: Trained with the prototypes, a copy of it: maps samples to features ``(N, D)``. None: the samples are
            features.
        n_heads: Sets of prototypes; that of the lowest loss at the end is kept. From the second on they start from
            other k-means runs or draws.
        device: None: that of a tensor, else the best one there is.
        random_state: Seed.

    Attributes:
        labels_: ``(N,)`` clusters of the training samples, array or tensor as they were.
        cluster_centers_: ``(K, D)`` prototypes, of unit length.
        cluster_sizes_: ``(K,)`` training samples of each cluster.
        head_: The :class:`CosineHead`.
        encoder_: The trained encoder, or None.
        rho_: Share of the mass at the last step.
        n_steps_: Steps made.
        history_: One dict a step: ``step``, ``loss``, ``rho``.
        n_features_in_: ``D``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self,
        n_clusters: int,
        *,
        semantic_weight: float | Literal["auto"] = "auto",
        n_neighbors: int = 20,
        epsilon: float = 0.1,
        gamma: float = 1.0,
        rho_base: float = 0.1,
        rho_upper: float = 1.0,
        max_steps: int = 100,
        lr: float = 1e-2,
        batch_size: int | None = None,
        init: Literal["kmeans", "random"] | Tensor = "kmeans",
        noise: float = 0.1,
        encoder: nn.Module | None = None,
        n_heads: int = 1,
        device: str | torch.device | None = None,
        random_state: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.semantic_weight = semantic_weight
        self.n_neighbors = n_neighbors
        self.epsilon = epsilon
        self.gamma = gamma
        self.rho_base = rho_base
        self.rho_upper = rho_upper
        self.max_steps = max_steps
        self.lr = lr
        self.batch_size = batch_size
        self.init = init
        self.noise = noise
        self.encoder = encoder
        self.n_heads = n_heads
        self.device = device
        self.random_state = random_state
        self._check_parameters()

    def fit(self, X: Any, y: Any = None) -> SP2OTClusterer:
        """Cluster ``X``.

        Args:
            X: ``(N, D)`` features, array or tensor; with an encoder, whatever it takes, ``(N, ...)``.
            y: Not used.

        Raises:
            TypeError: features that are not floating.
            ValueError: features that are not finite or have another number of axes, more clusters than samples.

        Warns:
            sklearn.exceptions.ConvergenceWarning: a transport problem was not solved.
        """
        self._check_parameters()
        device = resolve_device(self.device, like=X)
        samples = self._features(X).to(device)
        count = len(samples)
        if self.n_clusters > count:
            raise ValueError(f"n_clusters must be at most the number of samples, got {self.n_clusters} > {count}")
        with local_seed(self._seed()):
            fitted = self._train(samples)
        self.n_features_in_ = samples.shape[1]
        for name, value in fitted.items():
            setattr(self, name, value)
        labels = self._logits(samples).argmax(1)
        self.cluster_sizes_ = like_input(labels.bincount(minlength=self.n_clusters), X)
        self.cluster_centers_ = like_input(self.head_.prototypes.detach(), X)
        self.labels_ = like_input(labels, X)
        return self

    def predict(self, X: Any) -> Any:
        """Clusters ``(N,)`` of samples.

        Raises:
            NotFittedError: before :meth:`fit`.
            TypeError, ValueError: as :meth:`fit`; another number of features.
        """
        return like_input(self._logits(self._checked(X)).argmax(1), X)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities ``(N, K)``; raises as :meth:`predict`."""
        return like_input(self._logits(self._checked(X)).softmax(1), X)

    def _check_parameters(self) -> None:
        check_number(self.n_clusters, "n_clusters", low=1, integer=True)
        if isinstance(self.semantic_weight, str):
            check_choice(self.semantic_weight, "semantic_weight", ("auto",))
        else:
            check_number(self.semantic_weight, "semantic_weight", low=0)
        check_number(self.n_neighbors, "n_neighbors", low=1, integer=True)
        check_number(self.epsilon, "epsilon", low=0, open_low=True)
        check_number(self.gamma, "gamma", low=0, high=float("inf"), open_low=True)
        check_number(self.rho_base, "rho_base", low=0, high=1, open_low=True)
        check_number(self.rho_upper, "rho_upper", low=self.rho_base, high=1)
        check_number(self.max_steps, "max_steps", low=1, integer=True)
        check_number(self.lr, "lr", low=0, open_low=True)
        if self.batch_size is not None:
            check_number(self.batch_size, "batch_size", low=1, integer=True)
        if isinstance(self.init, Tensor):
            check_tensor(self.init, "init", ndim=2)
            if len(self.init) != self.n_clusters:
                raise ValueError(f"init must have {self.n_clusters} rows, got shape {tuple(self.init.shape)}")
        else:
            check_choice(self.init, "init", ("kmeans", "random"))
        check_number(self.noise, "noise", low=0)
        if self.encoder is not None and not isinstance(self.encoder, nn.Module):
            raise TypeError(f"encoder must be a torch.nn.Module, got {type(self.encoder).__name__}")
        check_number(self.n_heads, "n_heads", low=1, integer=True)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**32 - 1, integer=True)

    def _seed(self) -> int:
        if self.random_state is not None:
            return self.random_state
        return int(np.random.SeedSequence().generate_state(1)[0])

    def _features(self, X: Any) -> Tensor:
        axes = 2 if self.encoder is None or not hasattr(X, "ndim") else max(int(X.ndim), 2)
        samples = as_features(X, "X", ndim=axes).detach()
        return samples if samples.dtype in (torch.float32, torch.float64) else samples.float()

    def _checked(self, X: Any) -> Tensor:
        check_fitted(self, "head_")
        samples = self._features(X)
        if samples.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} features, as in fit, got shape {tuple(samples.shape)}")
        return samples

    def _logits(self, samples: Tensor) -> Tensor:
        weight = self.head_.weight

        def logits(batch: Tensor) -> Tensor:
            return self.head_(batch if self.encoder_ is None else self.encoder_(batch))

        model = nn.ModuleList([self.head_] if self.encoder_ is None else [self.head_, self.encoder_])
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        try:
            return map_batches(logits, samples.to(weight.dtype), batch_size=PREDICT_BATCH, device=weight.device)
        finally:
            for part, mode in modes:
                part.training = mode

    def _train(self, samples: Tensor) -> dict[str, Any]:
        count, device = len(samples), samples.device
        encoder = copy.deepcopy(self.encoder)
        if encoder is not None:
            encoder = encoder.to(device, samples.dtype)
            features = map_batches(encoder, samples, batch_size=PREDICT_BATCH)
            check_tensor(features, "features of the encoder", ndim=2)
        else:
            features = samples
        batch = min(self.batch_size or count, count)
        bank = 0 if batch == count else min(count, BANK_BATCHES * batch)
        weight = PAPER_WEIGHT * (bank or count) if self.semantic_weight == "auto" else float(self.semantic_weight)
        neighbors = min(self.n_neighbors, count - 1)
        graph = knn_similarity(features, k=neighbors) if weight > 0 and neighbors > 0 else None
        heads = nn.ModuleList(self._new_head(features, number) for number in range(self.n_heads))
        criterion = SP2OTLoss(
            num_clusters=self.n_clusters,
            total_steps=self.max_steps,
            num_heads=self.n_heads,
            similarity=graph,
            semantic_weight=weight,
            epsilon=self.epsilon,
            gamma=self.gamma,
            rho_base=self.rho_base,
            rho_upper=self.rho_upper,
            bank_size=bank,
        ).to(device, samples.dtype)
        generator = make_generator(int(torch.randint(2**31, ())), device="cpu")
        if bank:
            first = torch.randperm(count, generator=generator)[:bank].to(device)
            with torch.no_grad():
                for memory, head in zip(criterion.banks, heads, strict=True):
                    memory.push(head(features[first]), first)  # type: ignore[operator]
        parameters = [*heads.parameters(), *(encoder.parameters() if encoder is not None else ())]
        optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=self.lr)
        spread = self.noise * float(samples.std(0, correction=0).square().mean().sqrt())

        history: list[dict[str, float]] = []
        recent = torch.zeros(0, self.n_heads)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(self.max_steps):
            if len(order) < batch:
                order, recent = torch.randperm(count, generator=generator), recent[:0]
            index, order = order[:batch].to(device), order[batch:]
            views = []
            for _ in range(2):
                shift = torch.randn(batch, *samples.shape[1:], generator=generator, dtype=samples.dtype)
                view = samples[index] + spread * shift.to(device)
                encoded = view if encoder is None else encoder(view)
                views.append([head(encoded) for head in heads])
            output = criterion(views, index)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            optimizer.step()
            recent = torch.cat([recent, output.per_head.cpu()[None].float() / output.rho])
            history.append({"step": step, "loss": float(output.loss.detach()), "rho": output.rho})
        best = heads[int(recent.mean(0).argmin())]
        return {
            "head_": best,
            "encoder_": encoder,
            "rho_": history[-1]["rho"],
            "n_steps_": self.max_steps,
            "history_": history,
        }

    def _new_head(self, features: Tensor, number: int) -> CosineHead:
        head = CosineHead(features.shape[1], self.n_clusters).to(features.device, features.dtype)
        if isinstance(self.init, Tensor):
            check_tensor(self.init, "init", shape=(self.n_clusters, features.shape[1]))
            if number == 0:
                head.reset_prototypes(self.init.to(features))
        elif self.init == "kmeans":
            from sklearn.cluster import KMeans

            seed = int(torch.randint(2**31, ()))
            table = features.detach().cpu().numpy()
            centers = KMeans(self.n_clusters, n_init=10, random_state=seed).fit(table).cluster_centers_
            centers = torch.from_numpy(centers).to(features)
            # A center at the origin has no direction: its prototype stays the random one.
            norms = centers.norm(dim=1, keepdim=True)
            head.reset_prototypes(torch.where(norms > 0, centers, head.prototypes.detach()))
        return head
