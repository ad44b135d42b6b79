"""The admin API on a real control store, MLflow and Redis being gone: scopes, catalogue, experiments, errors, OpenAPI."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from experiments.errors import OverlapError
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.errors import StoreError
from features.schema import Attribute, DatasetSchema
from serving.answers import Answerer
from serving.api.app import build_api
from serving.api.context import ApiContext
from serving.audit import AuditLog
from serving.cache import ListCache
from serving.canary import canary_spec
from serving.config import ServingConfig, hash_token
from serving.control import ServingControl
from serving.live_state import SnapshotLoader
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.placements import Placement
from serving.rule_store import RuleStore
from serving.rules import Rule
from training.errors import AliasNameError, NoEarlierVersionError, RegistryError, UnknownVersionError
from training.registry import Registry

ADMIN = {"Authorization": "Bearer admin-secret"}
NOWHERE = "http://127.0.0.1:9"

SPEC = {
    "name": "try",
    "salt": "try-1",
    "variants": [
        {"name": "control", "model": "champion", "weight": 0.5},
        {"name": "treatment", "model": "challenger", "weight": 0.5},
    ],
    "metrics": {"primary": "ctr"},
    "ramp": {"steps": [0.1, 0.5]},
    "traffic": 0.1,
}


@pytest.fixture
def config(tmp_path: Path) -> ServingConfig:
    return ServingConfig(
        dataset="shop",
        home=tmp_path,
        mlflow_uri=NOWHERE,
        control_url=f"sqlite:///{tmp_path / 'control.db'}",
        bus_url="redis://127.0.0.1:9/0",
        features_url="redis://127.0.0.1:9/0",
        cache_url="redis://127.0.0.1:9/0",
        admin_token_sha256=hash_token("admin-secret"),
        read_token_sha256=hash_token("read-secret"),
        placements={"home": Placement(top_k=3)},
    )


@pytest.fixture
def api(config: ServingConfig) -> Iterator[TestClient]:
    catalogue = Catalogue(ControlStore(config.control_url).create(), "shop")
    columns = (Attribute("title", "title", "string"), Attribute("year", "year", "int"), Attribute("price", "price", "float"))
    of_users = (Attribute("age", "age", "int"), Attribute("spent", "spent", "float"))
    catalogue.save_schema(DatasetSchema("shop", item_attributes=columns, user_attributes=of_users))
    catalogue.upsert_items(pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "year": [1990, 2000]}))
    snapshot = SnapshotLoader(config).load()
    answerer = Answerer(config, ListCache(config), no_version, lambda: snapshot, GatewayMetrics())
    with TestClient(build_api(ApiContext(config, lambda: None, answerer)), raise_server_exceptions=False) as client:
        yield client


async def no_version(version: str, request: ComputeRequest) -> bytes:
    raise AssertionError("there is no version to ask")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/experiments"])
def test_admin_calls_want_the_admin_token(api: TestClient, path: str) -> None:
    assert api.get(path).status_code == 401
    assert api.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    refused = api.get(path, headers={"Authorization": "Bearer read-secret"})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden"


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


def test_an_experiment_is_put_but_does_not_start_without_a_registry(api: TestClient) -> None:
    draft = api.put("/v1/experiments/try", json=SPEC, headers=ADMIN).json()
    assert (draft["status"], draft["shares"]) == ("draft", {"control": 0.05, "treatment": 0.05})
    assert [one["name"] for one in api.get("/v1/experiments", headers=ADMIN).json()["experiments"]] == ["try"]
    answer = api.post("/v1/experiments/try/start", headers=ADMIN)
    assert answer.status_code == 503
    assert api.post("/v1/experiments/try/pause", headers=ADMIN).status_code == 409
    assert api.post("/v1/experiments/nothing/stop", headers=ADMIN).status_code == 404
    assert api.put("/v1/experiments/other", json=SPEC, headers=ADMIN).json()["error"]["field"] == "name"
    assert api.put("/v1/experiments/try", json={**SPEC, "variants": []}, headers=ADMIN).status_code == 422


def test_a_ramp_takes_the_next_step(api: TestClient, config: ServingConfig) -> None:
    api.put("/v1/experiments/try", json=SPEC, headers=ADMIN)
    control = ServingControl(ControlStore(config.control_url), "shop")
    control.start_experiment("try", {"control": "1", "treatment": "2"}, actor="test")
    assert api.post("/v1/experiments/try/ramp", headers=ADMIN).json()["spec"]["traffic"] == 0.5
    assert api.post("/v1/experiments/try/ramp", headers=ADMIN).json()["error"]["field"] == "traffic"
    assert api.post("/v1/experiments/try/ramp", json={"traffic": 1.0}, headers=ADMIN).json()["spec"]["traffic"] == 1.0
    report = api.get("/v1/experiments/try/report", headers=ADMIN)
    assert report.status_code == 200
    assert api.post("/v1/experiments/try/stop", headers=ADMIN).json()["status"] == "stopped"


def test_of_experiments_that_overlap_one_starts_however_many_ask_at_once(api: TestClient, config: ServingConfig) -> None:
    """Two that run would turn off all: gateways refuse such a set."""
    names = [f"try{number}" for number in range(8)]
    variants = [{"name": name, "params": {"exclude_seen": name == "control"}, "weight": 0.5} for name in ("control", "treatment")]
    for name in names:
        spec = {**SPEC, "name": name, "salt": f"{name}-1", "layer": "lists", "variants": variants}
        assert api.put(f"/v1/experiments/{name}", json=spec, headers=ADMIN).status_code == 200
    with ThreadPoolExecutor(8) as admins:
        answers = list(admins.map(lambda name: api.post(f"/v1/experiments/{name}/start", headers=ADMIN), names))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 7]
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409} == {"experiments_overlap"}
    control = ServingControl(ControlStore(config.control_url), "shop")
    (running,) = [one.spec.name for one in control.experiments() if one.status == "running"]
    control.end_experiment(running, "paused", actor="test")
    other = next(name for name in names if name != running)
    control.start_experiment(other, {}, actor="test")
    with pytest.raises(OverlapError, match="overlap in layer"):
        control.start_experiment(running, {}, actor="test")  # a paused one that others have taken the place of
    assert control.experiment(running).status == "paused"  # type: ignore[union-attr]


def test_a_registry_that_is_gone_is_a_503(api: TestClient) -> None:
    answer = api.get("/v1/models", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "registry_unavailable")


@pytest.mark.parametrize("alias", ["latest", "Latest", "v1", "V20", "a b", "a.b", "a" * 201])
def test_a_name_that_no_alias_can_have_is_refused(api: TestClient, alias: str) -> None:
    answers = (
        api.put(f"/v1/models/shortlist-shop/aliases/{quote(alias)}", json={"version": "1"}, headers=ADMIN),
        api.put("/v1/models/shortlist-shop", json={"version": "1", "alias": alias}, headers=ADMIN),
    )
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "alias"), answer.text


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (RegistryError("MLflow cannot be reached (ReadTimeout)"), 503, "registry_unavailable"),
        (UnknownVersionError("there is no version 7"), 404, "not_found"),
        (AliasNameError("MLflow does not take that name"), 422, "invalid"),
    ],
)
def test_what_is_the_registrys_fault_is_not_the_callers(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, raised: RegistryError, status: int, code: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(Registry, "aliases", lambda _: {"champion": "2"})
    monkeypatch.setattr(Registry, "version", refuse)
    promoted = api.put("/v1/models/shortlist-shop", json={"version": "7"}, headers=ADMIN)
    assert (promoted.status_code, promoted.json()["error"]["code"]) == (status, code)
    assert (promoted.headers.get("Retry-After") is not None) == (status == 503)


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (RegistryError("MLflow cannot be reached (ReadTimeout)"), 503, "registry_unavailable"),
        (UnknownVersionError("there is no alias x"), 409, "no_earlier_version"),
        (NoEarlierVersionError("no earlier version is known"), 409, "no_earlier_version"),
    ],
)
def test_a_rollback_that_the_registry_did_not_answer_may_be_tried_again(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, raised: RegistryError, status: int, code: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(Registry, "aliases", lambda _: {"champion": "2"})
    monkeypatch.setattr(Registry, "rollback", refuse)
    answer = api.post("/v1/models/shortlist-shop/rollback", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"mode": "canary"}, 422, "version"),
        ({"mode": "canary", "version": "1", "traffic": 2}, 422, "traffic"),
        ({"mode": "canary", "version": "1", "alias": "other"}, 422, "alias"),
        ({"mode": "promote", "version": "1", "traffic": 0.5}, 422, "traffic"),
        ({"mode": "rollback", "version": "1"}, 422, "version"),
        ({"mode": "shadow"}, 422, "version"),
        ({}, 422, "version"),
        ({"mode": "sideways"}, 422, "mode"),
        ({"version": True}, 422, "version"),
        ({"version": 1.5}, 422, "version"),
        ({"version": ["1"]}, 422, "version"),
        ({"x": 1}, 422, "x"),
    ],
)
def test_bad_model_updates_are_refused(api: TestClient, body: dict[str, object], status: int, field: str) -> None:
    answer = api.put("/v1/models/shortlist-shop", json=body, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


def test_a_canary_cannot_be_lowered_and_the_refusal_speaks_of_its_own_share(
    api: TestClient, config: ServingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApiContext, "aliases", lambda self: {"champion": "1"})
    monkeypatch.setattr(ApiContext, "servable_version", lambda self, name, field: name)
    control = ServingControl(ControlStore(config.control_url), "shop")
    control.put_experiment(canary_spec("2", "1", 0.3, ()), actor="t")
    control.start_experiment("canary-2", {"champion": "1", "canary": "2"}, actor="t")
    refused = api.put("/v1/models/shortlist-shop", json={"version": 2, "mode": "canary", "traffic": 0.05}, headers=ADMIN)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "traffic")
    assert "traffic 0.05 is below the canary's present 0.3" in refused.json()["error"]["message"]
    assert "stop experiment canary-2" in refused.json()["error"]["message"]


def test_another_model_is_not_served_here(api: TestClient) -> None:
    answer = api.put("/v1/models/shortlist-else", json={"version": "1"}, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_nowhere_is_a_404_in_the_form_of_the_api(api: TestClient) -> None:
    assert api.get("/v2/anything").json()["error"]["code"] == "not_found"
    for method, path, allowed in (
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/v1/items/a", "GET, PUT, PATCH, DELETE"),
        ("GET", "/v1/items", "POST"),
        ("HEAD", "/v1/items/a", "GET, PUT, PATCH, DELETE"),
        ("GET", "/v1/experiments/try/start", "POST"),
    ):
        refused = api.request(method, path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, allowed), path
        assert method == "HEAD" or refused.json()["error"]["code"] == "method_not_allowed"


BURY = {"name": "old", "kind": "bury", "items": "year < 1995"}


def test_rules_are_replaced_as_a_whole_and_audited(api: TestClient, config: ServingConfig) -> None:
    pin = {"name": "top", "kind": "pin", "item_ids": ["a"], "placements": ["home"], "starts_at": "2026-01-01T00:00:00Z"}
    assert api.get("/v1/rules", headers=ADMIN).json() == {"rules": []}
    stored = api.put("/v1/rules", json={"rules": [BURY, pin]}, headers=ADMIN).json()
    assert stored["changed"] == 2
    assert [rule["name"] for rule in api.get("/v1/rules", headers=ADMIN).json()["rules"]] == ["old", "top"]
    changed = {**BURY, "enabled": False}
    assert api.put("/v1/rules", json={"rules": [changed]}, headers=ADMIN).json()["changed"] == 2
    audit = ServingControl(ControlStore(config.control_url), "shop").audit
    log = [(entry.actor, entry.subject, entry.before is None, entry.after is None) for entry in audit.entries()]
    assert log == [
        ("http:admin", "rule:old", True, False),
        ("http:admin", "rule:top", True, False),
        ("http:admin", "rule:old", False, False),
        ("http:admin", "rule:top", False, True),
    ]
    assert set(audit.replay(datetime.now(UTC))) == {"rule:old"}


@pytest.mark.parametrize(
    "rule",
    [
        {"name": "x", "kind": "boost", "items": "year > 1"},
        {"name": "x", "kind": "bury", "items": "year >"},
        {"name": "x", "kind": "bury", "items": 'year > "x"'},
        {"name": "x", "kind": "bury", "items": "year > 1", "weight": 1},
        {"name": "x", "kind": "pin"},
        {"name": "x", "kind": "cap", "attribute": "year"},
        {"name": "X y", "kind": "bury", "items": "year > 1"},
        {"name": "x", "kind": "bury", "items": "year > 1", "placements": ["nowhere"]},
        {"name": "x", "kind": "bury", "items": "year > 1", "when": "region =="},
        {"name": "x", "kind": "bury", "items": "year > 1", "starts_at": "2026-01-02", "ends_at": "2026-01-01"},
        {"name": "x", "kind": "boost", "items": "year > 1", "weight": "much"},
        {"name": "x", "kind": "hide", "items": "year > 1"},
        {"name": "x", "kind": "bury", "items": "[" * 3000},
        {"name": "x", "kind": "bury", "items": "year > 1", "when": "[" * 3000},
        {"name": "x", "kind": "bury", "items": r'title == "\d"'},
        {"name": "x", "kind": "bury", "items": "year > 1", "when": "age > 9223372036854775808"},
        {**BURY},
    ],
)
def test_rules_that_could_not_be_applied_are_refused_and_change_nothing(api: TestClient, rule: dict) -> None:
    api.put("/v1/rules", json={"rules": [BURY]}, headers=ADMIN)
    answer = api.put("/v1/rules", json={"rules": [BURY, rule]}, headers=ADMIN)
    assert answer.status_code == 422, answer.json()
    assert "error" in answer.json()
    assert len(api.get("/v1/rules", headers=ADMIN).json()["rules"]) == 1


def test_a_rule_of_an_earlier_release_that_is_refused_now_is_left_out_and_the_others_hold(
    config: ServingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    store = ControlStore(config.control_url).create()
    pin = Rule(name="top", kind="pin", item_ids=("a",), starts_at=datetime(2026, 1, 1, tzinfo=UTC))
    RuleStore(store, "shop").replace([pin, Rule.model_construct(name="old", kind="bury", items=r'title == "\d"')], actor="test")
    rules = RuleStore(store, "shop")
    assert rules.rules() == [pin]
    assert list(rules.book().rules) == [pin]
    assert "rule old is not applied" in caplog.text


@pytest.mark.parametrize("symbol", ["&&", "||"])
def test_rules_that_are_taken_can_be_evaluated_however_long_they_are(api: TestClient, symbol: str) -> None:
    longest = symbol.join(["a"] * 1_300)
    rules = [{**BURY, "when": f"{longest}{symbol}a"}, {"name": "x", "kind": "exclude", "items": longest}]
    assert api.put("/v1/rules", json={"rules": rules}, headers=ADMIN).status_code == 200
    ask = {"rules": rules, "request": {"user_id": "u", "context": {"a": True}}}
    shown = api.post("/v1/rules/preview", json=ask, headers=ADMIN).json()
    assert [item["item_id"] for item in shown["after"]["recommended_items"]] == ["b", "a"]


def test_a_preview_shows_before_and_after_and_changes_nothing(api: TestClient) -> None:
    ask = {"rules": [BURY], "request": {"user_id": "u", "top_k": 2}}
    shown = api.post("/v1/rules/preview", json=ask, headers=ADMIN).json()
    ids = [[item["item_id"] for item in shown[when]["recommended_items"]] for when in ("before", "after")]
    assert ids == [["a", "b"], ["b", "a"]]
    assert {one["item_id"]: (one["from"], one["to"]) for one in shown["moved"]} == {"a": (0, 1), "b": (1, 0)}
    assert api.get("/v1/rules", headers=ADMIN).json() == {"rules": []}
    bad = api.post("/v1/rules/preview", json={"rules": [], "request": {"top_k": 0}}, headers=ADMIN)
    assert (bad.status_code, bad.json()["error"]["field"]) == (422, "top_k")
    for call in (api.get("/v1/rules"), api.put("/v1/rules", json={"rules": []}), api.post("/v1/rules/preview", json=ask)):
        assert call.status_code == 401


def test_erasing_needs_the_admin_names_what_was_not_reached_and_is_audited_without_the_id(
    api: TestClient, config: ServingConfig
) -> None:
    api.put("/v1/users/erika-m", json={}, headers=ADMIN)
    assert api.delete("/v1/users/erika-m").status_code == 401
    answer = api.delete("/v1/users/erika-m", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "erasure_unfinished")
    assert "bundles" in answer.json()["error"]["message"], "the registry is away"
    assert api.get("/v1/users/erika-m", headers=ADMIN).status_code == 404
    store = ControlStore(config.control_url)
    (entry,) = [one for one in AuditLog(store, config.dataset).entries() if one.action == "user.erase"]
    assert entry.subject.startswith("erased:")
    assert "erika" not in f"{entry.subject}{entry.before}{entry.after}"
    store.close()
