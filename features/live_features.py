"""The group `features`: online features of users and items after each of their events, by the definition that the batch uses.

A user's state is never added to: it is computed anew from the user's whole history with `features.aggregates`. So an event that
comes twice or late changes nothing that it should not, a crash at any point is mended by doing the batch again, and live and batch
values are equal. Histories come from the activity store, which has every event before it is used here, and stay in memory for a
while.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.activity_log import activity_log, positive_events
from features.activity_store import ActivityStore
from features.aggregates import ItemCategories, UserStates
from features.bus import BusEntry
from features.consumer import BatchResult
from features.errors import EventError, StoreError
from features.event_codec import event_table
from features.ingest import KnownItems, decode_events, flag_unknown_items
from features.session_merges import decode_merges

MAX_CACHED_EVENTS = 500_000
"""Events of recently active users kept in memory: about 100 MB."""

HISTORY_SECONDS = 600.0
"""A kept history is read from the store again after this long, so that imports show in it too."""

_TYPES: dict[str, pa.DataType] = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "value": pa.float64(),
    "action": pa.string(),
}
_COLUMNS = ("event_id", "user_id", "item_id", "action", "timestamp", "value", "flag")


class FeatureSink(Protocol):
    """Where states go: `features.store.Features`."""

    def push_users(self, states: pa.Table) -> None:
        """Replace the online row of each user."""

    def push_items(self, states: pa.Table) -> None:
        """Replace the online activity of each item."""

    def push_engagement(self, states: pa.Table) -> None:
        """Replace the online impressions and clicks of each item."""


class LiveItems(Protocol):
    """States of items as the store has them now: `features.item_totals.ItemTotals` under its lock."""

    def states(self, item_ids: Sequence[str]) -> tuple[pa.Table, pa.Table]:
        """Rows of `item_activity` and of `item_engagement`."""


@dataclass
class _History:
    """Positive events of one user, in order of arrival; `known` holds hashes of their ids."""

    read_at: float
    known: set[int] = field(default_factory=set)
    item_ids: list[str] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)


class UserHistories:
    """Histories of the users that were active lately.

    Args:
        store: where histories are read.
        max_events: events kept in memory; users that were touched longest ago go first.
        seconds: how long a history is kept before it is read again.
        dates: days on which users have events, so that the first look at somebody reads a few files; None reads the whole store.
    """

    def __init__(
        self,
        store: ActivityStore,
        *,
        max_events: int = MAX_CACHED_EVENTS,
        seconds: float = HISTORY_SECONDS,
        dates: Callable[[Sequence[str]], Collection[str]] | None = None,
    ) -> None:
        self._store, self._max_events, self._seconds, self._dates = store, max_events, seconds, dates
        self._kept: OrderedDict[str, _History] = OrderedDict()
        self._events = self._erasures = 0

    def with_events(self, events: pa.Table) -> pa.Table:
        """All positive events of the users of `events` (stored ones and these): `user_id, item_id, timestamp, value, action`.

        Args:
            events: rows of EVENT_SCHEMA that the store has already; those that it refused, since they happened before their person
                was erased, count no more than there.
        """
        events = self._store.erased_people.without(_counted(events))
        users = events["user_id"].unique().to_pylist()
        self._load(users)
        self._add(events)
        return self._table(users)

    def _table(self, users: Sequence[str]) -> pa.Table:
        columns: dict[str, list[object]] = {name: [] for name in _TYPES}
        for user in users:
            history = self._kept[user]
            self._kept.move_to_end(user)
            columns["user_id"] += [user] * len(history.item_ids)
            columns["item_id"] += history.item_ids
            columns["timestamp"] += history.times_us
            columns["value"] += history.values
            columns["action"] += history.actions
        self._forget(len(users))
        return pa.table({name: pa.array(values, _TYPES[name]) for name, values in columns.items()})

    def forget(self, users: Collection[str]) -> None:
        """Read these users from the store again when next they are asked for."""
        for user in users:
            kept = self._kept.pop(user, None)
            self._events -= len(kept.item_ids) if kept else 0

    def of(self, users: Sequence[str]) -> pa.Table:
        """All positive stored events of users, as `with_events`."""
        self._load(users)
        return self._table(users)

    def _load(self, users: Collection[str]) -> None:
        now = time.monotonic()
        if (erasures := self._store.erasures()) != self._erasures:
            self._kept.clear()
            self._events, self._erasures = 0, erasures
        wanted = []
        for user in users:
            kept = self._kept.get(user)
            if kept is None or now - kept.read_at > self._seconds:
                wanted.append(user)
                self._events -= len(kept.item_ids) if kept else 0
                self._kept[user] = _History(now)
        if wanted:
            on_dates = None if self._dates is None else set(self._dates(wanted))
            self._add(_counted(self._store.read(_COLUMNS, user_ids=wanted, on_dates=on_dates)))

    def _add(self, events: pa.Table) -> None:
        names = ("event_id", "user_id", "item_id", "value", "action")
        times_us = pc.cast(events["timestamp"], pa.int64()).to_pylist()
        for event_id, user, item, value, action, at in zip(*(events[name].to_pylist() for name in names), times_us, strict=True):
            history, key = self._kept[user], hash(event_id)
            if key not in history.known:
                history.known.add(key)
                history.item_ids.append(item)
                history.times_us.append(at)
                history.values.append(value)
                history.actions.append(sys.intern(action))
                self._events += 1

    def _forget(self, in_use: int) -> None:
        while self._events > self._max_events and len(self._kept) > in_use:
            self._events -= len(self._kept.popitem(last=False)[1].item_ids)


class UpdateFeatures:
    """`process` of the group `features`.

    Args:
        histories: of users.
        sink: the online feature store, or None as long as nothing was applied to it: events then wait for nobody, the first
            `features build` and `materialize` take them from the store.
        categories: item_id -> categories now.
        known_items: as the group `store` flags them; None flags none.
        is_stored: whether the store has the bus entry of that id, and all before it.
        has_times: False for a dataset whose times are only an order.
        patience_s: how long to wait for the store within one batch.
        pushed: told when events were received that have been pushed.
        items: states of the batch's items, pushed too; None pushes users alone.
    """

    def __init__(
        self,
        histories: UserHistories,
        sink: Callable[[], FeatureSink | None],
        categories: Callable[[], ItemCategories],
        known_items: KnownItems | None,
        is_stored: Callable[[str], bool],
        *,
        has_times: bool = True,
        patience_s: float = 5.0,
        pushed: Callable[[pa.ChunkedArray], None] | None = None,
        items: LiveItems | None = None,
    ) -> None:
        self._histories, self._sink, self._categories = histories, sink, categories
        self._known_items, self._is_stored, self._has_times, self._patience_s = known_items, is_stored, has_times, patience_s
        self._lock, self._pushed, self._items = threading.Lock(), pushed, items

    def __call__(self, entries: Sequence[BusEntry]) -> BatchResult:
        """Push the states of all users and items of a batch.

        Raises:
            StoreError: the store is behind.
            FeatureStoreError: the online store cannot be reached.
        """
        sink = self._sink()
        if sink is None:
            return BatchResult()
        rows, good, _ = decode_events(entries)  # what is not an event is the group `store`'s dead letter
        if not rows:
            return BatchResult()
        self._wait_for_store(good[-1].id)
        flag_unknown_items(rows, self._known_items)
        events = event_table(rows)
        with self._lock:
            history = self._histories.with_events(events)
        result = self._push(sink, history)
        self._push_items(sink, events)
        if self._pushed is not None:
            self._pushed(events["received_at"])
        return result

    def refresh(self, users: Sequence[str]) -> BatchResult:
        """Push the states of users as the store has them now, whatever was kept of them.

        Raises:
            FeatureStoreError: the online store cannot be reached.
        """
        sink = self._sink()
        if sink is None or not users:
            return BatchResult()
        with self._lock:
            self._histories.forget(users)
            history = self._histories.of(users)
        return self._push(sink, history)

    def _push(self, sink: FeatureSink, history: pa.Table) -> BatchResult:
        if not history.num_rows:
            return BatchResult()
        log = activity_log(history, "user", has_times=self._has_times)
        states = UserStates(log, self._categories())
        for block in states.after(np.arange(len(log.ids)), log.indptr[1:]):
            sink.push_users(block)
        return BatchResult(added=len(log.ids))

    def _push_items(self, sink: FeatureSink, events: pa.Table) -> None:
        """Whatever an entry is handed out for again, the values are those of the store: nothing counts twice."""
        if self._items is None:
            return
        activity, engagement = self._items.states(events["item_id"].unique().to_pylist())
        if activity.num_rows:
            sink.push_items(activity)
        if engagement.num_rows:
            sink.push_engagement(engagement)

    def _wait_for_store(self, entry_id: str) -> None:
        deadline = time.monotonic() + self._patience_s
        while not self._is_stored(entry_id):
            if time.monotonic() > deadline:
                raise StoreError(f"live features wait for the activity store, which has not stored bus entry {entry_id} yet")
            time.sleep(0.01)


class RefreshMergedUsers:
    """`process` of the group `features` of session merges: the account's features with the session's activity in them.

    Args:
        update: pushes.
        is_stored: whether the store has the merge of that bus entry, and all before it.
        stored_until_us: time up to which the store has every event of the bus.
        patience_s: how long to wait for the store within one batch.
        joined: told the session and the user of each merge before features are computed.
    """

    def __init__(
        self,
        update: UpdateFeatures,
        is_stored: Callable[[str], bool],
        stored_until_us: Callable[[], int],
        *,
        patience_s: float = 5.0,
        joined: Callable[[str, str], None] | None = None,
    ) -> None:
        self._update, self._is_stored, self._stored_until_us, self._patience_s = update, is_stored, stored_until_us, patience_s
        self._joined = joined

    def __call__(self, entries: Sequence[BusEntry]) -> BatchResult:
        """Push the states of all accounts of a batch.

        Raises:
            StoreError: the store is behind.
            FeatureStoreError: the online store cannot be reached.
        """
        rows = []
        for entry in entries:
            with suppress(EventError):  # the group `store`'s dead letter
                rows += decode_merges([entry.payload]).to_pylist()
        if not rows:
            return BatchResult()
        newest_us = max(int(row["merged_at"].timestamp() * 1e6) for row in rows)
        deadline = time.monotonic() + self._patience_s
        while not (self._is_stored(entries[-1].id) and self._stored_until_us() >= newest_us):
            if time.monotonic() > deadline:
                raise StoreError("merged sessions wait for the activity store, which has not all of their events yet")
            time.sleep(0.02)
        for row in rows:
            if self._joined is not None:
                self._joined(row["session_id"], row["user_id"])
        return self._update.refresh(sorted({row["user_id"] for row in rows}))


def _counted(events: pa.Table) -> pa.Table:
    """The rows that user features count."""
    return positive_events(events.filter(pc.is_valid(events["user_id"])))
