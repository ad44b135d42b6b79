"""`features build`: the Parquet tables behind the views, as of a cutoff.

An activity table is a change log. For each entity it holds the state at the end of every UTC day on which it changed, dated by the
day's last event, and once more the newest state dated by the cutoff: the row that goes online. Attribute tables hold what the
catalogue says now, dated 1900 (the catalogue keeps no history) and by the cutoff. Rows are sorted by entity and time, so the newest
of each can be read in one pass.

A join inside a day sees the state of an earlier day: never a later one, at most a day old. Training needs the exact state before
each label and gets it from `features.training_set`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.request_columns import DAY_US
from feature_repo.specs import (
    CREATED_AT,
    EVENT_TIMESTAMP,
    ITEM_ACTIVITY,
    ITEM_ENGAGEMENT,
    ITEM_ENGAGEMENT_SPECS,
    ITEM_METADATA,
    USER_ACTIVITY,
    USER_PROFILE,
    table_path,
)
from features.activity_log import ActivityLog, LongArray, activity_log
from features.aggregates import STATES_PER_BLOCK, ItemStates, UserStates, categories_of, state_schema
from features.attribute_tables import ALWAYS_US, attribute_table
from features.columns import arrow_type
from features.engagement import EngagementStates
from features.errors import FeatureJoinError
from features.own_tables import write_own_tables
from features.parquet_codec import PARQUET_CODEC
from features.schema import Attribute, DatasetSchema

EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "value", "action", "flag", "recommendation_id")
"""Columns of the activity store that the tables are built from."""

_SCHEMAS = {
    USER_ACTIVITY: state_schema("user"),
    ITEM_ACTIVITY: state_schema("item"),
    ITEM_ENGAGEMENT: pa.schema([("item_id", pa.string()), *((spec.name, arrow_type(spec)) for spec in ITEM_ENGAGEMENT_SPECS)]),
}

Progress = Callable[[str, int, int], None]
"""Called with a table's name, rows done and rows in all."""


@dataclass(frozen=True)
class BuiltTable:
    """One written table."""

    view: str
    path: Path
    rows: int
    entities: int


def build_tables(
    folder: Path,
    schema: DatasetSchema,
    events: pa.Table,
    users: pa.Table,
    items: pa.Table,
    as_of_us: int,
    progress: Progress | None = None,
) -> list[BuiltTable]:
    """Write the tables of all views that the dataset has, each replaced at once when it is complete.

    Args:
        folder: of the tables; made if missing.
        schema: which attributes and whether times mean anything.
        events: the activity, at least `EVENT_COLUMNS` (rows from the cutoff on are left out).
        users, items: the catalogue's tables.
        as_of_us: cutoff in microseconds; states count events strictly earlier.
        progress: told after each block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cutoff = pa.scalar(as_of_us).cast(pa.timestamp("us", tz="UTC"))
    events = events.filter(pc.less(events.column("timestamp"), cutoff))
    user_log = activity_log(events, "user", has_times=schema.has_times)
    item_log = activity_log(events, "item", has_times=schema.has_times)
    built = [
        _write_states(folder, USER_ACTIVITY, UserStates(user_log, categories_of(items)), as_of_us, progress),
        _write_states(folder, ITEM_ACTIVITY, ItemStates(item_log), as_of_us, progress),
        _write_states(folder, ITEM_ENGAGEMENT, EngagementStates(events, has_times=schema.has_times), as_of_us, progress),
    ]
    if schema.user_attributes:
        built.append(_write_attributes(folder, USER_PROFILE, users, "user_id", schema.user_attributes, as_of_us, progress))
    if schema.item_attributes:
        built.append(_write_attributes(folder, ITEM_METADATA, items, "item_id", schema.item_attributes, as_of_us, progress))
    for base in tuple(built):
        for view, path, rows in write_own_tables(folder, base.view, STATES_PER_BLOCK):
            built.append(BuiltTable(view.name, path, rows, base.entities))
            if progress is not None:
                progress(view.name, rows, rows)
    return built


def timed(values: pa.Table, event_us: LongArray, written_us: int) -> pa.Table:
    """`values` with the two time columns that every feature table has."""
    stamp = pa.timestamp("us", tz="UTC")
    values = values.append_column(EVENT_TIMESTAMP, pa.array(event_us, type=pa.int64()).cast(stamp))
    return values.append_column(CREATED_AT, pa.array(np.full(len(values), written_us, dtype=np.int64)).cast(stamp))


def newest_rows(path: Path, key: str, as_of_us: int, batch_rows: int) -> Iterator[pa.Table]:
    """The newest row of each entity that is not later than the cutoff, in blocks, reading the table once.

    Raises:
        FeatureJoinError: the table was never built.
    """
    if not path.exists():
        raise FeatureJoinError(f"feature table {path} is missing: run `shortlist features build`")
    cutoff = pa.scalar(as_of_us).cast(pa.timestamp("us", tz="UTC"))
    held: pa.Table | None = None  # the newest row so far of the entity that the last block ended with
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=batch_rows):
            rows = pa.Table.from_batches([batch])
            rows = rows.filter(pc.less_equal(rows.column(EVENT_TIMESTAMP), cutoff))
            if held is not None:
                rows = pa.concat_tables([held, rows])
            if not len(rows):
                continue
            ids = rows.column(key).combine_chunks().dictionary_encode().indices.to_numpy()
            last = np.append(np.flatnonzero(ids[1:] != ids[:-1]), len(ids) - 1)
            held = rows.slice(int(last[-1]), 1)
            if len(last) > 1:
                yield rows.take(pa.array(last[:-1]))
    if held is not None:
        yield held


def count_entities(path: Path, key: str, as_of_us: int) -> int:
    """How many rows `newest_rows` gives.

    Raises:
        FeatureJoinError: the table was never built.
    """
    if not path.exists():
        raise FeatureJoinError(f"feature table {path} is missing: run `shortlist features build`")
    keys = pq.read_table(path, columns=[key, EVENT_TIMESTAMP])
    cutoff = pa.scalar(as_of_us).cast(pa.timestamp("us", tz="UTC"))
    return int(pc.count_distinct(keys.filter(pc.less_equal(keys.column(EVENT_TIMESTAMP), cutoff)).column(key)).as_py())


def newest_time_us(path: Path) -> int | None:
    """The latest `event_timestamp` of a table; None for an empty or missing one."""
    if not path.exists():
        return None
    newest = pc.max(pq.read_table(path, columns=[EVENT_TIMESTAMP]).column(0))
    return int(newest.cast(pa.int64()).as_py()) if newest.is_valid else None


States = UserStates | ItemStates | EngagementStates


def _write_states(folder: Path, view: str, states: States, as_of_us: int, progress: Progress | None) -> BuiltTable:
    rows, stops, event_us = _changes(states.log, as_of_us)
    written_us = time.time_ns() // 1000
    path = table_path(view, folder)
    temporary = path.with_suffix(".tmp")
    done = 0
    with pq.ParquetWriter(
        temporary, timed(_SCHEMAS[view].empty_table(), np.empty(0, np.int64), 0).schema, compression=PARQUET_CODEC
    ) as out:
        for table in states.after(rows, stops):
            out.write_table(timed(table, event_us[done : done + len(table)], written_us))
            done += len(table)
            if progress is not None:
                progress(view, done, len(rows))
    os.replace(temporary, path)
    return BuiltTable(view, path, len(rows), len(states.log.ids))


def _changes(log: ActivityLog, as_of_us: int) -> tuple[LongArray, LongArray, LongArray]:
    """Entity row, end of its events and event time of each row of the change log, sorted by entity and time."""
    day = log.time_us // DAY_US
    ends = np.ones(len(log), dtype=np.bool_)
    ends[:-1] = (log.entity[1:] != log.entity[:-1]) | (day[1:] != day[:-1])
    stops = np.flatnonzero(ends) + 1
    entities = np.arange(len(log.ids))
    rows = np.concatenate([log.entity[stops - 1].astype(np.int64), entities])
    all_stops = np.concatenate([stops, log.indptr[1:]])
    event_us = np.concatenate([log.time_us[stops - 1], np.full(len(entities), as_of_us)])
    order = np.lexsort((event_us, rows))
    return rows[order], all_stops[order], event_us[order]


def _write_attributes(
    folder: Path,
    view: str,
    catalogue: pa.Table,
    key: str,
    attributes: tuple[Attribute, ...],
    as_of_us: int,
    progress: Progress | None,
) -> BuiltTable:
    values = attribute_table(catalogue, key, attributes)
    written_us = time.time_ns() // 1000
    both = pa.concat_tables(
        [timed(values, np.full(len(values), moment, dtype=np.int64), written_us) for moment in (ALWAYS_US, as_of_us)]
    ).sort_by([(key, "ascending"), (EVENT_TIMESTAMP, "ascending")])
    path = table_path(view, folder)
    temporary = path.with_suffix(".tmp")
    pq.write_table(both, temporary, compression=PARQUET_CODEC)
    os.replace(temporary, path)
    if progress is not None:
        progress(view, len(both), len(both))
    return BuiltTable(view, path, len(both), len(values))
