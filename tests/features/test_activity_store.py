"""The activity store holds each event once, under its own date, whatever dies while it writes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.activity_store import ActivityStore

DAY_US = 86_400_000_000


def events(ids: list[str], days: list[int], user: str = "u") -> pa.Table:
    times = np.array(days, dtype=np.int64) * DAY_US + np.arange(len(days))
    stamp = pa.array(times, pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "event_id": ids,
            "site": ["local"] * len(ids),
            "user_id": [user] * len(ids),
            "item_id": [f"i{n}" for n in range(len(ids))],
            "action": ["view"] * len(ids),
            "timestamp": stamp,
            "timestamp_imputed": [False] * len(ids),
            "received_at": stamp,
            "origin": ["live"] * len(ids),
        }
    )


def test_an_id_is_stored_once_over_all_dates_and_the_first_time_wins(tmp_path: Path) -> None:
    store = ActivityStore(tmp_path / "store")
    first = store.append(events(["a", "b", "a"], [1, 2, 3]))
    again = ActivityStore(tmp_path / "store").append(events(["b", "c"], [9, 9]))
    assert (first.added, first.duplicates, again.added, again.duplicates) == (2, 1, 1, 1)
    kept = store.read(["event_id", "timestamp"]).to_pydict()
    assert kept["event_id"] == ["a", "b", "c"]
    assert [moment.day for moment in kept["timestamp"]] == [2, 3, 10]
    assert sorted(path.name for path in (tmp_path / "store").glob("date=*")) == [
        "date=1970-01-02",
        "date=1970-01-03",
        "date=1970-01-10",
    ]


def test_as_of_reads_up_to_the_moment(tmp_path: Path) -> None:
    store = ActivityStore(tmp_path / "store")
    store.append(events(["a", "b", "c"], [1, 2, 3]))
    assert store.read(["event_id"], datetime(1970, 1, 3, 12, tzinfo=UTC))["event_id"].to_pylist() == ["a", "b"]
