"""The activity store behind fsspec URLs, on a disk that fills up, with one enormous user, and after erasures."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from features.activity_store import COMPACT_AT_PARTS, ActivityStore
from features.bus import EVENTS, STORE_GROUP
from features.consumer import Consumer, ConsumerConfig
from features.errors import StoreError
from features.event_codec import encode_event, event_table
from features.events import Event
from features.ingest import StoreEvents
from features.paths import DatasetPaths
from features.redis_bus import RedisStreamBus
from features.session_merges import decode_merges, encode_merge, merge_log

START = datetime(2026, 11, 1, tzinfo=UTC)


class Bucket(LocalFileSystem):
    """An object store: whole objects are put, read, listed and deleted. Nothing is renamed, appended to or made a link."""

    protocol = ("bucket",)
    fails = 0

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        if Bucket.fails:
            Bucket.fails -= 1
            raise OSError(5, "the object store is away")
        super().put_file(lpath, rpath, **options)

    def mv(self, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("objects cannot be renamed")

    mv_file = rename = link = mv


fsspec.register_implementation("bucket", Bucket, clobber=True)


def events(ids: list[str], *, days: list[int] | None = None, user: str | None = "u", session: str | None = None) -> pa.Table:
    moments = [START + timedelta(days=day, seconds=n) for n, day in enumerate(days or [0] * len(ids))]
    rows = [Event(one, f"i{one}", "view", at, user, session).to_row(received_at=at) for one, at in zip(ids, moments, strict=True)]
    return event_table(rows)


def stored_ids(store: ActivityStore) -> list[str]:
    return sorted(store.read(["event_id"])["event_id"].to_pylist())


@pytest.fixture(params=["memory", "bucket", "file"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], ActivityStore]:
    """Opens one store anew, as another process would."""
    root = {"memory": f"memory://{uuid.uuid4().hex}", "bucket": f"bucket://{tmp_path}/far", "file": f"file://{tmp_path}/near"}
    return lambda: ActivityStore(root[request.param], state=tmp_path / "state")


def test_a_store_anywhere_keeps_each_event_once(opened: Callable[[], ActivityStore], tmp_path: Path) -> None:
    assert stored_ids(opened()) == []
    assert opened().append(events(["a", "b", "a"], days=[0, 1, 2])).added == 2
    for number in range(2 * COMPACT_AT_PARTS):
        assert opened().append(events([f"e{number}", "b"])).added == 1
    everything = sorted(["a", "b", *(f"e{n}" for n in range(2 * COMPACT_AT_PARTS))])
    assert stored_ids(opened()) == everything
    assert opened().count() == len(everything)
    assert len(opened().files()) < COMPACT_AT_PARTS
    assert opened().read(["event_id"], since=START + timedelta(days=1))["event_id"].to_pylist() == ["b"]
    opened().compact()
    assert len(opened().files()) == 2
    with opened().connect() as connection:
        assert connection.from_parquet(opened().files(), hive_partitioning=False).count("*").fetchall() == [(len(everything),)]
    visitor = events(["v"], user=None, session="s")
    opened().append(visitor)
    login = encode_merge("m", "s", "account", int((START + timedelta(days=1)).timestamp() * 1e6))
    merge_log(opened().uri, tmp_path / "state").append(decode_merges([login]))
    shutil.rmtree(tmp_path / "state")  # the machine is lost: another one takes over from the files
    assert opened().append(events(["a", "new"], days=[5, 5])).added == 1
    assert stored_ids(opened()) == sorted([*everything, "new", "v"])
    assert opened().read(["event_id"], user_ids=["account"])["event_id"].to_pylist() == ["v"]


def test_the_settings_place_the_store(tmp_path: Path) -> None:
    store = ActivityStore.of(DatasetPaths(tmp_path, "d", f"bucket://{tmp_path}/far/"))
    store.append(events(["a"]))
    assert len(list((tmp_path / "far" / "d").glob("date=*/*.parquet"))) == 1
    assert not list((tmp_path / "datasets" / "d").rglob("*.parquet"))


def test_an_object_store_that_is_away_loses_and_repeats_nothing(tmp_path: Path) -> None:
    store = ActivityStore(f"bucket://{tmp_path}/far", state=tmp_path / "state")
    store.append(events(["x"]))
    batch = events(["a", "b", "c"], days=[0, 1, 2])
    Bucket.fails = 2
    for _ in range(2):
        with pytest.raises(StoreError, match="the object store is away"):
            ActivityStore(store.uri, state=tmp_path / "state").append(batch)
    assert store.append(batch).added == 0, "the journal carried out what had been decided"
    assert stored_ids(store) == ["a", "b", "c", "x"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 300 kB that is really full when it is full; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=300k tmpfs {folder} 2>/dev/null"):
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    os.system(f"umount -l {folder}")


@pytest.mark.integration
def test_a_full_disk_makes_the_batch_wait_and_loses_nothing(small_disk: Path, redis_server: str, rng: np.random.Generator) -> None:
    bus = RedisStreamBus(redis_server, f"full-{uuid.uuid4().hex[:8]}")
    bus.ensure_groups(EVENTS)
    store = ActivityStore(small_disk / "store")
    consumer = Consumer(bus, ConsumerConfig(EVENTS, STORE_GROUP, "one", max_entries=400, block_ms=1), StoreEvents(store, None))
    published = []
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 180_000)
    refused = ""
    while not refused:
        made = [Event(rng.bytes(16).hex(), rng.bytes(60).hex(), "view", START, rng.bytes(8).hex()) for _ in range(400)]
        published += [one.event_id for one in made]
        bus.publish(EVENTS, [encode_event(one, received_at=START) for one in made], [one.event_id for one in made])
        try:
            while consumer.step():
                pass
        except StoreError as error:
            refused = str(error)
    assert "No space left" in refused
    assert "free space" in refused
    assert bus.lag(EVENTS).groups[1].entries >= 400, "the batch waits"
    ballast.unlink()
    while consumer.step():
        pass
    assert stored_ids(store) == sorted(published)
    bus.close()


def test_a_million_events_of_one_user(tmp_path: Path) -> None:
    count, store = 1_000_000, ActivityStore(tmp_path)
    moments = pa.array(np.arange(count) + 1_700_000_000_000_000, pa.timestamp("us", tz="UTC"))
    constant = {"site": "local", "user_id": "u", "action": "view", "origin": "live"}
    table = pa.table(
        {
            "event_id": pa.array(np.arange(count).astype(str)),
            **{name: pa.repeat(value, count) for name, value in constant.items()},
            "item_id": pa.array((np.arange(count) % 1000).astype(str)),
            "timestamp": moments,
            "timestamp_imputed": pa.repeat(False, count),
            "received_at": moments,
        }
    )
    assert store.append(table).added == count
    assert store.append(table.slice(5, 10)).added == 0
    assert store.read(["item_id"], user_ids=["u"]).num_rows == count
    assert store.erase("u") == count
    assert store.files() == []


def test_an_erased_person_is_gone_and_stays_away(opened: Callable[[], ActivityStore], tmp_path: Path) -> None:
    theirs = events(["a", "b", "c"], days=[0, 1, 2], user="erika")
    others = events(["x", "y"], days=[0, 1], user="other")
    before_login = events(["s1", "s2"], days=[0, 3], user=None, session="sess")
    after_login = events(["s3"], days=[4], user="erika", session="sess")
    elsewhere = events(["t1"], days=[1], user=None, session="elsewhere")
    merged = events(["m1"], days=[1], user=None, session="merged")
    of_other_account = events(["m2"], days=[2], user=None, session="merged")
    for table in (theirs, others, before_login, after_login, elsewhere, merged, of_other_account):
        opened().append(table)
    log = merge_log(opened().uri, tmp_path / "state")
    at = [int((START + timedelta(days=day, hours=12)).timestamp() * 1e6) for day in (1, 2)]
    log.append(decode_merges([encode_merge("1", "merged", "erika", at[0]), encode_merge("2", "merged", "other", at[1])]))
    assert opened().sessions("erika") == ["merged", "sess"]
    sequence = opened().sequence()

    assert opened().erase("erika", at=START + timedelta(days=10)) == 7
    assert stored_ids(opened()) == ["m2", "t1", "x", "y"]
    assert opened().sequence() > sequence, "who follows the store must notice"
    assert log.read()["user_id"].to_pylist() == ["other"]
    assert (opened().erased(["erika", "other"]), opened().erasures()) == ({"erika"}, 1)
    # What is still on the bus, comes late, or is imported again does not bring the person back.
    again = opened().append(theirs)
    assert (again.added, again.duplicates, again.erased) == (0, 0, 3)
    late = opened().append(pa.concat_tables([before_login, events(["new1", "new2"], days=[5, 11], user="erika")]))
    assert (late.added, late.erased) == (1, 3)
    assert stored_ids(opened()) == ["m2", "new2", "t1", "x", "y"]
    for file in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.npy")]:
        assert b"erika" not in file.read_bytes()
    assert opened().erase("nobody") == 0


def test_an_erasure_that_dies_is_finished_by_doing_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    while True:
        root = tmp_path / str(steps)
        ActivityStore(root).append(events(["a", "b"], days=[0, 1], user="erika"))
        ActivityStore(root).append(events(["x"], user="other"))
        left = steps
        replace = os.replace

        def dying(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            replace(*arguments)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                ActivityStore(root).erase("erika")
                survived = True
            except KeyboardInterrupt:
                survived = False
        seen = set(stored_ids(ActivityStore(root)))
        assert {"x"} <= seen <= {"a", "b", "x"}
        ActivityStore(root).erase("erika")
        assert stored_ids(ActivityStore(root)) == ["x"]
        if survived:
            break
        steps += 1
    assert steps >= 2
