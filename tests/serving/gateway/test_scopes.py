"""Every call of the API on a gateway: who may make it, what ids its path may hold, how large its body may be and of what kind."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from features.control_store import ControlStore
from serving.config import ServingConfig, hash_token
from serving.gateway import GatewayApp
from serving.http import MAX_BODY_BYTES

SCOPES = ("read", "write", "admin")


@pytest.fixture
def gateway(make_config: Callable[..., ServingConfig]) -> GatewayApp:
    tokens = {f"{scope}_token_sha256": hash_token(scope) for scope in SCOPES}
    config = make_config(open_loopback=False, **tokens)
    ControlStore(config.control_url).create()
    return GatewayApp(config)


def asked(app: GatewayApp, ask: Callable[[httpx.AsyncClient], Any]) -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60) as client:
            return await ask(client)

    return asyncio.run(run())


async def calls(client: httpx.AsyncClient) -> list[tuple[str, str, str | None, bool]]:
    """Method, path, scope and whether there is a body, of every documented call."""
    document = (await client.get("/openapi.json")).json()
    found = []
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            (security,) = told["security"] or [{"bearer": [None]}]
            concrete = path.replace("{", "").replace("}", "")
            found.append((method.upper(), concrete, security["bearer"][0], "requestBody" in told))
    return found


def test_every_call_wants_the_scope_that_the_document_names(gateway: GatewayApp) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for method, path, scope, has_body in await calls(client):
            if path == "/v1/webhooks/mlflow":
                continue
            for token, content in itertools.product((None, "guess", *SCOPES), (b"{}", b'{"x": NaN') if has_body else (None,)):
                headers = {"Content-Type": "application/json"} if content else {}
                headers |= {"Authorization": f"Bearer {token}"} if token else {}
                # Erasing and control of models would reach for Redis and MLflow, which are nowhere: who may is what counts.
                allowed = scope is None or (token in SCOPES and SCOPES.index(str(token)) >= SCOPES.index(scope))
                if allowed and (method == "DELETE" or path.startswith("/v1/models")):
                    continue
                answer = await client.request(method, path, content=content, headers=headers)
                where = f"{method} {path} with token {token} and {content!r}: {answer.status_code} {answer.text[:200]}"
                if allowed:
                    assert answer.status_code not in {401, 403, 405}, where
                else:  # before the body is looked at
                    assert answer.status_code == (403 if token in SCOPES else 401), where
                    assert answer.json()["error"]["code"] == ("forbidden" if token in SCOPES else "unauthorized"), where
                assert answer.status_code == 200 or "error" in answer.json() or answer.status_code < 300, where

    asked(gateway, ask)


def test_ids_of_a_path_are_text_on_every_call(gateway: GatewayApp) -> None:
    async def ask(client: httpx.AsyncClient) -> int:
        tried = 0
        for method, path, _, has_body in await calls(client):
            if path.count("_id") + path.count("name") == 0:
                continue
            whole = path.replace("user_id", "{}").replace("item_id", "{}").replace("session_id", "{}")
            for given in ("%ff", "a%C3", "%ED%A0%80", "a%00b"):
                answer = await client.request(
                    method,
                    whole.replace("{}", given).replace("model_id", given).replace("name", given),
                    json={} if has_body else None,
                    headers={"Authorization": "Bearer admin"},
                )
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_path"), f"{method} {path}"
                tried += 1
        for known in ("%EF%BF%BD", "%C3%A9"):  # the replacement character itself is a character
            answer = await client.get(f"/v1/items/{known}", headers={"Authorization": "Bearer admin"})
            assert answer.json()["error"]["code"] == "not_found"
        return tried

    assert asked(gateway, ask) >= 40


def test_no_body_may_be_larger_than_the_limit_whatever_its_length_says(gateway: GatewayApp) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"x": "'
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            yield b"x" * 65536
        yield b'"}'

    async def ask(client: httpx.AsyncClient) -> int:
        headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
        tried = 0
        for method, path, _, has_body in await calls(client):
            if not has_body:
                continue
            for content in (json.dumps({"x": "x" * MAX_BODY_BYTES}).encode(), chunks()):
                answer = await client.request(method, path, content=content, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large"), f"{method} {path}"
                tried += 1
        return tried

    assert asked(gateway, ask) >= 24


def test_no_connection_is_held_by_a_body_that_does_not_come(gateway: GatewayApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.BODY_WITHIN_S", 0.05)

    async def stuck() -> AsyncIterator[bytes]:
        yield b'{"x": '
        await asyncio.sleep(600)

    async def ask(client: httpx.AsyncClient) -> int:
        headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
        tried = 0
        for method, path, _, has_body in await calls(client):
            if has_body:
                answer = await client.request(method, path, content=stuck(), headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_too_slow"), f"{method} {path}"
                assert answer.headers["connection"] == "close", f"{method} {path}"
                tried += 1
        return tried

    assert asked(gateway, ask) >= 12


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Type": "text/plain"}, "content type 'text/plain' is not application/json"),
        ({"Content-Type": "application/vnd.api+json"}, "content type 'application/vnd.api+json' is not application/json"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "content encoding 'gzip': bodies must not be encoded"),
        ({"Content-Encoding": "identity, br"}, "content encoding 'identity, br': bodies must not be encoded"),
    ],
)
def test_a_body_that_is_no_plain_json_is_refused_on_every_call(gateway: GatewayApp, headers: dict[str, str], said: str) -> None:
    async def ask(client: httpx.AsyncClient) -> int:
        tried = 0
        for method, path, scope, has_body in await calls(client):
            if not has_body or scope is None:  # a webhook's body is what was signed
                continue
            content = gzip.compress(b"{}") if "gzip" in said else b"{}"
            asked_with = {"Authorization": "Bearer admin", **headers}
            answer = await client.request(method, path, content=content, headers=asked_with)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (415, "unsupported_media_type"), f"{method} {path}"
            assert error["message"].startswith(said)
            tried += 1
        return tried

    assert asked(gateway, ask) >= 12


def test_a_body_that_says_nothing_of_its_kind_is_json(gateway: GatewayApp) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for headers in ({}, {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": "identity"}):
            sent = {"Authorization": "Bearer admin", **headers}
            answer = await client.put("/v1/rules", content=b'{"rules": []}', headers=sent)
            assert (answer.status_code, answer.json()["rules"]) == (200, []), answer.text
            answer = await client.post("/v1/experiments/no/ramp", headers={**sent, "Content-Type": "text/plain"})
            assert answer.status_code == 404  # no body, no kind

    asked(gateway, ask)


def test_a_method_that_a_path_has_not_is_refused_with_those_that_it_has(gateway: GatewayApp) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/readyz", "/metrics"):
            for method in ("GET", "HEAD"):
                assert (await client.request(method, path)).status_code == 200, path
            for method in ("POST", "PUT", "DELETE"):
                refused = await client.request(method, path)
                assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD"), path
        for method, path, allowed in (
            ("GET", "/v1/events", "POST"),
            ("HEAD", "/v1/recommendations/u", "GET"),
            ("POST", "/v1/popular", "GET"),
            ("DELETE", "/v1/items/a/similar", "GET"),
            ("POST", "/v1/users/u", "GET, PUT, PATCH, DELETE"),
        ):
            refused = await client.request(method, path, headers={"Authorization": "Bearer admin"})
            assert (refused.status_code, refused.headers["Allow"]) == (405, allowed), path

    asked(gateway, ask)


def test_ids_of_all_kinds_are_reached_by_path(gateway: GatewayApp) -> None:
    ids = ["a/b", "a\nb", "a\r\nb\n", "\n", " ", "%2F", "?#&", "a/similar", "similar/similar", "日本"]

    async def ask(client: httpx.AsyncClient) -> None:
        client.headers["Authorization"] = "Bearer admin"
        for one in ids:
            for kind in ("items", "users"):
                path = f"/v1/{kind}/{quote(one, safe='')}"
                assert (await client.put(path, json={})).status_code == 200, (kind, one)
                assert (await client.get(path)).json()[f"{kind[:-1]}_id"] == one
                assert (await client.patch(path, json={})).status_code == 200, (kind, one)
            path = f"/v1/items/{quote(one, safe='')}"
            similar = await client.get(f"{path}/similar")
            assert similar.status_code == 200 or similar.json()["error"]["field"] == "item_id", one
            assert (await client.delete(path)).status_code == 204, one
            assert (await client.get(path)).status_code == 404, one

    asked(gateway, ask)


def test_an_item_may_be_called_similar(gateway: GatewayApp) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        client.headers["Authorization"] = "Bearer admin"
        for item_id in ("similar", "merge"):
            assert (await client.put(f"/v1/items/{item_id}", json={})).status_code == 200
            assert (await client.get(f"/v1/items/{item_id}")).json()["item_id"] == item_id
        assert (await client.get("/v1/items//similar")).json()["error"]["field"] == "item_id"

    asked(gateway, ask)
