"""Requests on their way from a replica's HTTP server to the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving import ingress
from serving.environment import serve_env


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "_registered", [])


def test_a_process_without_an_application_has_nothing_around_its_server(tmp_path) -> None:
    assert ingress.middlewares() == []
    assert (
        serve_env(tmp_path, stats_port=1, metrics_port=2)["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
        == "serving.ingress.middlewares"
    )


def test_requests_go_past_serve_and_its_own_paths_and_lifespan_do_not() -> None:
    reached: list[tuple[str, Any]] = []

    def noting(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            reached.append((name, scope.get("path")))

        return app

    ingress.answer_directly(noting("older"))
    ingress.answer_directly(noting("gateway"))
    (middleware,) = ingress.middlewares()
    app = middleware.cls(noting("serve"), *middleware.args, **middleware.kwargs)
    for scope in (
        {"type": "http", "path": "/v1/popular"},
        {"type": "http", "path": "/-/healthz"},
        {"type": "websocket", "path": "/v1/popular"},
        {"type": "lifespan"},
    ):
        asyncio.run(app(scope, None, None))
    assert reached == [("gateway", "/v1/popular"), ("serve", "/-/healthz"), ("serve", "/v1/popular"), ("serve", None)]
