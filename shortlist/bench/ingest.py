"""`shortlist bench ingest`: how fast activity is taken in, how soon an answer shows it, what a user costs online.

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
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from features.activity_store import ActivityStore
from features.bus import EVENTS
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.import_dataset import import_dataset
from features.paths import DatasetPaths
from features.redis_bus import RedisStreamBus
from shortlist.bench.load import Outcome, run_load
from shortlist.bench.stack import known_users
from shortlist.stack.ports import wait_until
from shortlist.stack.redis_server import start_redis
from shortlist.stack.state import StackState

BATCH = 100
CONNECTIONS = 4
DRAIN_S = 600.0
STEADY_EVENTS_PER_S = 3_000
POLL_S = 0.02
ANSWER_S = 5.0
"""An answer that shows an event no sooner than this counts as never."""


def measure_import(rows: int) -> dict[str, Any]:
    """Import a Parquet file of `rows` events of a year into a new dataset."""
    rng = np.random.default_rng(0)
    seconds = 1_700_000_000 + np.sort(rng.integers(0, 365 * 86_400, rows))
    table = pa.table(
        {
            "user_id": pa.array(np.char.add("u", rng.integers(0, max(rows // 50, 1), rows).astype(str))),
            "item_id": pa.array(np.char.add("i", (rng.zipf(1.3, rows) % 20_000).astype(str))),
            "timestamp": pa.array(seconds * 1_000_000, pa.timestamp("us", tz="UTC")),
            "action": pa.array(rng.choice(["view", "click", "purchase"], rows)),
        }
    )
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        home = Path(folder)
        pq.write_table(table, home / "interactions.parquet")
        paths = DatasetPaths(home / "home", "bench")
        control = ControlStore(f"sqlite:///{home / 'control.db'}").create()
        wall, cpu = time.perf_counter(), time.process_time()
        report = import_dataset(str(home / "interactions.parquet"), paths, Catalogue(control, "bench"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        control.close()
    return {
        "events": report.interactions,
        "seconds": round(wall, 2),
        "events_per_s": round(report.interactions / wall),
        "events_per_cpu_s": round(report.interactions / cpu),
    }


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
        _drain(bus)
        before, run = store.count(), uuid.uuid4().hex[:8]
        began = time.monotonic()
        outcome = asyncio.run(_load(state.base_url, users, run, seconds, rate))
        took = time.monotonic() - began
        lag = bus.lag(EVENTS)
        behind = {group.group: {"entries": group.entries, "seconds": round(group.seconds, 2)} for group in lag.groups}
        _drain(bus)
        drained = time.monotonic() - began - took
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
        "drain_seconds": round(drained, 2),
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


def measure_user_memory(state: StackState) -> dict[str, Any]:
    """Bytes of Redis memory of a user's online features, and the share of users that expire."""
    sizes, expiring = [], 0
    with redis.Redis.from_url(state.features_url) as client:
        for key in client.scan_iter(count=5_000):
            if b"user_id" in key:  # Feast's keys name the entity's join key
                sizes.append(int(client.memory_usage(key, samples=0) or 0))
                expiring += client.ttl(key) > 0
    if not sizes:
        return {"users": 0, "bytes_per_user": None, "bytes_p99": None, "expiring": None}
    return {
        "users": len(sizes),
        "bytes_per_user": round(float(np.mean(sizes))),
        "bytes_p99": round(float(np.percentile(sizes, 99))),
        "expiring": round(expiring / len(sizes), 3),
    }


def ingest_markdown(result: dict[str, Any]) -> str:
    """The tables of docs/benchmarks.md."""
    fresh, memory, imported = result["freshness"], result["memory"], result["import"]
    rows = []
    for intake, wanted in ((result["steady"], f"{STEADY_EVENTS_PER_S:,}"), (result["saturated"], "(10,000)")):
        refused = {status: number for status, number in intake["statuses"].items() if status != "202"}
        behind = "; ".join(f"{group}: {lag['entries']:,} entries, {lag['seconds']:.1f} s" for group, lag in intake["lag"].items())
        name = f"HTTP batches of {BATCH}, {'steady' if intake is result['steady'] else 'as fast as they are taken'}"
        rows += [
            (f"{name}: accepted durably", f"{intake['events_per_s']:,} events/s", wanted),
            ("- a batch, p50 / p99", f"{intake['batch_ms_p50']} / {intake['batch_ms_p99']} ms", ""),
            ("- lag of the readers at the end", behind, "5 s" if intake is result["steady"] else ""),
            ("- until the readers had everything", f"{intake['drain_seconds']} s", ""),
            ("- accepted, stored, refused", f"{intake['accepted']:,}, {intake['stored']:,}, {refused or 'none'}", "equal"),
        ]
    sync = ", ".join(f"{policy} {rate:,.0f}/s" for policy, rate in result["sync"].items())
    shown = f"{fresh['ms_p50']} / {fresh['ms_p99']} ms, {fresh['never']} of {fresh['events']} never"
    rows += [
        ("event to changed answer, p50 / p99", shown, "100 / 500 (200) ms"),
        ("online memory a user, mean / p99", f"{memory['bytes_per_user']} / {memory['bytes_p99']} bytes", "800"),
        ("bulk import", f"{imported['events_per_s']:,} events/s ({imported['events']:,})", "200,000 (1,000,000)"),
        ("bulk import, by CPU time", f"{imported['events_per_cpu_s']:,} events/s", ""),
        (f"bus alone, batches of {BATCH}, by appendfsync", sync, ""),
    ]
    lines = [result["machine"], "", "| | measured | must (aim) |", "|---|---|---|"]
    return "\n".join(lines + [f"| {what} | {value} | {wanted} |" for what, value, wanted in rows])


@contextmanager
def _bus(state: StackState) -> Iterator[RedisStreamBus]:
    bus = RedisStreamBus(state.bus_url, state.dataset)
    try:
        yield bus
    finally:
        bus.close()


def _drain(bus: RedisStreamBus) -> None:
    wait_until(lambda: not any(g.entries for g in bus.lag(EVENTS).groups), seconds=DRAIN_S, what="the event worker")


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
