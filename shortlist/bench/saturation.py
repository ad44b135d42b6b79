"""How many requests a second a server answers, and how late: a load generator that costs little, as it shares the server's cores.

Keep-alive connections on uvloop, of whose answers status and length are read and no more: a third of what streams cost
(`shortlist.bench.load`, which survives broken connections).

Closed loop: each connection asks again as soon as it has its answer; gives the saturation rate. Open loop: requests are due at
moments that do not depend on the server, and a latency counts from the moment at which its request was due, so that waiting in
line is seen.

Run as a program (`python -m shortlist.bench.saturation`) it reads a plan as JSON and prints the result: a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import uvloop

_LENGTH = b"content-length: "


@dataclass(frozen=True)
class LoadPlan:
    """What to ask.

    Args:
        port: of the server, on loopback.
        paths: paths with query strings, asked in turn over and over.
        connections: kept open.
        seconds: how long to ask.
        rate_per_s: requests due a second (open loop); None for closed loop.
        once: ask every path once and stop, whatever `seconds` says.
    """

    port: int
    paths: Sequence[str]
    connections: int = 8
    seconds: float = 3.0
    rate_per_s: float | None = None
    once: bool = False


@dataclass(frozen=True)
class LoadResult:
    """What came back. Latencies are of answers with status 200."""

    answered: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        """Good answers a second."""
        return self.answered / max(self.seconds, 1e-9)


def run_load(plan: LoadPlan) -> LoadResult:
    """Run a plan in a process of its own.

    Raises:
        subprocess.CalledProcessError: it could not connect; its stderr says why.
    """
    command = [sys.executable, "-m", "shortlist.bench.saturation"]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), capture_output=True, text=True, check=True)
    return LoadResult(**json.loads(done.stdout))


class _Load:
    """The state that all connections of a run share."""

    def __init__(self, plan: LoadPlan) -> None:
        head = f" HTTP/1.1\r\nHost: 127.0.0.1:{plan.port}\r\n\r\n"
        self.plan = plan
        self.requests = [f"GET {path}{head}".encode() for path in plan.paths]
        self.asked = 0
        self.latencies: list[float] = []
        self.failed = 0
        self.waiting: deque[float] = deque()
        self.idle: deque[_Connection] = deque()
        self.busy = 0
        self.over = False
        self.done = asyncio.Event()

    def next_request(self) -> bytes | None:
        """The next request in turn; None when there is nothing more to ask."""
        if self.over or (self.plan.once and self.asked >= len(self.requests)):
            return None
        request = self.requests[self.asked % len(self.requests)]
        self.asked += 1
        return request

    def answered(self, connection: _Connection, due: float, good: bool) -> None:
        """Count an answer and give its connection the next request."""
        self.busy -= 1
        if good:
            self.latencies.append(time.perf_counter() - due)
        else:
            self.failed += 1
        if self.plan.rate_per_s is None:
            self.ask(connection, time.perf_counter())
        elif self.waiting:
            self.ask(connection, self.waiting.popleft())
        else:
            self.idle.append(connection)
        if not self.busy and self.over:
            self.done.set()

    def ask(self, connection: _Connection, due: float) -> None:
        """Send the next request on a connection."""
        request = self.next_request()
        if request is None:
            self.idle.append(connection)
            if not self.busy:
                self.done.set()
            return
        self.busy += 1
        connection.ask(request, due)

    def became_due(self, due: float) -> None:
        """A request of the open loop: at once where a connection is idle, else in line."""
        if self.idle:
            self.ask(self.idle.popleft(), due)
        else:
            self.waiting.append(due)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._due, self._buffer, self._asking = 0.0, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class

    def ask(self, request: bytes, due: float) -> None:
        """Send one request."""
        assert self._transport is not None
        self._due, self._buffer, self._asking = due, b"", True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            head = data[:end].lower()
            at = head.find(_LENGTH)
            if at < 0:
                raise ValueError(f"an answer without content-length: {head[:200]!r}")
            stop = head.find(b"\r", at)
            length = int(head[at + len(_LENGTH) : stop if stop >= 0 else end])
            if len(data) >= end + 4 + length:
                self._asking = False
                self._load.answered(self, self._due, data[9:12] == b"200")
                return
        self._buffer = data

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asking:
            self._load.failed += 1
            self._load.busy -= 1
            self._load.done.set()


async def _run(plan: LoadPlan) -> LoadResult:
    loop, load = asyncio.get_running_loop(), _Load(plan)
    connections = []
    for _ in range(plan.connections):
        _, connection = await loop.create_connection(lambda: _Connection(load), "127.0.0.1", plan.port)
        connections.append(connection)
    started = time.perf_counter()
    if plan.rate_per_s is None:
        for connection in connections:
            load.ask(connection, started)
        if not plan.once:
            loop.call_later(plan.seconds, setattr, load, "over", True)
    else:
        load.idle.extend(connections)
        await _keep_due(load, started, plan.rate_per_s, plan.seconds)
    await asyncio.wait_for(load.done.wait(), plan.seconds + 600)
    seconds = time.perf_counter() - started
    latencies = np.array(load.latencies or [float("nan")]) * 1e3
    return LoadResult(
        len(load.latencies), load.failed, seconds, float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99))
    )


async def _keep_due(load: _Load, started: float, rate_per_s: float, seconds: float) -> None:
    """Make requests due at their moments, a Poisson process from a fixed seed; returns when the last one is due."""
    gaps = np.random.default_rng(0).exponential(1.0 / rate_per_s, int(rate_per_s * seconds) + 1)
    for due in (started + np.cumsum(gaps)).tolist():
        pause = due - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        load.became_due(due)
    while load.waiting:
        await asyncio.sleep(0.001)
    load.over = True
    if not load.busy:
        load.done.set()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(uvloop.run(_run(LoadPlan(**json.load(sys.stdin)))))))
