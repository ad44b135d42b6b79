"""`shortlist events` on a real Redis: what operators see, and what they can mend."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from features.bus import EVENTS, STORE_GROUP
from features.redis_bus import RedisStreamBus
from shortlist.commands.app import run

pytestmark = pytest.mark.integration
Events = Callable[..., dict[str, Any]]


@pytest.fixture
def dataset() -> str:
    return f"commands-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def bus(redis_server: str, dataset: str) -> Iterator[RedisStreamBus]:
    bus = RedisStreamBus(redis_server, dataset)
    bus.ensure_groups(EVENTS)
    yield bus
    bus.close()


@pytest.fixture
def events(
    bus: RedisStreamBus,
    redis_server: str,
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Events:
    """`events("lag")`: the JSON of one call."""
    monkeypatch.setenv("SHORTLIST_HOME", str(tmp_path))
    monkeypatch.setenv("SHORTLIST_REDIS__BUS_URL", redis_server)

    def call(*arguments: str) -> dict[str, Any]:
        assert run(["events", *arguments, "--dataset", dataset, "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_lag_names_every_reader(bus: RedisStreamBus, events: Events) -> None:
    bus.publish(EVENTS, [b"a", b"b"])
    (first, _) = bus.read_group(EVENTS, STORE_GROUP, "one", 10, 1)
    bus.ack(EVENTS, STORE_GROUP, [first.id])
    stream = events("lag")["streams"]["events"]
    assert (stream["length"], stream["dead"]) == (2, 0)
    assert stream["groups"]["store"] | {"seconds": 0} == {"entries": 1, "undelivered": 0, "pending": 1, "seconds": 0}
    assert stream["groups"]["features"]["undelivered"] == 2


def test_tail_shows_the_newest_entries(bus: RedisStreamBus, events: Events) -> None:
    bus.publish(EVENTS, [b'{"n":1}', b'{"n":2}', b'{"n":3}'])
    assert [entry["payload"] for entry in events("tail", "-n", "2")["entries"]] == ['{"n":2}', '{"n":3}']
    assert events("tail", "--stream", "exposures")["entries"] == []


def test_dead_letters_are_seen_replayed_and_discarded(bus: RedisStreamBus, events: Events) -> None:
    bus.publish(EVENTS, [b"a", b"b", b"c"])
    for entry in bus.read_group(EVENTS, STORE_GROUP, "one", 10, 1):
        bus.dead_letter(EVENTS, STORE_GROUP, entry, "not JSON")
    found = events("dead")["dead"]
    assert [(letter["payload"], letter["reason"], letter["group"]) for letter in found] == [(p, "not JSON", "store") for p in "abc"]
    assert events("replay", found[1]["id"])["replayed"] == 1
    assert [entry.payload for entry in bus.read_group(EVENTS, STORE_GROUP, "one", 10, 1)] == [b"b"]
    assert events("dead", "-n", "1", "--discard")["discarded"] == 1
    assert events("replay", "--all")["replayed"] == 1
    assert events("dead")["dead"] == []


def test_mistakes_are_one_line(events: Events, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["tail", "--stream", "clicks", "--dataset", "x"], "no stream 'clicks': one of events, exposures"),
        (["replay", "--dataset", "x"], "which dead letters? Pass their ids, or --all"),
        (["lag"], "which dataset? Pass --dataset NAME"),
        (["lag", "--dataset", "x", "--set", "redis.bus_url=redis://127.0.0.1:1"], "event bus at 127.0.0.1:1 failed"),
    ):
        assert run(["events", *arguments]) == 1
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
