"""Decayed popularity: what everybody takes lately. The floor that every other model has to beat, and the answer for strangers.

Shapes: `B` queries, `N` items.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from training.arrays import map_arrays, save_arrays
from training.candidates import Retrieved
from training.interactions import BoolArray, FloatArray, Interactions
from training.models.base import ModelConfig, ReportEpoch, Retriever, TrainingData, top_k
from training.popular_order import PopularOrder
from training.queries import QueryBatch

US_PER_DAY = 86_400_000_000


class PopularityConfig(ModelConfig):
    """Parameters of decayed popularity.

    Args:
        half_life_days: an interaction counts half after this time, seen from the fold's newest one; None counts all alike, as
            do interactions whose time is not known.
    """

    half_life_days: float | None = Field(default=None, gt=0)


class Popularity(Retriever):
    """Same order for everybody: score is the item's decayed count over that of the first."""

    name: ClassVar[str] = "popularity"
    Config: ClassVar[type[ModelConfig]] = PopularityConfig
    config: PopularityConfig
    share: FloatArray
    order: PopularOrder

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No randomness, no epochs."""
        counts = decayed_counts(data.interactions, self.config.half_life_days)
        self.set_share((counts / max(float(counts.max(initial=0.0)), np.finfo(np.float64).tiny)).astype(np.float32))
        return self

    def set_share(self, share: FloatArray) -> None:
        """Install the fitted state: (N,) decayed counts over that of the first."""
        self.share = share
        self.order = PopularOrder(np.argsort(-share, kind="stable").astype(np.int32), len(share))

    def score(self, queries: QueryBatch) -> FloatArray:
        """See `Retriever.score`."""
        return np.tile(self.share, (len(queries), 1))

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """As `Retriever.retrieve`, looking only at as many of the first items as a history can take away."""
        if allowed is not None and allowed.ndim == 2:
            return super().retrieve(queries, k, allowed, exclude_history=exclude_history)
        longest = int(np.diff(queries.indptr).max(initial=0)) if exclude_history else 0
        first = self.order.head(k + longest, allowed)
        scores = np.tile(self.share[first], (len(queries), 1))
        if exclude_history:
            # `first` is in the order of rank: an item's place among them is found by its own rank.
            ranks, wanted = self.order.rank[first], self.order.rank[queries.item_idx]
            place = np.minimum(np.searchsorted(ranks, wanted), max(len(first) - 1, 0))
            seen = np.flatnonzero(ranks[place] == wanted) if len(first) else np.empty(0, dtype=np.int64)
            scores[queries.row[seen], place[seen]] = -np.inf
        best = top_k(scores, k)
        return Retrieved(np.where(best.item_idx >= 0, np.append(first, -1)[best.item_idx], -1).astype(np.int32), best.score)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file."""
        save_arrays(folder / "popularity.safetensors", {"share": self.share})

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`."""
        model = cls(config)
        model.set_share(map_arrays(folder / "popularity.safetensors")["share"].astype(np.float32, copy=False))
        return model


def decayed_counts(interactions: Interactions, half_life_days: float | None) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,) float64: interactions of each item, each counting `0.5 ** (age / half_life_days)`; undecayed where times are unknown."""
    weight = np.ones(len(interactions))
    known = interactions.time_known
    if half_life_days is not None and known.any():
        age_days = (interactions.time_us[known].max() - interactions.time_us[known]) / US_PER_DAY
        weight[known] = 0.5 ** (age_days / half_life_days)
        # An unknown age counts as the average of the known ones: neither favoured nor lost.
        weight[~known] = weight[known].mean()
    return np.bincount(interactions.item_idx, weights=weight, minlength=interactions.num_items).astype(np.float64)
