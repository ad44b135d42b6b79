"""Every log line of a request has its id: the caller's, or one that is drawn; in threads, in tasks and in a version's replica."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from features.control_store import ControlStore
from serving.config import ServingConfig
from serving.control import ServingControl, ServingState
from serving.gateway import GatewayApp
from serving.gateway_replica import BehindServe
from serving.logs import LOGGER, log_to_file
from serving.messages import ComputeRequest
from serving.online_users import OnlineUsers
from serving.request_id import begin, current
from serving.retriever_replica import Retriever

ADMIN = {"Authorization": "Bearer admin-secret"}


@pytest.fixture
def logged(make_config: Callable[..., ServingConfig]) -> Iterator[tuple[ServingConfig, Callable[[], list[dict[str, Any]]]]]:
    """A config whose Redis and MLflow are nowhere, and what its log says of trouble so far."""
    config, logger = make_config(), logging.getLogger(LOGGER)
    before, level = list(logger.handlers), logger.level
    log_to_file(config, "test")
    path = config.home / "logs" / "test.jsonl"
    try:
        yield config, lambda: [line for line in _all_of(path) if line["level"] != "info"]
    finally:
        logger.setLevel(level)
        for handler in set(logger.handlers) - set(before):
            logger.removeHandler(handler)
            handler.close()


def _all_of(path: Path) -> list[dict[str, Any]]:
    """All lines; those of work in the background, which belongs to no request, among them."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def asked(app: GatewayApp, *requests: tuple[str, str, dict[str, str], Any], by_serve: bool = False) -> list[httpx.Response]:
    """Answers to requests that are sent at once."""
    entry = BehindServe(app) if by_serve else app

    async def run() -> list[httpx.Response]:
        await app.cache.start()
        transport = httpx.ASGITransport(app=entry, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            sent = [client.request(method, path, headers=headers, json=body) for method, path, headers, body in requests]
            answers = await asyncio.gather(*sent)
        await app.cache.stop()
        return answers

    return asyncio.run(run())


def test_lines_of_requests_at_the_same_time_have_their_own_ids(
    logged, fill_catalogue: Callable[[str, pa.Table], ControlStore], item_attributes: pa.Table, bundle: Path
) -> None:
    config, lines = logged
    store = fill_catalogue(config.control_url, item_attributes)
    ServingControl(store, config.dataset).set_state(ServingState("9", {"9": str(bundle)}), actor="test", action="test")
    app = GatewayApp(config)
    # Redis is nowhere: each of these cannot announce what it has changed, and says so.
    ids = [f"call-{n}" for n in range(8)]
    requests = [("PUT", f"/v1/items/n{name}", {**ADMIN, "X-Request-ID": name}, {"year": 2000}) for name in ids]
    answers = asked(app, *requests)
    assert [answer.headers["x-request-id"] for answer in answers] == ids
    assert sorted(line["request_id"] for line in lines()) == sorted(ids)
    # Nothing answers for the version: a lower rung does, and the line about it has the id too.
    (degraded,) = asked(app, ("GET", "/v1/recommendations/u1", {"X-Request-ID": "lower.rung"}, None))
    assert (degraded.status_code, degraded.json()["degraded"]) == (200, True)
    assert lines()[-1]["request_id"] == "lower.rung"
    assert "degraded" in lines()[-1]["message"]


def test_a_failure_without_an_id_from_the_caller_gets_one_that_is_sent_back(logged, monkeypatch: pytest.MonkeyPatch) -> None:
    config, lines = logged
    ControlStore(config.control_url).create()
    app = GatewayApp(config)
    for name in ("recommend", "snapshot"):
        monkeypatch.setattr(app.answerer, name, None, raising=False)
    hot, not_loggable = asked(
        app, ("GET", "/v1/recommendations/u1", {}, None), ("GET", "/v1/recommendations/u1", {"X-Request-ID": "new\tline"}, None)
    )
    assert (hot.status_code, not_loggable.status_code) == (500, 500)
    assert {line["request_id"] for line in lines()} == {answer.headers["x-request-id"] for answer in (hot, not_loggable)}
    assert "u1" not in json.dumps([line["message"] for line in lines()])
    monkeypatch.setattr("serving.api.items._found", None)
    (below,) = asked(app, ("GET", "/v1/items/secret-name", {}, None))
    assert below.status_code == 500
    assert lines()[-1]["request_id"] == below.headers["x-request-id"]
    assert "secret-name" not in lines()[-1]["message"]


def test_a_version_logs_the_id_that_came_with_the_hop(logged, bundle: Path) -> None:
    config, lines = logged

    def fails(user_ids: Sequence[str]) -> Any:
        raise OSError("the store is gone")

    async def run() -> None:
        retriever = Retriever(config.model_dump_json(), str(bundle))
        retriever._online = OnlineUsers(config, open_reader=lambda config, with_ranking: fails)
        retriever._online.start()
        while not retriever._online.ready:
            await asyncio.sleep(0.01)
        await retriever.compute(ComputeRequest(user_id="u1", k=5, request_id="from-afar"))

    asyncio.run(run())
    (line,) = [one for one in lines() if "left alone" in one["message"]]
    assert line["request_id"] == "from-afar"


def test_an_id_is_drawn_once() -> None:
    async def run() -> None:
        assert current() is None
        request_id = begin(None)
        assert await asyncio.to_thread(current) == str(request_id) == current()
        assert len(request_id.value) == 16
        assert begin(None).value != request_id.value

    asyncio.run(run())


def test_behind_serve_only_an_id_that_serve_does_not_know_is_sent_back(logged, monkeypatch: pytest.MonkeyPatch) -> None:
    config, lines = logged
    ControlStore(config.control_url).create()
    app = GatewayApp(config)
    monkeypatch.setattr(app.answerer, "recommend", None, raising=False)
    path = "/v1/recommendations/u1"
    ids = [{"X-Request-ID": "by-serve"}, {"X-Request-ID": "new\tline"}]
    known, not_loggable = asked(app, *(("GET", path, headers, None) for headers in ids), by_serve=True)
    assert "x-request-id" not in known.headers
    assert {line["request_id"] for line in lines()} == {"by-serve", not_loggable.headers["x-request-id"]}
