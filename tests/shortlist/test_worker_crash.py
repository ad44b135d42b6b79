"""The real worker killed again and again in the middle of its work: store, online features and trending have each event once."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.activity_log import activity_log
from features.activity_store import ActivityStore
from features.aggregates import ItemStates, UserStates
from features.bus import EVENTS
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.event_codec import encode_event
from features.events import Event
from features.paths import DatasetPaths
from features.redis_board import RedisBoard
from features.redis_bus import RedisStreamBus
from features.store import Features
from features.trending import TRENDING, TrendingBoard

pytestmark = pytest.mark.integration
USERS, ITEMS, EVENTS_IN_ALL = 20, 15, 1_500


def waited(done, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_a_worker_killed_in_the_middle_repeats_nothing_and_skips_nothing(
    redis_server: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    paths = DatasetPaths(tmp_path, f"crash-{uuid.uuid4().hex[:8]}")
    control_url = f"sqlite:///{tmp_path}/control.db"
    catalogue = Catalogue(ControlStore(control_url).create(), paths.dataset)
    catalogue.upsert_items(pa.table({"item_id": [f"i{number}" for number in range(ITEMS)]}))
    features = Features(paths, catalogue.schema(), redis_server)
    features.apply()
    bus = RedisStreamBus(redis_server, paths.dataset)
    now = datetime.now(UTC)
    events = [
        Event(
            f"e{number}",
            f"i{rng.integers(ITEMS)}",
            str(rng.choice(["click", "view", "impression"])),
            now - timedelta(seconds=float(rng.uniform(0, 3 * 86_400))),
            f"u{rng.integers(USERS)}",
            recommendation_id="r",
        )
        for number in range(EVENTS_IN_ALL)
    ]
    settings = [f"home={tmp_path}", f"serve.dataset={paths.dataset}", f"control.url={control_url}"]
    settings += [f"redis.bus_url={redis_server}", f"redis.features_url={redis_server}"]
    command = [sys.executable, "-m", "shortlist.stack.worker", *settings]
    store = ActivityStore(paths.activity)
    sent = 0
    with (tmp_path / "worker.log").open("w") as log:
        for life in range(3):
            worker = subprocess.Popen(command, stdout=log, stderr=log)
            before = store.count()
            while sent < EVENTS_IN_ALL and (life == 2 or sent < (life + 1) * EVENTS_IN_ALL // 3):
                block = events[sent : sent + 25]
                bus.publish(EVENTS, [encode_event(event, received_at=now) for event in block])
                sent += len(block)
            if life < 2:
                waited(lambda before=before: store.count() > before)  # it is at work: now it dies
                time.sleep(float(rng.uniform(0, 0.5)))
                worker.kill()
                worker.wait()
        try:
            waited(lambda: all(not group.entries for group in bus.lag(EVENTS).groups))
            board = RedisBoard(redis_server, paths.dataset)
            log_of_items = activity_log(store.read(), "item")
            waited(lambda: trending_counts(board) == pytest.approx(expected_trending(events), rel=1e-6))
        finally:
            worker.terminate()
            worker.wait(30)
    stored = store.read(["event_id"])["event_id"].to_pylist()
    assert sorted(stored) == sorted(event.event_id for event in events)
    user_log = activity_log(store.read(), "user")
    states = pa.concat_tables(UserStates(user_log, {}).after(np.arange(len(user_log.ids)), user_log.indptr[1:]))
    online = features.online_users(states["user_id"].to_pylist())
    assert online["user_events"].tolist() == states["user_events"].to_pylist()
    assert [list(items) for items in online["recent_items"]] == states["recent_items"].to_pylist()
    assert online["user_hour_tiles"].tolist() == states["user_hour_tiles"].to_pylist()
    of_items = pa.concat_tables(ItemStates(log_of_items).after(np.arange(len(log_of_items.ids)), log_of_items.indptr[1:]))
    online = features.online_items(of_items["item_id"].to_pylist())
    assert online["item_events"].tolist() == of_items["item_events"].to_pylist()
    assert online["item_day_tiles"].tolist() == of_items["item_day_tiles"].to_pylist()


def expected_trending(events: list[Event]) -> dict[str, float]:
    """Counts that fade by half in half a day, as of the newest event of interest."""
    interest = [event for event in events if event.action != "impression"]
    newest = max(event.timestamp for event in interest)
    counts: dict[str, float] = {}
    for event in interest:
        faded = 2.0 ** (-(newest - event.timestamp).total_seconds() / 43_200)
        counts[event.item_id] = counts.get(event.item_id, 0.0) + faded
    return counts


def trending_counts(board: RedisBoard) -> dict[str, float]:
    posted = TrendingBoard.decode(board.get(TRENDING))
    return {} if posted is None else dict(zip(*posted.top("1d"), strict=True))
