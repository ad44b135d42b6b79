"""Point-in-time features for training: what was known of a user or an item just before a label.

Tables are built from the fold's own events, only for the states that are asked, and joined by Feast: the same views, the same
join and the same aggregates that serve online, so that a model trains on what it will see.

Legend: `B` asked users, `N` asked items.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.specs import CREATED_AT, EVENT_TIMESTAMP, ITEM_ACTIVITY, ITEM_METADATA, USER_ACTIVITY, USER_PROFILE, table_path
from features.activity_log import NO_ROW, LongArray, activity_log
from features.aggregates import STATES_PER_BLOCK, ItemStates, Side, UserStates, categories_of, state_schema
from features.attribute_tables import ALWAYS_US, attribute_table, attributes_of
from features.columns import FeatureColumns, missing_columns
from features.feature_tables import timed
from features.own_tables import own_tables, write_own_tables
from features.point_in_time import OfflineFeatures
from features.schema import DatasetSchema
from features.views import training_specs

IdArray = npt.NDArray[np.object_]

ASKS_PER_JOIN = 16_000
"""Rows joined at once: DuckDB ranks whole rows, recent items included, so fewer at a time are faster and lighter."""

PAIRS_PER_JOIN = 1_000_000
"""The join meets each ask of an entity with every state of it that is not later, before it keeps the newest: asks of one entity
are spread over joins so that these pairs stay few."""


def user_features_at(
    events: pa.Table,
    item_categories: pa.Table | None,
    user_ids: IdArray,
    request_time_us: LongArray,
    *,
    user_table: pa.Table | None = None,
    names: Sequence[str] | None = None,
    has_times: bool = True,
) -> FeatureColumns:
    """Features of users as of just before each request.

    Args:
        events: the fold's activity: `user_id`, `item_id`, `timestamp` (microseconds, UTC), `value`.
        item_categories: `item_id` and `categories` (or `tags`) lists; the catalogue's item table will do. None: no tastes.
        user_ids: (B,) str. Unknown users get the values of someone who did nothing.
        request_time_us: (B,) int64; only events strictly earlier count.
        user_table: `user_id` and attributes: adds `profile_<name>` features, taken as constant over time.
        names: features wanted; all by default. A few are far cheaper than all.
        has_times: False where the timestamps are only an order: window and recency features are then null.

    Returns:
        name -> (B,) arrays in the order asked, in the numpy forms of `features.columns`.

    Raises:
        FeatureJoinError: the join lost rows, or a column is missing.
    """
    log = activity_log(events, "user", has_times=has_times)
    states = UserStates(log, categories_of(item_categories))
    with _Joiner("user", user_table) as joiner:
        return joiner.features(states, np.asarray(user_ids, dtype=np.object_), request_time_us, names)


def item_features_at(
    events: pa.Table,
    item_table: pa.Table | None,
    item_ids: IdArray,
    cutoff_us: int,
    *,
    names: Sequence[str] | None = None,
    has_times: bool = True,
) -> FeatureColumns:
    """Features of items as of just before one cutoff.

    Args:
        events: the fold's activity, as in `user_features_at`.
        item_table: `item_id` and attributes: adds `metadata_<name>` features, taken as constant over time.
        item_ids: (N,) str. Unknown items get the values of something that nobody touched.
        cutoff_us: only events strictly earlier count.
        names, has_times: as in `user_features_at`.

    Returns:
        name -> (N,) arrays in the order asked.

    Raises:
        FeatureJoinError: the join lost rows, or a column is missing.
    """
    states = ItemStates(activity_log(events, "item", has_times=has_times))
    cutoffs = np.full(len(item_ids), cutoff_us, dtype=np.int64)
    with _Joiner("item", item_table) as joiner:
        return joiner.features(states, np.asarray(item_ids, dtype=np.object_), cutoffs, names)


class _Joiner:
    """Temporary feature tables of one side and the joins against them; use as a context manager."""

    def __init__(self, side: Side, attributes: pa.Table | None) -> None:
        self._side: Side = side
        self._key = f"{side}_id"
        self._attributes = attributes
        found = () if attributes is None else attributes_of(attributes, self._key)
        self._schema = (
            DatasetSchema("offline", user_attributes=found) if side == "user" else DatasetSchema("offline", item_attributes=found)
        )
        self._written_us = time.time_ns() // 1000

    def __enter__(self) -> _Joiner:
        self._temporary = tempfile.TemporaryDirectory(prefix="shortlist-features-")
        self._folder = Path(self._temporary.name)
        if self._attributes is not None:
            view = USER_PROFILE if self._side == "user" else ITEM_METADATA
            constant = attribute_table(self._attributes, self._key)
            always = np.full(len(constant), ALWAYS_US, dtype=np.int64)
            pq.write_table(timed(constant, always, self._written_us), table_path(view, self._folder))
            write_own_tables(self._folder, view, STATES_PER_BLOCK)
        self._offline = OfflineFeatures(self._folder, self._schema)
        self._offline.apply(self._side)
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def features(
        self,
        states: UserStates | ItemStates,
        ids: IdArray,
        before_us: LongArray,
        names: Sequence[str] | None,
    ) -> FeatureColumns:
        """Write the asked states and join them, block by block, in the order asked."""
        rows = states.log.rows(ids)
        parts: list[FeatureColumns] = []
        asked: list[LongArray] = []
        for block in _join_blocks(rows, before_us):
            self._write_states(states, rows[block], before_us[block], names)
            parts.append(self._offline.join(self._side, ids[block], before_us[block], names))
            asked.append(block)
        if not parts:
            return missing_columns(0, [spec for specs in training_specs(self._schema, self._side).values() for spec in specs])
        back = np.argsort(np.concatenate(asked))
        return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}

    def _write_states(
        self,
        states: UserStates | ItemStates,
        rows: LongArray,
        before_us: LongArray,
        names: Sequence[str] | None,
    ) -> None:
        log = states.log
        known = rows != NO_ROW
        known_rows = rows[known]
        stops = log.stops(known_rows, before_us[known])
        acted = stops > log.indptr[known_rows]
        # A state is its last event: asks that fall between the same two events share one.
        stops, first = np.unique(stops[acted], return_index=True)
        known_rows = known_rows[acted][first]
        base = USER_ACTIVITY if self._side == "user" else ITEM_ACTIVITY
        schema = state_schema(self._side)
        columns = [name for name in schema.names if names is None or name in names or name == self._key]
        empty = timed(schema.empty_table(), np.empty(0, np.int64), 0)
        with ExitStack() as files:
            out = {
                view: files.enter_context(pq.ParquetWriter(table_path(view, self._folder), rows.schema))
                for view, rows in self._tables(base, empty, columns).items()
            }
            start = 0
            for table in states.after(known_rows, stops):
                last_us = log.time_us[stops[start : start + len(table)] - 1]
                for view, rows in self._tables(base, timed(table, last_us, self._written_us), columns).items():
                    out[view].write_table(rows)
                start += len(table)

    @staticmethod
    def _tables(base: str, states: pa.Table, columns: list[str]) -> dict[str, pa.Table]:
        """The wanted columns of states, and what other views make of all of them."""
        own = {view.name: rows for view, rows in own_tables(base, states)}
        return {base: states.select([*columns, EVENT_TIMESTAMP, CREATED_AT]), **own}


def _join_blocks(rows: LongArray, before_us: LongArray) -> Iterator[LongArray]:
    """Ask numbers in blocks that keep within ASKS_PER_JOIN and PAIRS_PER_JOIN."""
    order = np.lexsort((before_us, rows))
    sorted_rows = rows[order]
    first = np.flatnonzero(np.append(True, sorted_rows[1:] != sorted_rows[:-1])) if len(rows) else np.empty(0, np.int64)
    rank = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
    rank[sorted_rows == NO_ROW] = 0  # no states to meet
    order = order[np.argsort(rank, kind="stable")]  # every entity's first ask, then every entity's second, ...
    start = 0
    while start < len(order):
        size = ASKS_PER_JOIN
        while True:
            block = order[start : start + size]
            asks = np.unique(rows[block][rows[block] != NO_ROW], return_counts=True)[1]
            if size == 1 or int((asks.astype(np.int64) ** 2).sum()) <= PAIRS_PER_JOIN:
                break
            size //= 2
        yield block
        start += size
