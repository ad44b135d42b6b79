"""The gateway: the one HTTP ingress. Hot routes are answered here on raw ASGI, everything else by the FastAPI application below it.

Owns a replica's life: loads the routing state before it is ready, follows its changes, keeps the cache connection, and hands
requests to `serving.answers`. Its Serve deployment is `serving.gateway_replica`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from features.errors import FeaturesError
from features.redis_bus import RedisStreamBus
from serving.announce import listen
from serving.answer import Answer
from serving.answers import Answerer
from serving.api.app import build_api
from serving.api.context import ApiContext
from serving.browse import Browser
from serving.cache import ListCache
from serving.config import ServingConfig
from serving.errors import RequestError
from serving.exposure_log import ExposureLog
from serving.http import (
    AsgiScope,
    Message,
    Receive,
    Send,
    authorize,
    bounded,
    checked_path,
    header,
    read_json,
    send_bytes,
    send_json,
)
from serving.intake import EventIntake
from serving.live_state import Snapshot, SnapshotLoader
from serving.metrics import GatewayMetrics
from serving.request_id import RequestId, begin
from serving.request_parsing import parse_body, parse_browse, parse_get
from serving.request_values import checked_id
from serving.schemas import RecommendationRequest
from serving.sessions import SessionMerger
from serving.shadow import ShadowSender
from serving.trend_lists import TrendLists
from serving.version_handles import VersionHandles

_log = logging.getLogger("shortlist.serving")
A = TypeVar("A")
R = TypeVar("R")

_RECOMMENDATIONS = "/v1/recommendations"
_PER_USER = _RECOMMENDATIONS + "/"
_BROWSED = frozenset({"/v1/popular", "/v1/trending"})
_ITEMS, _SIMILAR = "/v1/items/", "/similar"
_SESSIONS, _MERGE = "/v1/sessions/", "/merge"


class GatewayApp:
    """The ASGI application of one replica.

    Args:
        config: of the stack.
    """

    def __init__(self, config: ServingConfig) -> None:
        self.config = config
        self.metrics = GatewayMetrics(replica=f"{socket.gethostname()}-{os.getpid()}")
        self._loader = SnapshotLoader(config)
        self._snapshot = self._loader.load()
        self.cache = ListCache(config)
        handles = VersionHandles(config)
        self._shadow = ShadowSender(config, handles.score, lambda: self._snapshot.shadow, self.metrics)
        self.answerer = Answerer(config, self.cache, handles.compute, self.snapshot, self.metrics, self._shadow.offer)
        self._trends = TrendLists(config)
        self._browser = Browser(config, self.cache, handles.compute, self.snapshot, self._trends, self.metrics)
        self._bus = RedisStreamBus(config.bus_url, config.dataset, site=config.site)
        self._intake = EventIntake(config, self._bus, self.cache, self.metrics)
        self._sessions = SessionMerger(config, self._bus, self.cache, self.metrics)
        self._exposures = ExposureLog(config, self._bus, self.metrics)
        # Of its own: asyncio's default threads are few, and whatever holds them up must not hold up a delisting.
        self._followers = ThreadPoolExecutor(2, thread_name_prefix="follow")
        self._changed, self._item_changed = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._api = build_api(ApiContext(config, self._refresh, self.answerer))
        self._tasks: list[asyncio.Task[None]] = []
        self._degraded, self._degraded_logged_at = 0, 0.0

    def _refresh(self) -> None:
        """Look at the control store now; called from threads of the API."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._notice)

    def _notice(self) -> None:
        """The control store has changed."""
        self._changed.set()
        self._item_changed.set()

    def snapshot(self) -> Snapshot:
        """The present routing state."""
        return self._snapshot

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http":
            await self.http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def http(self, scope: AsgiScope, receive: Receive, send: Send, *, by_serve: bool = False) -> None:
        """Answer a request; `by_serve`: Ray Serve has passed it on, and writes the id that it knows into the answer itself."""
        request_id = begin(header(scope, b"x-request-id"), by_serve=by_serve)
        route, status = "other", 200
        try:
            path = checked_path(scope)
            if path.startswith(_PER_USER):
                route = "recommendations"
                _only(scope, "GET")
                authorize(self.config, scope, "read")
                await self._recommend(send, parse_get(path[len(_PER_USER) :], scope["query_string"]), request_id)
            elif path == _RECOMMENDATIONS:
                route = "recommendations"
                _only(scope, "POST")
                authorize(self.config, scope, "read")
                request = parse_body(await read_json(scope, receive))
                if request.model_version is not None:
                    authorize(self.config, scope, "admin")
                await self._recommend(send, request, request_id)
            elif path == "/v1/events":
                route, status = "events", 202
                _only(scope, "POST")
                authorize(self.config, scope, "write")
                receipt = await self._intake.take(await read_json(scope, receive))
                await send_json(send, 202, receipt.to_json(), request_id=request_id.header)
            elif path.startswith(_SESSIONS) and path.endswith(_MERGE):
                route = "sessions"
                _only(scope, "POST")
                authorize(self.config, scope, "write")
                session_id = checked_id(path[len(_SESSIONS) : -len(_MERGE)], "session_id")
                merged = await self._sessions.merge(session_id, await read_json(scope, receive))
                await send_json(send, 200, merged, request_id=request_id.header)
            elif path in _BROWSED or _asks_for_similar(scope, path):
                route = path[4:] if path in _BROWSED else "similar"
                _only(scope, "GET")
                authorize(self.config, scope, "read")
                await send_json(send, 200, await self._browse(path, scope["query_string"]), request_id=request_id.header)
            elif path == "/healthz":
                _only(scope, "GET", "HEAD")
                await send_json(send, 200, {"status": "ok"}, request_id=request_id.header)
            elif path == "/readyz":
                _only(scope, "GET", "HEAD")
                await send_json(send, 200, self._readiness(), request_id=request_id.header)
            elif path == "/metrics":
                _only(scope, "GET", "HEAD")
                kind = b"text/plain; version=0.0.4; charset=utf-8"
                await send_bytes(send, 200, self.metrics.text(), kind, request_id=request_id.header)
            else:
                await self._other(scope, receive, send, request_id)
                return
        except RequestError as error:
            status = error.status
            await send_json(send, status, error.to_json(), request_id=request_id.header, headers=error.headers)
        except Exception:
            status, told = 500, {"request_id": str(request_id), "route": route, "status": 500}
            _log.exception("request failed: %s %s", scope["method"], route, extra=told)  # a path may hold a user's id
            body = {"error": {"code": "internal", "message": "the request failed; the gateway's log says why"}}
            await send_json(send, 500, body, request_id=request_id.header)
        self.metrics.request(route, status)

    async def _other(self, scope: AsgiScope, receive: Receive, send: Send, request_id: RequestId) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.request("api", message["status"])
                if (named := request_id.header) is not None:
                    message["headers"] = [*message.get("headers", ()), (b"x-request-id", named)]
            await send(message)

        try:
            await self._api(scope, bounded(receive), counted)
        except Exception:
            _log.debug("already answered and logged by the API's own handler", exc_info=True)

    async def _recommend(self, send: Send, request: RecommendationRequest, request_id: RequestId) -> None:
        answer = await self.answerer.recommend(request)
        self._exposures.add(answer)
        if answer.degraded:
            self._log_degraded(answer, request_id)
        await send_json(send, 200, answer.to_json(), request_id=request_id.header)

    def _log_degraded(self, answer: Answer, request_id: RequestId) -> None:
        """One line a second at most, which says how many there were: trouble comes in thousands."""
        self._degraded += 1
        now = time.monotonic()
        if now - self._degraded_logged_at >= 1.0:
            told = {
                "request_id": str(request_id),
                "served_from": answer.served_from,
                "version": answer.model_version,
            }
            _log.warning("%d degraded answers since the last such line", self._degraded, extra=told)
            self._degraded, self._degraded_logged_at = 0, now

    async def _browse(self, path: str, query_string: bytes) -> dict[str, Any]:
        request, window = parse_browse(query_string, with_window=path in _BROWSED)
        if path == "/v1/popular":
            return self._browser.popular(request, window)
        if path == "/v1/trending":
            return self._browser.trending(request, window)
        return await self._browser.similar(checked_id(path[len(_ITEMS) : -len(_SIMILAR)], "item_id"), request)

    def _readiness(self) -> dict[str, object]:
        champion = self._snapshot.champion
        return {
            "status": "ready",
            "dataset": self.config.dataset,
            "model_version": champion.version if champion is not None else None,
            "versions": sorted(self._snapshot.versions),
            "cache": "up" if self.cache.up else "down",
        }

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message: Message = await receive()
            if message["type"] == "lifespan.startup":
                await self._start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.cache.start()
        self._exposures.start()
        self._shadow.start()
        self._tasks = [
            asyncio.create_task(self._follow(), name="follow"),
            asyncio.create_task(self._trends.follow(), name="trends"),
            asyncio.create_task(self._follow_availability(), name="availability"),
            asyncio.create_task(listen(self.config, self._notice), name="listen"),
        ]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._exposures.stop()
        await self._shadow.stop()
        await self._bus.aclose()
        await self.cache.stop()
        self._followers.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[A], R], given: A) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._followers, work, given)

    async def _due(self, changed: asyncio.Event) -> None:
        """Until something has changed, or the next regular look."""
        # Not asyncio.wait_for: it swallows a cancellation that comes together with the event, and stopping would wait for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.reread_s):
                await changed.wait()
        changed.clear()

    async def _follow(self) -> None:
        """Rebuild the snapshot at every announcement, and at regular looks in between. No trouble ends it."""
        while True:
            await self._due(self._changed)
            try:
                await self.cache.new_items.refresh()
                self._snapshot = await self._in_thread(self._loader.load, self._snapshot)
                self._loader.catch_up(self._snapshot)
                champion = self._snapshot.champion
                self.metrics.model_trained_at.set(champion.trained_at.timestamp() if champion is not None else 0)
            except FeaturesError as error:
                _log.error("routing state not refreshed, the last one stays: %s", error)
            except Exception:
                _log.exception("routing state not refreshed, the last one stays")

    async def _follow_availability(self) -> None:
        """Take delisted items out of what answers now, also while a new version is being read. No trouble ends it."""
        while True:
            await self._due(self._item_changed)
            try:
                followed = self._snapshot
                await self._in_thread(self._loader.availability.apply, followed.tables())
                if self._snapshot is not followed:
                    self._loader.catch_up(self._snapshot)
            except FeaturesError as error:
                _log.error("availability not refreshed, the last one stays: %s", error)
            except Exception:
                _log.exception("availability not refreshed, the last one stays")


def _asks_for_similar(scope: AsgiScope, path: str) -> bool:
    # An item may be called `similar`: the two parts must not share a slash. Or `a/similar`, whose slash comes percent-encoded.
    if not (path.startswith(_ITEMS) and path.endswith(_SIMILAR) and len(path) >= len(_ITEMS) + len(_SIMILAR)):
        return False
    raw: bytes | None = scope.get("raw_path")
    return raw is None or not raw.lower().endswith(b"%2fsimilar")


def _only(scope: AsgiScope, *methods: str) -> None:
    if scope["method"] not in methods:
        allowed = ", ".join(methods)
        message = f"{scope['method']} is not allowed here, {allowed} is"
        raise RequestError(message, code="method_not_allowed", status=405, headers={"Allow": allowed})
