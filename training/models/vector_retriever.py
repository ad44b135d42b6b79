"""Models that score by a dot product of a query's vector with an item's: what they share, above all the search.

A subclass learns `vectors` and which items are `_known`, and says what a query's vector is; scoring, exact and approximate search
and the index in the bundle are done here. Which index, and how it is searched, is `training.index`'s.

Legend: `B` queries, `N` items, `D` width.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np

from training.candidates import Retrieved
from training.exact_index import ItemIndex
from training.excluded_items import ExcludedItems
from training.index import build_index, load_index, save_index
from training.interactions import BoolArray, FloatArray, Interactions
from training.models.base import ModelConfig, Retriever
from training.queries import QueryBatch, queries_from_users

SAMPLED_QUERIES = 128
"""Histories that an index is adjusted on, drawn by the seed."""


class VectorRetriever(Retriever):
    """A retriever whose score is `query_vectors(queries) @ item_vectors().T`.

    `fit` ends with `vectors_changed(interactions, seed)`; `save` and `load` call `save_index` and `load_index`.
    """

    vectors: FloatArray
    """(N, D) float32, C-contiguous; a bias is one more column, with 1 in the query's."""
    _known: BoolArray
    """(N,) bool: see `known`."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__(config)
        self._index: ItemIndex | None = None
        self._sample: QueryBatch | None = None

    def item_vectors(self) -> FloatArray:
        """`vectors`. No copy."""
        return self.vectors

    @abstractmethod
    def query_vectors(self, queries: QueryBatch) -> FloatArray:
        """(B, D) float32 from the histories as they are now."""

    def known(self) -> BoolArray:
        """(N,) bool: items that the model has learned something of. The others score as low as the lowest of all. No copy."""
        return self._known

    def score(self, queries: QueryBatch) -> FloatArray:
        """See `Retriever.score`."""
        scores = self.query_vectors(queries) @ self.item_vectors().T
        known = self.known()
        if not known.all():
            scores = np.where(known, scores, np.minimum(scores.min(axis=1, keepdims=True), 0.0))
        return np.asarray(scores, dtype=np.float32)

    def vectors_changed(self, interactions: Interactions, seed: int) -> None:
        """Forget the index, and draw histories that the next one is adjusted on."""
        self._index = None
        active = np.flatnonzero(np.diff(interactions.indptr))
        drawn = np.random.default_rng(seed).permutation(active)[:SAMPLED_QUERIES]
        self._sample = queries_from_users(interactions, np.sort(drawn).astype(np.int32)).truncated()

    @property
    def index(self) -> ItemIndex | None:
        """The index of the present vectors, built at the first use; None where exact search over all items is as fast."""
        if self._index is None and self._sample is not None:
            vectors = self.item_vectors()
            self._index = build_index(vectors, np.flatnonzero(self.known()), lambda: self._sample_vectors())
        return self._index

    def _sample_vectors(self) -> FloatArray:
        assert self._sample is not None
        return self.query_vectors(self._sample)

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """As `Retriever.retrieve`; with an index, only among the items that the model knows, and padded where those are too few."""
        index = self.index
        if index is None or (allowed is not None and allowed.ndim == 2):
            return super().retrieve(queries, k, allowed, exclude_history=exclude_history)
        out = queries.excluded(exclude_history)
        found = index.search(self.query_vectors(queries), k + out.most(), allowed)
        return without(found, out, k) if len(out) else found

    def save_index(self, folder: Path) -> None:
        """Write the index, where there is one, beside the model's own files."""
        if self.index is not None:
            save_index(self.index, folder)

    def load_index(self, folder: Path) -> None:
        """Read what `save_index` wrote; the vectors must be in place."""
        self._index = load_index(folder, self.item_vectors(), np.flatnonzero(self.known()))


def without(found: Retrieved, out: ExcludedItems, k: int) -> Retrieved:
    """The first `k` of each row that are not left out, padded."""
    num_rows, width = found.item_idx.shape
    base = int(max(found.item_idx.max(initial=-1), out.item_idx.max(initial=-1))) + 2
    rows = np.arange(num_rows, dtype=np.int64)[:, None]
    is_out = np.isin(rows * base + found.item_idx, out.keys(base))
    order = np.argsort(is_out, axis=1, kind="stable")[:, : min(k, width)]
    gone = np.take_along_axis(is_out, order, axis=1)
    item_idx = np.where(gone, -1, np.take_along_axis(found.item_idx, order, axis=1))
    score = np.where(gone, -np.inf, np.take_along_axis(found.score, order, axis=1))
    pad = ((0, 0), (0, k - item_idx.shape[1]))
    return Retrieved(
        np.pad(item_idx, pad, constant_values=-1).astype(np.int32), np.pad(score, pad, constant_values=-np.inf).astype(np.float32)
    )
