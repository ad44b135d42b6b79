"""Events of items in time: how often an item was taken in the days before a request, for requests that lie in the past.

A bundle's item columns say what was known at the end of its data, which is right for requests of that time or later. For queries
of a training or evaluation fold, which lie all over the past, windows are counted here, from the same events and with the same day
tiles as in `feature_repo.request_columns`.

Legend: `E` events, `N` items, `B` queries, `K` candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.request_columns import DAY_US
from training.interactions import FloatArray, IntArray, LongArray


@dataclass(frozen=True)
class ItemTimeline:
    """Sorted event times of all items.

    Shapes: key (E,) int64 sorted, item * span + (time - start); start, end: first and last time in microseconds.
    """

    key: LongArray
    span: int
    start_us: int
    end_us: int

    @classmethod
    def of(cls, item_idx: IntArray, time_us: LongArray) -> ItemTimeline:
        """From events in any order; times in microseconds since the epoch."""
        start, end = (int(time_us.min()), int(time_us.max())) if len(time_us) else (0, 0)
        span = end - start + 2
        return cls(np.sort(item_idx.astype(np.int64) * span + (time_us - start)), span, start, end)

    def window_counts(self, item_idx: IntArray, request_time_us: LongArray, days: int) -> FloatArray:
        """Events of each candidate on the request's UTC day and the `days - 1` before, strictly before the request.

        Shapes: item_idx (B, K) int32, request_time_us (B,) int64 -> (B, K) float32.
        """
        since = (request_time_us // DAY_US - (days - 1)) * DAY_US
        base = item_idx.astype(np.int64) * self.span
        low, high = (base + self._offset(moment)[:, None] for moment in (since, request_time_us))
        return (np.searchsorted(self.key, high) - np.searchsorted(self.key, low)).astype(np.float32)

    def _offset(self, moment_us: LongArray) -> LongArray:
        return np.clip(moment_us - self.start_us, 0, self.span - 1)
