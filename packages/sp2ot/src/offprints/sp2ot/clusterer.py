"""A clusterer for imbalanced data on scikit-learn's conventions."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor, nn

from offprints.shared.device import evaluating, local_seed, make_generator, map_batches, resolve_device
from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.validation import check_choice, check_number, check_tensor
from offprints.sp2ot._inputs import Place, as_samples
from offprints.sp2ot._partition import exchanged, normalized_cut
from offprints.sp2ot._problem import relative_sizes
from offprints.sp2ot.graph import knn_similarity
from offprints.sp2ot.head import CosineHead
from offprints.sp2ot.losses import SMALLEST_EPSILON, SP2OTLoss

PAPER_WEIGHT = 1000 / 5120  # of the semantic term, per sample of the transport problem
OUTER_ITERATIONS = 2  # of the semantic term at each step; the next step goes on
BANK_BATCHES = 10
CLOSEST = 10  # neighbors in the graph that partitions are judged by
PREDICT_BATCH = 4096
MARGIN = 5.0  # of the logits of a typical sample at the start: it sets the scale of the head
REHEARSALS = 30  # steps on the labels of the start, before the first of the method
LOOKS = 20  # at the partition during training, of which the best is kept


class SP2OTClusterer(ClusterMixin, BaseEstimator):
    """Cluster features whose classes have very different sizes.

    Prototypes, and an encoder if there is one, are trained with :class:`SP2OTLoss` on two noisy views of the features:
    a share of the samples that grows from ``rho_base`` to ``rho_upper`` is given soft labels, neighbors alike, with
    cluster sizes that are only softly asked to be equal.

    Features are centered and scaled, and get a constant as one more column, so that neither a shift nor a factor
    changes anything and clusters on one ray from the origin differ. Training starts from k-means, after exchanges on
    the graph of neighbors: two clusters that cut a dense group are merged, one that holds two groups is split. Of the
    start and the partitions during training the one is kept that cuts the fewest edges of the graph (by the sum over
    clusters of the share of their edges that leave them, an empty cluster counting as a third): training that goes
    astray does not end below its start.

    Args:
        n_clusters: ``K``.
        semantic_weight: Weight of the graph of neighbors; ``"auto"``: the paper's 1000 for 5120 samples, in proportion
            to the samples of a transport problem; 0: P²OT.
        n_neighbors: Neighbors of a sample in the graph; fewer where there are fewer samples.
        epsilon: Smoothing of the transport, at least 1e-6.
        gamma: Weight of equal sizes, see :func:`partial_ot`.
        rho_base: Share of the samples at the beginning of the sigmoid schedule.
        rho_upper: Share at its end.
        max_steps: Optimization steps.
        lr: Learning rate of Adam.
        batch_size: Samples of a step; None: all. Transport problems of smaller batches are solved on a memory of the
            last ten.
        init: Where to start: ``"kmeans"``, ``"random"`` samples, or centers ``(K, D)``, an array or a tensor such as
            ``cluster_centers_``.
        noise: Standard deviation of the views' noise, relative to that of the features.
        encoder: Trained with the prototypes, a copy of it: maps samples to features ``(N, D)``. None: the samples are
            features.
        n_heads: Sets of prototypes; that whose partition cuts the fewest edges is kept, of equal ones that of the
            lowest loss at the end. From the second on they start from other k-means runs or draws.
        device: None: that of a tensor, else the best one there is.
        random_state: Seed.
        prior: ``(K,)`` relative sizes to ask for in place of equal ones. With ``init="kmeans"`` the larger clusters of
            the start get the larger sizes, and clusters are numbered as in the prior.

    Attributes:
        labels_: ``(N,)`` clusters of the training samples, array or tensor as they were.
        cluster_centers_: ``(K, D)`` means of the clusters' training samples (with an encoder: of their features).
            An empty cluster has the mean of all.
        cluster_sizes_: ``(K,)`` training samples of each cluster.
        mean_: ``(D,)`` mean of the features, which is taken off.
        scale_: Root of the mean squared distance from it, which the features are divided by.
        head_: The :class:`CosineHead`, for centered and scaled features with the constant.
        encoder_: The trained encoder, or None.
        rho_: Share of the mass at the last step.
        n_steps_: Steps made.
        best_step_: Steps after which the partition that was kept was found; 0: the start.
        history_: One dict a step: ``step``, ``loss``, ``rho``.
        n_features_in_: ``D``.
        feature_names_in_: Names of the columns of a data frame.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(130, 2)) + np.repeat([[0, 0], [9, 9]], [120, 10], axis=0)
        >>> SP2OTClusterer(2, max_steps=5, random_state=0).fit(X).cluster_sizes_.max()
        np.int64(120)
    """

    def __init__(
        self,
        n_clusters: int,
        *,
        semantic_weight: float | Literal["auto"] = "auto",
        n_neighbors: int = 20,
        epsilon: float = 0.1,
        gamma: float = 0.1,
        rho_base: float = 0.1,
        rho_upper: float = 1.0,
        max_steps: int = 100,
        lr: float = 1e-2,
        batch_size: int | None = None,
        init: Any = "kmeans",
        noise: float = 0.1,
        encoder: nn.Module | None = None,
        n_heads: int = 1,
        device: str | torch.device | None = None,
        random_state: int | None = None,
        prior: Any = None,
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
        self.prior = prior
        self._check_parameters()

    def fit(self, X: Any, y: Any = None) -> SP2OTClusterer:
        """Cluster ``X``.

        Args:
            X: ``(N, D)`` features: array, data frame, sparse matrix or tensor; with an encoder, whatever it takes,
                ``(N, ...)``.
            y: Not used.

        Raises:
            TypeError: features that are not numbers.
            ValueError: features that are not finite or have another number of axes, more clusters than samples.

        Warns:
            sklearn.exceptions.ConvergenceWarning: a transport problem was not solved, or clusters are empty.
        """
        self._check_parameters()
        device = resolve_device(self.device, like=X)
        known = {
            name: self.__dict__.pop(name) for name in ("n_features_in_", "feature_names_in_") if name in vars(self)
        }
        try:
            samples = as_samples(X, self, reset=True, table=self.encoder is None).to(device)
            if self.n_clusters > len(samples):
                raise ValueError(
                    f"n_clusters must be at most the number of samples, got {self.n_clusters} > {len(samples)}"
                )
            with local_seed(self._seed()):
                fitted = self._train(samples)
        except BaseException:  # a call that is refused changes nothing
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
            self.__dict__.update(known)
            raise
        place, centers = fitted.pop("place"), fitted.pop("centers")
        self.__dict__.update(fitted)
        self._place = place
        self.mean_, self.scale_ = like_input(place.mean.to(samples.dtype), X), place.spread
        labels = self._logits(samples).argmax(1)
        sizes = labels.bincount(minlength=self.n_clusters)
        self.cluster_sizes_ = like_input(sizes, X)
        self.cluster_centers_ = like_input(centers(labels), X)
        self.labels_ = like_input(labels, X)
        if bool((sizes == 0).any()):
            from sklearn.exceptions import ConvergenceWarning

            message = f"{int((sizes == 0).sum())} of {self.n_clusters} clusters are empty: ask for fewer n_clusters"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.encoder is None
        return tags

    def _check_parameters(self) -> None:
        check_number(self.n_clusters, "n_clusters", low=1, integer=True)
        if isinstance(self.semantic_weight, str):
            check_choice(self.semantic_weight, "semantic_weight", ("auto",))
        else:
            check_number(self.semantic_weight, "semantic_weight", low=0)
        check_number(self.n_neighbors, "n_neighbors", low=1, integer=True)
        check_number(self.epsilon, "epsilon", low=SMALLEST_EPSILON)
        check_number(self.gamma, "gamma", low=0, high=float("inf"), open_low=True)
        check_number(self.rho_base, "rho_base", low=0, high=1, open_low=True)
        check_number(self.rho_upper, "rho_upper", low=self.rho_base, high=1)
        check_number(self.max_steps, "max_steps", low=1, integer=True)
        check_number(self.lr, "lr", low=0, open_low=True)
        if self.batch_size is not None:
            check_number(self.batch_size, "batch_size", low=1, integer=True)
        if self.init is None or isinstance(self.init, (str, int, float)):
            check_choice(self.init, "init", ("kmeans", "random"))
        elif len(_as_centers(self.init)) != self.n_clusters:
            raise ValueError(f"init must have {self.n_clusters} rows, got shape {np.shape(self.init)}")
        check_number(self.noise, "noise", low=0)
        if self.encoder is not None and not isinstance(self.encoder, nn.Module):
            raise TypeError(f"encoder must be a torch.nn.Module, got {type(self.encoder).__name__}")
        check_number(self.n_heads, "n_heads", low=1, integer=True)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**32 - 1, integer=True)
        if self.prior is not None:
            relative_sizes(_as_prior(self.prior), self.n_clusters)

    def _seed(self) -> int:
        if self.random_state is not None:
            return self.random_state
        return int(np.random.SeedSequence().generate_state(1)[0])

    def _checked(self, X: Any) -> Tensor:
        check_fitted(self, "head_")
        return as_samples(X, self, reset=False, table=self.encoder_ is None)

    def _logits(self, samples: Tensor) -> Tensor:
        return _logits(samples, self.head_, self.encoder_, self._place)

    def _train(self, samples: Tensor) -> dict[str, Any]:
        count, device = len(samples), samples.device
        encoder = copy.deepcopy(self.encoder)
        if encoder is not None:
            encoder = encoder.to(device, samples.dtype)
            features = map_batches(encoder, samples, batch_size=PREDICT_BATCH)
            check_tensor(features, "features of the encoder", ndim=2)
        else:
            features = samples
        place = Place.of(features)
        placed = place.apply(features)
        near = knn_similarity(placed, k=min(CLOSEST, count - 1), bandwidth="auto") if count > 1 else None
        prior = None if self.prior is None else relative_sizes(_as_prior(self.prior), self.n_clusters)
        heads = nn.ModuleList(
            self._new_head(features, placed, place, near, prior, number) for number in range(self.n_heads)
        )
        batch = min(self.batch_size or count, count)
        bank = 0 if batch == count else min(count, BANK_BATCHES * batch)
        weight = PAPER_WEIGHT * (bank or count) if self.semantic_weight == "auto" else float(self.semantic_weight)
        neighbors = min(self.n_neighbors, count - 1)
        graph = knn_similarity(placed, k=neighbors, bandwidth="auto") if neighbors and weight > 0 else None
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
            outer_iterations=OUTER_ITERATIONS,
            prior=prior,
        ).to(device, samples.dtype)
        generator = make_generator(int(torch.randint(2**31, ())), device="cpu")
        if bank:
            first = torch.randperm(count, generator=generator)[:bank].to(device)
            with torch.no_grad():
                for memory, head in zip(criterion.banks, heads, strict=True):
                    memory.push(head(placed[first]), first)  # type: ignore[operator]
        parameters = [*heads.parameters(), *(encoder.parameters() if encoder is not None else ())]
        optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=self.lr)
        unit = float(samples.double().abs().max()) or 1.0
        deviation = float((samples.double() / unit).std(0, correction=0).square().mean().sqrt()) * unit
        spread = self.noise * deviation

        history: list[dict[str, float]] = []
        recent = torch.zeros(0, self.n_heads)
        order = torch.empty(0, dtype=torch.int64)
        best = [_Best(head, encoder, self.n_clusters, near, place) for head in heads]  # type: ignore[arg-type]
        for kept in best:
            kept.look(samples, 0)
        for step in range(self.max_steps):
            if len(order) < batch:
                order, recent = torch.randperm(count, generator=generator), recent[:0]
            index, order = order[:batch].to(device), order[batch:]
            views = []
            for _ in range(2):
                shift = torch.randn(batch, *samples.shape[1:], generator=generator, dtype=samples.dtype)
                view = samples[index] + spread * shift.to(device)
                encoded = place.apply(view if encoder is None else encoder(view))
                views.append([head(encoded) for head in heads])
            output = criterion(views, index)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            optimizer.step()
            recent = torch.cat([recent, output.per_head.cpu()[None].float() / output.rho])
            history.append({"step": step, "loss": float(output.loss.detach()), "rho": output.rho})
            if (step + 1) % max(1, self.max_steps // LOOKS) == 0 or step + 1 == self.max_steps:
                for kept in best:
                    kept.look(samples, step + 1)
        chosen = min(zip(best, recent.mean(0).tolist(), strict=True), key=lambda pair: (pair[0].cut, pair[1]))[0]

        def centers(labels: Int[Tensor, " n"]) -> Float[Tensor, "clusters dim"]:
            x = features if chosen.encoder is None else map_batches(chosen.encoder, samples, batch_size=PREDICT_BATCH)
            return _means(x, labels, self.n_clusters)

        return {
            "head_": chosen.head,
            "encoder_": chosen.encoder,
            "rho_": history[-1]["rho"],
            "n_steps_": self.max_steps,
            "best_step_": chosen.step,
            "history_": history,
            "place": place,
            "centers": centers,
        }

    def _new_head(
        self,
        features: Float[Tensor, "n dim"],
        placed: Float[Tensor, "n lifted"],
        place: Place,
        graph: Tensor | None,
        prior: Tensor | None,
        number: int,
    ) -> CosineHead:
        """A head at the start that ``init`` says; k-means' labels are learned for a few steps."""
        head = CosineHead(placed.shape[1], self.n_clusters).to(placed.device, placed.dtype)
        labels = None
        if not isinstance(self.init, str) and number == 0:
            given = _as_centers(self.init)
            check_tensor(given, "init", shape=(self.n_clusters, features.shape[1]))
            head.reset_prototypes(place.apply(given.to(features)))
        elif self.init == "kmeans":
            labels = self._kmeans(placed, graph, prior)
            means = _means(placed, labels, self.n_clusters)
            # The prototype of no sample points away from all.
            means[labels.bincount(minlength=self.n_clusters) == 0] = -placed.mean(0)
            head.reset_prototypes(means)
        else:
            head.reset_prototypes(placed[torch.randperm(len(placed))[: self.n_clusters].to(placed.device)])
        if self.n_clusters > 1:
            with torch.no_grad():
                first, second = head(placed).topk(2, dim=1).values.unbind(1)
            margin = float((first - second).median())
            if margin > 0:
                head.scale *= min(MARGIN / margin, 1e3)
        if labels is not None:
            optimizer = torch.optim.Adam(head.parameters(), lr=self.lr)
            for _ in range(REHEARSALS):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(head(placed), labels).backward()
                optimizer.step()
        return head

    def _kmeans(
        self, placed: Float[Tensor, "n lifted"], graph: Tensor | None, prior: Tensor | None
    ) -> Int[Tensor, " n"]:
        """Labels of k-means after exchanges on the graph; ordered like the prior if there is one."""
        from sklearn.cluster import KMeans

        seed = int(torch.randint(2**31, ()))
        table = placed[:, :-1].detach().cpu().numpy()
        distinct = len(np.unique(table, axis=0)) if self.n_clusters > 1 else 1
        found = KMeans(min(self.n_clusters, distinct), n_init=10, random_state=seed).fit(table).labels_
        labels = torch.from_numpy(found).long().to(placed.device)
        if graph is not None and 2 < self.n_clusters <= distinct:
            labels = exchanged(graph, labels, self.n_clusters)
        if prior is not None:
            by_size = labels.bincount(minlength=self.n_clusters).argsort(descending=True, stable=True)
            rank = torch.empty_like(by_size)
            rank[by_size] = prior.to(placed.device).argsort(descending=True, stable=True)
            labels = rank[labels]
        return labels


class _Best:
    """The head and encoder whose partition cut the fewest edges of the graph so far; without a graph, the last ones."""

    def __init__(
        self, head: CosineHead, encoder: nn.Module | None, clusters: int, graph: Tensor | None, place: Place
    ) -> None:
        self.current, self.current_encoder = head, encoder
        self.clusters, self.graph, self.place = clusters, graph, place
        self.cut, self.step, self.head, self.encoder = float("inf"), 0, head, encoder

    def look(self, samples: Tensor, step: int) -> None:
        """Keep copies where the partition is at least as good."""
        cut = 0.0
        if self.graph is not None:
            labels = _logits(samples, self.current, self.current_encoder, self.place).argmax(1)
            cut = normalized_cut(self.graph, labels, self.clusters)
        if cut <= self.cut:
            self.cut, self.step = cut, step
            self.head, self.encoder = copy.deepcopy(self.current), copy.deepcopy(self.current_encoder)


def _logits(samples: Tensor, head: CosineHead, encoder: nn.Module | None, place: Place) -> Float[Tensor, "n clusters"]:
    def logits(batch: Tensor) -> Tensor:
        features = batch if encoder is None else encoder(batch.to(head.weight.dtype))
        return head(place.apply(features).to(head.weight.dtype))

    with evaluating(*([head] if encoder is None else [head, encoder])):
        return map_batches(logits, samples, batch_size=PREDICT_BATCH, device=head.weight.device)


def _means(x: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], clusters: int) -> Float[Tensor, "clusters dim"]:
    """Means of the clusters' rows; of all rows for an empty cluster."""
    unit = float(x.double().abs().max()) or 1.0
    rows = x.double() / unit
    sums = rows.new_zeros(clusters, x.shape[1]).index_add_(0, labels, rows)
    sizes = labels.bincount(minlength=clusters)[:, None]
    return (torch.where(sizes > 0, sums / sizes.clamp(min=1), rows.mean(0)) * unit).to(x.dtype)


def _as_centers(init: Any) -> Tensor:
    """Centers as a floating tensor with two axes, from what ``fit`` returns and what converts to it."""
    if not isinstance(init, Tensor) and np.asarray(init).dtype.kind in "iu":
        init = np.asarray(init, dtype=np.float64)
    return as_features(init, "init").detach()


def _as_prior(prior: Any) -> Tensor:
    if isinstance(prior, Tensor):
        return prior
    array = np.asarray(prior)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"prior must hold numbers, got {type(prior).__name__}")
    return torch.from_numpy(array.astype(np.float64))
