"""A batch of recommendation queries: what is known of each user at the moment of asking.

Models score histories, not user ids, so a user unseen in training, an anonymous session and an activity of a second ago are
all the same case.

Legend: `B` queries, `L` history entries of all queries together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from training.excluded_items import NOTHING, ExcludedItems, joined
from training.interactions import IntArray, Interactions, LongArray

MAX_HISTORY = 200
"""Entries of a history that models see at most, the most recent ones."""


@dataclass(frozen=True)
class QueryBatch:
    """B queries, histories ragged, oldest entry first.

    Shapes and units:
        indptr (B + 1,) int64: entries `indptr[b]:indptr[b + 1]` are the history of query b.
        item_idx (L,) int32.
        time_us (L,) int64: event times in microseconds; synthetic where the data has none.
        request_time_us (B,) int64: the moment of asking; every entry is strictly earlier.
        user_idx (B,) int32: row of the user in the training vocabulary, -1 where unknown.
        user_features: feature name -> (B,) array (object arrays hold lists), as the feature service names them. Empty
            where a pipeline has no ranker that needs them.
        left_out: items that are not to be returned, whether or not the history is.
    """

    indptr: LongArray
    item_idx: IntArray
    time_us: LongArray
    request_time_us: LongArray
    user_idx: IntArray
    user_features: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    left_out: ExcludedItems = NOTHING

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def history(self, b: int) -> IntArray:
        """(length,) int32: items of query b, oldest first."""
        return self.item_idx[self.indptr[b] : self.indptr[b + 1]]

    def excluded(self, history: bool) -> ExcludedItems:
        """What is left out of the answers, with the items of the histories where asked."""
        if not history:
            return self.left_out
        met = ExcludedItems(self.row, self.item_idx)
        return joined([met, self.left_out], [0, 0]) if len(self.left_out) else met

    @property
    def row(self) -> IntArray:
        """(L,) int32: query number of each history entry."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.indptr))

    @property
    def age(self) -> IntArray:
        """(L,) int32: 0 for the newest entry of a history, 1 for the one before, and so on."""
        return (self.indptr[self.row + 1] - 1 - np.arange(len(self.item_idx))).astype(np.int32)

    def slice(self, start: int, stop: int) -> QueryBatch:
        """Queries `start` to `stop` (exclusive)."""
        lo, hi = self.indptr[start], self.indptr[min(stop, len(self))]
        return QueryBatch(
            indptr=self.indptr[start : stop + 1] - lo,
            item_idx=self.item_idx[lo:hi],
            time_us=self.time_us[lo:hi],
            request_time_us=self.request_time_us[start:stop],
            user_idx=self.user_idx[start:stop],
            user_features={name: column[start:stop] for name, column in self.user_features.items()},
            left_out=self.left_out.slice(start, stop) if len(self.left_out) else NOTHING,
        )

    def take(self, rows: IntArray | LongArray) -> QueryBatch:
        """The queries `rows`, in that order."""
        starts, lengths = self.indptr[rows], np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(starts - indptr[:-1], lengths) + np.arange(int(indptr[-1]))
        return QueryBatch(
            indptr=indptr,
            item_idx=self.item_idx[entries],
            time_us=self.time_us[entries],
            request_time_us=self.request_time_us[rows],
            user_idx=self.user_idx[rows],
            user_features={name: column[rows] for name, column in self.user_features.items()},
            left_out=self.left_out.take(rows) if len(self.left_out) else NOTHING,
        )

    def blocks(self, size: int) -> Iterator[tuple[int, QueryBatch]]:
        """Consecutive blocks of at most `size` queries, each with the number of its first query."""
        for start in range(0, len(self), size):
            yield start, self.slice(start, start + size)

    def truncated(self, max_history: int = MAX_HISTORY) -> QueryBatch:
        """The same queries with only the most recent `max_history` entries of each history."""
        lengths = np.minimum(np.diff(self.indptr), max_history)
        if int(lengths.sum()) == len(self.item_idx):
            return self
        keep = self.age < max_history
        return QueryBatch(
            indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            item_idx=self.item_idx[keep],
            time_us=self.time_us[keep],
            request_time_us=self.request_time_us,
            user_idx=self.user_idx,
            user_features=self.user_features,
            left_out=self.left_out,
        )


def queries_from_histories(
    histories: Sequence[Sequence[int] | IntArray],
    *,
    times_us: Sequence[LongArray] | None = None,
    request_time_us: LongArray | None = None,
    user_idx: IntArray | None = None,
) -> QueryBatch:
    """Build a batch from one item sequence a query, oldest first. Times default to 0, 1, 2, ... within each history."""
    lengths = np.array([len(h) for h in histories], dtype=np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = [np.asarray(h, dtype=np.int32) for h in histories]
    item_idx = np.concatenate(flat) if flat else np.empty(0, dtype=np.int32)
    if times_us is None:
        time_us = np.arange(len(item_idx), dtype=np.int64) - np.repeat(indptr[:-1], lengths)
    else:
        time_us = np.concatenate([np.asarray(t, dtype=np.int64) for t in times_us]) if len(times_us) else np.empty(0, np.int64)
    if request_time_us is None:
        request_time_us = np.full(len(lengths), int(time_us.max(initial=0)) + 1, dtype=np.int64)
    if user_idx is None:
        user_idx = np.full(len(lengths), -1, dtype=np.int32)
    return QueryBatch(indptr, item_idx, time_us, request_time_us, user_idx)


def joined_queries(batches: Sequence[QueryBatch]) -> QueryBatch:
    """All queries of the batches in one. All of them have the same user features."""
    if len(batches) == 1:
        return batches[0]
    lengths = np.concatenate([np.diff(batch.indptr) for batch in batches])
    return QueryBatch(
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_idx=np.concatenate([batch.item_idx for batch in batches]),
        time_us=np.concatenate([batch.time_us for batch in batches]),
        request_time_us=np.concatenate([batch.request_time_us for batch in batches]),
        user_idx=np.concatenate([batch.user_idx for batch in batches]),
        user_features={name: np.concatenate([batch.user_features[name] for batch in batches]) for name in batches[0].user_features},
        left_out=joined([batch.left_out for batch in batches], np.cumsum([0, *map(len, batches[:-1])]).tolist()),
    )


def queries_from_users(interactions: Interactions, users: IntArray, request_time_us: LongArray | None = None) -> QueryBatch:
    """One query a user, the history being all of the user's rows in `interactions`, asked right after its last entry.

    Args:
        interactions: what may be shown to the models.
        users: (B,) int32 rows of users.
        request_time_us: (B,) int64 moment of asking; defaults to one microsecond after the user's last entry.
    """
    starts, stops = interactions.indptr[users], interactions.indptr[users + 1]
    lengths = stops - starts
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.repeat(starts - indptr[:-1], lengths) + np.arange(int(indptr[-1]))
    if request_time_us is None:
        last = np.where(lengths > 0, interactions.time_us[np.maximum(stops - 1, 0)] if len(interactions) else 0, 0)
        request_time_us = (last + 1).astype(np.int64)
    return QueryBatch(
        indptr=indptr,
        item_idx=interactions.item_idx[rows],
        time_us=interactions.time_us[rows],
        request_time_us=request_time_us,
        user_idx=np.asarray(users, dtype=np.int32),
    )
