"""A consumer on a real Redis: every entry takes effect, poison is set aside, failures wait, and a dead reader loses nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from features.bus import EVENTS, FEATURES_GROUP, STORE_GROUP, BusEntry
from features.consumer import BatchResult, Consumer, ConsumerConfig, Rejected, run_all
from features.errors import StoreError
from features.redis_bus import RedisStreamBus

pytestmark = pytest.mark.integration
CONFIG = ConsumerConfig(EVENTS, STORE_GROUP, "worker", block_ms=20)


@pytest.fixture
def dataset() -> str:
    return f"consumer-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def bus(redis_server: str, dataset: str) -> Iterator[RedisStreamBus]:
    bus = RedisStreamBus(redis_server, dataset)
    bus.ensure_groups(EVENTS)
    yield bus
    bus.close()


class Recorder:
    """Keeps what it was given; rejects `bad`, trips over `trap`, and fails while `failing` is above 0."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.failing = 0

    def __call__(self, entries: Sequence[BusEntry]) -> BatchResult:
        if self.failing > 0:
            self.failing -= 1
            raise StoreError("disk is full")
        if any(entry.payload == b"trap" for entry in entries):
            raise KeyError("trap")
        self.batches.append([entry.payload for entry in entries if entry.payload != b"bad"])
        return BatchResult(len(self.batches[-1]), 0, [Rejected(entry, "it is bad") for entry in entries if entry.payload == b"bad"])

    @property
    def seen(self) -> list[bytes]:
        return [payload for batch in self.batches for payload in batch]


def test_a_batch_is_acknowledged_after_it_was_processed(bus: RedisStreamBus) -> None:
    recorder = Recorder()
    bus.publish(EVENTS, [b"a", b"b"])
    consumer = Consumer(bus, CONFIG, recorder)
    assert consumer.step() == 2
    assert recorder.seen == [b"a", b"b"]
    assert next(one for one in bus.lag(EVENTS).groups if one.group == STORE_GROUP).entries == 0
    assert (consumer.totals.entries, consumer.totals.added) == (2, 2)


def test_a_rejected_entry_is_a_dead_letter_and_the_rest_goes_on(bus: RedisStreamBus) -> None:
    recorder = Recorder()
    bus.publish(EVENTS, [b"a", b"bad", b"b"])
    consumer = Consumer(bus, CONFIG, recorder)
    consumer.step()
    assert recorder.seen == [b"a", b"b"]
    assert [(letter.payload, letter.reason) for letter in bus.dead(EVENTS, 10)] == [(b"bad", "it is bad")]
    assert consumer.totals.rejected == 1


def test_an_unexpected_error_costs_its_own_entry_alone(bus: RedisStreamBus) -> None:
    recorder = Recorder()
    bus.publish(EVENTS, [b"a", b"trap", b"bad", b"b"])
    Consumer(bus, CONFIG, recorder).step()
    assert recorder.seen == [b"a", b"b"]
    assert {letter.payload: letter.reason for letter in bus.dead(EVENTS, 10)} == {b"trap": "KeyError: 'trap'", b"bad": "it is bad"}


def test_a_passing_failure_waits_and_loses_nothing(bus: RedisStreamBus) -> None:
    recorder = Recorder()
    recorder.failing = 2
    bus.publish(EVENTS, [b"a", b"b"])
    consumer, stop = Consumer(bus, CONFIG, recorder), threading.Event()
    thread = threading.Thread(target=run_all, args=([consumer], stop))
    thread.start()
    deadline = time.monotonic() + 60
    while not recorder.seen and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert recorder.seen == [b"a", b"b"]
    assert (consumer.totals.failures, consumer.totals.last_failure) == (2, "disk is full")
    assert bus.dead(EVENTS, 10) == []


def test_an_entry_that_kills_its_reader_is_set_aside_in_the_end(bus: RedisStreamBus, redis_server: str, dataset: str) -> None:
    recorder = Recorder()
    bus.publish(EVENTS, [b"killer", b"a"])
    config = replace(CONFIG, max_deliveries=3)
    for _ in range(3):  # three readers die with the batch in hand
        RedisStreamBus(redis_server, dataset).read_group(EVENTS, STORE_GROUP, "worker", 10, 1)
    Consumer(RedisStreamBus(redis_server, dataset), config, recorder).step()
    assert recorder.seen == [b"a"]
    (letter,) = bus.dead(EVENTS, 10)
    assert (letter.payload, letter.reason) == (b"killer", "handed out 4 times and never finished")


def test_abandoned_entries_of_a_dead_consumer_are_taken_over(bus: RedisStreamBus) -> None:
    recorder = Recorder()
    bus.publish(EVENTS, [b"a"])
    bus.read_group(EVENTS, STORE_GROUP, "dead", 10, 1)
    time.sleep(0.05)
    Consumer(bus, replace(CONFIG, abandoned_after_ms=30), recorder).step()
    assert recorder.seen == [b"a"]


def test_finished_entries_are_trimmed(bus: RedisStreamBus) -> None:
    bus.publish(EVENTS, [b"a", b"b", b"c"])
    for group in (STORE_GROUP, FEATURES_GROUP):
        consumer = Consumer(bus, replace(CONFIG, group=group, upkeep_s=0.0), Recorder())
        consumer.step()
        consumer.step()
    assert [entry.payload for entry in bus.tail(EVENTS, 10)] == [b"c"]


def test_lingering_makes_one_batch_of_what_trickles_in(bus: RedisStreamBus) -> None:
    recorder = Recorder()
    bus.publish(EVENTS, [b"a"])
    late = threading.Timer(0.1, bus.publish, (EVENTS, [b"b"]))
    late.start()
    Consumer(bus, replace(CONFIG, linger_ms=400), recorder).step()
    late.join()
    assert recorder.batches == [[b"a", b"b"]]
