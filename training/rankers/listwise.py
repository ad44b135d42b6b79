"""A small network over candidates, trained with the listwise softmax loss on the blend's residual.

logit(b, k) = exp(a) * base(b, k) + f(x(b, k)); f is cross layers (DCN-V2) and a perceptron side by side, its last layer starts at
zero, so the first epoch starts from the blend. Trained in torch (`listwise_training`), scored in numpy (`listwise_network`), saved
as safetensors.

Sources: Cao et al. 2007 (ListNet, the softmax loss), Wang et al. 2021 (DCN V2). Legend: `B` queries, `K` candidates, `F` features.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from training.arrays import map_arrays, save_arrays
from training.blend_search import candidate_ndcg
from training.errors import BundleError
from training.interactions import BoolArray, FloatArray, LongArray
from training.rankers.base import Ranker, RankerSettings, RankingBatch, ReportRound, hold_out, row_blocks
from training.rankers.listwise_network import CLIP, ListwiseNetwork, Weights

MODEL_FILE = "listwise.safetensors"
STEPS = 32
"""Points of the path that contributions are integrated over."""
SCORE_ROWS = 20_000
"""Candidates scored at once."""
ATTRIBUTED_QUERIES = 500
"""Queries that say how much a feature matters."""


class ListwiseConfig(RankerSettings):
    """Parameters of the network and of its training."""

    hidden: tuple[int, ...] = (64, 32)
    cross_layers: int = Field(default=2, ge=0, le=6)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0)
    batch_queries: int = Field(default=128, ge=1)
    max_epochs: int = Field(default=30, ge=1, le=1_000)
    patience: int = Field(default=4, ge=1)
    """Epochs without improvement after which training stops."""
    train_candidates: int = Field(default=100, ge=10)
    """Candidates a query that training looks at, drawn anew each epoch."""
    held_out: float = Field(default=0.15, gt=0, lt=0.9)
    """Share of the queries that decide where to stop."""


class Listwise(Ranker):
    """Network over candidate features; see the module."""

    kind: ClassVar[str] = "listwise"
    Config: ClassVar[type[RankerSettings]] = ListwiseConfig
    config: ListwiseConfig
    network: ListwiseNetwork
    names: tuple[str, ...]

    def fit(
        self,
        batch: RankingBatch,
        labels: BoolArray,
        *,
        seed: int,
        rounds: int | None = None,
        on_round: ReportRound | None = None,
        groups: LongArray | None = None,
    ) -> Self:
        """See `Ranker.fit`. Runs on the GPU where there is one."""
        from training.rankers.listwise_training import train_epochs

        config, self.names, self.rounds = self.config, batch.names, 0
        learn, held = np.arange(len(batch)), np.arange(0)
        if rounds is None:
            learn, held = hold_out(len(batch), config.held_out, seed, groups)
        last, best = config.max_epochs if rounds is None else rounds, -np.inf
        with closing(train_epochs(batch, labels, learn, config, seed)) as epochs:
            for epoch, weights in enumerate(epochs):  # epoch 0 is the blend itself
                if not len(held):
                    self.rounds, kept = epoch, self._network(weights)
                else:
                    self.network = self._network(weights)
                    ndcg = float(self._ndcg(batch.rows(held), labels[held]))
                    if ndcg > best:
                        best, kept, self.rounds = ndcg, self.network, epoch
                    if epoch and ((on_round is not None and on_round(epoch, ndcg)) or epoch - self.rounds >= config.patience):
                        break
                if epoch == last:
                    break
        self.network = self._network({**kept.weights, "attribution": _attribution(kept, batch)})
        return self

    def _ndcg(self, batch: RankingBatch, labels: BoolArray) -> float:
        return float(candidate_ndcg(self.score(batch), labels, batch.valid, labels.sum(axis=1)).mean())

    def _network(self, weights: Weights) -> ListwiseNetwork:
        return ListwiseNetwork(weights, len(self.names), self.config.hidden, self.config.cross_layers)

    def score(self, batch: RankingBatch) -> FloatArray:
        """See `Ranker.score`."""
        scores = np.empty(batch.base.shape, dtype=np.float32)
        for block in row_blocks(len(batch), max(SCORE_ROWS // max(batch.base.shape[1], 1), 1)):
            features = batch.features[block].reshape(-1, batch.features.shape[2])
            scores[block] = self.network.logits(features, batch.base[block].reshape(-1)).reshape(scores[block].shape)
        return scores

    @property
    def base_slope(self) -> float:
        """See `Ranker.base_slope`."""
        return self.network.temperature

    def contributions(self, batch: RankingBatch) -> FloatArray:
        """See `Ranker.contributions`: integrated gradients from the average candidate, by the midpoint rule.

        What the rule misses of a candidate's correction is shared out in proportion to the features' sizes, so that sums are exact.

        Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", equations 1 and 3.
        """
        parts = np.zeros(batch.features.shape, dtype=np.float32)
        network = self.network
        x = network.standardised(batch.features[batch.valid])
        correction = network.correction(x) - network.correction(np.zeros_like(x))
        gradient = np.zeros_like(x)
        for step in range(STEPS):
            gradient += network.gradient(x * np.float32((step + 0.5) / STEPS)) / STEPS
        found = x * gradient
        size = np.abs(found) + np.float32(1e-12)
        missed = (correction - found.sum(axis=1))[:, None] * size / size.sum(axis=1, keepdims=True)
        parts[batch.valid] = found + missed
        return parts

    def importance(self) -> dict[str, float]:
        """See `Ranker.importance`: mean absolute effect of one standard deviation on the logit, by the gradient, in training."""
        size = self.network.weights["attribution"].astype(np.float64)
        shares = (size / max(float(size.sum()), 1e-12)).tolist()
        return dict(sorted(zip(self.names, shares, strict=True), key=lambda pair: -pair[1]))

    def save(self, folder: Path) -> None:
        """See `Ranker.save`: one safetensors file."""
        save_arrays(folder / MODEL_FILE, self.network.weights)

    @classmethod
    def load(cls, folder: Path, config: RankerSettings, names: tuple[str, ...]) -> Self:
        """See `Ranker.load`."""
        ranker = cls(config)
        ranker.names = names
        weights = map_arrays(folder / MODEL_FILE)
        try:
            ranker.network = ranker._network(weights)
        except ValueError as error:
            raise BundleError(f"{MODEL_FILE} does not fit its features ({error}); fetch or build the bundle again") from error
        return ranker


def _attribution(network: ListwiseNetwork, batch: RankingBatch) -> FloatArray:
    """(F,) mean |d correction / d standardised feature| over the candidates of the first queries; 0 beyond the cuts."""
    features = batch.features[:ATTRIBUTED_QUERIES][batch.valid[:ATTRIBUTED_QUERIES]]
    if not len(features):
        return np.zeros(features.shape[1], dtype=np.float32)
    x = network.standardised(features)
    effect = np.where(np.abs(x) < CLIP, np.abs(network.gradient(x)), 0).mean(axis=0)
    return np.where(network.weights["scale"] > 0, effect, 0).astype(np.float32)
