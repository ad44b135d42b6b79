"""Decayed popularity: what everybody takes lately, or everybody like the user. The floor that every other model has to beat.

With `segments`, score(b, j) is the mean of P(j | s) over the segments of the user's attributes, each drawn towards the whole as far
as it is small; users without attributes, and strangers, get the whole.

Shapes: `B` queries, `N` items, `U` users, `S` segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from training.arrays import AnyArray, map_arrays, save_arrays
from training.candidates import Retrieved
from training.excluded_items import ExcludedItems
from training.interactions import BoolArray, FloatArray, IntArray, Interactions, LongArray
from training.models.base import ModelConfig, ReportEpoch, Retriever, TrainingData, top_k
from training.popular_order import PopularOrder
from training.queries import QueryBatch
from training.user_segments import segment_shares, user_segments

US_PER_DAY = 86_400_000_000


class PopularityConfig(ModelConfig):
    """Parameters of decayed popularity.

    Args:
        half_life_days: an interaction counts half after this time, seen from the fold's newest one; None counts all alike, as
            do interactions whose time is not known.
        segments: one order for each value of the users' attributes instead of one for all.
        shrinkage: interactions of the whole that a segment's own are joined by.
    """

    half_life_days: float | None = Field(default=None, gt=0)
    segments: bool = False
    shrinkage: float = Field(default=300.0, gt=0)


class Popularity(Retriever):
    """Score is the item's decayed count over that of the first, by segments where asked; see the module."""

    name: ClassVar[str] = "popularity"
    Config: ClassVar[type[ModelConfig]] = PopularityConfig
    config: PopularityConfig
    share: FloatArray
    order: PopularOrder
    members: sp.csr_matrix
    """(U, S) segments of each user, S being 0 without segments."""
    own: sp.csr_matrix
    """(S, N) what a segment adds to the whole's share times `rest`."""
    rest: FloatArray
    """(S,) weight of the whole in each segment."""

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No randomness, no epochs."""
        interactions = data.interactions
        weight = decayed_weights(interactions, self.config.half_life_days)
        counts = np.bincount(interactions.item_idx, weights=weight, minlength=interactions.num_items)
        most = max(float(counts.max(initial=0.0)), np.finfo(np.float64).tiny)
        self.set_share((counts / most).astype(np.float32))
        if self.config.segments:
            self.members = user_segments(data.user_attributes, interactions.num_users)
            self.own, self.rest = segment_shares(interactions, weight, self.members, self.config.shrinkage)
            self.own.data *= np.float32(counts.sum() / most)  # shares of the whole stand in units of the first item's
        return self

    def set_share(self, share: FloatArray) -> None:
        """Install the state of the whole: (N,) decayed counts over that of the first. No segments yet."""
        self.share = share
        self.order = PopularOrder(np.argsort(-share, kind="stable").astype(np.int32), len(share))
        self.members = sp.csr_matrix(np.empty((0, 0), dtype=np.float32))
        self.own = sp.csr_matrix(np.empty((0, len(share)), dtype=np.float32))
        self.rest = np.empty(0, dtype=np.float32)

    def score(self, queries: QueryBatch) -> FloatArray:
        """See `Retriever.score`."""
        scores = np.tile(self.share, (len(queries), 1))
        for rows, segments in self._alike(queries):
            if len(segments):
                scores[rows] = self._scores(segments)
        return scores

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """As `Retriever.retrieve`, looking only at as many of the first items as may have to be left out."""
        if allowed is not None and allowed.ndim == 2:
            return super().retrieve(queries, k, allowed, exclude_history=exclude_history)
        item_idx = np.full((len(queries), k), -1, dtype=np.int32)
        score = np.full((len(queries), k), -np.inf, dtype=np.float32)
        for rows, segments in self._alike(queries):
            out = queries.take(rows).excluded(exclude_history)
            first, values = self._first(segments, k + out.most(), allowed)
            part = _first_without(len(rows), out, first, values, k)
            item_idx[rows], score[rows] = part.item_idx, part.score
        return Retrieved(item_idx, score)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file."""
        arrays: dict[str, AnyArray] = {"share": self.share}
        if self.config.segments:
            arrays |= {"rest": self.rest, "own": self.own.data}
            arrays |= {"own_items": self.own.indices.astype(np.int32), "own_indptr": self.own.indptr.astype(np.int64)}
            arrays |= {"user_segments": self.members.indices.astype(np.int32), "user_indptr": self.members.indptr.astype(np.int64)}
        save_arrays(folder / "popularity.safetensors", arrays)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`."""
        model = cls(config)
        arrays = map_arrays(folder / "popularity.safetensors")
        model.set_share(arrays["share"].astype(np.float32, copy=False))
        if model.config.segments:
            model.rest = arrays["rest"].astype(np.float32, copy=False)
            items, starts = arrays["own_items"].astype(np.int32), arrays["own_indptr"].astype(np.int64)
            model.own = sp.csr_matrix((arrays["own"].astype(np.float32), items, starts), shape=(len(model.rest), len(model.share)))
            segments, starts = arrays["user_segments"].astype(np.int32), arrays["user_indptr"].astype(np.int64)
            ones = np.ones(len(segments), dtype=np.float32)
            model.members = sp.csr_matrix((ones, segments, starts), shape=(len(starts) - 1, len(model.rest)))
        return model

    def _alike(self, queries: QueryBatch) -> Iterator[tuple[LongArray, IntArray]]:
        """Queries of equal segments together: their numbers, and the segments."""
        num_users = self.members.shape[0]
        known = (queries.user_idx >= 0) & (queries.user_idx < num_users)
        outside = np.flatnonzero(~known)
        if len(outside):
            yield outside, np.empty(0, dtype=np.int32)
        inside = np.flatnonzero(known)
        if len(inside):
            belongs = self.members[queries.user_idx[inside]].toarray() > 0
            combinations, group = np.unique(belongs, axis=0, return_inverse=True)
            for number, combination in enumerate(combinations):
                yield inside[group.ravel() == number], np.flatnonzero(combination).astype(np.int32)

    def _scores(self, segments: IntArray) -> FloatArray:
        """(N,) mean of the segments' shares; the whole's where there is no segment."""
        if not len(segments):
            return self.share
        own = np.asarray(self.own[segments].sum(axis=0)).ravel() / len(segments)
        return (own + self.rest[segments].mean() * self.share).astype(np.float32)

    def _first(self, segments: IntArray, count: int, allowed: BoolArray | None) -> tuple[IntArray, FloatArray]:
        """The first `count` allowed items of a group, best first, and their scores."""
        head = self.order.head(count, allowed)
        if not len(segments):
            return head, self.share[head]
        # An item that is not among the segments' own stands where the whole has it.
        own = self.own[segments].indices
        items = np.union1d(head, own if allowed is None else own[allowed[own]]).astype(np.int32)
        scores = self._scores(segments)[items]
        best = np.argsort(-scores, kind="stable")[:count]
        return items[best], scores[best]


def _first_without(num_queries: int, out: ExcludedItems, first: IntArray, values: FloatArray, k: int) -> Retrieved:
    """The k best of `first`, which are common to all queries, less what each leaves out."""
    scores = np.tile(values, (num_queries, 1))
    if len(out) and len(first):
        by_item = np.argsort(first, kind="stable")
        place = np.minimum(np.searchsorted(first, out.item_idx, sorter=by_item), len(first) - 1)
        there = np.flatnonzero(first[by_item[place]] == out.item_idx)
        scores[out.row[there], by_item[place[there]]] = -np.inf
    best = top_k(scores, k)
    return Retrieved(np.where(best.item_idx >= 0, np.append(first, -1)[best.item_idx], -1).astype(np.int32), best.score)


def decayed_weights(interactions: Interactions, half_life_days: float | None) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(E,) float64: `0.5 ** (age / half_life_days)` of each interaction; 1 where times are unknown."""
    weight = np.ones(len(interactions))
    known = interactions.time_known
    if half_life_days is not None and known.any():
        age_days = (interactions.time_us[known].max() - interactions.time_us[known]) / US_PER_DAY
        weight[known] = 0.5 ** (age_days / half_life_days)
        # An unknown age counts as the average of the known ones: neither favoured nor lost.
        weight[~known] = weight[known].mean()
    return weight
