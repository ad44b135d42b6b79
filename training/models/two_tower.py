"""Two-tower hybrid: items by id and content, users by the items of their recent history and by attributes where known.

In training an item's id is left out at random (`id_dropout`), so that an item which nobody has taken is placed by its content
alone, and a user unseen in training by the history. Softmax over the batch's targets and uniformly drawn items, corrected for how
often each is drawn.

Sources: Yi et al. 2019 (sampling-bias correction), Yang et al. 2020 (mixed negatives), Volkovs et al. 2017 (DropoutNet).

Shapes: `B` queries, `N` items, `U` users, `D` width, `S` samples (a target and what came before it), `L` history entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from training.arrays import AnyArray, map_arrays, save_arrays
from training.content_columns import content_columns
from training.errors import NotTrainableError
from training.interactions import FloatArray, Interactions, LongArray
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.item_item import PRIOR, popularity_share
from training.models.two_tower_features import Features, dense_features
from training.models.vector_retriever import VectorRetriever
from training.queries import QueryBatch
from training.text_vectors import TextModel, text_vectors, token_weights

if TYPE_CHECKING:
    import torch

    from training.models.two_tower_network import TwoTower

STATE_FILE = "two_tower.safetensors"
ITEMS_AT_ONCE = 20_000
"""Items whose vectors are computed together."""
PARALLEL_CELLS = 500_000
"""Cells of a step's users (batch size times width) below which one thread is as fast as several, and far faster on busy cores."""


class TwoTowerConfig(ModelConfig):
    """Parameters of the two-tower model.

    Args:
        width: D.
        epochs: passes over all samples.
        batch_size: samples a step.
        uniform_share: of a step's candidates, those drawn uniformly from the items with activity; the rest are its targets.
        temperature: of the softmax over cosines.
        learning_rate: of the first epoch; each next one has `learning_rate_decay` times as much.
        id_dropout: share of the items that a step knows by content alone.
        dropout: of the items' vectors.
        history_items: newest entries of a history that count.
        history_decay: an entry counts `history_decay ** age`, age 0 being the newest.
        text: `tfidf` learns a vector for each word; `minilm` adds sentence embeddings (needs shortlist[text]).
    """

    width: int = Field(default=64, ge=2, le=512)
    epochs: int = Field(default=10, ge=1, le=500)
    batch_size: int = Field(default=512, ge=2, le=16_384)
    uniform_share: float = Field(default=0.6, ge=0.5, lt=1)
    temperature: float = Field(default=0.07, gt=0, le=1)
    learning_rate: float = Field(default=3e-3, gt=0, le=1)
    learning_rate_decay: float = Field(default=0.9, gt=0, le=1)
    id_dropout: float = Field(default=0.3, ge=0, lt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    history_items: int = Field(default=20, ge=1, le=200)
    history_decay: float = Field(default=0.8, gt=0, le=1)
    text: TextModel = "tfidf"


class TwoTowerHybrid(VectorRetriever):
    """Two-tower hybrid; see the module and `TwoTowerConfig`."""

    name: ClassVar[str] = "two_tower"
    Config: ClassVar[type[ModelConfig]] = TwoTowerConfig
    epochs_parameter: ClassVar[str | None] = "epochs"
    slow: ClassVar[bool] = True
    config: TwoTowerConfig
    vectors: FloatArray
    """(N, D + 1) float32: unit vectors, zero where nothing is known, and last what popularity adds."""
    fold: FloatArray
    """(D, D) float32: from pooled history to user."""
    attributes: Features
    """Of the users of training."""
    attribute_maps: tuple[FloatArray, FloatArray]
    """(V, D) and (F, D) float32: vectors of the attributes' tokens and numbers."""

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """See `Retriever.training_bytes`: id vectors with two moments and a copy, and the items' words."""
        assert isinstance(config, TwoTowerConfig)
        step = config.batch_size * (config.history_items + 4) * config.width * 40 + 50_000_000
        return super().training_bytes(config, interactions) + interactions.num_items * (20 * config.width + 5_000) + step

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. Runs on the GPU where there is one.

        Raises:
            NotTrainableError: no user has taken two items, or the text model's package is not installed.
        """
        import torch

        from training.models.two_tower_network import TwoTower
        from training.torch_threads import torch_threads

        config, interactions = self.config, data.interactions
        samples = np.flatnonzero(np.arange(len(interactions)) > interactions.indptr[interactions.user_idx])
        if not len(samples):
            raise NotTrainableError("two_tower learns from users with two interactions or more, and there is none: use content")
        items, self.attributes = self._features(data, seed)
        popularity = popularity_share(interactions)
        rng = np.random.default_rng(seed)
        few = config.batch_size * config.width < PARALLEL_CELLS
        with torch.random.fork_rng(devices=[]), torch_threads(1 if few else torch.get_num_threads()):
            torch.manual_seed(seed)
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            network = TwoTower(interactions.num_items, items, self.attributes, config.width, config.dropout).to(device)
            sparse = [network.ids.weight, network.content.tokens.weight, network.attributes.tokens.weight]
            dense = [network.fold.weight, network.content.dense, network.attributes.dense]
            optimizers = [torch.optim.SparseAdam(sparse), torch.optim.Adam(dense)]
            for epoch in range(1, config.epochs + 1):
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = config.learning_rate * config.learning_rate_decay ** (epoch - 1)
                self.training_loss = self._epoch(network, items, interactions, rng.permutation(samples), optimizers, rng)
                if on_epoch is None and epoch < config.epochs:
                    continue
                self._take(network, items, popularity)
                self.vectors_changed(interactions, seed)
                if on_epoch is not None and on_epoch(epoch, self):
                    break
        return self

    def query_vectors(self, queries: QueryBatch) -> FloatArray:
        """See `VectorRetriever.query_vectors`; without history and attributes, popularity alone."""
        config, width = self.config, self.fold.shape[0]
        age = queries.age
        weight = np.where(age < config.history_items, config.history_decay ** age.astype(np.float64), 0.0).astype(np.float32)
        history = sp.csr_matrix((weight, (queries.row, queries.item_idx)), shape=(len(queries), len(self.vectors)))
        total = np.bincount(queries.row, weights=weight, minlength=len(queries)).astype(np.float32)
        pooled = np.asarray(history @ self.vectors, dtype=np.float32)[:, :width] / np.maximum(total, 1e-9)[:, None]
        users = pooled @ self.fold.T
        asked = np.flatnonzero((queries.user_idx >= 0) & (queries.user_idx < self.attributes.tokens.shape[0]))
        rows = queries.user_idx[asked]
        users[asked] += self.attributes.tokens[rows] @ self.attribute_maps[0] + self.attributes.dense[rows] @ self.attribute_maps[1]
        length = np.linalg.norm(users, axis=1, keepdims=True)
        return np.hstack([users / np.maximum(length, 1e-9), np.ones((len(queries), 1))]).astype(np.float32)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file, and the index."""
        tokens = self.attributes.tokens
        state: dict[str, AnyArray] = {
            "vectors": self.vectors,
            "fold": self.fold,
            "token_map": self.attribute_maps[0],
            "dense_map": self.attribute_maps[1],
            "user_dense": self.attributes.dense,
            "user_tokens": tokens.indices.astype(np.int32),
            "user_weights": tokens.data.astype(np.float32),
            "user_indptr": tokens.indptr.astype(np.int64),
        }
        save_arrays(folder / STATE_FILE, state)
        self.save_index(folder)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`; the vectors stay memory-mapped."""
        model = cls(config)
        state = map_arrays(folder / STATE_FILE)
        floats = {name: array.astype(np.float32, copy=False) for name, array in state.items() if array.dtype.kind == "f"}
        model.vectors, model.fold = floats["vectors"], floats["fold"]
        model.attribute_maps = (floats["token_map"], floats["dense_map"])
        shape = (len(floats["user_dense"]), len(floats["token_map"]))
        place = (state["user_tokens"].astype(np.int32), state["user_indptr"].astype(np.int64))
        tokens = sp.csr_matrix((floats["user_weights"], *place), shape=shape)
        model.attributes = Features(tokens, floats["user_dense"])
        model._known = np.asarray((model.vectors != 0).any(axis=1))
        model.load_index(folder)
        return model

    def _features(self, data: TrainingData, seed: int) -> tuple[Features, Features]:
        columns = content_columns(data.item_attributes, data.interactions.num_items)
        dense = dense_features(columns.numbers)
        if self.config.text == "minilm":
            sentences = text_vectors(columns.documents, "minilm", width=self.config.width, spread=1.0, seed=seed)
            dense = np.hstack([dense, sentences])
        items = Features(token_weights(columns.documents, columns.tags), dense)
        own = content_columns(data.user_attributes, data.interactions.num_users)
        return items, Features(token_weights([""] * len(own.documents), own.tags), dense_features(own.numbers))

    def _epoch(
        self,
        network: TwoTower,
        items: Features,
        interactions: Interactions,
        samples: LongArray,
        optimizers: list[torch.optim.Optimizer],
        rng: np.random.Generator,
    ) -> float:
        import torch

        from training.models.two_tower_network import sampled_softmax

        config, device, total = self.config, network.fold.weight.device, 0.0
        count = np.bincount(interactions.item_idx, minlength=interactions.num_items)
        active = np.flatnonzero(count)
        network.train()
        for rows in _batches(samples, config.batch_size):
            target = interactions.item_idx[rows].astype(np.int64)
            drawn = rng.choice(active, round(len(rows) * config.uniform_share / (1.0 - config.uniform_share)))
            candidates = np.concatenate([target, drawn])
            entries, weight = self._histories(interactions, rows)
            distinct, place = np.unique(np.concatenate([entries.ravel(), candidates]), return_inverse=True)
            with_id = (rng.random(len(distinct)) >= config.id_dropout).astype(np.float32)
            vectors = network.items(items, distinct, with_id)
            at = torch.from_numpy(place).to(device)
            pooled = torch.einsum(
                "bl,bld->bd", torch.from_numpy(weight).to(device), vectors[at[: entries.size].view(entries.shape)]
            )
            known = (rng.random(len(rows)) >= config.id_dropout).astype(np.float32)
            users = network.users(pooled, self.attributes, interactions.user_idx[rows].astype(np.int64), known)
            share = len(rows) * count[candidates] / len(interactions) + len(drawn) / len(active)
            log_q = torch.from_numpy(np.log(share / len(candidates)).astype(np.float32)).to(device)
            chosen = torch.from_numpy(candidates).to(device)
            loss = sampled_softmax(users, vectors[at[entries.size :]], chosen[: len(rows)], chosen, log_q, config.temperature)
            for optimizer in optimizers:
                optimizer.zero_grad()
            torch.autograd.backward(loss)
            for optimizer in optimizers:
                optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / len(samples)

    def _histories(self, interactions: Interactions, rows: LongArray) -> tuple[LongArray, FloatArray]:
        """(B, L) items before each row, newest first, and their weights, which sum to one; weightless where there are fewer."""
        before = rows - interactions.indptr[interactions.user_idx[rows]]
        age = np.arange(min(int(before.max()), self.config.history_items))
        valid = age < before[:, None]
        weight = np.where(valid, self.config.history_decay**age, 0.0)
        entries = interactions.item_idx[np.where(valid, rows[:, None] - 1 - age, rows[:, None] - 1)]
        return entries.astype(np.int64), (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)

    def _take(self, network: TwoTower, items: Features, popularity: FloatArray) -> None:
        """Take over what serving needs; items without activity go by their content."""
        import torch

        network.eval()
        count, width = len(popularity), self.config.width
        self.vectors = np.empty((count, width + 1), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, count, ITEMS_AT_ONCE):
                rows = np.arange(start, min(start + ITEMS_AT_ONCE, count), dtype=np.int64)
                with_id = (popularity[rows] > 0).astype(np.float32)
                self.vectors[rows, :width] = network.items(items, rows, with_id).cpu().numpy()
        self.vectors[:, width] = np.float32(PRIOR) * popularity
        self._known = np.asarray((self.vectors != 0).any(axis=1))
        state = {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}
        self.fold = state["fold.weight"]
        tokens = state["attributes.tokens.weight"][: self.attributes.tokens.shape[1]]
        self.attribute_maps = (tokens, state["attributes.dense"])


def _batches(samples: LongArray, size: int) -> Iterator[LongArray]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
