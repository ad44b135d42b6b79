"""What a stack costs while nobody asks: processor time and memory of all its processes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from shortlist.bench.stack import family, title
from shortlist.stack.state import StackState

MUST_PERCENT, AIM_PERCENT = 30, 20
SHOWN = 8
"""Processes in the table; the others are summed."""


@dataclass(frozen=True)
class ProcessCost:
    """One process: share of one core in percent, and MB that it would free (PSS)."""

    title: str
    core_percent: float
    memory_mb: float


def measure_idle(state: StackState, seconds: float) -> list[ProcessCost]:
    """Processor time of every process of a stack over some seconds, costliest first."""
    before = {process.pid: _cpu_s(process) for process in family(state)}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    costs = []
    for process in family(state):
        used = _cpu_s(process) - before.get(process.pid, 0.0)
        try:
            memory_mb = process.memory_full_info().pss / 2**20
        except psutil.Error:
            memory_mb = 0.0
        costs.append(ProcessCost(_short(title(process)), 100 * used / took, memory_mb))
    return sorted(costs, key=lambda cost: -cost.core_percent)


def idle_markdown(costs: list[ProcessCost]) -> str:
    """Total first, then the costliest processes."""
    percent = _percent(costs)
    reaches = "aim reached" if percent <= AIM_PERCENT else "must reached" if percent <= MUST_PERCENT else "**missed**"
    lines = [f"All processes: must {MUST_PERCENT} %, aim {AIM_PERCENT} % of one core: {reaches}", ""]
    lines += ["| process | % of one core | MB (PSS) |", "|---|---|---|"]
    lines.append(f"| **all {len(costs)}** | **{percent:.1f}** | **{sum(one.memory_mb for one in costs):,.0f}** |")
    lines += [f"| `{one.title}` | {one.core_percent:.1f} | {one.memory_mb:,.0f} |" for one in costs[:SHOWN]]
    rest = costs[SHOWN:]
    lines.append(f"| {len(rest)} others | {_percent(rest):.1f} | {sum(one.memory_mb for one in rest):,.0f} |")
    return "\n".join(lines)


def _percent(costs: list[ProcessCost]) -> float:
    return sum(cost.core_percent for cost in costs)


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return 0.0


def _short(line: str) -> str:
    words = [word.rsplit("/", 1)[-1] for word in line.split(" ") if not word.startswith("-")]
    return " ".join(words[:2])[:60]
