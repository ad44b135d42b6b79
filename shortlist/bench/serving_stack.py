"""The stack that `bench serving` measures on: two Redis, Ray Serve in HAProxy mode, the gateway, one version, the no-op beside it.

What a request meets in production is on: a running experiment with all traffic, exposures onto the bus, a rule, the mask of
availability, metrics; and users' features in Feast's online store.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from experiments.spec import parse_spec
from features.activity_log import activity_log
from features.aggregates import UserStates
from features.catalogue import Catalogue
from features.control_store import ControlStore
from serving.announce import announce
from serving.config import ServingConfig
from serving.control import ServingControl, ServingState
from serving.environment import serve_env
from serving.ingress import answer_directly
from serving.rule_store import RuleStore
from serving.rules import Rule
from serving.standby import Standby, waiting
from shortlist.bench.stack import title
from shortlist.bench.world import DATASET, World
from shortlist.stack.ports import free_port, wait_until
from shortlist.stack.ray_cluster import short_temporary_folder, start_ray, stop_ray
from shortlist.stack.redis_server import start_redis
from training.bundle import FEATURES_FOLDER, ITEMS_FILE
from training.histories import Histories
from training.ranking_features import RankingFeatures

VERSION, AGAIN = "1", "2"
"""The version that answers, and the same bundle once more, for its cold start."""
NO_OP_BYTES = 320
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
EXCLUDE = Rule(name="not-now", kind="exclude", items="price > 400.0")
BOOST = Rule(name="new-first", kind="boost", items="year >= 2024", weight=0.2)

Notify = Callable[[str], None]


class NoOp:
    """The floor: a Starlette callable on Ray Serve that answers a constant."""

    async def __call__(self, request: Request) -> Response:
        """One constant answer."""
        return Response(b'{"answer": "' + b"x" * (NO_OP_BYTES - 14) + b'"}', media_type="application/json")


class NoOpPastServe(NoOp):
    """The same constant the way that the gateway's answers take: past Ray Serve's work on each request."""

    def __init__(self) -> None:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await (await self(Request(scope, receive)))(scope, receive, send)

        answer_directly(answer)


@dataclass(frozen=True)
class BenchStack:
    """The running stack and what of it is measured from outside."""

    config: ServingConfig
    http: httpx.Client
    world: World

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Make these the rules, and wait until the gateway applies them."""
        store = ControlStore(self.config.control_url)
        RuleStore(store, DATASET).replace(rules, actor="bench")
        store.close()
        announce(self.config)
        time.sleep(2 * self.config.reread_s)

    def cold_start_s(self, *, standby: bool) -> float:
        """Seconds from the wish for a version to an answer of the gateway that could come from it; the version is removed again.

        Args:
            standby: with processes kept ready for it, as the reconciler keeps them.
        """
        from serving.graph import ask_version, delete_version, deploy_version, version_processes
        from serving.version_check import check_version

        if standby:
            count = version_processes(self.config)
            Standby(self.config, count).keep()
            wait_until(lambda: self._kept_ready() >= count, seconds=180, what="processes kept ready")
        started = time.monotonic()
        deploy_version(self.config, AGAIN, self.world.bundle)
        check_version(self.world.bundle, partial(ask_version, self.config, AGAIN))
        _route(self.config, self.world, (VERSION, AGAIN))
        wait_until(lambda: AGAIN in self.http.get("/readyz").json()["versions"], seconds=300, what="the second version")
        seconds = time.monotonic() - started
        _route(self.config, self.world, (VERSION,))
        delete_version(self.config, AGAIN)
        wait_until(lambda: not self.replicas(AGAIN), seconds=60, what="the second version to end")
        return seconds

    def _kept_ready(self) -> int:
        """Processes that have imported everything: those that have come to rest."""
        kept = [one for one in waiting(self.config.home) if title(one).startswith("ray::IDLE")]
        return sum(one.cpu_percent(interval=1.0) < 5 for one in kept)

    def replicas(self, version: str = VERSION) -> list[psutil.Process]:
        """Processes that compute lists of a version."""
        mark = f"{self.config.paths.registered_model}-v{version}:"
        return [one for one in psutil.Process().children(recursive=True) if mark in title(one) and "Retriever" in title(one)]

    def memory_mb(self) -> tuple[float, float]:
        """Of the largest replica: MB of its own, and with its share of mapped files (PSS)."""
        sizes = [one.memory_full_info() for one in self.replicas()]
        return max(one.uss for one in sizes) / 2**20, max(one.pss for one in sizes) / 2**20

    def replica_times(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Lists computed so far and their seconds, of each replica that answers when asked often enough."""
        from serving.graph import replica_timing

        found = {replica_timing(self.config, VERSION) for _ in range(8 * len(self.replicas()))}
        answers, seconds = zip(*sorted(found), strict=True)
        return answers, seconds

    def replica_cpu_s(self) -> float:
        """Processor time of all replicas so far."""
        times = [one.cpu_times() for one in self.replicas()]
        return float(sum(one.user + one.system for one in times))


@contextmanager
def serving_stack(world: World, users: Sequence[str], replicas: int, notify: Notify) -> Iterator[BenchStack]:
    """The stack, until the block ends.

    Args:
        world: the large world.
        users: whose features are put online.
        replicas: of the version; they share one machine's cores.
        notify: told what is being done.
    """
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
        version_replicas=replicas,
        reread_s=2,
    )
    try:
        notify("putting users' features online")
        put_users_online(world, bus_url, users)
        notify("starting Ray Serve, the gateway, the version and the no-ops")
        start_ray(home, temporary, serve_env(temporary, stats_port=free_port(), metrics_port=free_port()))
        from serving.graph import deploy_beside, deploy_gateway, deploy_version, start_serve, stop_serve

        _route(config, world, (VERSION,))
        _experiment(config)
        start_serve(config)
        deploy_gateway(config)
        started = time.monotonic()
        deploy_version(config, VERSION, world.bundle)
        notify(f"the version was ready after {time.monotonic() - started:.1f} s")
        deploy_beside("no-op", "/no-op", NoOp)
        deploy_beside("no-op-past-serve", "/no-op-past-serve", NoOpPastServe)
        with httpx.Client(base_url=f"http://{config.host}:{config.port}", timeout=30) as http:
            ready = {"model_version": VERSION}
            wait_until(lambda: ready.items() <= http.get("/readyz").json().items(), seconds=120, what="the gateway")
            yield BenchStack(config, http, world)
        stop_serve()
    finally:
        stop_ray(temporary)
        bus.stop()
        cache.stop()
        for folder in (home, temporary):
            shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def put_users_online(world: World, features_url: str, users: Sequence[str]) -> None:
    """Write what Feast serves of these users, as the stream's updater would."""
    from features.store import Features

    control = ControlStore(world.control_url)
    online = Features(world.paths, Catalogue(control, DATASET).schema(), features_url)
    control.close()
    online.apply()
    ranking = RankingFeatures.load(world.bundle / FEATURES_FOLDER, pq.read_table(world.bundle / ITEMS_FILE))
    histories = Histories.load(world.bundle)
    queries = histories.queries(histories.users.rows(users))
    log = activity_log(ranking.events(queries)[0], "user", has_times=ranking.has_times)
    rows = np.arange(len(log.ids), dtype=np.int64)
    states = pa.concat_tables(UserStates(log, ranking.categories_of(queries)).after(rows, log.indptr[1:]))
    names = [users[int(number)] for number in states["user_id"].to_pylist()]
    online.push_users(states.set_column(states.column_names.index("user_id"), "user_id", pa.array(names)))


def _route(config: ServingConfig, world: World, versions: Sequence[str]) -> None:
    store = ControlStore(config.control_url).create()
    state = ServingState(VERSION, {version: str(world.bundle) for version in versions})
    ServingControl(store, config.dataset).set_state(state, actor="bench", action="bench")
    store.close()
    announce(config)


def _experiment(config: ServingConfig) -> None:
    store = ControlStore(config.control_url).create()
    RuleStore(store, config.dataset).replace([EXCLUDE], actor="bench")
    control = ServingControl(store, config.dataset)
    if control.experiment("bench") is None:
        control.put_experiment(parse_spec(EXPERIMENT), actor="bench")
        control.start_experiment("bench", {"control": VERSION, "treatment": VERSION}, actor="bench")
        control.run_experiment("bench", actor="bench")
    store.close()
