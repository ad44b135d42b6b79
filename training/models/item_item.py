"""Shared half of the item-to-item models: scoring histories with a sparse item-by-item matrix.

score(b, j) = sum over the history of decay^age * weights[item, j] + PRIOR * popularity share of j

Items without activity in the fold score as low as the lowest of the others.

Owns scoring, sparse retrieval and saving; how the matrix is learned is each model's own file (`transition_knn`, `ease`).

Legend: `B` queries, `N` items, `L` history entries, `M` neighbours kept an item.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from pydantic import Field

from training.arrays import map_arrays, save_arrays
from training.candidates import Retrieved
from training.interactions import BoolArray, FloatArray, Interactions, LongArray
from training.models.base import ModelConfig, Retriever, top_k
from training.popular_order import PopularOrder
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
    order: PopularOrder
    known: BoolArray

    def set_weights(self, weights: sp.csr_matrix, popularity: FloatArray) -> None:
        """Install the fitted state: `weights` (N, N) and the (N,) popularity share in [0, 1]."""
        self.weights = weights
        self.popularity = popularity.astype(np.float32, copy=False)
        self.known = self.popularity > 0
        popular_first = np.argsort(-self.popularity, kind="stable")[: int(self.known.sum())].astype(np.int32)
        self.order = PopularOrder(popular_first, len(self.popularity))

    def score(self, queries: QueryBatch) -> FloatArray:
        """See `Retriever.score`; a query without history gets popularity."""
        scores = np.asarray((self._history_weights(queries) @ self.weights).todense(), dtype=np.float32)
        scores += np.float32(PRIOR) * self.popularity
        if not self.known.all():
            lowest = scores.min(axis=1, keepdims=True)
            scores = np.where(self.known, scores, np.minimum(lowest, 0.0))
        return scores

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """As `Retriever.retrieve`, touching only the neighbours of the history and the most popular items.

        Where fewer than `k` known items are allowed, the row is padded: unknown ones have nothing to be ordered by.
        """
        num_items = len(self.popularity)
        entry, item, value = self._reached(queries)
        out = queries.excluded(exclude_history)
        width = min(k + out.most(), num_items)
        dense_is_cheaper = len(item) + len(queries) * width > len(queries) * num_items // 4
        if dense_is_cheaper or (allowed is not None and allowed.ndim == 2):
            return super().retrieve(queries, k, allowed, exclude_history=exclude_history)
        # Unreached items are ordered by popularity alone: the first `width` allowed ones fill a row, as far as there are any.
        popular = self.order.head(width, allowed)
        row = np.concatenate([entry, np.repeat(np.arange(len(queries)), len(popular))])
        key = row * num_items + np.concatenate([item, np.tile(popular, len(queries))])
        key, value = _summed(key, np.concatenate([value, np.zeros(len(queries) * len(popular), dtype=np.float32)]))
        row, item = key // num_items, key % num_items
        value += np.float32(PRIOR) * self.popularity[item]
        if allowed is not None:
            value[~allowed[item]] = -np.inf
        if len(out):
            value[np.isin(key, out.keys(num_items))] = -np.inf
        return _best_of_ragged(row, item, value, len(queries), k)

    def _reached(self, queries: QueryBatch) -> tuple[LongArray, LongArray, FloatArray]:
        """Query number, item and weighted score of every neighbour of every history entry that still counts.

        Rows are gathered, not multiplied as matrices: the product of scipy clears arrays of N for each call.
        """
        weight = (self.config.history_decay ** queries.age.astype(np.float64)).astype(np.float32)
        keep = np.flatnonzero(weight >= NEGLIGIBLE)
        items = queries.item_idx[keep]
        start = self.weights.indptr[items].astype(np.int64)
        length = self.weights.indptr[items + 1] - start
        ends = np.cumsum(length)
        place = np.repeat(start - (ends - length), length) + np.arange(int(ends[-1]) if len(ends) else 0)
        score = np.repeat(weight[keep], length) * self.weights.data[place]
        return np.repeat(queries.row[keep], length).astype(np.int64), self.weights.indices[place].astype(np.int64), score

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file."""
        tensors = {
            "data": self.weights.data.astype(np.float32),
            "indices": as_index(self.weights.indices, self.weights.nnz),
            "indptr": as_index(self.weights.indptr, self.weights.nnz),
            "popularity": self.popularity,
        }
        save_arrays(folder / "item_item.safetensors", tensors)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`; the matrix stays memory-mapped."""
        tensors = map_arrays(folder / "item_item.safetensors")
        num_items = len(tensors["popularity"])
        model = cls(config)
        data = tensors["data"].astype(np.float32, copy=False)
        # Both index arrays are of one type: else scipy would bring them to one by a copy.
        indices, indptr = as_index(tensors["indices"], len(data)), as_index(tensors["indptr"], len(data))
        matrix = sp.csr_matrix((data, indices, indptr), shape=(num_items, num_items), copy=False)
        model.set_weights(matrix, tensors["popularity"].astype(np.float32, copy=False))
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
    size = np.abs(matrix.data)
    keep = np.ones(len(size), dtype=bool)
    for row in np.flatnonzero(lengths > neighbours):
        start, stop = matrix.indptr[row], matrix.indptr[row + 1]
        keep[start:stop] = False
        keep[start + largest(size[start:stop], neighbours)] = True
    indptr = np.concatenate([[0], np.cumsum(keep)])[matrix.indptr]
    return sp.csr_matrix((matrix.data[keep], matrix.indices[keep], indptr), shape=matrix.shape)


def largest(values: npt.NDArray[Any], count: int) -> LongArray:
    """Places of the `count` largest values, ascending; of equal ones the first. All, where there are no more."""
    if count >= len(values):
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    kept = values > least
    kept[np.flatnonzero(values == least)[: count - int(kept.sum())]] = True
    return np.flatnonzero(kept)


def as_index(array: npt.NDArray[Any], entries: int) -> npt.NDArray[np.integer[Any]]:
    """An index array of a sparse matrix in the type that scipy takes for so many entries; copied only where it is another."""
    return array.astype(np.int32 if entries <= np.iinfo(np.int32).max else np.int64, copy=False)


def _summed(key: LongArray, value: FloatArray) -> tuple[LongArray, FloatArray]:
    """Distinct keys, ascending, and the sum of the values of each."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, dtype=np.int64)
    total = np.add.reduceat(value[order], first) if len(key) else value
    return key[first], total.astype(np.float32, copy=False)


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
