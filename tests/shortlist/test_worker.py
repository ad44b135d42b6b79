"""The worker as the stack runs it: a process of its own between a real Redis, the store, Feast and the exposure log."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from experiments.exposure import EXPOSURE_SCHEMA, Exposure
from features.activity_store import ActivityStore
from features.bus import EVENTS, EXPOSURES
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.daily_log import DailyLog
from features.event_codec import encode_event
from features.events import UNKNOWN_ITEM, Event
from features.paths import DatasetPaths
from features.redis_board import RedisBoard
from features.redis_bus import RedisStreamBus
from features.store import Features
from features.trending import TRENDING, TrendingBoard
from shortlist.settings import load_settings
from shortlist.stack.errors import StackError
from shortlist.stack.ports import free_port
from shortlist.stack.worker import build_worker

pytestmark = pytest.mark.integration


def eventually(done: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def scraped(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_the_worker_moves_everything_and_ends_when_told(redis_server: str, tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, f"worker-{uuid.uuid4().hex[:8]}")
    control_url = f"sqlite:///{tmp_path}/control.db"
    catalogue = Catalogue(ControlStore(control_url).create(), paths.dataset)
    catalogue.upsert_items(pa.table({"item_id": ["i1", "i2"]}))
    features = Features(paths, catalogue.schema(), redis_server)
    features.apply()
    bus = RedisStreamBus(redis_server, paths.dataset)
    now = datetime.now(UTC)
    events = [Event(f"e{number}", f"i{number % 3}", "click", now, f"u{number % 4}") for number in range(38)]
    events += [Event(f"e{number}", f"i{number % 3}", "click", now, f"u{number % 4}", recommendation_id="r1") for number in (38, 39)]
    bus.publish(EVENTS, [encode_event(event, received_at=now) for event in events])
    bus.publish(EXPOSURES, [Exposure("r1", "demo", "control", "user_id", "u1", now, "cache", ["i1"]).encode(), b"?"])
    settings = [f"home={tmp_path}", f"serve.dataset={paths.dataset}", f"control.url={control_url}"]
    port = free_port()
    settings += [f"redis.bus_url={redis_server}", f"redis.features_url={redis_server}", f"worker.metrics_port={port}"]
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen([sys.executable, "-m", "shortlist.stack.worker", *settings], stdout=log, stderr=log)
    try:
        board = RedisBoard(redis_server, paths.dataset)
        eventually(lambda: (now := TrendingBoard.decode(board.get(TRENDING))) is not None and len(now.top("1h")[0]) == 2)
        eventually(
            lambda: bool(bus.lag(EXPOSURES).groups) and all(not g.entries for s in (EVENTS, EXPOSURES) for g in bus.lag(s).groups)
        )
        eventually(lambda: 'shortlist_click_rate{experiment="demo"' in scraped(port))
        assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text(), "Feast's import of torch costs 200 MB"
        metrics = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in scraped(port).splitlines() if line[0] != "#"}
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0, (tmp_path / "worker.log").read_text()
    assert metrics['shortlist_worker_events_total{action="click",outcome="stored"}'] == 26
    assert metrics['shortlist_worker_events_total{action="click",outcome="unknown_item"}'] == 14
    for group in ("store", "features"):
        assert metrics[f'shortlist_bus_lag_entries{{group="{group}",stream="events"}}'] == 0
        assert metrics[f'shortlist_bus_lag_seconds{{group="{group}",stream="events"}}'] == 0
    assert metrics['shortlist_bus_dead_letters{stream="exposures"}'] == 1
    assert metrics["shortlist_feature_freshness_seconds"] == 0
    assert metrics["shortlist_feature_delay_seconds_count"] == 40
    for window in ("5m", "1h"):
        label = f'{{experiment="demo",placement="",variant="control",window="{window}"}}'
        assert (metrics[f"shortlist_click_rate{label}"], metrics[f"shortlist_click_rate_answers{label}"]) == (2.0, 1.0)
    stored = ActivityStore(paths.activity).read(["event_id", "item_id", "flag"])
    assert stored.num_rows == 40
    flags = {(row["item_id"], row["flag"]) for row in stored.to_pylist()}
    assert flags == {("i0", UNKNOWN_ITEM), ("i1", None), ("i2", None)}
    assert sum(features.online_users([f"u{number}" for number in range(4)])["user_events"]) == sum(n % 3 != 0 for n in range(40))
    log_of_exposures = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    assert log_of_exposures.read()["exposure_id"].to_pylist() == ["r1:demo"]
    assert [letter.payload for letter in bus.dead(EXPOSURES, 10)] == [b"?"]
    posted = TrendingBoard.decode(board.get(TRENDING))
    assert posted is not None
    items, counts = posted.top("1h")
    assert items.tolist() == ["i1", "i2"]
    assert counts.tolist() == [13.0, 13.0]


def test_the_worker_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"needs serve\.dataset, redis\.bus_url and redis\.features_url"):
        build_worker(load_settings((f"home={tmp_path}",), environ={}, folder=tmp_path))
