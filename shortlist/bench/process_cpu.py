"""Processor time of a stack's processes by what they are, and of the load that runs beside them."""

from __future__ import annotations

from collections import defaultdict

import psutil

from shortlist.bench.stack import family, title
from shortlist.stack.state import StackState

_KINDS = {
    "redis-server": "redis",
    "haproxy": "haproxy",
    "Gateway": "gateway",
    "ProxyActor": "serve proxy",
    "ServeController": "serve controller",
    "ServeReplica": "version replicas",
    "stack.worker": "worker",
    "mlflow": "mlflow",
    "raylet": "ray",
    "gcs_server": "ray",
    "ray/": "ray",
}
"""Part of a process's title -> what it is; the first that fits."""


def cpu_seconds(state: StackState) -> dict[str, float]:
    """User and system seconds since each process started, summed by kind; the caller's own are `load`."""
    found: dict[str, float] = defaultdict(float)
    own = psutil.Process().cpu_times()
    found["load"] = own.user + own.system
    names = {note.pid: note.name for note in state.processes}
    for process in family(state):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        said = title(process)
        kind = next((kind for part, kind in _KINDS.items() if part in said), None)
        found[kind or names.get(process.pid, "other")] += times.user + times.system
    return dict(found)
