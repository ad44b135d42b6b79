"""One connection to one Redis, for the gateway's hot path: commands go out at once, replies come back in order.

redis-py spends 17 to 35 microseconds of CPU a command, this some 7: a tenth of a cached answer's budget. Everything that is not on
the hot path uses redis-py. Trouble never raises out of the event loop and never waits: a command fails with `CacheDownError` within
the time-out, and until the next attempt to connect (with back-off) commands fail at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from serving.errors import CacheDownError

_log = logging.getLogger("shortlist.serving")
GRACE_S = 0.01
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0

Reply = Any
Done = Callable[[Reply | Exception], None]


class RedisWire:
    """A pipelined connection that heals itself. Belongs to one event loop.

    Args:
        url: `redis://[user:password@]host:port/db` or `unix://path?db=n`.
        timeout_s: age at which an unanswered command means that the server is gone.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "unix"}:
            raise ValueError(f"redis.cache_url {url!r} must start with redis:// or unix://")
        self._path = unquote(parts.path) if parts.scheme == "unix" else None
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._greeting: list[tuple[str, ...]] = []
        if parts.password:
            self._greeting.append(("AUTH", *((unquote(parts.username),) if parts.username else ()), unquote(parts.password)))
        database = parse_qs(parts.query).get("db", ["0"])[0] if parts.scheme == "unix" else parts.path.strip("/") or "0"
        if database != "0":
            self._greeting.append(("SELECT", database))
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._greeted = False
        self._waiting: deque[tuple[float, Done]] = deque()
        self._reader = hiredis.Reader()
        self._keeper: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._lost = asyncio.Event()
        self._overdue = 0.0

    @property
    def up(self) -> bool:
        """Whether commands can be sent now."""
        return self._greeted

    async def start(self) -> None:
        """Connect, and keep connected until `stop`. Returns after the first attempt, whether it worked or not."""
        first = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(first))
        await first.wait()

    async def stop(self) -> None:
        """Close for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self._drop(CacheDownError("the cache connection is closed"))

    def send(self, done: Done, *command: str | bytes | int) -> None:
        """Send a command; `done` gets its reply or the error, at once where the server is known to be gone."""
        if not self._greeted:  # before that it would go to another database than the url says, or without the password
            done(CacheDownError("the cache Redis cannot be reached"))
            return
        self._write(done, command)

    def _write(self, done: Done, command: tuple[str | bytes | int, ...]) -> None:
        loop = asyncio.get_running_loop()
        assert self._transport is not None
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub says one argument
        # Not before: one that cannot be packed would wait for a reply that is another's, and all after it for the next one's.
        self._waiting.append((loop.time() + self._timeout_s, done))
        self._transport.write(packed)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_s, self._check)

    async def call(self, *command: str | bytes | int) -> Reply:
        """Send a command and wait for its reply.

        Raises:
            CacheDownError: the server is gone, too slow, or answered with an error.
        """
        return await _reply(lambda done: self.send(done, *command))

    async def _keep(self, first: asyncio.Event) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(max(self._timeout_s, 0.5)):  # wait_for may swallow the cancellation of `stop`
                    await self._connect()
                pause_s = FIRST_PAUSE_S
                first.set()
                await self._lost.wait()
                _log.warning("cache connection lost")
            except (OSError, TimeoutError, CacheDownError) as error:
                self._drop(CacheDownError(f"the cache Redis cannot be reached: {error}"))
            first.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader, self._lost = hiredis.Reader(), asyncio.Event()
        wire = self

        class Link(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                wire._received(data)

            def connection_lost(self, error: Exception | None) -> None:
                if wire._transport is transport:
                    wire._drop(CacheDownError(f"the cache Redis closed the connection: {error}"))

        if self._path is not None:
            transport, _ = await loop.create_unix_connection(Link, self._path)
        else:
            transport, _ = await loop.create_connection(Link, *self._address)
        self._transport = transport
        # A PING even without AUTH or SELECT: a server that is still loading its data, or wants a password, must not count as up.
        for command in (*self._greeting, ("PING",)):
            if self._transport is not transport:
                raise CacheDownError("the connection was lost while it was made")
            await _reply(partial(self._write, command=command))
        self._greeted = self._transport is transport

    def _received(self, data: bytes) -> None:
        self._reader.feed(data)
        while True:
            reply = self._reader.gets()
            if reply is False:
                return
            if not self._waiting:
                self._drop(CacheDownError("the cache Redis sent a reply that nobody asked for"))
                return
            _, done = self._waiting.popleft()
            done(reply)

    def _check(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        oldest = self._waiting[0][0]
        if oldest > loop.time():
            self._watch = loop.call_later(oldest - loop.time(), self._check)
        elif oldest != self._overdue:
            # This process may have been the slow one, with the reply waiting in the socket: let it be read first.
            self._overdue = oldest
            self._watch = loop.call_later(GRACE_S, self._check)
        else:
            self._drop(CacheDownError(f"the cache Redis did not answer within {self._timeout_s * 1000:.0f} ms"))

    def _drop(self, error: CacheDownError) -> None:
        transport, self._transport, self._greeted = self._transport, None, False
        if transport is not None:
            transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for _, done in waiting:
            done(error)
        self._lost.set()


async def _reply(send: Callable[[Done], None]) -> Reply:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def done(reply: Reply | Exception) -> None:
        if not future.done():
            future.set_result(reply)

    send(done)
    reply = await future
    if isinstance(reply, Exception):
        raise CacheDownError(str(reply))
    return reply
