"""The client against a real local HTTP server: what it sends, how it retries, what it raises; sync and async alike."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from shortlist import ApiError, AsyncClient, Client
from shortlist.client import NoAnswerError
from shortlist.client_calls import MAX_EVENTS_PER_CALL

ENVELOPE = {"recommendation_id": "r1", "recommended_items": [{"item_id": "b", "score": 2.0}, {"item_id": "a", "score": 1.0}]}


class Server:
    """Answers from a list of (status, body, headers), the last one for ever; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]]] = [(200, {}, {})]
        self.asked: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                split = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked: dict[str, Any] = {"method": self.command, "path": split.path, "query": parse_qs(split.query)}
                outer.asked.append(
                    {**asked, "body": json.loads(body) if body else None, "token": self.headers.get("Authorization")}
                )
                status, value, headers = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                text = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, header in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, header)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


Caller = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: Server) -> Caller:
    """`call("method", *args)` on a client of either kind."""

    def in_loop(name: str, *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(server.url, token="secret") as client:
                return await getattr(client, name)(*args, **kwargs)

        return asyncio.run(run())

    def waiting(name: str, *args: Any, **kwargs: Any) -> Any:
        with Client(server.url, token="secret") as client:
            return getattr(client, name)(*args, **kwargs)

    return in_loop if request.param == "async" else waiting


def test_recommendations_are_item_ids_in_order(server: Server, call: Caller) -> None:
    server.answers = [(200, ENVELOPE, {})]
    assert call("get_recommendations", "a/b ü", 5) == ["b", "a"]
    asked = server.asked[0]
    assert (asked["method"], asked["path"], asked["query"]) == ("GET", "/v1/recommendations/a%2Fb%20%C3%BC", {"top_k": ["5"]})
    assert asked["token"] == "Bearer secret"


CALLS_WITH_IDS = [
    ("get_recommendations", (), "GET", "/v1/recommendations/{}"),
    ("similar_items", (), "GET", "/v1/items/{}/similar"),
    ("item", (), "GET", "/v1/items/{}"),
    ("put_item", ({},), "PUT", "/v1/items/{}"),
    ("user", (), "GET", "/v1/users/{}"),
    ("put_user", ({},), "PUT", "/v1/users/{}"),
    ("merge_session", ("u",), "POST", "/v1/sessions/{}/merge"),
]


@pytest.mark.parametrize(("name", "others", "method", "path"), CALLS_WITH_IDS)
def test_ids_are_text_or_whole_numbers_and_arrive_as_they_are(
    server: Server, call: Caller, name: str, others: tuple[Any, ...], method: str, path: str
) -> None:
    server.answers = [(200, ENVELOPE, {})]
    for given, sent in ((42, "42"), (np.int64(7), "7"), ("..", "%2E%2E"), (".", "%2E"), ("...", "..."), ("../x", "..%2Fx")):
        call(name, given, *others)
        assert (server.asked[-1]["method"], server.asked[-1]["path"]) == (method, path.format(sent))
    asked = len(server.asked)
    for wrong in (None, True, 4.2, b"42"):
        with pytest.raises(TypeError, match=r"(user|item|session)_id must be text or a whole number, got"):
            call(name, wrong, *others)
    with pytest.raises(ValueError, match="_id must not be empty"):
        call(name, "", *others)
    assert len(server.asked) == asked


def test_what_cannot_be_sent_is_named(server: Server, call: Caller) -> None:
    for wrong in (datetime(2026, 11, 23, tzinfo=UTC).date(), True, b"now"):
        with pytest.raises(TypeError, match="timestamp must be a datetime, ISO 8601 text or epoch seconds, got"):
            call("log_user_activity", "42", "i1", "click", wrong)
    with pytest.raises(ValueError, match="timestamp must be finite, got nan"):
        call("log_events", [{"user_id": "42", "item_id": "i1", "action": "click", "timestamp": float("nan")}])
    with pytest.raises(TypeError, match="model_data must be a mapping such as"):
        call("update_model", "shortlist-shop", "2")
    assert not server.asked
    server.answers = [(202, {"event_ids": ["e"]}, {})]
    for given in (np.float64(1.5), np.int64(3), 1764500000):
        call("log_user_activity", "42", "i1", "click", given)
    assert [asked["body"]["timestamp"] for asked in server.asked] == [1.5, 3, 1764500000]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_address_without_its_scheme_is_refused_at_once(kind: type) -> None:
    with pytest.raises(ValueError, match="base_url must start with http:// or https://"):
        kind("127.0.0.1:8000")


def test_the_full_answer_comes_with_what_was_asked_and_nothing_else(server: Server, call: Caller) -> None:
    server.answers = [(200, ENVELOPE, {})]
    assert call("recommend", "42", top_k=3, filter="year > 1990", exclude_seen=False) == ENVELOPE
    assert server.asked[0]["body"] == {"user_id": "42", "top_k": 3, "filter": "year > 1990", "exclude_seen": False}


def test_an_event_always_has_an_id_and_keeps_it_when_sent_again(server: Server, call: Caller) -> None:
    accepted = {"accepted": 1, "duplicates": 0, "rejected": [], "event_ids": ["from-server"]}
    server.answers = [(503, {}, {}), (502, b"<html>", {}), (202, accepted, {})]
    assert call("log_user_activity", "42", "i1", "click", datetime(2026, 11, 23, tzinfo=UTC)) == "from-server"
    sent = [asked["body"] for asked in server.asked]
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2]
    assert len(sent[0].pop("event_id")) == 32
    assert sent[0] == {"user_id": "42", "item_id": "i1", "action": "click", "timestamp": "2026-11-23T00:00:00+00:00"}


def test_a_batch_gives_every_event_its_own_id(server: Server, call: Caller) -> None:
    server.answers = [(202, {"accepted": 2}, {})]
    assert call("log_events", [{"item_id": "a"}, {"item_id": "b", "event_id": "mine"}]) == {"accepted": 2}
    ids = [event["event_id"] for event in server.asked[0]["body"]["events"]]
    assert ids[1] == "mine"
    assert ids[0] != ids[1]
    for count in (0, MAX_EVENTS_PER_CALL + 1):
        with pytest.raises(ValueError, match="1 to 1000 events"):
            call("log_events", [{}] * count)


def test_update_model_puts_the_data(server: Server, call: Caller) -> None:
    server.answers = [(200, {"wanted": "3"}, {})]
    assert call("update_model", "shortlist-x", {"version": "3", "mode": "promote"}) == {"wanted": "3"}
    assert (server.asked[0]["method"], server.asked[0]["path"]) == ("PUT", "/v1/models/shortlist-x")
    assert server.asked[0]["body"] == {"version": "3", "mode": "promote"}


def test_a_refusal_is_raised_once_with_code_and_field(server: Server, call: Caller) -> None:
    server.answers = [(422, {"error": {"code": "invalid", "message": "top_k must be 1 to 500", "field": "top_k"}}, {})]
    with pytest.raises(ApiError, match="top_k must be 1 to 500") as raised:
        call("get_recommendations", "42", 0)
    assert (raised.value.code, raised.value.field, raised.value.status) == ("invalid", "top_k", 422)
    assert len(server.asked) == 1


def test_overload_is_waited_out_as_the_server_asks(server: Server, call: Caller) -> None:
    server.answers = [(429, {"error": {"code": "busy", "message": "later"}}, {"Retry-After": "0.4"}), (200, ENVELOPE, {})]
    started = time.monotonic()
    assert call("get_recommendations", "42") == ["b", "a"]
    assert time.monotonic() - started >= 0.4


def test_a_foreign_server_is_one_clear_error(server: Server, call: Caller) -> None:
    server.answers = [(200, {"hello": "world"}, {})]
    with pytest.raises(ApiError, match="not Shortlist's") as raised:
        call("get_recommendations", "42")
    assert raised.value.code == "unexpected_answer"
    server.answers = [(404, b"<html>", {})]
    with pytest.raises(ApiError, match="answered with status 404"):
        call("popular")


def test_an_absent_server_is_one_clear_error() -> None:
    with (
        Client("http://127.0.0.1:1", attempts=2) as client,
        pytest.raises(NoAnswerError, match=r"no answer from http://127\.0\.0\.1:1"),
    ):
        client.get_recommendations("42")
    with pytest.raises(ValueError, match="must not be empty"):
        Client("http://127.0.0.1:1").get_recommendations("")


def test_both_clients_have_the_same_calls() -> None:
    def public(kind: type) -> dict[str, inspect.Signature]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        own = {"send", "send_once", "close", "background"}
        return {name: inspect.signature(method) for name, method in methods if name[0] != "_" and name not in own}

    assert public(Client) == public(AsyncClient)
    assert {"get_recommendations", "log_user_activity", "update_model"} <= set(public(Client))
    assert all(inspect.getdoc(getattr(Client, name)) for name in public(Client))


def test_importing_the_client_is_cheap() -> None:
    heavy = "{'numpy', 'pandas', 'pyarrow', 'torch', 'ray', 'mlflow', 'feast', 'redis', 'typer'}"
    code = f"import sys; from shortlist import Client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
