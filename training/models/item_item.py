"""Shared half of the item-to-item models: scoring histories with a sparse item-by-item matrix.

score(b, j) = sum over the history of decay^age * weights[item, j] + PRIOR * popularity share of j

Items without activity in the fold score as low as the lowest of the others.

Owns scoring, sparse retrieval and saving; how the matrix is learned is each model's own file (`transition_knn`, `ease`).

Legend: `B` queries, `N` items, `L` history entries, `M` neighbours kept an item.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field
from safetensors.numpy import load_file, save_file

from training.candidates import Retrieved
from training.interactions import BoolArray, FloatArray, IntArray, Interactions, LongArray
from training.models.base import ModelConfig, Retriever, top_k
from training.queries import QueryBatch

PRIOR = 1e-6
"""Weight of the popularity share: orders items that no neighbour reaches, and breaks ties, without moving real scores."""

NEGLIGIBLE = 1e-4
"""History entries whose decayed weight is below this are not looked up."""


class ItemItemConfig(ModelConfig):
    """What item-to-item models have in common.

    Args:
        history_decay: weight of a history entry is `history_decay ** age`, age 0 being the newest.
        neighbours: entries kept a row of the item-by-item matrix, those of largest magnitude.
    """

    history_decay: float = Field(default=0.8, gt=0, le=1)
    neighbours: int = Field(default=500, ge=1)


class ItemItemRetriever(Retriever):
    """Scores by the sparse matrix `weights` (N, N) float32, row = history item, column = candidate."""

    config: ItemItemConfig
    weights: sp.csr_matrix
    popularity: FloatArray
    popular_first: IntArray
    known: BoolArray

    def set_weights(self, weights: sp.csr_matrix, popularity: FloatArray) -> None:
        """Install the fitted state: `weights` (N, N) and the (N,) popularity share in [0, 1]."""
        self.weights = weights
        self.popularity = popularity.astype(np.float32)
        self.known = self.popularity > 0
        self.popular_first = np.argsort(-self.popularity, kind="stable")[: int(self.known.sum())].astype(np.int32)

    def score(self, queries: QueryBatch) -> FloatArray:
        """See `Retriever.score`; a query without history gets popularity."""
        scores = np.asarray((self._history_weights(queries) @ self.weights).todense(), dtype=np.float32)
        scores += np.float32(PRIOR) * self.popularity
        if not self.known.all():
            lowest = scores.min(axis=1, keepdims=True)
            scores = np.where(self.known, scores, np.minimum(lowest, 0.0))
        return scores

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """As `Retriever.retrieve`, touching only the neighbours of the history and the most popular items."""
        num_items = len(self.popularity)
        reached = self._history_weights(queries) @ self.weights
        longest = int(np.diff(queries.indptr).max(initial=0)) if exclude_history else 0
        width = min(k + longest, num_items)
        # Unreached items are ordered by popularity alone: the first `width` allowed ones always fill a row.
        popular = self.popular_first
        if allowed is not None and allowed.ndim == 1:
            popular = popular[allowed[popular]]
        dense_is_cheaper = reached.nnz + len(queries) * width > len(queries) * num_items // 4
        if dense_is_cheaper or len(popular) < width or (allowed is not None and allowed.ndim == 2):
            return super().retrieve(queries, k, allowed, exclude_history=exclude_history)
        popular = popular[:width]
        row = np.concatenate(
            [np.repeat(np.arange(len(queries)), np.diff(reached.indptr)), np.repeat(np.arange(len(queries)), len(popular))]
        )
        item = np.concatenate([reached.indices, np.tile(popular, len(queries))]).astype(np.int64)
        value = np.concatenate([reached.data, np.zeros(len(queries) * len(popular), dtype=np.float32)])
        key, first = np.unique(row * num_items + item, return_index=True)
        value, row, item = value[first], key // num_items, key % num_items
        if allowed is not None:
            value = np.where(allowed[item], value, -np.inf)
        if exclude_history:
            seen = np.isin(key, queries.row.astype(np.int64) * num_items + queries.item_idx)
            value = np.where(seen, -np.inf, value)
        value = (value + np.float32(PRIOR) * self.popularity[item]).astype(np.float32)
        return _best_of_ragged(row, item, value, len(queries), k)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file."""
        tensors = {
            "data": self.weights.data.astype(np.float32),
            "indices": self.weights.indices.astype(np.int32),
            "indptr": self.weights.indptr.astype(np.int64),
            "popularity": self.popularity,
        }
        save_file(tensors, folder / "item_item.safetensors")

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`."""
        tensors = load_file(folder / "item_item.safetensors")
        num_items = len(tensors["popularity"])
        model = cls(config)
        matrix = sp.csr_matrix((tensors["data"], tensors["indices"], tensors["indptr"]), shape=(num_items, num_items))
        model.set_weights(matrix, tensors["popularity"])
        return model

    def _history_weights(self, queries: QueryBatch) -> sp.csr_matrix:
        """(B, N) float32: `history_decay ** age` at the items of each history; repeats of an item add up."""
        weight = (self.config.history_decay ** queries.age.astype(np.float64)).astype(np.float32)
        keep = weight >= NEGLIGIBLE
        shape = (len(queries), len(self.popularity))
        return sp.csr_matrix((weight[keep], (queries.row[keep], queries.item_idx[keep])), shape=shape)


def popularity_share(interactions: Interactions) -> FloatArray:
    """(N,) float32: interactions of each item over those of the most popular one."""
    counts = np.bincount(interactions.item_idx, minlength=interactions.num_items).astype(np.float32)
    return counts / max(float(counts.max(initial=0.0)), 1.0)


def keep_strongest(matrix: sp.csr_matrix, neighbours: int) -> sp.csr_matrix:
    """The `neighbours` entries of largest magnitude of each row, the rest dropped. Ties keep the lower column."""
    matrix.sort_indices()
    lengths = np.diff(matrix.indptr)
    if int(lengths.max(initial=0)) <= neighbours:
        return matrix
    row = np.repeat(np.arange(matrix.shape[0]), lengths)
    order = np.lexsort((-np.abs(matrix.data), row))
    place = np.arange(len(row)) - matrix.indptr[row]
    kept = np.sort(order[place < neighbours])
    indptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, neighbours))])
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


def _best_of_ragged(row: LongArray, item: LongArray, value: FloatArray, num_rows: int, k: int) -> Retrieved:
    """The k best of ragged rows (sorted by row, then item): padded to a rectangle, then `top_k`."""
    lengths = np.bincount(row, minlength=num_rows)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    width = max(int(lengths.max(initial=0)), 1)
    place = np.arange(len(row)) - starts[row]
    scores = np.full((num_rows, width), -np.inf, dtype=np.float32)
    items = np.full((num_rows, width), -1, dtype=np.int32)
    scores[row, place] = value
    items[row, place] = item
    best = top_k(scores, k)
    chosen = np.take_along_axis(items, np.maximum(best.item_idx, 0), axis=1)
    return Retrieved(np.where(best.item_idx >= 0, chosen, -1).astype(np.int32), best.score)
