"""Decayed popularity: what everybody takes lately. The floor that every other model has to beat, and the answer for strangers.

Shapes: `B` queries, `N` items.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from training.candidates import Retrieved
from training.interactions import BoolArray, FloatArray, IntArray, Interactions
from training.models.base import ModelConfig, ReportEpoch, Retriever, TrainingData, top_k
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
    popular_first: IntArray

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No randomness, no epochs."""
        counts = decayed_counts(data.interactions, self.config.half_life_days)
        self.set_share((counts / max(float(counts.max(initial=0.0)), np.finfo(np.float64).tiny)).astype(np.float32))
        return self

    def set_share(self, share: FloatArray) -> None:
        """Install the fitted state: (N,) decayed counts over that of the first."""
        self.share = share
        self.popular_first = np.argsort(-share, kind="stable").astype(np.int32)

    def score(self, queries: QueryBatch) -> FloatArray:
        """See `Retriever.score`."""
        return np.tile(self.share, (len(queries), 1))

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """As `Retriever.retrieve`, looking only at as many of the first items as a history can take away."""
        if allowed is not None and allowed.ndim == 2:
            return super().retrieve(queries, k, allowed, exclude_history=exclude_history)
        first = self.popular_first if allowed is None else self.popular_first[allowed[self.popular_first]]
        longest = int(np.diff(queries.indptr).max(initial=0)) if exclude_history else 0
        first = first[: k + longest]
        scores = np.tile(self.share[first], (len(queries), 1))
        if exclude_history:
            place = np.full(len(self.share), -1, dtype=np.int64)
            place[first] = np.arange(len(first))
            seen = place[queries.item_idx]
            scores[queries.row[seen >= 0], seen[seen >= 0]] = -np.inf
        best = top_k(scores, k)
        return Retrieved(np.where(best.item_idx >= 0, np.append(first, -1)[best.item_idx], -1).astype(np.int32), best.score)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file."""
        save_file({"share": self.share}, folder / "popularity.safetensors")

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`."""
        model = cls(config)
        model.set_share(load_file(folder / "popularity.safetensors")["share"])
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
