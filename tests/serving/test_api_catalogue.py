"""Items and users over the admin API: what is stored, what is refused, and what JSON is taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient

from features.control_store import ControlStore
from features.errors import StoreError
from serving.audit import AuditLog
from serving.config import ServingConfig
from serving.control import ServingControl
from tests.serving.admin_api import ADMIN, BURY


def test_items_live_their_life(api: TestClient, config: ServingConfig) -> None:
    assert api.get("/v1/items/a", headers=ADMIN).json()["title"] == "A"
    changed = api.patch("/v1/items/a", json={"available": False}, headers=ADMIN)
    assert changed.json()["available"] is False
    assert api.patch("/v1/items/a", json={"available": True}).status_code == 401
    assert api.put("/v1/items/c", json={"title": "C", "year": 2020}, headers=ADMIN).json()["title"] == "C"
    assert api.post("/v1/items", json={"items": [{"item_id": "d", "title": "D"}]}, headers=ADMIN).json()["stored"] == 1
    assert api.delete("/v1/items/b", headers=ADMIN).status_code == 204
    assert api.get("/v1/items/b", headers=ADMIN).json()["error"]["code"] == "not_found"
    log = ServingControl(ControlStore(config.control_url), "shop").audit.entries()
    assert [(entry.action, entry.subject) for entry in log] == [
        ("item", "item:a"),
        ("item", "item:c"),
        ("item", "item:d"),
        ("item", "item:b"),
    ]


def test_the_log_says_of_an_item_what_the_catalogue_says_whoever_writes(api: TestClient, config: ServingConfig) -> None:
    """Gateways follow the log alone: two writers at once must be in it in the order in which the catalogue took them."""

    def write(number: int) -> int:
        if number % 2:
            return api.put("/v1/items/a", json={"title": str(number)}, headers=ADMIN).status_code
        return api.patch("/v1/items/a", json={"available": False, "year": number}, headers=ADMIN).status_code

    with ThreadPoolExecutor(8) as writers:
        assert set(writers.map(write, range(60))) == {200}
    log = ServingControl(ControlStore(config.control_url), "shop").audit.entries(subject="item:a")
    assert len(log) == 60
    assert all(entry.before == earlier.after for earlier, entry in pairwise(log))
    assert log[-1].after == api.get("/v1/items/a", headers=ADMIN).json()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/items/a", {"title": "other"}),
        ("PATCH", "/v1/items/a", {"available": False}),
        ("POST", "/v1/items", {"items": [{"item_id": "a", "title": "other"}, {"item_id": "c"}]}),
        ("DELETE", "/v1/items/a", None),
    ],
)
def test_a_change_that_cannot_be_recorded_is_not_made(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: object
) -> None:
    def broken(*_: object) -> None:
        raise StoreError("the disk is full")

    before = api.get("/v1/items/a", headers=ADMIN).json()
    monkeypatch.setattr(AuditLog, "write", broken)
    assert api.request(method, path, json=body, headers=ADMIN).status_code == 503
    assert api.get("/v1/items/a", headers=ADMIN).json() == before
    assert api.get("/v1/items/c", headers=ADMIN).status_code == 404


def test_parameters_that_a_route_has_not_are_refused_after_the_token(api: TestClient) -> None:
    for method, path in (
        ("GET", "/v1/audit"),
        ("GET", "/v1/items/a"),
        ("GET", "/v1/experiments"),
        ("PATCH", "/v1/items/a"),
        ("DELETE", "/v1/items/a"),
        ("POST", "/v1/experiments/try/start"),
    ):
        body = {"available": False} if method == "PATCH" else None
        refused = api.request(method, path, params={"nope": "1"}, json=body, headers=ADMIN)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "nope"), path
        assert api.request(method, path, params={"nope": "1"}, json=body).status_code == 401
    assert "allowed: after, at, limit, subject" in api.get("/v1/audit?nope=1", headers=ADMIN).json()["error"]["message"]
    twice = api.get("/v1/audit?limit=1&limit=2", headers=ADMIN)
    assert (twice.status_code, twice.json()["error"]["field"]) == (422, "limit")
    assert api.get("/v1/audit?limit=1&subject=item:&after=0", headers=ADMIN).json()["entries"] == []
    assert api.get("/v1/items/a", headers=ADMIN).json()["available"] is True


def test_ids_that_look_like_steps_of_a_path_are_ids(api: TestClient) -> None:
    for path, item_id in (("/v1/items/%2E", "."), ("/v1/items/%2E%2E", "..")):
        assert api.put(path, json={"title": "Dots"}, headers=ADMIN).json()["item_id"] == item_id
        assert api.get(path, headers=ADMIN).json()["item_id"] == item_id
        assert api.delete(path, headers=ADMIN).status_code == 204


def test_bad_items_are_refused_with_the_field(api: TestClient) -> None:
    answer = api.post("/v1/items", json={"items": [{"title": "no id"}]}, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "item_id")
    answer = api.post("/v1/items", json={"items": []}, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "items")


def test_a_batch_stores_what_is_valid_and_names_the_rest(api: TestClient) -> None:
    items = [
        {"item_id": "c", "year": 2001},
        {"item_id": "d", "year": "soon"},
        "e",
        {"item_id": ""},
        {"item_id": 7, "title": "Seven"},
    ]
    answer = api.post("/v1/items", json={"items": items}, headers=ADMIN)
    assert answer.status_code == 200
    assert answer.json()["stored"] == 2
    assert [(one["index"], one["field"]) for one in answer.json()["rejected"]] == [(1, "year"), (2, "item_id"), (3, "item_id")]
    assert [api.get(f"/v1/items/{item}", headers=ADMIN).status_code for item in ("c", "d", "7")] == [200, 404, 200]
    too_many = api.post("/v1/items", json={"items": [{"item_id": str(n)} for n in range(1001)]}, headers=ADMIN)
    assert (too_many.status_code, too_many.json()["error"]["field"]) == (422, "items")
    huge = api.put("/v1/items/e", json={"year": 2**63}, headers=ADMIN)
    assert (huge.status_code, huge.json()["error"]["field"]) == (422, "year")


@pytest.mark.parametrize(
    "text",
    ["1" + 30 * "0", "-1" + 30 * "0"],
    ids=["beyond integers", "below integers"],
)
def test_numbers_that_no_column_can_hold_are_refused_with_the_field(api: TestClient, config: ServingConfig, text: str) -> None:
    def refused(method: str, path: str, body: str) -> str:
        answer = api.request(method, path, content=body, headers={**ADMIN, "Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text
        return str(answer.json()["error"]["field"]).rsplit(".", 1)[-1]

    for name in ("price", "year"):
        assert refused("PATCH", "/v1/items/a", f'{{"{name}": {text}}}') == name
        assert refused("PUT", "/v1/items/a", f'{{"{name}": {text}}}') == name
        assert refused("POST", "/v1/items", f'{{"items": [{{"item_id": "a", "{name}": {text}}}]}}') == name
    for name in ("spent", "age"):
        assert refused("PUT", "/v1/users/u", f'{{"{name}": {text}}}') == name
        assert refused("POST", "/v1/users", f'{{"users": [{{"user_id": "u", "{name}": {text}}}]}}') == name
    assert api.get("/v1/items/a", headers=ADMIN).json() == {"item_id": "a", "title": "A", "year": 1990, "available": True}
    assert not ServingControl(ControlStore(config.control_url), "shop").audit.entries()


def test_large_numbers_that_a_column_holds_are_stored(api: TestClient) -> None:
    for method in ("PUT", "PATCH"):
        body = {"price": 2**60 + 1, "year": 2**63 - 1}
        assert api.request(method, "/v1/items/a", json=body, headers=ADMIN).status_code == 200
        assert api.get("/v1/items/a", headers=ADMIN).json()["year"] == 2**63 - 1
        assert api.get("/v1/items/a", headers=ADMIN).json()["price"] == pytest.approx(2.0**60)


PREVIEW, RULES = "/v1/rules/preview", '{"rules": [{"name": "x", "kind": "bury", "items": "year > 1", "when": "x > 1"}]'


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("PUT", "/v1/items/a", r'{"title": "\ud800"}', 400, "no low surrogate in string: line 1 column"),
        ("PATCH", "/v1/items/a", r'{"title": "\ud800"}', 400, "no low surrogate"),
        ("POST", "/v1/items", r'{"items": [{"item_id": "\ud800"}]}', 400, "no low surrogate"),
        ("PUT", "/v1/items/a", '{"year": NaN}', 400, "line 1 column 10"),
        ("PATCH", "/v1/items/a", '{"year": NaN}', 400, "line 1 column 10"),
        ("PUT", "/v1/items/a", '{"year": Infinity}', 400, "line 1 column 10"),
        ("PUT", "/v1/items/a", '{"year": 1e999}', 400, "infinity"),
        ("PUT", "/v1/users/u", r'{"age": 3, "user_id": "\udfff"}', 400, "surrogate"),
        ("PUT", "/v1/rules", r'{"rules": [{"name": "x", "kind": "pin", "item_ids": ["\ud800"]}]}', 400, "no low surrogate"),
        ("POST", PREVIEW, r'{"rules": [], "request": {"user_id": "\ud800"}}', 400, "no low surrogate"),
        ("POST", PREVIEW, RULES + ', "request": {"context": {"x": 1' + "0" * 30 + "}}}", 422, "request.context.x"),
        ("POST", PREVIEW, RULES + ', "request": {"context": {"x": [9223372036854775808]}}}', 422, "request.context.x.0"),
        ("PUT", "/v1/items/a", '{"year": ' + "9" * 200 + "}", 422, "year"),
        ("PUT", "/v1/experiments/try", '{"traffic": NaN}', 400, "line 1 column 13"),
        ("PUT", "/v1/items/a", "[" * 5000, 400, "depth limit"),
        ("PUT", "/v1/items/a", '{"title": ' + "[" * 1000 + "9" * 30 + "]" * 1000 + "}", 400, "nested too deeply"),
        ("GET", "/v1/audit?after=" + "9" * 30, None, 422, "after"),
        ("GET", "/v1/audit?after=9223372036854775808", None, 422, "after"),
    ],
)
def test_json_that_nobody_else_would_take_is_refused_and_changes_nothing(
    api: TestClient, method: str, path: str, body: str | None, status: int, said: str
) -> None:
    before = api.get("/v1/items/a", headers=ADMIN).json()
    answer = api.request(method, path, content=body, headers={**ADMIN, "Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, "malformed_json" if status == 400 else "invalid")
    assert said in error["message"]
    assert status == 400 or error["field"] == said
    assert api.get("/v1/items/a", headers=ADMIN).json() == before


def test_long_numbers_that_fit_are_taken(api: TestClient) -> None:
    assert api.put("/v1/items/a", json={"year": 2**63 - 1, "title": "9" * 40}, headers=ADMIN).json()["year"] == 2**63 - 1
    for context in ({"x": 2**63 - 1}, {"x": 1e30}, {"x": 0.12345678901234567890123}):
        ask = {"rules": [{**BURY, "when": "x > 1"}], "request": {"context": context}}
        assert api.post("/v1/rules/preview", json=ask, headers=ADMIN).status_code == 200


def test_an_id_twice_in_a_batch_is_stored_once_as_the_last_says(api: TestClient) -> None:
    items = [{"item_id": "7", "title": "First", "year": 1999}, {"item_id": "c", "year": 2001}, {"item_id": 7, "title": "Last"}]
    answer = api.post("/v1/items", json={"items": items}, headers=ADMIN).json()
    assert (answer["stored"], answer["rejected"]) == (2, [])
    assert api.get("/v1/items/7", headers=ADMIN).json() == {"item_id": "7", "title": "Last", "available": True}
    users = [{"user_id": "v", "age": 1}, {"user_id": "v", "age": 2}]
    assert api.post("/v1/users", json={"users": users}, headers=ADMIN).json()["stored"] == 1
    assert api.get("/v1/users/v", headers=ADMIN).json()["age"] == 2


def test_users_live_their_life(api: TestClient) -> None:
    assert api.put("/v1/users/u", json={"age": 30}, headers=ADMIN).json() == {"user_id": "u", "age": 30}
    assert api.patch("/v1/users/u", json={"age": None}, headers=ADMIN).json() == {"user_id": "u"}
    assert api.get("/v1/users/u", headers=ADMIN).status_code == 200
    assert api.get("/v1/users/nobody", headers=ADMIN).status_code == 404
    assert api.put("/v1/users/u", json={"user_id": "v"}, headers=ADMIN).json()["error"]["field"] == "user_id"
    batch = [{"user_id": "v", "age": 1}, {"user_id": "w", "age": "old"}, {"age": 3}]
    assert api.post("/v1/users", json={"users": batch}).status_code == 401
    answer = api.post("/v1/users", json={"users": batch}, headers=ADMIN).json()
    assert answer["stored"] == 1
    assert [(one["index"], one["field"]) for one in answer["rejected"]] == [(1, "age"), (2, "user_id")]
    assert api.get("/v1/users/v", headers=ADMIN).json() == {"user_id": "v", "age": 1}
    assert api.get("/v1/users/w", headers=ADMIN).status_code == 404
    none = api.post("/v1/users", json={"users": batch[1:]}, headers=ADMIN)
    assert (none.status_code, none.json()["error"]["field"]) == (422, "age")


def test_what_was_read_can_be_sent_back_and_another_id_is_refused_with_both(api: TestClient) -> None:
    api.put("/v1/items/7", json={"title": "Seven"}, headers=ADMIN)
    api.put("/v1/users/7", json={"age": 30}, headers=ADMIN)
    for path, key in (("/v1/items/7", "item_id"), ("/v1/users/7", "user_id")):
        before = api.get(path, headers=ADMIN).json()
        for method in ("PATCH", "PUT"):
            for same in ("7", 7):
                answer = api.request(method, path, json={**before, key: same}, headers=ADMIN)
                assert (answer.status_code, answer.json()) == (200, before), answer.text
            for other in ("8", 8, None, True, ["7"]):
                refused = api.request(method, path, json={**before, key: other}, headers=ADMIN)
                error = refused.json()["error"]
                assert (refused.status_code, error["field"]) == (422, key)
                assert error["message"] == f"the path says '7', the body says {str(other)!r}"
