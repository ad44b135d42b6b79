"""The bus on a real Redis: at least once, nothing trimmed too early, poison set aside, one clear error when it is gone."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from features.bus import EVENTS, EXPOSURES, FEATURES_GROUP, STORE_GROUP, EventBus
from features.errors import BusFullError, BusUnavailableError
from features.publish_deadline import MAX_UNDER_WAY
from features.redis_bus import RedisStreamBus

pytestmark = pytest.mark.integration


@pytest.fixture
def dataset() -> str:
    return f"bus-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def bus(redis_server: str, dataset: str) -> Iterator[RedisStreamBus]:
    bus = RedisStreamBus(redis_server, dataset)
    bus.ensure_groups(EVENTS)
    yield bus
    bus.close()


def read(bus: EventBus, group: str, consumer: str = "one", count: int = 100) -> list[bytes]:
    return [entry.payload for entry in bus.read_group(EVENTS, group, consumer, count, 1)]


def test_every_group_reads_every_entry_once(bus: RedisStreamBus) -> None:
    ids = bus.publish(EVENTS, [b"a", b"b", b"\x00\xff"])
    assert len(set(ids)) == 3
    for group in (STORE_GROUP, FEATURES_GROUP):
        assert read(bus, group) == [b"a", b"b", b"\x00\xff"]
        assert read(bus, group) == []


def test_two_consumers_of_a_group_share_the_entries(bus: RedisStreamBus) -> None:
    bus.publish(EVENTS, [b"a", b"b"])
    assert read(bus, STORE_GROUP, "one", 1) + read(bus, STORE_GROUP, "two", 1) == [b"a", b"b"]


def test_a_key_is_published_once_within_the_window(bus: RedisStreamBus) -> None:
    first = bus.publish(EVENTS, [b"a", b"b"], ["id-a", "id-b"])
    assert None not in first
    second = bus.publish(EVENTS, [b"a", b"c", b"c"], ["id-a", "id-c", "id-c"])
    assert [one is None for one in second] == [True, False, True]
    assert read(bus, STORE_GROUP) == [b"a", b"b", b"c"]


def test_a_key_is_forgotten_after_two_windows(redis_server: str, dataset: str) -> None:
    bus = RedisStreamBus(redis_server, dataset, unique_window_s=1)
    assert bus.publish(EVENTS, [b"a"], ["id-a"]) != [None]
    time.sleep(3.1)
    assert bus.publish(EVENTS, [b"a"], ["id-a"]) != [None]


def test_async_publish_is_the_same(bus: RedisStreamBus) -> None:
    async def publish() -> list[str | None]:
        try:
            await bus.publish_async(EVENTS, [b"a"], ["id-a"])
            return await bus.publish_async(EVENTS, [b"a", b"b"], ["id-a", "id-b"])
        finally:
            await bus.aclose()

    assert [one is None for one in asyncio.run(publish())] == [True, False]
    assert read(bus, STORE_GROUP) == [b"a", b"b"]


def test_a_consumer_that_comes_back_gets_what_it_did_not_acknowledge(bus: RedisStreamBus, redis_server: str, dataset: str) -> None:
    bus.publish(EVENTS, [b"a", b"b", b"c"])
    done, *_ = bus.read_group(EVENTS, STORE_GROUP, "one", 10, 1)
    bus.ack(EVENTS, STORE_GROUP, [done.id])
    bus.publish(EVENTS, [b"d"])
    again = RedisStreamBus(redis_server, dataset)
    returned = again.read_group(EVENTS, STORE_GROUP, "one", 10, 1)
    assert [(entry.payload, entry.deliveries) for entry in returned] == [(b"b", 2), (b"c", 2)]
    assert read(again, STORE_GROUP) == [b"d"]


def test_abandoned_entries_are_taken_over_once(bus: RedisStreamBus) -> None:
    bus.publish(EVENTS, [b"a", b"b"])
    read(bus, STORE_GROUP, "dead")
    assert bus.claim_abandoned(EVENTS, STORE_GROUP, "alive", 60_000, 10) == []
    time.sleep(0.05)
    taken = bus.claim_abandoned(EVENTS, STORE_GROUP, "alive", 20, 10)
    assert [(entry.payload, entry.deliveries) for entry in taken] == [(b"a", 2), (b"b", 2)]
    bus.ack(EVENTS, STORE_GROUP, [entry.id for entry in taken])
    assert bus.claim_abandoned(EVENTS, STORE_GROUP, "alive", 0, 10) == []


def test_what_an_answer_that_got_lost_held_is_given_again(bus: RedisStreamBus, redis_server: str, dataset: str) -> None:
    assert read(bus, STORE_GROUP, "one") == []
    bus.publish(EVENTS, [b"a", b"b"])
    # The same consumer asked over another connection: its answer never arrived here, as when Redis dies after it has written it.
    assert read(RedisStreamBus(redis_server, dataset), STORE_GROUP, "one") == [b"a", b"b"]
    assert read(bus, STORE_GROUP, "one") == []
    again = bus.claim_abandoned(EVENTS, STORE_GROUP, "one", 60_000, 10)
    assert [(entry.payload, entry.deliveries) for entry in again] == [(b"a", 2), (b"b", 2)]
    bus.ack(EVENTS, STORE_GROUP, [entry.id for entry in again])
    assert bus.claim_abandoned(EVENTS, STORE_GROUP, "one", 0, 10) == []


def test_trim_keeps_what_any_group_still_needs(bus: RedisStreamBus) -> None:
    bus.publish(EVENTS, [b"a", b"b", b"c", b"d"])
    store = bus.read_group(EVENTS, STORE_GROUP, "one", 10, 1)
    bus.ack(EVENTS, STORE_GROUP, [entry.id for entry in store])
    assert bus.trim(EVENTS) == 0
    features = bus.read_group(EVENTS, FEATURES_GROUP, "one", 3, 1)
    bus.ack(EVENTS, FEATURES_GROUP, [features[0].id, features[2].id])
    assert bus.trim(EVENTS) == 1
    assert [entry.payload for entry in bus.tail(EVENTS, 10)] == [b"b", b"c", b"d"]
    bus.ack(EVENTS, FEATURES_GROUP, [features[1].id])
    assert bus.trim(EVENTS) == 1
    assert read(bus, FEATURES_GROUP) == [b"d"]


def test_nothing_is_trimmed_before_all_groups_exist(redis_server: str, dataset: str) -> None:
    bus = RedisStreamBus(redis_server, dataset)
    bus.publish(EVENTS, [b"a"])
    assert bus.trim(EVENTS) == 0
    assert bus.lag(EVENTS).groups == ()
    assert read(bus, STORE_GROUP) == [b"a"]  # the first read creates the groups
    assert [group.group for group in bus.lag(EVENTS).groups] == [FEATURES_GROUP, STORE_GROUP]


def test_lag_counts_entries_and_seconds(bus: RedisStreamBus) -> None:
    bus.publish(EVENTS, [b"a", b"b", b"c"])
    store = bus.read_group(EVENTS, STORE_GROUP, "one", 2, 1)
    bus.ack(EVENTS, STORE_GROUP, [store[0].id])
    time.sleep(0.1)
    lag = {one.group: one for one in bus.lag(EVENTS).groups}
    assert (lag[STORE_GROUP].undelivered, lag[STORE_GROUP].pending, lag[STORE_GROUP].entries) == (1, 1, 2)
    assert (lag[FEATURES_GROUP].undelivered, lag[FEATURES_GROUP].pending) == (3, 0)
    assert 0.1 <= lag[FEATURES_GROUP].seconds < 5
    read(bus, STORE_GROUP)
    for entry in bus.tail(EVENTS, 10):
        bus.ack(EVENTS, STORE_GROUP, [entry.id])
    done = next(one for one in bus.lag(EVENTS).groups if one.group == STORE_GROUP)
    assert (done.entries, done.seconds) == (0, 0.0)


def test_a_dead_letter_keeps_payload_and_reason_and_replays_to_its_group_alone(bus: RedisStreamBus) -> None:
    bus.publish(EVENTS, [b"good", b"bad"])
    assert read(bus, FEATURES_GROUP) == [b"good", b"bad"]
    good, bad = bus.read_group(EVENTS, STORE_GROUP, "one", 10, 1)
    bus.ack(EVENTS, STORE_GROUP, [good.id])
    bus.dead_letter(EVENTS, STORE_GROUP, bad, "value is not a number")
    (letter,) = bus.dead(EVENTS, 10)
    assert (letter.payload, letter.reason, letter.group, letter.entry_id) == (b"bad", "value is not a number", STORE_GROUP, bad.id)
    assert bus.lag(EVENTS).dead == 1
    assert bus.replay(EVENTS, ["1-1"]) == 0
    assert bus.replay(EVENTS) == 1
    assert read(bus, FEATURES_GROUP) == []
    assert read(bus, STORE_GROUP) == [b"bad"]
    assert bus.lag(EVENTS).dead == 0


def test_dead_letters_can_be_discarded(bus: RedisStreamBus) -> None:
    bus.publish(EVENTS, [b"bad"])
    (bad,) = bus.read_group(EVENTS, STORE_GROUP, "one", 10, 1)
    bus.dead_letter(EVENTS, STORE_GROUP, bad, "why")
    assert bus.discard(EVENTS, [bus.dead(EVENTS, 1)[0].id]) == 1
    assert bus.dead(EVENTS, 1) == []


def test_streams_and_datasets_are_apart(bus: RedisStreamBus, redis_server: str) -> None:
    other = RedisStreamBus(redis_server, f"bus-{uuid.uuid4().hex[:8]}")
    bus.publish(EVENTS, [b"a"])
    assert other.tail(EVENTS, 10) == []
    assert bus.tail(EXPOSURES, 10) == []


def test_a_full_stream_refuses_a_whole_batch(redis_server: str, dataset: str) -> None:
    bus = RedisStreamBus(redis_server, dataset, max_entries=3)
    bus.publish(EVENTS, [b"a", b"b"])
    with pytest.raises(BusFullError, match="its readers are behind"):
        bus.publish(EVENTS, [b"c", b"d"], ["id-c", "id-d"])
    assert [entry.payload for entry in bus.tail(EVENTS, 10)] == [b"a", b"b"]
    assert bus.publish(EVENTS, [b"c"], ["id-c"]) != [None]


def test_an_absent_redis_is_one_error_within_two_seconds() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bus = RedisStreamBus(f"redis://:secret@127.0.0.1:{port}/0", "any")
    started = time.monotonic()
    with pytest.raises(BusUnavailableError, match=f"event bus at 127.0.0.1:{port} failed") as error:
        bus.publish(EVENTS, [b"a"])
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(BusUnavailableError):
        asyncio.run(bus.publish_async(EVENTS, [b"a"]))
    assert time.monotonic() - started < 2
    with pytest.raises(BusUnavailableError, match="is not a Redis URL"):
        RedisStreamBus("http://x", "any")


def test_what_was_published_survives_a_killed_server(own_redis: Any, dataset: str) -> None:
    bus = RedisStreamBus(own_redis.url, dataset)
    bus.ensure_groups(EVENTS)
    bus.publish(EVENTS, [b"%d" % number for number in range(500)], [f"id-{number}" for number in range(500)])
    first = bus.read_group(EVENTS, STORE_GROUP, "one", 100, 1)
    bus.ack(EVENTS, STORE_GROUP, [entry.id for entry in first])
    own_redis.kill()
    own_redis.start()
    rest = read(bus, STORE_GROUP, count=1000)
    assert [int(payload) for payload in rest] == list(range(100, 500))
    assert bus.publish(EVENTS, [b"again"], ["id-7"]) == [None]


def test_what_a_group_finished_is_known_while_it_works(bus: RedisStreamBus) -> None:
    first, second, third = (str(one) for one in bus.publish(EVENTS, [b"a", b"b", b"c"]))
    assert not bus.has_finished(EVENTS, STORE_GROUP, first)
    bus.read_group(EVENTS, STORE_GROUP, "one", 2, 1)
    bus.ack(EVENTS, STORE_GROUP, [second])
    assert [bus.has_finished(EVENTS, STORE_GROUP, one) for one in (first, second, third)] == [False, False, False]
    bus.ack(EVENTS, STORE_GROUP, [first])
    assert [bus.has_finished(EVENTS, STORE_GROUP, one) for one in (first, second, third)] == [True, True, False]
    assert not bus.has_finished(EXPOSURES, STORE_GROUP, first)


def test_looking_at_a_group_that_works_never_fails(bus: RedisStreamBus) -> None:
    """Positions change between the commands of one look."""
    stop = threading.Event()

    def work() -> None:
        own = RedisStreamBus(bus._url, bus._prefix.split(":")[2].rstrip("}"))
        while not stop.is_set():
            own.publish(EVENTS, [b"x"] * 3)
            for group in (STORE_GROUP, FEATURES_GROUP):
                own.ack(EVENTS, group, [entry.id for entry in own.read_group(EVENTS, group, "one", 10, 1)])

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(300):
            bus.lag(EVENTS)
            bus.trim(EVENTS)
            bus.has_finished(EVENTS, STORE_GROUP, "1-1")
    finally:
        stop.set()
        worker.join()


def test_a_hung_redis_is_told_in_time_and_costs_few_connections_and_no_payload_twice(own_redis: Any, dataset: str) -> None:
    bus = RedisStreamBus(own_redis.url, dataset, publish_timeout_s=0.5)

    def connections() -> int:
        return int(bus._redis.info("stats")["total_connections_received"])

    async def wave(name: str, calls: int = 3 * MAX_UNDER_WAY) -> list[Any]:
        keys = [f"{name}-{number}" for number in range(calls)]
        return await asyncio.gather(*(bus.publish_async(EVENTS, [key.encode()], [key]) for key in keys), return_exceptions=True)

    async def run() -> None:
        assert await bus.publish_async(EVENTS, [b"before"], ["before"]) != [None]
        before = connections()
        own_redis.process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):  # the library's own time-outs and retries come to 15 s
                refused = [await wave("first"), await wave("second"), await wave("second")]
        finally:
            own_redis.process.send_signal(signal.SIGCONT)
        assert {type(one) for calls in refused for one in calls} == {BusUnavailableError}
        assert "does not answer in time" in str(refused[0][0])
        async with asyncio.timeout(60):
            while isinstance((await wave("first", 1))[0], BusUnavailableError):  # asks alone whether the bus is back
                await asyncio.sleep(0.05)
        assert not any(isinstance(one, BaseException) for one in await wave("first", 3))
        assert connections() - before <= MAX_UNDER_WAY + 10, "one call at a time asks a bus that is known to hang"
        await bus.aclose()

    asyncio.run(run())
    payloads = [entry.payload for entry in bus.tail(EVENTS, 10_000)]
    assert len(payloads) == len(set(payloads)), "sent again under its key"
    assert {b"before", b"first-0", b"first-1", b"first-2"} <= set(payloads)
    bus.close()
