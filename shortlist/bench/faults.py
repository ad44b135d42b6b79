"""Faults: how long answers fail after `kill -9` of HAProxy, of its manager (the proxy actor) and of a gateway replica.

The load asks for cached and computed lists all the time; an outage lasts from the kill to the end of the last answer that is not
2xx, refused connections and 404s included.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import psutil

from shortlist.bench.load import Outcome, run_load
from shortlist.bench.stack import family, title
from shortlist.commands.console import CommandError
from shortlist.stack.state import StackState

CONNECTIONS = 8
PAUSE_S = 0.02
"""Of each connection between requests: some 300 a second, which leaves the machine to what repairs the stack."""
TIMEOUT_S = 2.0
"""A client that waits for longer has given up: it counts as failed when it does."""
QUIET_S = 6.0
"""An outage is over when nothing has failed for so long."""
PATIENCE_S = 60.0
MUST_S, AIM_S = 5.0, 2.5
TARGETS = {
    "haproxy": lambda line: line.split(" ")[0].rsplit("/", 1)[-1] == "haproxy",
    "proxy actor": lambda line: line.startswith("ray::HAProxyManager"),
    "gateway": lambda line: line.startswith("ray::ServeReplica:gateway"),
}
"""What is killed -> how its process is told by its command line; of several the first."""


@dataclass(frozen=True)
class Fault:
    """One kill and what came of it."""

    target: str
    outage_s: float
    failed: int
    answered: int
    statuses: dict[str, int]


def measure_faults(state: StackState, users: list[str], repeats: int) -> list[Fault]:
    """Kill each target `repeats` times under load.

    Raises:
        CommandError: a target does not run, or does not come back.
    """
    return [asyncio.run(_fault(state, users, target)) for _ in range(repeats) for target in TARGETS]


async def _fault(state: StackState, users: list[str], target: str) -> Fault:
    stop, outcome = asyncio.Event(), Outcome()
    load = asyncio.create_task(
        run_load(
            state.base_url,
            lambda number: f"/v1/recommendations/{users[number % len(users)]}?top_k=10",
            connections=CONNECTIONS,
            stop=stop,
            pause_s=PAUSE_S,
            timeout_s=TIMEOUT_S,
            into=outcome,
        )
    )
    await asyncio.sleep(2)
    if outcome.failures():
        raise CommandError(f"requests fail before anything was killed: {outcome.failures()[0]}")
    victim = _victims(state, target)[0]
    victim.kill()
    killed = time.monotonic()
    last = killed
    while time.monotonic() < last + QUIET_S or not [one for one in _victims(state, target) if one.pid != victim.pid]:
        await asyncio.sleep(0.2)
        last = max([killed, *(at for at, _, _ in outcome.failures())])
        if time.monotonic() > killed + PATIENCE_S:
            raise CommandError(f"{target}: still failing {PATIENCE_S:.0f} s after the kill")
    stop.set()
    await load
    after = [one for one in outcome.failures() if one[0] >= killed]
    kinds = [str(status) if status else reason for _, status, reason in after]
    return Fault(target, last - killed, len(after), len(outcome.ended), {kind: kinds.count(kind) for kind in sorted(set(kinds))})


def _victims(state: StackState, target: str) -> list[psutil.Process]:
    found = [process for process in family(state) if TARGETS[target](title(process)) and process.status() != psutil.STATUS_ZOMBIE]
    return found


def faults_markdown(faults: list[Fault]) -> str:
    """A row a target: worst and all outages."""
    lines = [
        f"Last non-2xx after: must {MUST_S:g} s, aim {AIM_S:g} s.",
        "",
        "| kill -9 of | last non-2xx after, s (worst) | reaches | all, s | failed | of answers | as |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        mine = [fault for fault in faults if fault.target == target]
        kinds: dict[str, int] = {}
        for fault in mine:
            for kind, number in fault.statuses.items():
                kinds[kind] = kinds.get(kind, 0) + number
        told = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none"
        times = ", ".join(f"{fault.outage_s:.2f}" for fault in mine)
        failed, answered = sum(fault.failed for fault in mine), sum(fault.answered for fault in mine)
        worst = max(fault.outage_s for fault in mine)
        reaches = "aim" if worst <= AIM_S else "must" if worst <= MUST_S else "**missed**"
        lines.append(f"| {target} | {worst:.2f} | {reaches} | {times} | {failed} | {answered:,} | {told} |")
    return "\n".join(lines)
