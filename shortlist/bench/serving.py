"""`shortlist bench serving`: what an answer costs over HTTP, as ratios to a no-op of the same Ray Serve in the same run.

Closed loops to saturation, then open loops at half of it. What runs beside is `serving_stack`'s; the parts of a computed answer,
each run alone, are `scale`'s.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from threadpoolctl import threadpool_limits

from serving.item_table import ItemTable
from serving.online_users import feast_reader
from serving.schemas import Selection
from shortlist.bench.answer_parts import QUERIES, filter_adds_ms, paced, path_figures
from shortlist.bench.saturation import LoadPlan, LoadResult, run_load
from shortlist.bench.scale import FILTER
from shortlist.bench.serving_stack import BOOST, EXCLUDE, NO_OP_BYTES, BenchStack, Notify, serving_stack
from shortlist.bench.world import World
from training.arrays import map_arrays
from training.bundle import POPULARITY_FILE
from training.histories import Histories
from training.pipeline import Pipeline

USERS = 2_000
"""Users that are asked for, in turn."""


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
    world: World, *, seconds: float, connections: int, rounds: int, replicas: int, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """Measure on a stack that is started for it.

    Args:
        world: the large world.
        seconds: of each measurement.
        connections: kept open; 8 is the floor's number.
        rounds: how often each is measured, no-op and cached answers in turn; the median of each is taken.
        replicas: of the version.
        notify: told what is being done.
    """
    users = _some_users(world)
    cached = [f"/v1/recommendations/{quote(user)}" for user in users]
    # Lists with seen items are computed for each request: the cache has none.
    computed = [f"{path}?exclude_seen=false&filter={quote(FILTER)}" for path in cached]
    with serving_stack(world, users, replicas, notify) as stack:
        port = stack.config.port

        def closed(paths: list[str]) -> LoadResult:
            return run_load(LoadPlan(port, paths, connections, seconds))

        def ratios(count: int) -> list[tuple[LoadResult, LoadResult]]:
            return [(closed(["/no-op"]), closed(cached)) for _ in range(count)]

        notify("filling the cache by asking each user once")
        first = run_load(LoadPlan(port, cached, connections, once=True))
        before = _served(stack.http)
        notify("no-op and cached answers in turn")
        pairs = ratios(rounds)
        past_serve = _median([closed(["/no-op-past-serve"]) for _ in range(rounds)])
        notify("both at half of their saturation")
        floor = _half(port, ["/no-op"], connections, seconds, _median([pair[0] for pair in pairs]), rounds)
        hits = _half(port, cached, connections, seconds, _median([pair[1] for pair in pairs]), rounds)
        by_source = {name: count - before.get(name, 0.0) for name, count in _served(stack.http).items()}
        notify("the same with a rule that boosts")
        stack.set_rules([EXCLUDE, BOOST])
        boosted = ratios(1)
        stack.set_rules([EXCLUDE])
        notify("computed answers")
        closed(computed)  # compiles the filter, and touches the pages
        saturated = _median([closed(computed) for _ in range(rounds)])
        computed_answers = _half(port, computed, connections, seconds, saturated, rounds)
        saturated_ms = _processor_ms(stack, computed, connections, seconds)
        # The parts are run alone: so is one answer at a time. Two cores that are both full share caches and memory.
        in_replica_ms = _in_replica_ms(stack, computed, seconds)
        own_mb, mapped_mb = stack.memory_mb()
        sources = _served(stack.http)
        exposures = _counter(stack.http, "shortlist_exposures_total", "published")
        notify("the version once more, for its cold start, and with processes kept ready")
        cold_start_s = stack.cold_start_s(standby=False)
        standby_start_s = stack.cold_start_s(standby=True)
        notify("the parts of a computed answer, each alone")
        parts = _parts(stack)
    return {
        "no_op": floor.to_json(),
        "no_op_past_serve": _saturated_json(past_serve),
        "cached": hits.to_json(),
        "cached_ratio": _ratio(pairs),
        "boosted_ratio": _ratio(boosted),
        "cached_p50_ratio": round(hits.saturated.p50_ms / floor.saturated.p50_ms, 3),
        "computed": computed_answers.to_json(),
        "computed_p50_ratio": round(computed_answers.saturated.p50_ms / floor.saturated.p50_ms, 2),
        "in_replica_ms": round(in_replica_ms, 2),
        "replica_processor_ms": round(saturated_ms, 2),
        "parts": parts,
        "filter_adds_ms": round(parts["filter_adds_ms"], 3),
        "own_mb": round(own_mb),
        "mapped_mb": round(mapped_mb),
        "cold_start_s": round(cold_start_s, 1),
        "standby_start_s": round(standby_start_s, 1),
        "first_answers_per_s": round(first.per_s, 1),
        "served_from_while_cached": by_source,
        "served_from": sources,
        "exposures_published": exposures,
        "connections": connections,
        "seconds": seconds,
        "replicas": replicas,
        "items": _num_items(world),
    }


def _half(port: int, paths: list[str], connections: int, seconds: float, saturated: LoadResult, rounds: int) -> Saturation:
    # An open loop needs room for those that wait: with as many connections as the closed loop they would wait in the client.
    plan = LoadPlan(port, paths, 4 * connections, seconds, rate_per_s=max(saturated.per_s / 2, 1.0))
    # One pause of the machine of 50 ms is the 99th percentile of five seconds: the median of the rounds is not.
    return Saturation(saturated, sorted([run_load(plan) for _ in range(rounds)], key=lambda result: result.p99_ms)[rounds // 2])


def _processor_ms(stack: BenchStack, paths: list[str], connections: int, seconds: float) -> float:
    """Processor time of the version's replicas for one answer, Ray's own included."""
    before = stack.replica_cpu_s()
    answered = run_load(LoadPlan(stack.config.port, paths, connections, seconds)).answered
    return 1e3 * (stack.replica_cpu_s() - before) / max(answered, 1)


def _in_replica_ms(stack: BenchStack, paths: list[str], seconds: float) -> float:
    """Time of one answer in a replica, asked for one after another."""
    before = stack.replica_times()
    run_load(LoadPlan(stack.config.port, paths, 1, seconds))
    answers, busy_s = (sum(now) - sum(then) for now, then in zip(stack.replica_times(), before, strict=True))
    return 1e3 * busy_s / max(answers, 1)


def _parts(stack: BenchStack) -> dict[str, Any]:
    """A computed answer in this process, whole and in parts, and what the filter adds to it."""
    read_users = feast_reader(stack.config, True)
    with threadpool_limits(1):
        pipeline, items = Pipeline.load(stack.world.bundle), ItemTable.from_bundle(stack.world.bundle)
        k, asked, selection = stack.config.precompute_k, _some_users(stack.world), Selection(filter=FILTER)
        return {
            "filter": path_figures(pipeline, items, selection, k, asked, read_users),
            "paced": path_figures(pipeline, items, selection, k, asked, read_users, paced(QUERIES)),
            "filter_adds_ms": filter_adds_ms(pipeline, items, selection, k, asked),
        }


def _ratio(pairs: list[tuple[LoadResult, LoadResult]]) -> float:
    return round(statistics.median(pair[1].per_s / pair[0].per_s for pair in pairs), 3)


def _median(results: list[LoadResult]) -> LoadResult:
    return sorted(results, key=lambda result: result.per_s)[len(results) // 2]


def _saturated_json(result: LoadResult) -> dict[str, float]:
    return {"per_s": round(result.per_s, 1), "p50_ms": round(result.p50_ms, 3), "p99_ms": round(result.p99_ms, 3)}


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


@dataclass(frozen=True)
class Target:
    """A figure with what it must (None: nothing is asked) and should be; `at_least` says in which direction."""

    what: str
    measured: float
    must: float | None
    aim: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Which of the two it reaches."""

        def reached(limit: float) -> bool:
            return self.measured >= limit if self.at_least else self.measured <= limit

        if reached(self.aim):
            return "aim"
        return "" if self.must is None else "must" if reached(self.must) else "**missed**"


def targets(result: dict[str, Any]) -> list[Target]:
    """The figures that are asked for."""
    cached, computed, parts = result["cached"], result["computed"], result["parts"]["paced"]
    return [
        Target("cached answers, requests/s of the no-op's", result["cached_ratio"], 0.5, 0.7, at_least=True),
        Target("cached answers, p99 ms at half of their saturation", cached["half_p99_ms"], 10, 10),
        Target("cached answers, p50 of the no-op's", result["cached_p50_ratio"], None, 1.5),
        Target("computed answers, p99 ms at half of their saturation", computed["half_p99_ms"], 50, 20),
        Target("computed answers a second", computed["per_s"], 200, 500, at_least=True),
        Target(
            "time in a replica, one answer at a time, of the sum of its parts",
            result["in_replica_ms"] / parts["sum_of_parts_ms"],
            1.5,
            1.5,
        ),
        Target(
            "processor time in a replica, all cores full, of the sum of its parts in a loop",
            result["replica_processor_ms"] / result["parts"]["filter"]["sum_of_parts_ms"],
            1.5,
            1.5,
        ),
        Target("a compiled filter adds, ms", result["filter_adds_ms"], 2, 0.5),
        Target("memory of a version's process with its share of maps, MB", result["mapped_mb"], 1500, 1500),
        Target("cold start of the version to the gateway's readiness, s", result["cold_start_s"], 60, 15),
    ]


def serving_markdown(result: dict[str, Any], machine: str) -> str:
    """The tables of `docs/benchmarks.md`."""
    floor, past, cached, computed = result["no_op"], result["no_op_past_serve"], result["cached"], result["computed"]
    rows = [
        machine,
        "",
        f"{result['connections']} connections, {result['seconds']:g} s a measurement, {result['items']:,} items, "
        f"{result['replicas']} replicas of the version; one running experiment, exposures, a rule, availability and metrics on, "
        "users' features online",
        "",
        "| | requests/s | of the no-op | p50 ms | p99 ms | p50 / p99 ms at half saturation (open loop) | failed |",
        "|---|---|---|---|---|---|---|",
        f"| no-op, {NO_OP_BYTES} bytes | {floor['per_s']:,.0f} | 1 | {floor['p50_ms']:.2f} | {floor['p99_ms']:.2f} | "
        f"{floor['half_p50_ms']:.2f} / {floor['half_p99_ms']:.2f} | {floor['failed']} |",
        f"| the same past Ray Serve's work on each request, as the gateway answers | {past['per_s']:,.0f} | "
        f"{past['per_s'] / floor['per_s']:.2f} | {past['p50_ms']:.2f} | {past['p99_ms']:.2f} | | |",
    ]
    for name, part, ratio in (
        ("cached answer", cached, result["cached_ratio"]),
        (f"computed answer, `{FILTER}`", computed, computed["per_s"] / floor["per_s"]),
    ):
        rows.append(
            f"| {name} | {part['per_s']:,.0f} | {ratio:.3f} | {part['p50_ms']:.2f} | {part['p99_ms']:.2f} | "
            f"{part['half_p50_ms']:.2f} / {part['half_p99_ms']:.2f} | {part['failed']} |"
        )
    rows += ["", "| | measured | must | aim | reaches |", "|---|---|---|---|---|"]
    for one in targets(result):
        must = "" if one.must is None else f"{one.must:g}"
        rows.append(f"| {one.what} | {one.measured:.2f} | {must} | {one.aim:g} | {one.verdict} |")
    alone = ", ".join(f"{name} {ms:.2f}" for name, ms in result["parts"]["paced"]["parts_ms"].items())
    looped_ms = result["parts"]["filter"]["sum_of_parts_ms"]
    rows += [
        "",
        f"With a rule that boosts as well: cached answers {result['boosted_ratio']:.2f} of the no-op's. "
        f"A computed answer: {result['in_replica_ms']:.2f} ms in its replica, one at a time; with all cores full "
        f"{result['replica_processor_ms']:.1f} ms of its replica's processor time, Ray's own included. "
        f"Its parts alone, ms: {alone}; each in a loop {looped_ms:.1f} ms in all; "
        f"{result['parts']['filter']['candidates']} candidates. A version's process has {result['own_mb']:,} MB of its own. "
        f"With processes kept ready, as a stack has them, its cold start takes {result['standby_start_s']:.1f} s.",
    ]
    return "\n".join(rows)
