"""What `shortlist bench ingest` measures on a running stack: how fast activity is taken in, how soon an answer shows it.

Events go over HTTP in batches while the worker stores them and pushes features; afterwards the store must hold exactly what was
accepted. Freshness is the time from sending an event to the first answer without the item that it was about. Everything runs on
one machine, the load too.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import redis

from features.activity_store import ActivityStore
from features.bus import EVENTS
from features.paths import DatasetPaths
from features.redis_bus import RedisStreamBus
from shortlist.bench.load import Outcome, run_load
from shortlist.bench.process_cpu import cpu_seconds
from shortlist.bench.stack import known_users
from shortlist.stack.redis_server import start_redis
from shortlist.stack.state import StackState

BATCH = 100
CONNECTIONS = 4
DRAIN_S = 60.0
"""Readers that are not done by then are said not to be."""

STEADY_EVENTS_PER_S = 3_000
POLL_S = 0.02
ANSWER_S = 5.0
"""An answer that shows an event no sooner than this counts as never."""


def measure_sync_policies(seconds: float = 3.0) -> dict[str, float]:
    """Events a second that the bus takes in batches, by how Redis syncs its append-only file."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        child, url = start_redis("bench-bus", "bench", Path(folder), durable=True)
        try:
            for policy in ("always", "everysec"):
                with redis.Redis.from_url(url) as client:
                    client.config_set("appendfsync", policy)
                found[policy] = _published_per_s(url, policy, seconds)
        finally:
            child.stop()
    return found


def measure_intake(state: StackState, seconds: float, rate: float | None) -> dict[str, Any]:
    """Batches over HTTP, then how far the readers were behind and whether the store has everything.

    Args:
        rate: events a second on a fixed schedule; None sends as fast as they are taken.
    """
    users = known_users(state)
    store = ActivityStore.of(DatasetPaths(Path(state.log_dir).parent, state.dataset))
    with _bus(state) as bus:
        if not _drained(bus):
            raise ValueError(f"the readers of the bus were not done with earlier events in {DRAIN_S:.0f} s: does the worker run?")
        before, run, used = store.count(), uuid.uuid4().hex[:8], cpu_seconds(state)
        began = time.monotonic()
        outcome = asyncio.run(_load(state.base_url, users, run, seconds, rate))
        took = time.monotonic() - began
        lag = bus.lag(EVENTS)
        behind = {group.group: {"entries": group.entries, "seconds": round(group.seconds, 2)} for group in lag.groups}
        done = _drained(bus)
        drained = time.monotonic() - began - took
        spent = {name: seconds - used.get(name, 0.0) for name, seconds in cpu_seconds(state).items()}
    statuses = {status: outcome.statuses.count(status) for status in sorted(set(outcome.statuses))}
    accepted = BATCH * statuses.get(202, 0)
    latencies = np.array(outcome.seconds) * 1e3
    return {
        "accepted": accepted,
        "events_per_s": round(accepted / took),
        "statuses": {str(status): number for status, number in statuses.items()},
        "batch_ms_p50": round(float(np.percentile(latencies, 50)), 1),
        "batch_ms_p99": round(float(np.percentile(latencies, 99)), 1),
        "lag": behind,
        "drain_seconds": round(drained, 2) if done else None,
        "cpu_s_per_1000": {name: round(1000 * seconds / accepted, 4) for name, seconds in spent.items() if accepted},
        "stored": store.count() - before,
    }


def measure_freshness(state: StackState, seconds: float, rate: float = 50.0) -> dict[str, Any]:
    """Time from sending an event about a user's first item to the first answer without that item, at a rate of requests."""
    users = known_users(state)
    times = asyncio.run(_freshness(state.base_url, users, seconds, rate))
    known = np.array([one for one in times if one is not None]) * 1e3
    if not len(known):
        raise ValueError("no answer showed its event")
    return {
        "events": len(times),
        "never": len(times) - len(known),
        "ms_p50": round(float(np.percentile(known, 50)), 1),
        "ms_p99": round(float(np.percentile(known, 99)), 1),
    }


@contextmanager
def _bus(state: StackState) -> Iterator[RedisStreamBus]:
    bus = RedisStreamBus(state.bus_url, state.dataset)
    try:
        yield bus
    finally:
        bus.close()


def _drained(bus: RedisStreamBus) -> bool:
    """Wait until the readers have everything; False where they do not in `DRAIN_S`."""
    until = time.monotonic() + DRAIN_S
    while any(group.entries for group in bus.lag(EVENTS).groups):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


async def _load(base_url: str, users: list[str], run: str, seconds: float, rate: float | None) -> Outcome:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)

    def body(number: int) -> bytes:
        first = number * BATCH
        rows = (
            f'{{"event_id":"{run}-{n}","user_id":"{users[n * 7919 % len(users)]}","item_id":"i{n % 5000}","action":"view",'
            f'"context":{{"device":"phone"}}}}'
            for n in range(first, first + BATCH)
        )
        return f'{{"events":[{",".join(rows)}]}}'.encode()

    return await run_load(
        base_url,
        lambda _: "/v1/events",
        connections=CONNECTIONS,
        stop=stop,
        kind="POST",
        body_of=body,
        timeout_s=30,
        rate=None if rate is None else rate / BATCH,
    )


def _published_per_s(url: str, policy: str, seconds: float) -> float:
    bus = RedisStreamBus(url, f"bench-{policy}")
    payloads, until = [b"x" * 250] * BATCH, time.monotonic() + seconds

    def publish(worker: int) -> int:
        number = 0
        while time.monotonic() < until:
            bus.publish(EVENTS, payloads, [f"{worker}-{number}-{n}" for n in range(BATCH)])
            number += 1
        return number

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        batches = sum(pool.map(publish, range(CONNECTIONS)))
    bus.close()
    return round(batches * BATCH / seconds)


async def _freshness(base_url: str, users: list[str], seconds: float, rate: float) -> list[float | None]:
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=ANSWER_S) as http:

        async def shown(user: str) -> list[str]:
            answer = await http.get(f"/v1/recommendations/{quote(user, safe='')}", params={"top_k": 10})
            return [item["item_id"] for item in answer.json()["recommended_items"]]

        async def one(user: str, first: str, delay_s: float) -> float | None:
            await asyncio.sleep(delay_s)
            sent = time.perf_counter()
            await http.post("/v1/events", json={"user_id": user, "item_id": first, "action": "view"})
            while time.perf_counter() - sent < ANSWER_S:
                if first not in await shown(user):
                    return time.perf_counter() - sent
                await asyncio.sleep(POLL_S)
            return None

        # An event and an answer are two requests.
        count = min(len(users), round(seconds * rate / 2))
        chosen = [users[n * len(users) // count] for n in range(count)]
        firsts = [(await shown(user))[0] for user in chosen]
        probes = zip(chosen, firsts, strict=True)
        return await asyncio.gather(*(one(user, first, 2 * n / rate) for n, (user, first) in enumerate(probes)))
