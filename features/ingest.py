"""What the worker does with batches from the bus: events into the activity store, logged rows into their log.

Both may see an entry again after a crash: the store knows event ids, the log tells rows apart when read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import pyarrow as pa

from features.activity_store import AppendResult
from features.bus import BusEntry
from features.consumer import BatchResult, Rejected
from features.daily_log import DailyLog
from features.errors import EventError, StoreError
from features.event_codec import decode_event, event_table
from features.events import UNKNOWN_ITEM


class EventSink(Protocol):
    """What `StoreEvents` writes to: `ActivityStore`."""

    def append(self, events: pa.Table) -> AppendResult:
        """Store the events whose ids are new."""


class KnownItems:
    """Which items the catalogue has, asked rarely: ids once known stay known, an unknown one is asked for again after a while.

    Args:
        has: which of some ids the catalogue has.
        forget_unknown_s: how long an id that was not there is taken to be absent.
    """

    def __init__(self, has: Callable[[Collection[str]], Collection[str]], forget_unknown_s: float = 5.0) -> None:
        self._has, self._forget_s = has, forget_unknown_s
        self._known: set[str] = set()
        self._unknown_until: dict[str, float] = {}

    def unknown(self, item_ids: Collection[str]) -> set[str]:
        """Those of the ids that the catalogue does not have."""
        now = time.monotonic()
        asked = {item for item in item_ids if item not in self._known}
        to_ask = [item for item in asked if self._unknown_until.get(item, 0.0) <= now]
        if to_ask:
            try:
                found = set(self._has(to_ask))
            except Exception as error:
                # Whatever ails the catalogue says nothing about the events: they wait.
                raise StoreError(f"the catalogue cannot be asked for items: {error}") from error
            self._known |= found
            # Only recent answers are kept, so that ids made up by a broken client do not pile up.
            self._unknown_until = {item: until for item, until in self._unknown_until.items() if until > now}
            self._unknown_until.update({item: now + self._forget_s for item in to_ask if item not in found})
        return asked - self._known


def decode_events(entries: Sequence[BusEntry]) -> tuple[list[dict[str, Any]], list[BusEntry], list[Rejected]]:
    """Rows of the entries that are events, those entries, and the others with the reason."""
    rows, good, rejected = [], [], []
    for entry in entries:
        try:
            rows.append(decode_event(entry.payload))
            good.append(entry)
        except EventError as error:
            rejected.append(Rejected(entry, str(error)))
    return rows, good, rejected


def flag_unknown_items(rows: Sequence[dict[str, Any]], known_items: KnownItems | None) -> None:
    """Flag, in place, rows without a flag whose item the catalogue does not have. None flags nothing."""
    if known_items is None:
        return
    unknown = known_items.unknown({row["item_id"] for row in rows})
    for row in rows:
        if row["item_id"] in unknown and row.get("flag") is None:
            row["flag"] = UNKNOWN_ITEM


class StoreEvents:
    """`process` of the group `store`: events into the activity store, those of unknown items flagged.

    Args:
        store: the activity store.
        known_items: the catalogue's items; None flags none.
        follow: told of every append, before the batch counts as done.
    """

    def __init__(
        self, store: EventSink, known_items: KnownItems | None, follow: Callable[[AppendResult], None] | None = None
    ) -> None:
        self._store, self._known_items, self._follow = store, known_items, follow

    def __call__(self, entries: Sequence[BusEntry]) -> BatchResult:
        """Append a batch; durable when it returns."""
        rows, _, rejected = decode_events(entries)
        flag_unknown_items(rows, self._known_items)
        if not rows:
            return BatchResult(rejected=rejected)
        result = self._store.append(event_table(rows))
        if self._follow is not None:
            self._follow(result)
        return BatchResult(result.added, result.duplicates, rejected)


class StoreRows:
    """`process` of a stream whose rows go to a `DailyLog`, such as exposures.

    Args:
        log: where rows go.
        decode: payloads to rows of the log's schema.
        malformed: the error that `decode` raises for a bad payload.
        follow: told of rows that are kept; of the same ones again after a crash.
    """

    def __init__(
        self,
        log: DailyLog,
        decode: Callable[[Sequence[bytes]], pa.Table],
        malformed: type[Exception],
        follow: Callable[[pa.Table], None] | None = None,
    ) -> None:
        self._log, self._decode, self._malformed, self._follow = log, decode, malformed, follow

    def __call__(self, entries: Sequence[BusEntry]) -> BatchResult:
        """Append a batch; durable when it returns."""
        rejected: list[Rejected] = []
        try:
            rows = self._decode([entry.payload for entry in entries])
        except self._malformed:
            tables = []
            for entry in entries:
                try:
                    tables.append(self._decode([entry.payload]))
                except self._malformed as error:
                    rejected.append(Rejected(entry, str(error)))
            if not tables:
                return BatchResult(rejected=rejected)
            rows = pa.concat_tables(tables)
        self._log.append(rows)
        if self._follow is not None:
            self._follow(rows)
        return BatchResult(rows.num_rows, 0, rejected)
