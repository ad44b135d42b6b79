"""A million events of one user: all are counted, and what is kept online stays small."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo.specs import RECENT_ITEMS
from features.activity_store import ActivityStore
from features.bus import BusEntry
from features.event_codec import encode_event
from features.events import EVENT_SCHEMA, Event
from features.live_features import UpdateFeatures, UserHistories

EVENTS = 1_000_000
START = datetime(2026, 10, 1, tzinfo=UTC)


class Sink:
    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def push_users(self, states: pa.Table) -> None:
        self.rows += states.to_pylist()

    def push_items(self, states: pa.Table) -> None:
        raise AssertionError(states)

    push_engagement = push_items


def test_a_million_events_of_one_user_are_all_counted_and_one_bounded_row(tmp_path: Path) -> None:
    store = ActivityStore(tmp_path)
    numbers = np.arange(EVENTS)
    moments = pa.array(int(START.timestamp()) * 1_000_000 + numbers * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
    same = {"site": "local", "user_id": "robot", "action": "click", "timestamp_imputed": False, "origin": "api"}
    columns = {name: pa.repeat(value, EVENTS) for name, value in same.items()}
    columns |= {"event_id": pa.array(numbers).cast(pa.string()), "item_id": pa.array(numbers % 3000).cast(pa.string())}
    columns |= {"timestamp": moments, "received_at": moments}
    rest = {field.name: pa.nulls(EVENTS, field.type) for field in EVENT_SCHEMA if field.name not in columns}
    everything = columns | rest
    assert store.append(pa.table([everything[name] for name in EVENT_SCHEMA.names], schema=EVENT_SCHEMA)).added == EVENTS

    sink = Sink()
    update = UpdateFeatures(UserHistories(store), lambda: sink, dict, None, lambda entry: True)
    after = START + timedelta(seconds=EVENTS)
    fresh = [Event("new", "i-new", "click", after, "robot"), Event("other", "i-new", "click", after, "somebody")]
    for event in fresh:
        store.append(pa.Table.from_pylist([event.to_row(received_at=after)], schema=EVENT_SCHEMA))
    update([BusEntry(f"{n}-0", encode_event(event, received_at=after)) for n, event in enumerate(fresh)])
    rows = {row["user_id"]: row for row in sink.rows}
    assert (rows["robot"]["user_events"], rows["somebody"]["user_events"]) == (EVENTS + 1, 1)
    recent = rows["robot"]["recent_items"]
    assert isinstance(recent, list)
    assert recent == [*(str(n % 3000) for n in range(EVENTS - RECENT_ITEMS + 1, EVENTS)), "i-new"]
