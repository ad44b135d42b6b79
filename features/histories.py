"""From validated rows of a file to events: which rows repeat, each user's order, and event times that respect it.

Rules (DESIGN 4.4 and 4.5):
- the file's `position` orders a user's history; without it a stable sort by time in file order does. Rows without a position in
  a file that has positions come after the user's others, by time.
- a null time takes the time of the neighbour before, else of the one after, else the file's first; without positions, the file's
  first. Such rows are flagged `timestamp_imputed`. A file without any times counts from 1970-01-01.
- a time is raised to its predecessor's, then the history position is added in microseconds, so that a user's events are strictly
  ordered by time and labels can join features strictly earlier.
- the id is a hash of the fields as the file gave them, before any of this. Rows of a file that are equal in all of them are
  repeats, so a row's ordinal in the file would tell no two rows apart; it is left out of the id, and a file that comes back
  re-sorted or extended adds only what is new.

Legend: `n` rows of the file; `m` distinct ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.event_ids import row_ids
from features.events import ACTIONS, EVENT_SCHEMA, UNKNOWN_ACTION
from features.row_order import take_rows

LongArray = npt.NDArray[np.int64]

ROW_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("action", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("time_us", pa.int64()),
        pa.field("timestamp_imputed", pa.bool_()),
        pa.field("position", pa.int64()),
        pa.field("split", pa.string()),
        pa.field("event_id", pa.string()),
        pa.field("recommendation_id", pa.string()),
        pa.field("slate_position", pa.int32()),
        pa.field("context", pa.string()),
    ]
)
"""A validated row of an interactions file, in file order. `time_us` is the time as the file gave it."""

MAX_POSITION = (1 << 31) - 1
"""Largest history position of a file; as microseconds it moves a time by 36 minutes."""

_POSITION_LIMIT = 1 << 32
_MISSING = np.iinfo(np.int64).max
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class FileTraits:
    """What must be known of the whole file before a part of it can be ordered.

    Args:
        first_time_us: the earliest time; None where there is none.
        has_positions: whether any row has a position.
    """

    first_time_us: int | None
    has_positions: bool


def to_events(
    rows: pa.Table, traits: FileTraits, *, dataset: str, received_at: datetime, known_actions: frozenset[str] = frozenset(ACTIONS)
) -> tuple[pa.Table, int]:
    """Events of some users' rows: all rows of each user, in file order.

    Args:
        rows: `ROW_SCHEMA`.
        traits: of the whole file.
        dataset: namespace of the ids.
        received_at: the moment of the import.
        known_actions: other actions are flagged and not trained on.

    Returns:
        Rows of `EVENT_SCHEMA`, each user's together and in order, and the number of repeated rows that were left out.
    """
    rows = rows.combine_chunks()
    ids = event_ids(rows, dataset)
    kept = _first_rows(ids)
    repeated = rows.num_rows - len(kept)
    if repeated:
        rows, ids = take_rows(rows, kept), ids.take(pa.array(kept))
    user = pc.coalesce(rows["user_id"], rows["session_id"]).combine_chunks().dictionary_encode().indices.to_numpy()
    time_us = pc.fill_null(rows["time_us"], _MISSING).to_numpy()
    position = pc.fill_null(rows["position"], _MISSING).to_numpy()
    order, final_us, history_position = order_and_times(user, time_us, position, traits)
    rows, ids = take_rows(rows, order), ids.take(pa.array(order))
    imputed = pc.or_(pc.fill_null(rows["timestamp_imputed"], False), pc.is_null(rows["time_us"]))
    action = rows["action"]
    known = pc.is_in(action, value_set=pa.array(sorted(known_actions)))
    count = rows.num_rows
    columns = {
        "event_id": ids,
        "site": pa.repeat("local", count),
        "user_id": rows["user_id"],
        "session_id": rows["session_id"],
        "item_id": rows["item_id"],
        "action": action,
        "value": rows["value"],
        "timestamp": pa.array(final_us, pa.timestamp("us", tz="UTC")),
        "timestamp_imputed": imputed,
        "received_at": pa.repeat(pa.scalar(received_at, pa.timestamp("us", tz="UTC")), count),
        "history_position": pa.array(history_position),
        "split": rows["split"],
        "recommendation_id": rows["recommendation_id"],
        "position": rows["slate_position"],
        "context": rows["context"],
        "flag": pc.if_else(known, pa.scalar(None, pa.string()), UNKNOWN_ACTION),
        "origin": pa.repeat("import", count),
    }
    return pa.table([columns[name] for name in EVENT_SCHEMA.names], schema=EVENT_SCHEMA), repeated


def event_ids(rows: pa.Table, dataset: str) -> pa.Array:
    """(n,) str: the file's own `event_id` where it has one, else the hash of the row's fields."""
    names = ["user_id", "session_id", "item_id", "action", "time_us", "value", "position", "split"]
    derived = row_ids(dataset, [rows[name].combine_chunks() for name in names])
    given = rows["event_id"].combine_chunks()
    return derived if given.null_count == len(given) else pc.coalesce(given, derived)


def order_and_times(
    user: npt.NDArray[np.int32], time_us: LongArray, position: LongArray, traits: FileTraits
) -> tuple[LongArray, LongArray, LongArray]:
    """Each user's order and the strictly increasing event times that follow from it.

    Args:
        user: (m,) code of the user.
        time_us: (m,) time as given; the largest int64 where there is none.
        position: (m,) position as given; the largest int64 where there is none.
        traits: of the whole file.

    Returns:
        order: (m,) row numbers sorted by user and history order.
        time_us: (m,) int64 event times in that order.
        history_position: (m,) int64 in that order.
    """
    first = traits.first_time_us or 0
    rows = np.arange(len(user))
    if not traits.has_positions:
        time_us = np.where(time_us == _MISSING, first, time_us)
        order = np.lexsort((rows, time_us, user))
        start, within = _starts(user[order])
        return order, _raised(time_us[order], start) + within, within
    order = np.lexsort((rows, time_us, position, user))
    start, within = _starts(user[order])
    given = position[order]
    # Rows without a position are numbered on from the user's last given one.
    last_given = np.maximum.accumulate(np.where(given == _MISSING, -1, given) + start * _POSITION_LIMIT) - start * _POSITION_LIMIT
    lacking = np.cumsum(given == _MISSING)
    lacking_before_user = (lacking - (given == _MISSING))[_first_row(start)][start]
    history = np.where(given == _MISSING, last_given + (lacking - lacking_before_user), given)
    raised = _raised(_filled(time_us[order], start, first), start)
    return order, _strict(raised + history, start, within), history


def _starts(user: npt.NDArray[np.int32]) -> tuple[LongArray, LongArray]:
    """For rows sorted by user: (m,) number of the user's group, and (m,) 0-based number of the row within it."""
    new = np.ones(len(user), dtype=bool)
    new[1:] = user[1:] != user[:-1]
    group = np.cumsum(new) - 1
    return group, np.arange(len(user)) - np.flatnonzero(new)[group] if len(user) else group


def _first_row(group: LongArray) -> LongArray:
    return np.searchsorted(group, np.arange(group[-1] + 1)) if len(group) else np.empty(0, dtype=np.int64)


def _raised(time_us: LongArray, group: LongArray) -> LongArray:
    """Running maximum within each group: one global pass over times shifted so that groups do not touch."""
    if not len(time_us):
        return time_us
    low, high = int(time_us.min()), int(time_us.max())
    span = high - low + 1
    if span * (int(group[-1]) + 1) < 1 << 62:
        shift = group * span
        return np.maximum.accumulate(time_us - low + shift) - shift + low
    # Too wide to shift (long time spans times many groups): the same over ranks of the distinct times.
    distinct, rank = np.unique(time_us, return_inverse=True)
    shift = group * len(distinct)
    return np.asarray(distinct[np.maximum.accumulate(rank + shift) - shift])


def _strict(time_us: LongArray, group: LongArray, within: LongArray) -> LongArray:
    """The least strictly increasing times within each group that are not earlier than the given ones."""
    return _raised(time_us - within, group) + within


def _filled(time_us: LongArray, group: LongArray, first: int) -> LongArray:
    """Missing times take the group's nearest earlier one, else its nearest later one, else `first`."""
    known = time_us != _MISSING
    if known.all():
        return time_us
    rows = np.arange(len(time_us))
    before = np.maximum.accumulate(np.where(known, rows, -1))
    after = np.minimum.accumulate(np.where(known, rows, len(rows))[::-1])[::-1]
    has_before = (before >= 0) & (group[np.maximum(before, 0)] == group)
    has_after = (after < len(rows)) & (group[np.minimum(after, len(rows) - 1)] == group)
    source = np.where(has_before, before, np.where(has_after, after, 0))
    return np.where(has_before | has_after, time_us[source], first)


def _first_rows(ids: pa.Array) -> LongArray:
    """Row numbers of the first occurrence of each id, ascending."""
    if _plainly_distinct(ids):
        return np.arange(len(ids))
    codes = ids.dictionary_encode().indices.to_numpy()
    first = np.ones(len(codes), dtype=bool)
    if len(codes):
        # dictionary_encode numbers values by first occurrence, so a row repeats when its code is not a new maximum
        first[1:] = codes[1:] > np.maximum.accumulate(codes)[:-1]
    return np.flatnonzero(first)


def _plainly_distinct(ids: pa.Array) -> bool:
    """Whether ids of 32 bytes, as ours are, differ in a hash of their first 16: quick to see, and then they are distinct."""
    length = pc.binary_length(ids)
    if not len(ids) or pc.min(length).as_py() != 32 or pc.max(length).as_py() != 32 or ids.offset:
        return False
    words = np.frombuffer(ids.buffers()[2], dtype=np.uint64, count=4 * len(ids)).reshape(-1, 4)
    return not pd.Series(words[:, 0] * _ODD ^ words[:, 1]).duplicated().any()
