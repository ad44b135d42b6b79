"""`POST /v1/events` on the gateway's ASGI application with a real bus: every kind of bad input, back-pressure, a killed Redis."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from features.bus import EVENTS
from features.control_store import ControlStore
from features.redis_bus import RedisStreamBus
from serving.config import ServingConfig
from serving.gateway import GatewayApp

pytestmark = pytest.mark.integration
JSON = {"content-type": "application/json"}
Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def event(number: int, **changes: object) -> dict[str, object]:
    return {"event_id": f"e{number}", "user_id": "u", "item_id": f"i{number}", "action": "click"} | changes


@pytest.fixture
def config(make_config: Callable[..., ServingConfig], redis_server: str, request: pytest.FixtureRequest) -> ServingConfig:
    config = make_config(bus_url=redis_server, cache_url=redis_server, site=f"t{abs(hash(request.node.name))}")
    ControlStore(config.control_url).create().close()
    return config


def through(config: ServingConfig, ask: Ask) -> Any:
    """What `ask` returns, asked of a gateway of this configuration."""

    async def run() -> Any:
        app = GatewayApp(config)
        await app._start()
        try:
            transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                return await ask(http)
        finally:
            await app._stop()

    return asyncio.run(run())


def on_the_bus(config: ServingConfig) -> list[dict[str, Any]]:
    bus = RedisStreamBus(config.bus_url, config.dataset, site=config.site)
    found = [json.loads(entry.payload) for entry in bus.tail(EVENTS, 10_000)]
    bus.close()
    return found


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"user_id=u&item_id=i", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (json.dumps(event(1)).encode(), {"content-type": "text/plain; charset=utf-8"}, 415, "unsupported_media_type"),
        (json.dumps(event(1)).encode("utf-16"), JSON, 400, "malformed_json"),
        (b'{"user_id": "\xff\xfe", "item_id": "i", "action": "click"}', JSON, 400, "malformed_json"),
        (b'{"user_id": "\\ud800", "item_id": "i", "action": "click"}', JSON, 400, "malformed_json"),
        (b'{"user_id": "u", "value": NaN, "item_id": "i", "action": "click"}', JSON, 400, "malformed_json"),
        (b"", JSON, 400, "malformed_json"),
        (b"[]", JSON, 422, "invalid"),
        (b'{"events": []}', JSON, 422, "batch_size"),
        (json.dumps({"events": [event(n) for n in range(1001)]}).encode(), JSON, 413, "batch_size"),
        (b" " * ((4 << 20) + 1), JSON, 413, "body_too_large"),
        (json.dumps(event(1, timestamp="2199-01-01")).encode(), JSON, 422, "invalid_event"),
        (json.dumps({"events": [{}, event(1, item_id=None)]}).encode(), JSON, 422, "invalid_event"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_taken_says_why_and_leaves_nothing(
    config: ServingConfig, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    async def ask(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/v1/events", content=content, headers=headers)

    answer = through(config, ask)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert on_the_bus(config) == []


def test_a_half_valid_batch_is_taken_by_half_and_repeats_are_named(config: ServingConfig) -> None:
    batch = [event(0), event(1, value="high"), event(0), event(2, action="wishlist"), event(3, timestamp=0), "no event"]

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        first = await http.post("/v1/events", json={"events": batch})
        return [first, await http.post("/v1/events", json={"events": [event(2), event(4)]})]

    first, second = through(config, ask)
    assert first.status_code == 202
    assert {name: first.json()[name] for name in ("accepted", "duplicates", "duplicate_ids", "event_ids")} == {
        "accepted": 4,
        "duplicates": 1,
        "duplicate_ids": ["e0"],
        "event_ids": ["e0", None, "e0", "e2", "e3", None],
    }
    assert [(one["index"], one.get("field")) for one in first.json()["rejected"]] == [(1, "value"), (5, None)]
    assert second.json()["duplicate_ids"] == ["e2"]
    stored = on_the_bus(config)
    assert [row["event_id"] for row in stored] == ["e0", "e2", "e3", "e4"]
    assert [row.get("flag") for row in stored] == [None, "unknown_action", None, None]
    assert stored[2]["timestamp"] == 0


def test_a_configured_action_is_known(config: ServingConfig) -> None:
    async def ask(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/v1/events", json=event(0, action="wishlist"))

    assert through(config.model_copy(update={"extra_actions": ("wishlist",)}), ask).status_code == 202
    assert "flag" not in on_the_bus(config)[0]


def test_a_bus_that_is_full_asks_to_come_back_and_takes_nothing(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.gateway.RedisStreamBus", functools.partial(RedisStreamBus, max_entries=3))

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        taken = await http.post("/v1/events", json={"events": [event(n) for n in range(3)]})
        return [taken, await http.post("/v1/events", json={"events": [event(3)]})]

    taken, refused = through(config, ask)
    assert (taken.status_code, refused.status_code) == (202, 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "bus_full"
    assert len(on_the_bus(config)) == 3


def test_what_was_answered_202_survives_a_killed_redis(config: ServingConfig, own_redis: Any) -> None:
    """Events go in one after another while Redis is killed and started again: all that got a 202 are there, once."""
    config = config.model_copy(update={"bus_url": own_redis.url})

    async def ask(http: httpx.AsyncClient) -> tuple[list[str], int]:
        accepted, refused = list[str](), 0
        for number in range(150):
            if number in (40, 90):
                await asyncio.to_thread(own_redis.kill)
            if number in (44, 94):
                await asyncio.to_thread(own_redis.start)
            answer = await http.post("/v1/events", json=event(number))
            if answer.status_code == 202:
                accepted += answer.json()["event_ids"]
            else:
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                refused += 1
        return accepted, refused

    accepted, refused = through(config, ask)
    assert refused >= 8
    stored = [row["event_id"] for row in on_the_bus(config)]
    assert len(stored) == len(set(stored))
    assert set(accepted) <= set(stored)
    assert len(accepted) >= 140
