"""`bench ingest`: its tables name every figure with what it must be, and processor time is told apart by process."""

from __future__ import annotations

import os
import time
from typing import Any

from shortlist.bench.ingest_report import ingest_markdown
from shortlist.bench.process_cpu import cpu_seconds
from shortlist.stack.state import ProcessNote, StackState

INTAKE: dict[str, Any] = {
    "accepted": 30_000,
    "events_per_s": 3_001,
    "statuses": {"202": 300, "429": 2},
    "batch_ms_p50": 4.0,
    "batch_ms_p99": 9.5,
    "lag": {"store": {"entries": 12, "seconds": 0.31}},
    "drain_seconds": 1.25,
    "cpu_s_per_1000": {"gateway": 0.12, "worker": 0.25},
    "stored": 30_000,
}
STORES: dict[str, Any] = {
    "machine": "a machine",
    "import": {"events": 1_000, "seconds": 1.0, "events_per_s": 1_000, "events_per_cpu_s": 2_000},
    "sync": {"always": 10.0, "everysec": 20.0},
    "memory": [{"events_per_user": 10, "key_bytes_mean": 353, "key_bytes_max": 416, "used_memory_per_user": 500}],
}


def test_every_figure_stands_beside_what_it_must_be() -> None:
    whole = STORES | {
        "freshness": {"events": 50, "never": 1, "ms_p50": 40.0, "ms_p99": 180.0},
        "steady": INTAKE,
        "saturated": INTAKE | {"drain_seconds": None, "cpu_s_per_1000": {"worker": 0.1, "redis": 0.02}},
    }
    lines = ingest_markdown(whole).splitlines()
    table = [line for line in lines if line.startswith("| ") and line.count("|") == 5]
    assert "| HTTP batches of 100 on a schedule: accepted durably | 3,001 events/s | 3,000 |  |" in table
    assert "| - lag of the readers at the end | store: 12 entries, 0.3 s | 5 s |  |" in table
    assert "| - accepted, stored, refused | 30,000, 30,000, {'429': 2} | equal |  |" in table
    assert any("not within a minute" in line for line in table)
    assert "| online memory of a user of 10 events: key mean / max; used_memory | 353 / 416; 500 bytes | 800 |  |" in table
    assert lines[-3:] == ["| worker | 250.0 | 100.0 |", "| gateway | 120.0 | 0.0 |", "| redis | 0.0 | 20.0 |"]


def test_without_a_stack_the_rest_is_told() -> None:
    assert "HTTP" not in ingest_markdown(STORES)
    assert "200,000 | 1,000,000 |" in ingest_markdown(STORES)


def test_processor_time_is_told_apart_by_process() -> None:
    own = StackState("ready", "d", os.getpid(), 0.0, processes=(ProcessNote("supervisor", os.getpid(), "runs"),))
    before = cpu_seconds(own)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    after = cpu_seconds(own)
    assert after["load"] - before["load"] >= 0.1
    assert after["supervisor"] - before["supervisor"] >= 0.1
