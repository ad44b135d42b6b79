"""A light HTTP load: connections that ask one after the other and note what came back and when.

Plain sockets on one event loop, so that the load costs the machine little: what is measured shares its processors.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

RECONNECT_S = 0.01


@dataclass
class Outcome:
    """Answers of one load: monotonic times of their ends, seconds that they took, statuses (0: no answer, with the reason)."""

    ended: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def failures(self) -> list[tuple[float, int, str]]:
        """End, status and reason of every answer that is not 2xx."""
        rows = zip(self.ended, self.statuses, self.reasons, strict=True)
        return [(at, status, reason) for at, status, reason in rows if not 200 <= status < 300]


async def run_load(
    base_url: str,
    path_of: Callable[[int], str],
    *,
    connections: int,
    stop: asyncio.Event,
    pause_s: float = 0.0,
    timeout_s: float = 10.0,
    kind: Literal["GET", "POST"] = "GET",
    body_of: Callable[[int], bytes] | None = None,
    rate: float | None = None,
    headers: str = "",
    into: Outcome | None = None,
) -> Outcome:
    """Ask until `stop` is set.

    Args:
        base_url: of the server, http.
        path_of: number of the request to its path and query.
        connections: kept open, each with one request at a time.
        pause_s: of each connection between two requests.
        timeout_s: after which a request counts as unanswered.
        kind: HTTP method.
        body_of: number of the request to its JSON body.
        rate: requests a second over all connections on a fixed schedule (open loop: lateness counts as latency); None asks again
            as soon as an answer is there.
        headers: further header lines, each ending in CRLF.
        into: filled while the load runs; a new one when None.
    """
    where = urlsplit(base_url)
    host, port = where.hostname or "127.0.0.1", where.port or 80
    outcome, numbers = into if into is not None else Outcome(), itertools.count()
    began = time.monotonic()

    async def ask() -> None:
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while not stop.is_set():
            number = next(numbers)
            due = time.monotonic()
            if rate is not None:
                due = began + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            status, closes, reason = 0, False, ""
            try:
                if reader is None or writer is None:
                    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout_s)
                assert reader is not None
                assert writer is not None
                body = body_of(number) if body_of is not None else b""
                extra = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
                writer.write(f"{kind} {path_of(number)} HTTP/1.1\r\nHost: {host}\r\n{headers}{extra}\r\n".encode() + body)
                status, closes = await asyncio.wait_for(_answer(reader), timeout_s)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                reason = type(error).__name__
            now = time.monotonic()
            outcome.ended.append(now)
            outcome.seconds.append(now - due)
            outcome.statuses.append(status)
            outcome.reasons.append(reason)
            if status == 0 or closes:
                if writer is not None:
                    writer.close()
                reader = writer = None
            if status == 0:
                await asyncio.sleep(RECONNECT_S)
            if pause_s:
                await asyncio.sleep(pause_s)
        if writer is not None:
            writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    return outcome


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status of one answer, and whether the server closes the connection after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
    await reader.readexactly(length)
    return int(head.split(" ", 2)[1]), "connection: close" in head
