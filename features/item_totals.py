"""The live states of all items, in memory: what `features build` would say of each now.

A popular item has too many events to read them all again at each one, so states are kept and merged with those of new events
(`features.state_merge`). The store says which events are new, and a worker that died loads the states from it, so every event
counts once. An item takes about 0.5 kB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.specs import ITEM_ACTIVITY_SPECS, ITEM_ENGAGEMENT_SPECS
from features.columns import FeatureColumns, columns_table, missing_columns
from features.engagement import PARTS, slate_events
from features.state_merge import batch_item_states, merge_item_states

IdArray = npt.NDArray[np.object_]


class _Kept:
    """Columns of `item_activity` of a growing number of items."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.columns: FeatureColumns = missing_columns(1024, ITEM_ACTIVITY_SPECS)

    def merge(self, ids: IdArray, states: FeatureColumns) -> None:
        rows = np.fromiter((self.row_of.setdefault(item, len(self.row_of)) for item in ids), dtype=np.int64, count=len(ids))
        size = len(self.columns["item_events"])
        if len(self.row_of) > size:
            more = missing_columns(max(len(self.row_of) - size, size), ITEM_ACTIVITY_SPECS)
            self.columns = {name: np.concatenate([column, more[name]]) for name, column in self.columns.items()}
        merged = merge_item_states({name: column[rows] for name, column in self.columns.items()}, states)
        for name, column in merged.items():
            self.columns[name][rows] = column

    def of(self, ids: Sequence[str]) -> FeatureColumns:
        """States of items, those of nothing where an item is not known."""
        found = missing_columns(len(ids), ITEM_ACTIVITY_SPECS)
        known = [place for place, item in enumerate(ids) if item in self.row_of]
        rows = [self.row_of[ids[place]] for place in known]
        for name, column in found.items():
            column[known] = self.columns[name][rows]
        return found


class ItemTotals:
    """States of items. A state for `features.store_follower`; hold its lock while asking.

    Args:
        has_times: whether the dataset's times are more than an order.
    """

    columns = ("item_id", "user_id", "timestamp", "value", "action", "flag", "recommendation_id")

    def __init__(self, has_times: Callable[[], bool]) -> None:
        self._has_times = has_times
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._activity, self._engagement = _Kept(), {action: _Kept() for action in PARTS}

    def add(self, events: pa.Table) -> None:
        """Count events: `columns` of EVENT_SCHEMA."""
        has_times = self._has_times()
        self._activity.merge(*batch_item_states(events, has_times=has_times))
        for action, kept in self._engagement.items():
            kept.merge(*batch_item_states(slate_events(events, action), has_times=has_times))

    def activity(self, item_ids: Sequence[str]) -> pa.Table:
        """Rows of `item_activity` for those of the items that have any positive event."""
        known = sorted(item for item in item_ids if item in self._activity.row_of)
        return _table(known, columns_table(self._activity.of(known), ITEM_ACTIVITY_SPECS))

    def engagement(self, item_ids: Sequence[str]) -> pa.Table:
        """Rows of `item_engagement` for those of the items that were shown or clicked in a slate."""
        known = sorted(item for item in item_ids if any(item in kept.row_of for kept in self._engagement.values()))
        columns: FeatureColumns = {}
        for action, names in PARTS.items():
            states = self._engagement[action].of(known)
            columns |= {name: states[source] for name, source in names.items()}
        return _table(known, columns_table(columns, ITEM_ENGAGEMENT_SPECS))


class LockedTotals:
    """Asks totals under the lock of whoever changes them."""

    def __init__(self, totals: ItemTotals, lock: AbstractContextManager[object]) -> None:
        self._totals, self._lock = totals, lock

    def states(self, item_ids: Sequence[str]) -> tuple[pa.Table, pa.Table]:
        """Rows of `item_activity` and of `item_engagement`."""
        with self._lock:
            return self._totals.activity(item_ids), self._totals.engagement(item_ids)


def _table(ids: Sequence[str], features: pa.Table) -> pa.Table:
    return features.add_column(0, "item_id", pa.array(ids, type=pa.string()))
