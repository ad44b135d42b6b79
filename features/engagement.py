"""How often items were shown and clicked: the states behind click-through rates.

An impression or a click counts where it quotes the answer that it came from, so that both are of the same slates. A state holds,
for each of the two, what `features.aggregates` says of it; the rate over a window is computed when it is asked for.

Legend: `A` asked states, `I` items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.request_columns import DAY_US, newest_sums, tile_numbers, window_count
from feature_repo.specs import ITEM_ACTIVITY_SPECS, ITEM_ENGAGEMENT_SPECS
from features.activity_log import NO_ROW, LongArray, activity_log
from features.aggregates import STATES_PER_BLOCK, ItemStates
from features.columns import FeatureColumns, columns_table, missing_columns, table_columns

SHOWN, CLICKED = "impression", "click"
PARTS = {
    SHOWN: {
        "item_impressions": "item_events",
        "item_impression_last_us": "item_last_event_us",
        "item_impression_day_tiles": "item_day_tiles",
    },
    CLICKED: {"item_clicks": "item_events", "item_click_last_us": "item_last_event_us", "item_click_day_tiles": "item_day_tiles"},
}
"""Action -> feature -> the feature of `item_activity` that it is, over the events of that action."""

PRIOR_IMPRESSIONS = 50.0
"""Weight of the mean rate of all items in each item's: half of it at 50, where a rate of 2 % has an error of 2 %."""


def slate_events(events: pa.Table, action: str) -> pa.Table:
    """The events of one action that quote an answer and have no flag: `item_id`, `timestamp`."""
    if not {"action", "recommendation_id", "flag"} <= set(events.column_names):
        return events.slice(0, 0).select(["item_id", "timestamp"])
    chosen = pc.and_(pc.equal(events["action"], action), pc.is_valid(events["recommendation_id"]))
    return events.filter(pc.and_(chosen, pc.is_null(events["flag"]))).select(["item_id", "timestamp"])


class EngagementStates:
    """States of items: rows of `item_engagement`.

    Args:
        events: `item_id, timestamp, action, flag, recommendation_id`.
        has_times: False where times are only an order.
    """

    def __init__(self, events: pa.Table, *, has_times: bool = True) -> None:
        of_action = {action: slate_events(events, action) for action in PARTS}
        self._parts = {action: ItemStates(activity_log(table, "item", has_times=has_times)) for action, table in of_action.items()}
        self.log = activity_log(pa.concat_tables(of_action.values()), "item", has_times=has_times)

    def after(self, rows: LongArray, stops: LongArray) -> Iterator[pa.Table]:
        """States after the events before `stops`, all of one moment included: as `ItemStates.after`, for `item_engagement`."""
        for start in range(0, len(rows), STATES_PER_BLOCK):
            yield self._block(rows[start : start + STATES_PER_BLOCK], stops[start : start + STATES_PER_BLOCK])

    def _block(self, rows: LongArray, stops: LongArray) -> pa.Table:
        ids, before_us = self.log.ids[rows], self.log.time_us[stops - 1] + 1
        columns: FeatureColumns = {}
        for action, names in PARTS.items():
            states = self._parts[action]
            whole = missing_columns(len(rows), ITEM_ACTIVITY_SPECS)
            own = states.log.rows(ids)
            known = np.flatnonzero(own != NO_ROW)
            own_stops = states.log.stops(own[known], before_us[known])
            seen = own_stops > states.log.indptr[own[known]]
            known, own_stops = known[seen], own_stops[seen]
            for table in states.after(own[known], own_stops):
                for name, column in table_columns(table, ITEM_ACTIVITY_SPECS).items():
                    whole[name][known[: len(table)]] = column
                known = known[len(table) :]
            columns |= {name: whole[source] for name, source in names.items()}
        table = columns_table(columns, ITEM_ENGAGEMENT_SPECS)
        return table.add_column(0, "item_id", pa.array(ids, type=pa.string()))


def click_through(engagement: FeatureColumns, now_us: int, days: int) -> npt.NDArray[np.float32]:
    """(I,) clicks per impression over the last UTC days with today, drawn to the mean of all items where there are few impressions.

    Args:
        engagement: (I,) columns of `item_engagement`.
        now_us: the moment of asking.
        days: 1 to 30.
    """
    counts = []
    for prefix, total in (("item_impression", "item_impressions"), ("item_click", "item_clicks")):
        last = engagement[f"{prefix}_last_us"]
        sums = newest_sums(engagement[f"{prefix}_day_tiles"], engagement[total], last)
        rows = np.arange(len(last))
        day = np.full(len(last), now_us // DAY_US)
        counts.append(np.nan_to_num(window_count(sums, tile_numbers(last, DAY_US), rows, day, days)))
    shown, clicked = counts
    mean = clicked.sum() / max(float(shown.sum()), 1.0)
    return ((clicked + PRIOR_IMPRESSIONS * mean) / (shown + PRIOR_IMPRESSIONS)).astype(np.float32)
