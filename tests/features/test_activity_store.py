"""The activity store holds each event once, under its own date, whatever dies while it writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import activity_store, event_index
from features.activity_store import COMPACT_AT_PARTS, ActivityStore
from features.errors import StoreError
from features.event_index import EventIndex
from features.store_files import place

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


def stored_ids(store: ActivityStore) -> list[str]:
    return sorted(store.read(["event_id"])["event_id"].to_pylist())


@pytest.fixture
def store(tmp_path: Path) -> ActivityStore:
    return ActivityStore(tmp_path / "store")


def test_an_id_is_stored_once_over_all_dates_and_the_first_time_wins(store: ActivityStore) -> None:
    first = store.append(events(["a", "b", "a"], [1, 2, 3]))
    again = ActivityStore(store.root).append(events(["b", "c"], [9, 9]))
    assert (first.added, first.duplicates, again.added, again.duplicates) == (2, 1, 1, 1)
    kept = store.read(["event_id", "timestamp"]).to_pydict()
    assert kept["event_id"] == ["a", "b", "c"]
    assert [moment.day for moment in kept["timestamp"]] == [2, 3, 10]


def test_each_event_lies_under_its_utc_date(store: ActivityStore) -> None:
    late = datetime(2026, 3, 1, 1, 30).astimezone().replace(tzinfo=UTC)
    stamp = pa.array([datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC), late])
    table = events(["a", "b", "c"], [0, 0, 0]).set_column(5, "timestamp", stamp.cast(pa.timestamp("us", tz="UTC")))
    store.append(table)
    assert sorted(Path(path).parent.name for path in store.files()) == ["date=2026-02-28", "date=2026-03-01"]
    query = (
        f"SELECT count(*) FROM read_parquet('{store.root}/date=*/*.parquet', hive_partitioning=true) WHERE date <> timestamp::DATE"
    )
    assert duckdb.sql(query).fetchall() == [(0,)]


def test_read_is_sorted_by_user_and_time_and_bounded(store: ActivityStore) -> None:
    store.append(events(["z", "y"], [3, 1], user="v"))
    store.append(events(["b", "a"], [4, 2], user="u"))
    assert store.read(["event_id"])["event_id"].to_pylist() == ["a", "b", "y", "z"]
    moment = datetime(1970, 1, 3, 12, tzinfo=UTC)
    assert store.read(["event_id"], moment)["event_id"].to_pylist() == ["a", "y"]
    assert store.read(["event_id"], since=moment)["event_id"].to_pylist() == ["b", "z"]
    assert store.read(["event_id"], moment.replace(tzinfo=None)).num_rows == 2
    assert store.count() == 4


def test_events_of_some_actions(store: ActivityStore) -> None:
    table = events(["a", "b", "c", "d"], [1, 2, 3, 4])
    actions = pa.array(["view", "click", "purchase", "click"])
    store.append(table.set_column(table.schema.get_field_index("action"), "action", actions))
    assert store.read(["event_id"], actions=["click", "purchase"])["event_id"].to_pylist() == ["b", "c", "d"]
    assert store.read(["event_id"], actions=[]).num_rows == 0
    since = datetime(1970, 1, 4, tzinfo=UTC)
    assert store.read(["event_id"], since=since, actions={"click"})["event_id"].to_pylist() == ["d"]


def test_an_empty_store_reads_empty_and_makes_nothing(store: ActivityStore) -> None:
    assert store.read().num_rows == store.count() == 0
    assert store.files() == []
    assert not store.root.exists()


def test_rows_that_do_not_fit_are_refused_whole(store: ActivityStore) -> None:
    with pytest.raises(StoreError, match="lack the column 'item_id'"):
        store.append(events(["a"], [1]).drop_columns(["item_id"]))
    with pytest.raises(StoreError, match="unknown column 'extra'"):
        store.append(events(["a"], [1]).append_column("extra", pa.array([1])))
    with pytest.raises(StoreError, match="no value in 1 rows of 'event_id'"):
        store.append(events([None], [1]))  # type: ignore[list-item]
    with pytest.raises(StoreError, match="do not fit"):
        store.append(events(["a"], [1]).set_column(3, "item_id", pa.array([[1]])))
    assert store.count() == 0


def test_a_url_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="need a state folder here"):
        ActivityStore("memory://store")
    with pytest.raises(StoreError, match=r"nosuch://store.*use a folder, or a URL that fsspec can open"):
        ActivityStore("nosuch://store", state=tmp_path)


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts down the store's renames and deletions; at zero the process "dies" before the step."""
    left = {"steps": 1 << 30}

    def step() -> None:
        left["steps"] -= 1
        if left["steps"] < 0:
            raise Killed

    replace, unlink = os.replace, Path.unlink

    def dying_replace(*arguments: Any) -> None:
        step()
        replace(*arguments)

    def dying_unlink(path: Path, missing_ok: bool = False) -> None:
        step()
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "replace", dying_replace)
    monkeypatch.setattr(Path, "unlink", dying_unlink)
    return left


def test_a_writer_that_dies_at_any_step_loses_and_repeats_nothing(tmp_path: Path, dying: dict[str, int]) -> None:
    batch = events([f"n{n}" for n in range(6)], [1, 2, 3, 1, 2, 3])
    survived = False
    step = 0
    while not survived:
        root = tmp_path / str(step)
        ActivityStore(root).append(events(["old", "n0"], [1, 7]))
        dying["steps"] = step
        try:
            ActivityStore(root).append(batch)
            survived = True
        except Killed:
            pass
        dying["steps"] = 1 << 30
        seen = stored_ids(ActivityStore(root))
        assert len(seen) == len(set(seen)), "a reader between death and recovery saw an event twice"
        result = ActivityStore(root).append(batch)
        assert result.added + result.duplicates == 6
        assert stored_ids(ActivityStore(root)) == ["n0", "n1", "n2", "n3", "n4", "n5", "old"]
        assert ActivityStore(root).append(batch).added == 0
        assert not list((root / "_state" / "journal").glob("*"))
        step += 1
    assert step > 8, "the countdown reached no step of the commit"


def test_compaction_keeps_every_row_and_dies_safely(tmp_path: Path, dying: dict[str, int]) -> None:
    survived = False
    step = 0
    while not survived:
        root = tmp_path / str(step)
        for number in range(4):
            ActivityStore(root).append(events([f"a{number}", f"b{number}"], [1, 2]))
        dying["steps"] = step
        try:
            assert ActivityStore(root).compact() == 6
            survived = True
        except Killed:
            pass
        dying["steps"] = 1 << 30
        everything = sorted(f"{side}{number}" for side in "ab" for number in range(4))
        assert stored_ids(ActivityStore(root)) == everything
        ActivityStore(root).compact()
        assert stored_ids(ActivityStore(root)) == everything
        assert len(ActivityStore(root).files()) == 2
        assert ActivityStore(root).append(events(["a0"], [1])).added == 0
        step += 1
    assert step > 4


def test_many_small_appends_leave_few_files(store: ActivityStore) -> None:
    for number in range(2 * COMPACT_AT_PARTS + 3):
        store.append(events([f"e{number}"], [1]))
    assert len(store.files()) < COMPACT_AT_PARTS
    assert store.count() == 2 * COMPACT_AT_PARTS + 3


def test_superseded_parts_are_not_read(store: ActivityStore) -> None:
    store.append(events(["a"], [1]))
    store.append(events(["b"], [1]))
    folder = Path(store.files()[0]).parent
    copies = [shutil.copy(path, Path(path).with_suffix(".kept")) for path in store.files()]
    store.compact()
    for copy in copies:  # as a reader finds it between the move and the deletions of a compaction
        shutil.move(copy, Path(copy).with_suffix(".parquet"))
    assert len(list(folder.glob("*.parquet"))) == 3
    assert store.files() == [str(store.root / place("1970-01-02", 1, 2))]
    assert stored_ids(store) == ["a", "b"]


@pytest.mark.parametrize("damage", ["missing", "segment", "manifest", "behind"])
def test_the_index_is_rebuilt_from_the_parquet(store: ActivityStore, damage: str) -> None:
    store.append(events(["a", "b"], [1, 2]))
    index = store.root / "_state" / "index"
    if damage == "missing":
        shutil.rmtree(index)
    elif damage == "segment":
        next(index.glob("*.npy")).write_bytes(b"")
    elif damage == "manifest":
        (index / "manifest.json").write_text("{")
    else:  # files that came without their index, as from a backup
        kept = shutil.copytree(index, store.root / "kept")
        store.append(events(["c"], [3]))
        shutil.rmtree(index)
        kept.rename(index)
    fresh = ActivityStore(store.root)
    assert fresh.append(events(["a", "b", "c", "d"], [5, 5, 5, 5])).added == (1 if damage == "behind" else 2)
    assert stored_ids(fresh) == ["a", "b", "c", "d"]


def test_a_second_writer_waits_and_then_says_who_holds_the_lock(store: ActivityStore) -> None:
    store.append(events(["a"], [1]))
    with activity_store.writer_lock(store.root / "_state" / "lock", 1.0):
        impatient = ActivityStore(store.root, lock_timeout_s=0.05)
        with pytest.raises(StoreError, match=r"lock .*_state/lock"):
            impatient.append(events(["b"], [1]))
    assert impatient.append(events(["b"], [1])).added == 1


def test_two_stores_of_one_process_see_each_others_ids(store: ActivityStore) -> None:
    other = ActivityStore(store.root)
    for number in range(20):
        writer = (store, other)[number % 2]
        assert writer.append(events([f"e{number}", f"e{number - 1}"], [1, 1])).added == (2 if number == 0 else 1)
    assert store.count() == 21


def test_a_disk_that_refuses_is_one_clear_error(store: ActivityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append(events(["a"], [1]))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.raises(StoreError, match=r"No space left.*free space"):
            store.append(events(["b"], [1]))
    assert store.append(events(["b"], [1])).added == 1
    assert stored_ids(store) == ["a", "b"]


def test_the_index_agrees_with_a_set(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_index, "MAX_SEGMENT_IDS", 700)
    index, known = EventIndex(tmp_path / "index"), set[str]()
    index.reset()
    for step in range(60):
        asked = [f"id-{n}" for n in rng.integers(0, 3000, rng.integers(1, 80))]
        keys = index.keys(pa.array(asked))
        assert index.contains(keys).tolist() == [one in known for one in asked]
        new = event_index.first_of_each(keys) & ~index.contains(keys)
        if new.any():
            index.write_segment(keys[:, new], tmp_path / "index" / f"s{step}.npy")
            index.commit(f"s{step}.npy", files_added=1, next_sequence=step)
        known |= set(asked)
    reloaded = EventIndex(tmp_path / "index")
    assert reloaded.load()
    assert reloaded.manifest.ids == len(known)
    assert len(reloaded.manifest.segments) < 12
    assert len(list((tmp_path / "index").glob("*.npy"))) == len(reloaded.manifest.segments)


def test_ids_that_share_one_lane_are_told_apart(tmp_path: Path) -> None:
    index = EventIndex(tmp_path)
    index.reset()
    keys = np.array([[5, 5, 5, 9], [1, 2, 3, 1]], dtype=np.uint64)
    assert event_index.first_of_each(keys).tolist() == [True] * 4
    index.write_segment(keys[:, :2], tmp_path / "s.npy")
    index.commit("s.npy", files_added=1, next_sequence=2)
    assert index.contains(keys).tolist() == [True, True, False, False]
    twice = keys[:, [0, 1, 0, 3]]
    assert event_index.first_of_each(twice).tolist() == [True, True, False, True]


WRITER = """
import sys
sys.path[:0] = {path!r}
from tests_events import events
from features.activity_store import ActivityStore
store = ActivityStore({root!r})
for batch in range({start}, 10_000):
    store.append(events([f"{{batch}}-{{n}}" for n in range(50)], [batch % 5] * 50))
    print(batch, flush=True)
"""


@pytest.mark.integration
def test_kill_9_at_random_moments_keeps_exactly_the_whole_batches(tmp_path: Path, rng: np.random.Generator) -> None:
    shutil.copy(__file__, tmp_path / "tests_events.py")
    root, acknowledged = tmp_path / "store", -1
    for _ in range(4):
        script = WRITER.format(path=[str(tmp_path), *sys.path], root=str(root), start=acknowledged + 1)
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.uniform(0.05, 0.4)))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split()
        process.wait()
        acknowledged = max([acknowledged + 1, *(int(line) for line in lines if line.isdigit())])
        ActivityStore(root).append(events([f"{acknowledged}-0"], [acknowledged % 5]))  # a writer that finishes what was begun
        found = pd.Series(stored_ids(ActivityStore(root)))
        assert found.is_unique
        batches = found.str.split("-").str[0].astype(int).value_counts()
        assert set(range(acknowledged + 1)) <= set(batches.index)
        assert (batches == 50).all()
