"""Calendar: items taken at the times when the user was active. Weak alone, it adds what contents and neighbours do not say.

score(b, j) = mean over the history of log(share of j's activity in the entry's stretch of time + FLOOR) + PRIOR * popularity share

Stretches hold as much activity each. An item without activity has the mean shares of those next to it in the order of the
catalogue (`training.catalogue_order`), or those of all where nothing tells.

Shapes: `B` queries, `N` items, `T` stretches.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from training.arrays import map_arrays, save_arrays
from training.catalogue_order import catalogue_order
from training.errors import NotTrainableError
from training.interactions import FloatArray, IntArray, Interactions, LongArray
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.item_item import PRIOR, popularity_share
from training.models.vector_retriever import VectorRetriever
from training.queries import QueryBatch

STATE_FILE = "calendar.safetensors"
FLOOR = 0.01
"""Added to a share before its logarithm: below, what one entry says would be boundless."""
ITEMS_AT_ONCE = 20_000


class CalendarConfig(ModelConfig):
    """Parameters of the calendar.

    Args:
        stretches: T, at most; fewer where many activities have one time.
    """

    stretches: int = Field(default=24, ge=2, le=365)


class Calendar(VectorRetriever):
    """Calendar; see the module and `CalendarConfig`."""

    name: ClassVar[str] = "calendar"
    Config: ClassVar[type[ModelConfig]] = CalendarConfig
    config: CalendarConfig
    vectors: FloatArray
    """(N, T + 1) float32 logarithms of shares, and last what popularity adds."""
    ends_us: LongArray
    """(T - 1,) int64 first moments of the second and later stretches."""

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """See `Retriever.training_bytes`: shares of every item, with copies."""
        assert isinstance(config, CalendarConfig)
        return super().training_bytes(config, interactions) + interactions.num_items * config.stretches * 24

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No epochs.

        Raises:
            NotTrainableError: the activity has no times.
        """
        interactions = data.interactions
        if not interactions.has_times:
            raise NotTrainableError("calendar learns from the times of activity, and this dataset has none: leave it out")
        inner = np.linspace(0, 1, self.config.stretches + 1)[1:-1]
        self.ends_us = np.unique(np.quantile(interactions.time_us, inner, method="higher")).astype(np.int64)
        shares = self._shares(interactions.item_idx, interactions.time_us, interactions.num_items)
        counts = np.bincount(interactions.item_idx, minlength=interactions.num_items)
        new = np.flatnonzero(counts == 0)
        shares[new] = self._shares(np.zeros_like(interactions.item_idx), interactions.time_us, 1)
        order = catalogue_order(interactions, data.item_attributes)
        self._known = counts > 0
        if order is not None:
            placed = new[order.place[new] >= 0]
            self._known[placed] = True
            for start in range(0, len(placed), ITEMS_AT_ONCE):
                block = placed[start : start + ITEMS_AT_ONCE]
                shares[block] = shares[order.neighbours(block)].mean(axis=1)
        popularity = np.float32(PRIOR) * popularity_share(interactions)
        self.vectors = np.column_stack([np.log(shares + FLOOR), popularity]).astype(np.float32)
        self.vectors_changed(interactions, seed)
        return self

    def query_vectors(self, queries: QueryBatch) -> FloatArray:
        """See `VectorRetriever.query_vectors`; without history, popularity alone."""
        taken = self._shares(queries.row, queries.time_us, len(queries))
        return np.column_stack([taken, np.ones(len(queries))]).astype(np.float32)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file, and the index."""
        save_arrays(folder / STATE_FILE, {"vectors": self.vectors, "ends_us": self.ends_us, "known": self._known.astype(np.uint8)})
        self.save_index(folder)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`; the vectors stay memory-mapped."""
        model = cls(config)
        state = map_arrays(folder / STATE_FILE)
        model.vectors = state["vectors"].astype(np.float32, copy=False)
        model.ends_us = state["ends_us"].astype(np.int64, copy=False)
        model._known = state["known"].astype(bool)
        model.load_index(folder)
        return model

    def _shares(self, row: IntArray, time_us: LongArray, count: int) -> FloatArray:
        """(count, T) float32: of each row's times the share in each stretch; 0 without times."""
        stretch = np.searchsorted(self.ends_us, time_us, side="right")
        shape = (count, len(self.ends_us) + 1)
        counts = sp.csr_matrix((np.ones(len(row), dtype=np.float32), (row, stretch)), shape=shape).toarray()
        return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0), dtype=np.float32)
