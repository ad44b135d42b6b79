"""Gateways and a version's replica with a real Redis that can be killed, without Ray: real HTTP, real lists, up in a second.

Each gateway is a server thread of its own, as each replica is a process. The hop to the version is a call instead of Ray's: it can
be made slow or dead.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import httpx
import pyarrow as pa
import pytest
import uvicorn

from features.control_store import ControlStore
from serving.config import ServingConfig, hash_token
from serving.control import ServingControl, ServingState
from serving.gateway import GatewayApp
from serving.logs import LOGGER
from serving.messages import ComputeRequest
from serving.retriever_replica import Retriever
from shortlist.stack.ports import free_port

ADMIN = {"Authorization": "Bearer admin-secret"}


class Server:
    """One gateway behind uvicorn in a thread."""

    def __init__(self, config: ServingConfig, hop: Callable[[str, ComputeRequest], Any]) -> None:
        self.app = GatewayApp(config)
        self.app.answerer._compute = self.app._browser._compute = hop
        self.url = f"http://127.0.0.1:{free_port()}"
        options = uvicorn.Config(self.app, port=int(self.url.rsplit(":", 1)[1]), log_level="error", lifespan="on")  # type: ignore[arg-type]
        self._server = uvicorn.Server(options)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.admin = httpx.Client(base_url=self.url, timeout=60, headers=ADMIN)

    @property
    def started(self) -> bool:
        return bool(self._server.started)

    def stop(self) -> None:
        self.http.close()
        self.admin.close()
        self._server.should_exit = True
        self._thread.join(30)


class Gateways:
    """Two gateways of one dataset, the version they answer with, and the Redis of both cache and bus."""

    def __init__(self, config: ServingConfig, bundle: Path, redis_server: Any) -> None:
        self.config, self.redis = config, redis_server
        self.version: Literal["works", "hangs", "dead"] = "works"
        self.retriever = Retriever(config.model_dump_json(), str(bundle))
        self.servers = [Server(config, self._compute) for _ in range(2)]
        self.wait(lambda: all(server.started for server in self.servers), "the servers")

    async def _compute(self, version: str, request: ComputeRequest) -> bytes:
        if self.version == "dead":
            raise ConnectionError("the replica died")
        if self.version == "hangs":
            await asyncio.sleep(3600)
        return await self.retriever.compute(request)

    @property
    def first(self) -> Server:
        return self.servers[0]

    def answer(self, user: str = "u1", **parameters: Any) -> dict[str, Any]:
        """What the first gateway recommends."""
        got = self.first.http.get(f"/v1/recommendations/{user}", params=parameters)
        assert got.status_code == 200, got.text
        return dict(got.json())

    def counted(self, name: str, **labels: str) -> float:
        """A counter of the first gateway."""
        found = [line for line in self.first.http.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in found if all(f'{key}="{text}"' in line for key, text in labels.items())
        )

    @staticmethod
    def wait(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> float:
        """Poll until true; returns the seconds that it took. Generous: the machine may do other things."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.01)
        return time.monotonic() - began

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


@pytest.fixture
def gateways(
    make_config: Callable[..., ServingConfig],
    fill_catalogue: Callable[[str, pa.Table], ControlStore],
    item_attributes: pa.Table,
    bundle: Path,
    own_redis: Any,
) -> Iterator[Callable[..., Gateways]]:
    """Starts gateways; arguments change the config."""
    logger, handlers = logging.getLogger(LOGGER), list(logging.getLogger(LOGGER).handlers)

    def close_logs() -> None:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()

    with ExitStack() as running:
        running.callback(close_logs)

        def start(**changes: Any) -> Gateways:
            url = own_redis.url
            redis_urls = {"bus_url": url, "cache_url": url, "features_url": url}
            # Other work on the machine must not turn answers into fallbacks, nor a slow Redis into an absent one.
            patient = {"deadline_ms": 10_000, "cache_timeout_ms": 5_000, "precompute_k": 30}
            config = make_config(**redis_urls, **{**patient, **changes}, admin_token_sha256=hash_token("admin-secret"))
            store = fill_catalogue(config.control_url, item_attributes)
            state = ServingState("1", {"1": str(bundle)})
            ServingControl(store, config.dataset).set_state(state, actor="test", action="test")
            found = Gateways(config, bundle, own_redis)
            running.callback(found.stop)
            return found

        yield start
