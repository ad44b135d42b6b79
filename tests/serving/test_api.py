"""The admin API on a real control store, MLflow and Redis being gone: scopes, catalogue, experiments, errors, OpenAPI."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from experiments.errors import OverlapError
from features.control_store import ControlStore
from serving.api.context import ApiContext
from serving.audit import AuditLog
from serving.canary import canary_spec
from serving.config import ServingConfig
from serving.control import ServingControl
from serving.rule_store import RuleStore
from serving.rules import Rule
from tests.serving.admin_api import ADMIN, BURY, SPEC
from training.errors import AliasNameError, NoEarlierVersionError, RegistryError, UnknownVersionError
from training.registry import Registry


@pytest.mark.parametrize("path", ["/v1/models", "/v1/experiments"])
def test_admin_calls_want_the_admin_token(api: TestClient, path: str) -> None:
    assert api.get(path).status_code == 401
    assert api.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    refused = api.get(path, headers={"Authorization": "Bearer read-secret"})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden"


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


def test_an_experiment_has_the_name_of_its_path(api: TestClient) -> None:
    nameless = {name: value for name, value in SPEC.items() if name != "name"}
    assert api.put("/v1/experiments/try", json=nameless, headers=ADMIN).json()["spec"]["name"] == "try"
    assert api.put("/v1/experiments/try", json=SPEC, headers=ADMIN).status_code == 200
    for path, body in (("try", {**SPEC, "name": "other"}), ("try", {**SPEC, "name": None}), ("Has%20Space", nameless)):
        refused = api.put(f"/v1/experiments/{path}", json=body, headers=ADMIN)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "name"), refused.text


def test_a_ramp_takes_the_next_step(api: TestClient, config: ServingConfig) -> None:
    api.put("/v1/experiments/try", json=SPEC, headers=ADMIN)
    control = ServingControl(ControlStore(config.control_url), "shop")
    control.start_experiment("try", {"control": "1", "treatment": "2"}, actor="test")
    assert api.post("/v1/experiments/try/ramp", headers=ADMIN).json()["spec"]["traffic"] == 0.5
    assert api.post("/v1/experiments/try/ramp", headers=ADMIN).json()["error"]["field"] == "traffic"
    assert api.post("/v1/experiments/try/ramp", json={"traffic": 1.0}, headers=ADMIN).json()["spec"]["traffic"] == 1.0
    lowered = api.put("/v1/experiments/try", json={**SPEC, "traffic": 0.5}, headers=ADMIN)
    assert (lowered.status_code, lowered.json()["error"]["code"]) == (409, "experiment_started")
    assert api.get("/v1/experiments/try", headers=ADMIN).json()["spec"]["traffic"] == 1.0
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
        ({"mode": "canary", "version": "1", "traffic": True}, 422, "traffic"),
        ({"mode": "shadow", "traffic": False}, 422, "traffic"),
        ({"version": 1.5}, 422, "version"),
        ({"version": ["1"]}, 422, "version"),
        ({"x": 1}, 422, "x"),
    ],
)
def test_bad_model_updates_are_refused(api: TestClient, body: dict[str, object], status: int, field: str) -> None:
    answer = api.put("/v1/models/shortlist-shop", json=body, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


@pytest.mark.parametrize(("left", "stopped"), [("1", True), ("2", True), ("3", False)])
def test_a_rollback_leaves_no_canary_on_the_version_that_it_leaves(
    api: TestClient, config: ServingConfig, monkeypatch: pytest.MonkeyPatch, left: str, stopped: bool
) -> None:
    monkeypatch.setattr(Registry, "aliases", lambda _: {"champion": "0"})
    monkeypatch.setattr(Registry, "versions", lambda _: [])
    monkeypatch.setattr(Registry, "rollback", lambda _, alias, by: (left, "0"))
    control = ServingControl(ControlStore(config.control_url), "shop")
    control.put_experiment(canary_spec("2", "1", 0.3, ()), actor="t")
    control.start_experiment("canary-2", {"champion": "1", "canary": "2"}, actor="t")
    other = api.post("/v1/models/shortlist-shop/rollback", json={"alias": "challenger"}, headers=ADMIN)
    assert (other.status_code, other.json()["canary"]["version"]) == (200, "2")
    answer = api.post("/v1/models/shortlist-shop/rollback", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["canary"] is None) == stopped
    ended = control.experiment("canary-2")
    assert ended is not None
    assert (ended.status == "stopped") == stopped


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


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PUT", "/v1/experiments/try", {**SPEC, "traffic": True}, "traffic"),
        ("POST", "/v1/experiments/try/ramp", {"traffic": True}, "traffic"),
        ("PUT", "/v1/rules", {"rules": [{"name": "r", "kind": "boost", "items": "year > 1", "weight": True}]}, "rules.0.weight"),
        ("PUT", "/v1/rules", {"rules": [{"name": "r", "kind": "pin", "item_ids": ["a"], "position": False}]}, "rules.0.position"),
        ("PUT", "/v1/rules", {"rules": [{"name": "r", "kind": "cap", "attribute": "year", "limit": True}]}, "rules.0.limit"),
    ],
)
def test_a_truth_value_is_no_number(api: TestClient, method: str, path: str, body: dict[str, object], field: str) -> None:
    api.put("/v1/experiments/try", json=SPEC, headers=ADMIN)
    refused = api.request(method, path, json=body, headers=ADMIN)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, field), refused.text
    assert "must be a number, not true or false" in refused.json()["error"]["message"]
    assert api.get("/v1/experiments/try", headers=ADMIN).json()["spec"]["traffic"] == SPEC["traffic"]


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


def test_an_unknown_field_of_a_body_is_named_with_those_that_are_known(api: TestClient) -> None:
    rules = {"rules": [BURY, {"name": "x", "kind": "bury", "filter": "year > 1"}]}
    error = api.put("/v1/rules", json=rules, headers=ADMIN).json()["error"]
    assert error["field"] == "rules.1.filter"
    assert error["message"].startswith(
        "unknown field 'filter'; allowed: attribute, enabled, ends_at, item_ids, items, kind, limit,"
    )
    error = api.put("/v1/models/shortlist-shop", json={"version": "1", "share": 1}, headers=ADMIN).json()["error"]
    assert (error["field"], error["message"]) == ("share", "unknown field 'share'; allowed: alias, mode, traffic, version")
    late = {**BURY, "starts_at": "2026-01-02T00:00:00Z", "ends_at": "2026-01-01T00:00:00Z"}
    error = api.put("/v1/rules", json={"rules": [late]}, headers=ADMIN).json()["error"]
    assert error["message"] == "rules.0: ends_at must be later than starts_at"


def test_a_rule_that_reads_what_no_item_has_is_taken_with_a_warning(api: TestClient) -> None:
    slip = {"name": "slip", "kind": "exclude", "items": "adlt || year > 1"}
    cap = {"name": "cap", "kind": "cap", "attribute": "brnad", "limit": 1}
    for answer in (
        api.put("/v1/rules", json={"rules": [BURY, slip, cap]}, headers=ADMIN),
        api.post("/v1/rules/preview", json={"rules": [BURY, slip, cap], "request": {}}, headers=ADMIN),
    ):
        warnings = answer.json()["warnings"]
        assert [warning.split(",")[0] for warning in warnings] == ["rule 'slip' reads 'adlt'", "rule 'cap' reads 'brnad'"]
    known = {"name": "known", "kind": "exclude", "items": 'year > 1 && !available && item_id == "a" && "us" in regions'}
    assert api.put("/v1/rules", json={"rules": [known]}, headers=ADMIN).json()["warnings"] == []


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
