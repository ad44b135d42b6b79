"""Seasonal items: what was taken more than usual at this time of the year in earlier years.

An item's season score is the number of its positive events within 15 days of today's date in earlier years, less the number that
its events of all earlier days lead to expect for as many days. An event is of an earlier year when it is at least 350 days old.
Only positive scores count; data of less than a year and fifteen days has no season.

Legend: `E` events.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.activity_log import positive_events

HALF_WIDTH_DAYS = 15
EARLIER_DAYS = 350
YEAR_DAYS = 365.2425
DAY_US = 86_400_000_000
COLUMNS = ("item_id", "action", "flag", "timestamp")


def seasonal_items(events: pa.Table, now: datetime) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Items of this season with their scores, best first, equal scores by id.

    Args:
        events: `COLUMNS` of the activity store.
        now: whose season is meant; later events are left out.
    """
    events = positive_events(events)
    now_day = round(now.timestamp() * 1e6) // DAY_US
    day = pc.cast(events["timestamp"], pa.int64()).to_numpy() // DAY_US
    earlier = now_day - day >= EARLIER_DAYS
    coded = pc.dictionary_encode(events["item_id"].combine_chunks())
    ids = coded.dictionary.to_numpy(zero_copy_only=False)
    if not earlier.any():
        return ids[:0], np.zeros(0)
    code, day = coded.indices.to_numpy()[earlier], day[earlier]
    in_season = _in_season(now_day - day)
    span = now_day - np.arange(int(day.min()), now_day - EARLIER_DAYS + 1)
    share = float(_in_season(span).mean())
    score = np.bincount(code[in_season], minlength=len(ids)) - share * np.bincount(code, minlength=len(ids))
    order = np.lexsort((ids.astype(str), -score))
    order = order[score[order] > 0]
    return ids[order], score[order]


def _in_season(days_ago: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Days whose distance to a whole number of years is at most the half width."""
    return np.abs((days_ago + YEAR_DAYS / 2) % YEAR_DAYS - YEAR_DAYS / 2) <= HALF_WIDTH_DAYS
