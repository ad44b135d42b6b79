"""From bus to store: exactly the accepted events, also when the worker is killed between writing and acknowledging."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.errors import ExperimentError
from experiments.exposure import EXPOSURE_SCHEMA, Exposure, decode_exposures
from features.activity_store import ActivityStore
from features.bus import EVENTS, EXPOSURES, STORE_GROUP
from features.consumer import Consumer, ConsumerConfig
from features.daily_log import DailyLog
from features.errors import BusUnavailableError, StoreError
from features.event_codec import encode_event
from features.events import UNKNOWN_ACTION, UNKNOWN_ITEM, Event
from features.ingest import KnownItems, StoreEvents, StoreRows
from features.redis_bus import RedisStreamBus

pytestmark = pytest.mark.integration
NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
CONFIG = ConsumerConfig(EVENTS, STORE_GROUP, "worker", block_ms=10)


@pytest.fixture
def dataset() -> str:
    return f"ingest-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def bus(redis_server: str, dataset: str) -> Iterator[RedisStreamBus]:
    bus = RedisStreamBus(redis_server, dataset)
    yield bus
    bus.close()


def payload(number: int, **changes: object) -> bytes:
    fields = {"event_id": f"e{number}", "item_id": f"i{number % 7}", "action": "view", "user_id": f"u{number % 5}"}
    event = Event(timestamp=NOW + timedelta(hours=number % 50), **{**fields, **changes})  # type: ignore[arg-type]
    return encode_event(event, received_at=NOW)


def drain(consumer: Consumer) -> None:
    while consumer.step():
        pass


def test_the_store_holds_exactly_the_published_events(bus: RedisStreamBus, tmp_path: Path) -> None:
    store = ActivityStore(tmp_path)
    bus.publish(EVENTS, [payload(number) for number in range(100)])
    bus.publish(EVENTS, [payload(number) for number in range(50, 120)] + [b"{}"])
    consumer = Consumer(bus, CONFIG, StoreEvents(store, None))
    drain(consumer)
    stored = store.read(["event_id", "timestamp", "origin"])
    assert sorted(stored["event_id"].to_pylist()) == sorted(f"e{number}" for number in range(120))
    assert (consumer.totals.added, consumer.totals.duplicates, consumer.totals.rejected) == (120, 50, 1)
    assert [letter.reason for letter in bus.dead(EVENTS, 10)] == ["event_id is missing"]


def test_unknown_items_are_kept_with_a_flag(bus: RedisStreamBus, tmp_path: Path) -> None:
    asked: list[set[str]] = []

    def has(ids: Collection[str]) -> set[str]:
        asked.append(set(ids))
        return {"i0", "i1"} & set(ids)

    store = ActivityStore(tmp_path)
    bus.publish(EVENTS, [payload(0), payload(1), payload(2), payload(3, flag=UNKNOWN_ACTION)])
    consumer = Consumer(bus, CONFIG, StoreEvents(store, KnownItems(has)))
    drain(consumer)
    bus.publish(EVENTS, [payload(7), payload(9)])
    drain(consumer)
    flags = dict(zip(*(store.read(["event_id", "flag"])[name].to_pylist() for name in ("event_id", "flag")), strict=True))
    assert flags == {"e0": None, "e1": None, "e2": UNKNOWN_ITEM, "e3": UNKNOWN_ACTION, "e7": None, "e9": UNKNOWN_ITEM}
    assert asked == [{"i0", "i1", "i2", "i3"}]


def test_an_item_that_comes_later_is_known_after_a_while() -> None:
    catalogue: set[str] = set()
    items = KnownItems(lambda ids: catalogue & set(ids), forget_unknown_s=0.0)
    assert items.unknown(["new"]) == {"new"}
    catalogue.add("new")
    assert items.unknown(["new"]) == set()

    def broken(ids: Collection[str]) -> set[str]:
        raise RuntimeError("database is locked")

    with pytest.raises(StoreError, match="database is locked"):
        KnownItems(broken).unknown(["x"])


WORKER = textwrap.dedent(
    """
    import os, signal, sys, threading
    import numpy as np
    from features.activity_store import ActivityStore
    from features.bus import EVENTS, STORE_GROUP
    from features.consumer import Consumer, ConsumerConfig
    from features.ingest import StoreEvents
    from features.redis_bus import RedisStreamBus

    url, dataset, folder, seed = sys.argv[1:]
    store = StoreEvents(ActivityStore(folder), None)
    rng = np.random.default_rng(int(seed))
    left = int(rng.integers(0, 4))

    def process(entries):
        global left
        if int(seed) % 3 == 2 and left == 0:  # anywhere inside the append
            threading.Timer(float(rng.uniform(0, 0.02)), os.kill, (os.getpid(), signal.SIGKILL)).start()
        result = store(entries)
        left -= 1
        if left < 0:  # after the append, before the acknowledgement
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    config = ConsumerConfig(EVENTS, STORE_GROUP, "worker", max_entries=40, block_ms=10)
    consumer = Consumer(RedisStreamBus(url, dataset), config, process)
    while True:
        consumer.step()
    """
)


def test_a_worker_killed_before_it_acknowledges_stores_nothing_twice(
    bus: RedisStreamBus, redis_server: str, dataset: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    published = 1500
    order = rng.permutation(published)
    bus.publish(EVENTS, [payload(int(number)) for number in order])
    for seed in (0, 1, 2, 4, 5, 3):  # the last one dies after its append, so its batch is stored and comes again
        worker = subprocess.run(
            [sys.executable, "-c", WORKER, redis_server, dataset, str(tmp_path), str(seed)], timeout=30, check=False
        )
        assert worker.returncode == -signal.SIGKILL
    group = next(one for one in bus.lag(EVENTS).groups if one.group == STORE_GROUP)
    assert group.pending > 0, "no worker died with a batch in hand: the test shows nothing"
    consumer = Consumer(bus, CONFIG, StoreEvents(ActivityStore(tmp_path), None))
    drain(consumer)
    stored = ActivityStore(tmp_path).read(["event_id"])["event_id"].to_pylist()
    assert sorted(stored) == sorted(f"e{number}" for number in range(published))
    assert consumer.totals.duplicates > 0
    assert bus.dead(EVENTS, 10) == []


def test_a_store_that_refuses_keeps_the_batch_on_the_bus(bus: RedisStreamBus, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    bus.publish(EVENTS, [payload(1)])
    consumer = Consumer(bus, CONFIG, StoreEvents(ActivityStore(tmp_path / "store"), None))
    with pytest.raises((StoreError, OSError)):
        consumer.step()
    os.unlink(tmp_path / "store")
    assert consumer.step() == 1
    assert ActivityStore(tmp_path / "store").count() == 1


def test_exposures_reach_their_log_once_and_malformed_ones_do_not(bus: RedisStreamBus, tmp_path: Path) -> None:
    exposures = [
        Exposure(f"rec-{number}", "demo", "control", "user_id", f"u{number}", NOW, "cache", ["a", "b"], user_id=f"u{number}")
        for number in range(20)
    ]
    log = DailyLog(tmp_path, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    consumer = Consumer(
        bus, ConsumerConfig(EXPOSURES, STORE_GROUP, "worker", block_ms=10), StoreRows(log, decode_exposures, ExperimentError)
    )
    bus.publish(EXPOSURES, [one.encode() for one in exposures[:12]] + [b'{"experiment":"demo"}', b"?"])
    bus.publish(EXPOSURES, [one.encode() for one in exposures[8:]])
    drain(consumer)
    stored = log.read(equal={"experiment": "demo"})
    assert stored.schema == EXPOSURE_SCHEMA
    assert sorted(stored["exposure_id"].to_pylist()) == sorted(one.exposure_id for one in exposures)
    assert stored["item_ids"].to_pylist()[0] == ["a", "b"]
    assert len(bus.dead(EXPOSURES, 10)) == 2


def test_redis_killed_and_started_again_mid_stream_loses_and_repeats_nothing(own_redis: Any, tmp_path: Path) -> None:
    """A consumer runs while events go in and Redis dies twice: the store holds exactly what was accepted."""
    bus = RedisStreamBus(own_redis.url, "restarted")
    bus.ensure_groups(EVENTS)
    config = ConsumerConfig(EVENTS, STORE_GROUP, "worker", max_entries=20, block_ms=20, upkeep_s=0.1)
    stop, store = threading.Event(), ActivityStore(tmp_path / "store")
    reader = RedisStreamBus(own_redis.url, "restarted")
    consumer = Consumer(reader, config, StoreEvents(store, None))
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    accepted, sent = set[str](), 0
    try:
        for step in range(60):
            if step in (15, 35):
                own_redis.kill()
            if step in (18, 38):
                own_redis.start()
            batch = [f"e{sent + n}" for n in range(10)]
            sent += 10
            with suppress(BusUnavailableError):
                bus.publish(EVENTS, [encode_event(Event(one, "i", "view", NOW, "u"), received_at=NOW) for one in batch], batch)
                accepted |= set(batch)
        deadline = time.monotonic() + 60
        while any(group.entries for group in bus.lag(EVENTS).groups if group.group == STORE_GROUP):
            assert time.monotonic() < deadline, consumer.totals
            time.sleep(0.05)
    finally:
        stop.set()
        thread.join()
    stored = store.read(["event_id"])["event_id"].to_pylist()
    assert len(stored) == len(set(stored))
    # A publish whose answer got lost may have been taken: it is stored, and was not promised.
    assert accepted <= set(stored) <= {f"e{n}" for n in range(sent)}
    assert len(accepted) >= 500
    assert consumer.totals.failures >= 1
    reader.close()
    bus.close()
