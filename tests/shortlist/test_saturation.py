"""The load generator against a server whose delays and failures are known."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from shortlist.bench.saturation import LoadPlan, run_load

DELAY_S = 0.02


@dataclass
class Server:
    """Answers `/slow` after `DELAY_S`, `/bad` with 500, all else at once; one byte at a time for `/drip`."""

    port: int = 0
    seen: list[str] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                self.seen.append(path)
                if path == "/slow":
                    await asyncio.sleep(DELAY_S)
                status = b"500 Wrong" if path == "/bad" else b"200 OK"
                answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\nhello"
                for part in [answer] if path != "/drip" else [answer[n : n + 1] for n in range(len(answer))]:
                    writer.write(part)
                    await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()


@pytest.fixture
def server() -> Iterator[Server]:
    running, loop, started = Server(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(running.answer, "127.0.0.1", 0)
        running.port = listening.sockets[0].getsockname()[1]
        started.set()

    loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started.wait()
    yield running
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_every_path_once(server: Server) -> None:
    paths = [f"/{n}" for n in range(50)]
    result = run_load(LoadPlan(server.port, paths, connections=4, once=True))
    assert (result.answered, result.failed) == (50, 0)
    assert sorted(server.seen) == sorted(paths)


def test_closed_loop_asks_again_when_answered(server: Server) -> None:
    """Four connections that wait 20 ms each: no more than 200 a second, latencies of 20 ms."""
    result = run_load(LoadPlan(server.port, ["/slow"], connections=4, seconds=0.5))
    assert 0 < result.answered <= 4 * (0.5 / DELAY_S + 2)
    assert result.p50_ms >= 1e3 * DELAY_S * 0.99


def test_open_loop_counts_the_wait_in_line(server: Server) -> None:
    """One connection can answer 50 a second; 200 due a second wait ever longer, which a closed loop would not see."""
    result = run_load(LoadPlan(server.port, ["/slow"], connections=1, seconds=0.5, rate_per_s=200))
    assert result.answered >= 50
    assert result.p99_ms > 10 * 1e3 * DELAY_S


def test_failures_and_parts(server: Server) -> None:
    result = run_load(LoadPlan(server.port, ["/bad", "/drip"], connections=2, once=True))
    assert (result.answered, result.failed) == (1, 1)
