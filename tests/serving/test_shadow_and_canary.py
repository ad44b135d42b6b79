"""Sums of the shadow, what it sheds, and when a canary is stopped: known answers, no stack."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from experiments.exposure import EXPOSURE_SCHEMA, Exposure, decode_exposures
from features.control_store import ControlStore
from features.daily_log import DailyLog
from serving.cached_list import CachedList
from serving.canary import CANARY_VARIANT, CONTROL_VARIANT, CanaryWatch, canary_spec, degraded_more
from serving.control import ServingControl, ShadowTarget
from serving.messages import ComputeRequest, ShadowAsk
from serving.metrics import GatewayMetrics
from serving.shadow import BATCH, BUFFERED, ShadowSender
from serving.shadow_replica import LONGEST_PAUSE_S, SHARE, IdleCores, compare, pause_s
from serving.shadow_tally import ShadowTallies, ShadowTally, count_ms


def ask(*pairs: tuple[str, float]) -> ShadowAsk:
    return ShadowAsk(ComputeRequest("u", 10), tuple(item for item, _ in pairs), tuple(score for _, score in pairs), 4.0)


def test_overlap_and_drift_of_known_lists() -> None:
    tally = ShadowTally()
    compare(tally, ask(("a", 1.0), ("b", 0.5)), ["b", "c"], [0.9, 0.1])  # one of two, b is up by 0.4
    compare(tally, ask(("a", 1.0), ("b", 0.5)), ["a", "b"], [1.0, 0.5])  # the same
    compare(tally, ask(("a", 1.0)), [], [])  # nothing
    report = tally.report()
    assert report["scored"] == 3
    assert report["overlap_at_10"] == pytest.approx(0.5)
    assert report["score_drift"] == pytest.approx(0.4 / 3, abs=1e-6)


def test_tallies_add_up_over_replicas_and_latencies_have_quantiles(make_config: Any) -> None:
    store = ControlStore(make_config().control_url).create()
    tallies = ShadowTallies(store, "planted")
    one, two = ShadowTally(scored=3, shed=1, overlap=1.5), ShadowTally(scored=1, failed=5, overlap=0.5)
    for milliseconds in (2, 2, 2, 40):
        count_ms(one.shadow_ms, milliseconds)
    tallies.put("7", "a", ShadowTally(scored=1))
    tallies.put("7", "a", one)
    tallies.put("7", "b", two)
    tallies.put("8", "a", ShadowTally(scored=99))
    report = tallies.total("7").report()
    assert (report["scored"], report["shed"], report["failed"], report["shed_share"]) == (4, 1, 5, 0.1)
    assert report["overlap_at_10"] == 0.5
    assert report["latency_ms"]["shadow"] == {"p50": 2, "p95": 50}


def test_a_stuck_shadow_sheds_and_is_asked_one_batch_at_a_time(make_config: Any) -> None:
    config = make_config()
    ControlStore(config.control_url).create()
    live: Any = SimpleNamespace(version="1", items=SimpleNamespace(item_ids=np.array(["a", "b"], dtype=object)))
    answer = CachedList(np.array([0], np.int32), np.array([1.0], np.float32), np.zeros(1, np.uint8), 0, 0)
    sizes, free = [], asyncio.Event()

    async def score(version: str, asks: Sequence[ShadowAsk]) -> ShadowTally:
        sizes.append(len(asks))
        await free.wait()
        return ShadowTally(scored=len(asks))

    async def drive() -> ShadowTally:
        sender = ShadowSender(config, score, lambda: ShadowTarget("2"), GatewayMetrics())
        sender.start()
        sender.offer(live, ComputeRequest("u", 10), answer, 0.01)
        while not sizes:
            await asyncio.sleep(0.01)
        for _ in range(BUFFERED + 30):
            sender.offer(live, ComputeRequest("u", 10), answer, 0.01)
        assert sizes == [1]
        free.set()
        while sum(sizes) < BUFFERED + 1:
            await asyncio.sleep(0.01)
        await sender.stop()
        return ShadowTallies(ControlStore(config.control_url), config.dataset).total("2")

    total = asyncio.run(drive())
    assert (total.scored, total.shed) == (BUFFERED + 1, 30)
    assert max(sizes) == BATCH


def test_answers_that_trickle_in_go_in_one_hop(make_config: Any) -> None:
    config = make_config()
    ControlStore(config.control_url).create()
    live: Any = SimpleNamespace(version="1", items=SimpleNamespace(item_ids=np.array(["a"], dtype=object)))
    answer = CachedList(np.array([0], np.int32), np.array([1.0], np.float32), np.zeros(1, np.uint8), 0, 0)
    sizes = []

    async def score(version: str, asks: Sequence[ShadowAsk]) -> ShadowTally:
        sizes.append(len(asks))
        return ShadowTally(scored=len(asks))

    async def drive() -> None:
        sender = ShadowSender(config, score, lambda: ShadowTarget("2"), GatewayMetrics())
        sender.start()
        for _ in range(5):
            sender.offer(live, ComputeRequest("u", 10), answer, 0.01)
            await asyncio.sleep(0)
        while not sizes:
            await asyncio.sleep(0.01)
        await sender.stop()

    asyncio.run(drive())
    assert sizes == [5]


def test_a_shadow_takes_a_share_of_what_would_be_idle() -> None:
    assert pause_s(0.020, 0.020, idle_cores=1 / SHARE) == 0
    assert pause_s(0.020, 0.020, idle_cores=60.0) == 0  # a large machine
    assert pause_s(0.030, 0.020, idle_cores=1.0) == pytest.approx(0.020 / SHARE - 0.030)
    assert pause_s(0.020, 0.020, idle_cores=0.0) == LONGEST_PAUSE_S  # a full one


def test_idle_cores_are_those_of_the_machine_and_what_the_process_itself_has_used() -> None:
    idle = IdleCores()
    time.sleep(0.3)
    cores = idle.without(time.process_time())
    assert 0 <= cores <= 1.2 * (os.cpu_count() or 1)
    time.sleep(0.3)
    assert idle.without(time.process_time() + 600.0) > 5  # ten minutes of its own, however long the sleep took


def test_a_shadow_that_is_the_live_version_or_not_sampled_is_not_asked(make_config: Any) -> None:
    live: Any = SimpleNamespace(version="1")
    answer: Any = None

    async def drive(target: ShadowTarget | None) -> None:
        async def score(version: str, asks: Sequence[ShadowAsk]) -> ShadowTally:
            raise AssertionError("asked")

        sender = ShadowSender(make_config(), score, lambda: target, GatewayMetrics())
        sender.offer(live, ComputeRequest("u", 10), answer, 0.01)  # would fail on this answer if it went on

    for target in (None, ShadowTarget("1"), ShadowTarget("2", sample=0.0)):
        asyncio.run(drive(target))


def test_degraded_answers_of_a_canary_are_told_from_chance() -> None:
    assert degraded_more((1000, 0), (1000, 5)) is None  # within the margin
    assert degraded_more((50, 0), (50, 2)) is None  # may be chance
    assert degraded_more((1000, 100), (1000, 100)) is None  # the champion is no better
    assert degraded_more((0, 0), (10, 10)) is None
    assert "40 of 1000" in str(degraded_more((1000, 2), (1000, 40)))


def exposures(name: str, start: datetime, degraded_of_hundred: int) -> pa.Table:
    rows = []
    for number in range(600):
        variant = (CONTROL_VARIANT, CANARY_VARIANT)[number % 2]
        bad = variant == CANARY_VARIANT and number % 100 < degraded_of_hundred
        at = start + timedelta(seconds=number)
        rows.append(
            Exposure(f"r{number}", name, variant, "user_id", f"u{number}", at, "online", ["i1"], user_id=f"u{number}", degraded=bad)
        )
    return decode_exposures([row.encode() for row in rows])


@pytest.mark.parametrize(("degraded_of_hundred", "stopped"), [(0, False), (40, True)])
def test_a_canary_whose_answers_are_degraded_is_stopped(make_config: Any, degraded_of_hundred: int, stopped: bool) -> None:
    config = make_config(canary_check_s=60)
    control = ServingControl(ControlStore(config.control_url).create(), config.dataset)
    spec = canary_spec("2", "1", 0.1, {"canary-2"})
    assert (spec.name, spec.traffic) == ("canary-2-2", 0.2)
    control.put_experiment(spec, actor="test")
    control.start_experiment(spec.name, {CONTROL_VARIANT: "1", CANARY_VARIANT: "2"}, actor="test")
    control.run_experiment(spec.name, actor="test")
    log = DailyLog(config.paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    log.append(exposures(spec.name, datetime.now(UTC), degraded_of_hundred))
    now = [0.0]
    watch = CanaryWatch(config, control, clock=lambda: now[0])
    assert watch.look() == ([spec.name] if stopped else [])
    record = control.experiment(spec.name)
    assert record is not None
    assert record.status == ("stopped" if stopped else "running")
    assert watch.look() == []
    harm = control.audit.replay(datetime.now(UTC)).get(f"canary:{spec.name}")
    assert (harm is not None and "degraded" in harm) == stopped
