"""Calls to MLflow: a race of two writers is run again, other refusals are not; on the real server and on one that loses races."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest

from training.errors import RegistryError
from training.mlflow_rest import ConflictError, MlflowRest, NotFoundError

CONFLICT = "(sqlite3.IntegrityError) UNIQUE constraint failed: model_version_tags.key, model_version_tags.name"


class Losing(BaseHTTPRequestHandler):
    """Refuses with what stands in the server's list, then answers."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls += 1  # type: ignore[attr-defined]
        refusals = self.server.refusals  # type: ignore[attr-defined]
        body = {"error_code": "BAD_REQUEST", "message": refusals.pop()} if refusals else {"done": True}
        self.send_response(400 if "message" in body else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def losing() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Losing)
    server.calls = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("refusals", "calls", "raised"),
    [
        ([CONFLICT] * 2, 3, None),
        (['duplicate key value violates unique constraint "model_version_tags_pk"'], 2, None),
        ([CONFLICT] * 9, 5, ConflictError),
        (["Invalid value for key"], 1, RegistryError),
    ],
)
def test_only_lost_races_are_run_again(losing, refusals: list[str], calls: int, raised: type[Exception] | None) -> None:
    losing.refusals = list(refusals)
    rest = MlflowRest(f"http://127.0.0.1:{losing.server_address[1]}")
    if raised is None:
        assert rest.call("POST", "model-versions/set-tag", json={}) == {"done": True}
    else:
        with pytest.raises(raised, match=refusals[0].split("(")[0].strip() or "UNIQUE"):
            rest.call("POST", "model-versions/set-tag", json={})
    assert losing.calls == calls
    rest.close()


@pytest.mark.integration
def test_many_writers_of_one_new_tag_all_go_through(mlflow_server: str) -> None:
    model, writers, rounds = f"race-{uuid4().hex}", 8, 6
    rests = [MlflowRest(mlflow_server, timeout_s=30) for _ in range(writers)]
    rests[0].call("POST", "registered-models/create", json={"name": model})
    together = threading.Barrier(writers)

    def write(number: int) -> None:
        for turn in range(rounds):
            together.wait(60)
            body = {"name": model, "key": f"tag{turn}", "value": str(number)}
            rests[number].call("POST", "registered-models/set-tag", json=body)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    found = rests[0].call("GET", "registered-models/get", params={"name": model})["registered_model"]["tags"]
    assert {tag["key"] for tag in found} == {f"tag{turn}" for turn in range(rounds)}
    with pytest.raises(NotFoundError):
        rests[0].call("GET", "registered-models/get", params={"name": "nothing-of-that-name"})
    for rest in rests:
        rest.close()
