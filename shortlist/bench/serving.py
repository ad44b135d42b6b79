"""`shortlist bench serving`: what an answer costs over HTTP, as ratios to a no-op of the same Ray Serve in the same run.

A real stack of the smallest kind: two Redis, Ray Serve in HAProxy mode, the gateway, one version of the large bundle. What a
request meets in production is on: a running experiment with all traffic, exposures onto the bus, the mask of availability, metrics.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from experiments.spec import parse_spec
from features.control_store import ControlStore
from serving.announce import announce
from serving.config import ServingConfig
from serving.control import ServingControl, ServingState
from serving.environment import serve_env
from shortlist.bench.saturation import LoadPlan, LoadResult, run_load
from shortlist.bench.world import DATASET, World
from shortlist.stack.ports import free_port, wait_until
from shortlist.stack.ray_cluster import short_temporary_folder, start_ray, stop_ray
from shortlist.stack.redis_server import start_redis
from training.arrays import map_arrays
from training.histories import Histories
from training.pipeline import POPULARITY_FILE

VERSION = "1"
USERS = 2_000
"""Users that are asked for, in turn."""
NO_OP_BYTES = 320
FILTER = "price < 20.0 && year >= 2024"
EXPERIMENT = {
    "name": "bench",
    "salt": "bench-1",
    "traffic": 1.0,
    "variants": [
        {"name": "control", "model": "champion", "weight": 0.5},
        {"name": "treatment", "model": "champion", "weight": 0.5},
    ],
    "metrics": {"primary": "ctr"},
}

Notify = Callable[[str], None]


class NoOp:
    """The floor: a Starlette callable on Ray Serve that answers a constant."""

    async def __call__(self, request: Request) -> Response:
        """One constant answer."""
        return Response(b'{"answer": "' + b"x" * (NO_OP_BYTES - 14) + b'"}', media_type="application/json")


@dataclass(frozen=True)
class Saturation:
    """One kind of request: closed loop to saturation, then open loop at half of that."""

    saturated: LoadResult
    half: LoadResult

    def to_json(self) -> dict[str, Any]:
        """Plain figures."""
        return {
            "per_s": round(self.saturated.per_s, 1),
            "p50_ms": round(self.saturated.p50_ms, 3),
            "p99_ms": round(self.saturated.p99_ms, 3),
            "half_p50_ms": round(self.half.p50_ms, 3),
            "half_p99_ms": round(self.half.p99_ms, 3),
            "failed": self.saturated.failed + self.half.failed,
        }


def bench_serving(
    world: World, *, seconds: float, connections: int, rounds: int, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """Measure on a stack that is started for it.

    Args:
        world: the large world.
        seconds: of each measurement.
        connections: kept open; 8 is the floor's number.
        rounds: no-op and cached answers in turn; the median of each is taken.
        notify: told what is being done.
    """
    users = _some_users(world)
    cached = [f"/v1/recommendations/{quote(user)}" for user in users]
    # Lists with seen items are computed for each request: the cache has none.
    computed = [f"{path}?exclude_seen=false&filter={quote(FILTER)}" for path in cached]
    with _stack(world, notify) as (config, http):
        port = config.port
        notify("filling the cache by asking each user once")
        first = run_load(LoadPlan(port, cached, connections, once=True))
        before = _served(http)

        def closed(paths: list[str]) -> LoadResult:
            return run_load(LoadPlan(port, paths, connections, seconds))

        notify("no-op and cached answers in turn")
        pairs = [(closed(["/no-op"]), closed(cached)) for _ in range(rounds)]
        notify("cached answers at half of their saturation")
        hits = _half(port, cached, connections, seconds, _median([pair[1] for pair in pairs]))
        by_source = {name: count - before.get(name, 0.0) for name, count in _served(http).items()}
        notify("computed answers")
        closed(computed)  # compiles the filter, and touches the pages
        computed_answers = _half(port, computed, connections, seconds, closed(computed))
        sources = _served(http)
        exposures = _counter(http, "shortlist_exposures_total", "published")
    floor, hit = _median([pair[0] for pair in pairs]), hits.saturated
    return {
        "no_op": {"per_s": round(floor.per_s, 1), "p50_ms": round(floor.p50_ms, 3), "p99_ms": round(floor.p99_ms, 3)},
        "cached": hits.to_json(),
        "cached_ratio": round(statistics.median(pair[1].per_s / pair[0].per_s for pair in pairs), 3),
        "cached_p50_ratio": round(hit.p50_ms / floor.p50_ms, 3),
        "computed": computed_answers.to_json(),
        "computed_p50_ratio": round(computed_answers.saturated.p50_ms / floor.p50_ms, 2),
        "first_answers_per_s": round(first.per_s, 1),
        "served_from_while_cached": by_source,
        "served_from": sources,
        "exposures_published": exposures,
        "connections": connections,
        "seconds": seconds,
        "items": _num_items(world),
    }


def _half(port: int, paths: list[str], connections: int, seconds: float, saturated: LoadResult) -> Saturation:
    # An open loop needs room for those that wait: with as many connections as the closed loop they would wait in the client.
    plan = LoadPlan(port, paths, 4 * connections, seconds, rate_per_s=max(saturated.per_s / 2, 1.0))
    return Saturation(saturated, run_load(plan))


def _median(results: list[LoadResult]) -> LoadResult:
    return sorted(results, key=lambda result: result.per_s)[len(results) // 2]


@contextmanager
def _stack(world: World, notify: Notify) -> Iterator[tuple[ServingConfig, httpx.Client]]:
    """A stack with one version, one running experiment and the no-op beside the gateway."""
    home, temporary = Path(tempfile.mkdtemp(prefix="shortlist-bench-")), short_temporary_folder()
    before = dict(os.environ)
    bus, bus_url = start_redis("bus", "bench", home / "bus", durable=True)
    cache, cache_url = start_redis("cache", "bench", home / "cache", durable=False)
    config = ServingConfig(
        dataset=DATASET,
        home=world.home,
        mlflow_uri="http://127.0.0.1:1",
        control_url=world.control_url,
        bus_url=bus_url,
        features_url=bus_url,
        cache_url=cache_url,
        port=free_port(),
        deadline_ms=10_000,
        load_timeout_s=900,
    )
    try:
        notify("starting Ray Serve, the gateway, the version and the no-op")
        start_ray(home, temporary, serve_env(temporary, stats_port=free_port(), metrics_port=free_port()))
        from serving.graph import deploy_beside, deploy_gateway, deploy_version, start_serve, stop_serve

        _route(config, world)
        start_serve(config)
        deploy_gateway(config)
        started = time.monotonic()
        deploy_version(config, VERSION, world.bundle)
        notify(f"the version was ready after {time.monotonic() - started:.1f} s")
        deploy_beside("no-op", "/no-op", NoOp)
        announce(config)
        with httpx.Client(base_url=f"http://{config.host}:{config.port}", timeout=30) as http:
            ready = {"model_version": VERSION}
            wait_until(lambda: ready.items() <= http.get("/readyz").json().items(), seconds=60, what="the gateway")
            yield config, http
        stop_serve()
    finally:
        stop_ray(temporary)
        bus.stop()
        cache.stop()
        for folder in (home, temporary):
            shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def _route(config: ServingConfig, world: World) -> None:
    store = ControlStore(config.control_url).create()
    control = ServingControl(store, config.dataset)
    control.set_state(ServingState(VERSION, {VERSION: str(world.bundle)}), actor="bench", action="bench")
    if control.experiment("bench") is None:
        control.put_experiment(parse_spec(EXPERIMENT), actor="bench")
        control.start_experiment("bench", {"control": VERSION, "treatment": VERSION}, actor="bench")
        control.run_experiment("bench", actor="bench")
    store.close()


def _some_users(world: World) -> list[str]:
    histories = Histories.load(world.bundle)
    active = np.flatnonzero(np.diff(histories.indptr) > 0)
    drawn = np.random.default_rng(0).permutation(active)[:USERS]
    return [str(user) for user in histories.user_ids[drawn]]


def _num_items(world: World) -> int:
    return len(map_arrays(world.bundle / POPULARITY_FILE)["by_popularity"])


def _served(http: httpx.Client) -> dict[str, float]:
    """Answers by where they came from, as the gateway's metrics count them."""
    counts: dict[str, float] = {}
    for line in http.get("/metrics").text.splitlines():
        if line.startswith("shortlist_recommendation_seconds_count{"):
            name = line.split('served_from="')[1].split('"')[0]
            counts[name] = counts.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return counts


def _counter(http: httpx.Client, name: str, label: str) -> float:
    found = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name) and f'"{label}"' in line]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def serving_markdown(result: dict[str, Any], machine: str) -> str:
    """The table of `docs/benchmarks.md`."""
    floor, cached, computed = result["no_op"], result["cached"], result["computed"]
    rows = [
        machine,
        "",
        f"{result['connections']} connections, {result['seconds']:g} s a measurement, {result['items']:,} items, "
        "one running experiment, exposures, availability and metrics on",
        "",
        "| | requests/s | of the no-op | p50 ms | p99 ms | p50 / p99 ms at half saturation (open loop) | failed |",
        "|---|---|---|---|---|---|---|",
        f"| no-op, {NO_OP_BYTES} bytes | {floor['per_s']:,.0f} | 1 | {floor['p50_ms']:.2f} | {floor['p99_ms']:.2f} | | |",
    ]
    for name, part, ratio in (
        ("cached answer", cached, result["cached_ratio"]),
        (f"computed answer, `{FILTER}`", computed, computed["per_s"] / floor["per_s"]),
    ):
        rows.append(
            f"| {name} | {part['per_s']:,.0f} | {ratio:.2f} | {part['p50_ms']:.2f} | {part['p99_ms']:.2f} | "
            f"{part['half_p50_ms']:.2f} / {part['half_p99_ms']:.2f} | {part['failed']} |"
        )
    return "\n".join(rows)
