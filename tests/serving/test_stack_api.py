"""Catalogue, experiments and OpenAPI over HTTP, on the real stack."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import redis

from serving.announce import announce

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def no_experiment_is_left_running(stack) -> Iterator[None]:
    yield
    for one in stack.control.experiments():
        if one.status == "running":
            stack.admin.post(f"/v1/experiments/{one.spec.name}/stop")


def spec(name: str, **changes: object) -> dict:
    variants = [{"name": "control", "model": "1", "weight": 1}, {"name": "treatment", "model": "2", "weight": 1}]
    return {"name": name, "salt": name, "traffic": 0.5, "variants": variants, "metrics": {"primary": "ctr"}} | changes


def test_a_delisted_item_is_gone_within_a_second_from_cached_answers_too(stack) -> None:
    def items() -> list[str]:
        return [item["item_id"] for item in stack.http.get("/v1/recommendations/u30").json()["recommended_items"]]

    first = items()[0]
    assert items()[0] == first
    assert stack.admin.patch(f"/v1/items/{first}", json={"available": False}).json()["available"] is False
    assert stack.wait(lambda: first not in items(), 1.0) < 1.0
    popular = stack.http.get("/v1/popular", params={"top_k": 500}).json()["items"]
    assert first not in [item["item_id"] for item in popular]
    stack.admin.patch(f"/v1/items/{first}", json={"available": True})
    stack.wait(lambda: first in items(), 1.0)


def test_every_answer_has_its_request_s_id_once(stack) -> None:
    hot = ("/v1/recommendations/u30", "/v1/recommendations/u30?top_k=0", "/v1/popular", "/readyz", "/metrics")
    for path in (*hot, "/v1/items/none-such"):
        for headers in ({}, {"X-Request-ID": "mine.1"}):
            (named,) = stack.http.get(path, headers=headers).headers.get_list("x-request-id")
            assert named == headers.get("X-Request-ID", named) != ""
            assert headers or re.fullmatch("[0-9a-f]{16}", named), "Ray Serve drew the id: the request did not go past it"


def test_items_are_created_read_and_deleted(stack) -> None:
    path = "/v1/items/" + quote("a/b?c", safe="")
    assert stack.http.get(path).json()["error"]["code"] == "not_found"
    made = stack.admin.put(path, json={"title": "Odd", "categories": ["Comedy"], "year": 2001})
    assert made.status_code == 200
    assert stack.http.get(path).json() == made.json()
    assert made.json() == {"item_id": "a/b?c", "title": "Odd", "categories": ["Comedy"], "year": 2001, "available": True}
    assert stack.admin.post("/v1/items", json={"items": [{"item_id": "n1"}, {"item_id": "n2", "year": 1}]}).json()["stored"] == 2
    for item in ("n1", "n2"):
        assert stack.admin.delete(f"/v1/items/{item}").status_code == 204
    assert stack.admin.delete(path).status_code == 204
    assert stack.http.get(path).status_code == 404
    assert stack.http.get("/v1/users/no-one").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("body", "field"),
    [({"year": "x"}, "year"), ({"colour": 1}, "colour"), ({"available": 1}, "available"), ({"categories": "a"}, "categories")],
)
def test_wrong_attributes_are_refused(stack, body, field) -> None:
    answer = stack.admin.patch("/v1/items/i001", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


def test_admin_calls_need_the_admin_token(stack) -> None:
    for method, path in [("GET", "/v1/models"), ("PATCH", "/v1/items/i001"), ("GET", "/v1/experiments"), ("POST", "/v1/items")]:
        assert stack.http.request(method, path, json={}).status_code in {401, 422}
        wrong = stack.http.request(method, path, json={"items": []}, headers={"Authorization": "Bearer guess"})
        assert wrong.status_code == 401
        assert wrong.json()["error"]["code"] == "unauthorized"
    asked = {"user_id": "u1", "model_version": "2"}
    assert stack.http.post("/v1/recommendations", json=asked).status_code == 401
    assert stack.admin.post("/v1/recommendations", json=asked).json()["model_version"] == "2"
    assert stack.admin.post("/v1/recommendations", json=asked | {"model_version": "9"}).status_code == 404


def test_an_experiment_splits_sticks_and_exposes(stack) -> None:
    created = stack.admin.put("/v1/experiments/split", json=spec("split"))
    assert created.json()["status"] == "draft"
    # The registry is not there in this stack: versions are pinned as an earlier start would have.
    stack.control.start_experiment("split", {"control": "1", "treatment": "2"}, actor="test")
    stack.control.run_experiment("split", actor="test")
    announce(stack.config)
    stack.wait(lambda: any(stack.http.get(f"/v1/recommendations/s{n}").json()["assignments"] for n in range(10)), 2.0)
    seen: Counter[tuple[str | None, str]] = Counter()
    for n in range(400):
        answers = [stack.http.get(f"/v1/recommendations/x{n}").json() for _ in range(2 if n < 20 else 1)]
        assigned = [answer["assignments"] for answer in answers]
        assert all(one == assigned[0] for one in assigned)
        variant = assigned[0][0]["variant"] if assigned[0] else None
        version = answers[0]["model_version"]
        assert version == ("2" if variant == "treatment" else "1")
        seen[variant, version] += 1
    assert 150 < seen[None, "1"] < 250
    assert 65 < seen["control", "1"] < 135
    assert 65 < seen["treatment", "2"] < 135

    with redis.Redis.from_url(stack.config.bus_url) as client:
        key = next(key for key in client.keys("*exposures") if client.type(key) == b"stream")
        stack.wait(lambda: client.xlen(key) >= 400 - seen[None, "1"], 2.0)
    refused = stack.admin.put("/v1/experiments/split", json=spec("split", salt="other"))
    assert refused.status_code == 409
    assert stack.admin.post("/v1/experiments/split/ramp", json={"traffic": 0.1}).status_code == 422
    assert stack.admin.post("/v1/experiments/split/ramp", json={"traffic": 1.0}).json()["spec"]["traffic"] == 1.0
    assert stack.admin.post("/v1/experiments/split/pause").json()["status"] == "paused"
    assert stack.admin.post("/v1/experiments/split/stop").json()["status"] == "stopped"
    stack.wait(lambda: not any(stack.http.get(f"/v1/recommendations/s{n}").json()["assignments"] for n in range(10)), 2.0)
    assert stack.admin.post("/v1/experiments/split/start").json()["error"]["code"] == "conflict"
    report = stack.admin.get("/v1/experiments/split/report")
    assert report.status_code == 200
    assert report.json()["experiment"] == "split"


def test_params_variants_change_the_request(stack) -> None:
    variants = [
        {"name": "all", "params": {"exclude_seen": True}, "weight": 1},
        {"name": "comedy", "params": {"filter": '"Comedy" in categories'}, "weight": 1},
    ]
    assert stack.admin.put("/v1/experiments/taste", json=spec("taste", traffic=1, variants=variants)).status_code == 200
    assert stack.admin.post("/v1/experiments/taste/start").json()["status"] == "running"
    stack.wait(lambda: bool(stack.http.get("/v1/recommendations/u1").json()["assignments"]), 2.0)
    even: dict[str, list[bool]] = {"all": [], "comedy": []}
    for n in range(40):
        answer = stack.http.get(f"/v1/recommendations/u{n}").json()
        items = [int(item["item_id"][1:]) for item in answer["recommended_items"]]
        even[answer["assignments"][0]["variant"]].append(all(item % 2 == 0 for item in items))
    assert all(even["comedy"])
    assert not any(even["all"])
    stack.admin.post("/v1/experiments/taste/stop")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"traffic": 2}, "traffic"),
        ({"variants": [{"name": "a", "model": "1", "weight": 1}]}, "variants"),
        ({"targeting": "region =="}, "targeting"),
        ({"variants": [{"name": n, "params": {"colour": 1}, "weight": 1} for n in "ab"]}, "variants"),
    ],
)
def test_wrong_experiments_are_refused(stack, changes, field) -> None:
    answer = stack.admin.put("/v1/experiments/wrong", json=spec("wrong", **changes))
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field
    assert stack.admin.get("/v1/experiments/wrong").json()["error"]["code"] == "not_found"


def test_models_say_that_the_registry_is_gone(stack) -> None:
    assert stack.admin.get("/v1/models").status_code == 503
    change = stack.admin.put("/v1/models/shortlist-planted", json={"version": "2", "mode": "canary", "traffic": 0.1})
    assert change.json()["error"]["code"] == "registry_unavailable"
    assert stack.admin.put("/v1/models/other", json={"version": "2"}).json()["error"]["code"] == "not_found"


def test_metrics_count(stack) -> None:
    stack.http.get("/v1/recommendations/u2")
    text = stack.http.get("/metrics").text
    assert "shortlist_recommendation_seconds_count" in text
    assert ',route="recommendations",status="200"}' in text
    assert 'shortlist_cache_reads_total{outcome="hit",replica=' in text


def test_rules_hold_in_every_answer_within_seconds_and_leave_again(stack) -> None:
    def items() -> list[str]:
        return [item["item_id"] for item in stack.http.get("/v1/recommendations/u31").json()["recommended_items"]]

    before = items()
    pin = {"name": "pin", "kind": "pin", "item_ids": ["i049"], "position": 0}
    hide = {"name": "hide", "kind": "exclude", "items": f'item_id == "{before[1]}"'}
    preview = stack.admin.post("/v1/rules/preview", json={"rules": [pin, hide], "request": {"user_id": "u31"}}).json()
    assert [item["item_id"] for item in preview["before"]["recommended_items"]] == before
    assert stack.admin.put("/v1/rules", json={"rules": [pin, hide]}).json()["changed"] == 2
    try:
        assert stack.wait(lambda: items()[0] == "i049", 5.0) < 5.0
        assert items() == [item["item_id"] for item in preview["after"]["recommended_items"]]
        assert before[1] not in items()
        assert stack.http.get("/v1/recommendations/u31").json()["served_from"] == "cache"
    finally:
        stack.admin.put("/v1/rules", json={"rules": []})
    stack.wait(lambda: items() == before, 5.0)


def test_pages_of_a_list_over_http_end_and_never_repeat(stack) -> None:
    seen, cursor = [], ""
    while cursor is not None:
        page = stack.http.get("/v1/recommendations/u32", params={"top_k": 7, "cursor": cursor}).json()
        seen += [item["item_id"] for item in page["recommended_items"]]
        cursor = page["next_cursor"]
    assert len(seen) == len(set(seen)) > 40
    refused = stack.http.get("/v1/recommendations/u32", params={"cursor": "nonsense"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "cursor")


def test_a_new_item_can_be_found_filtered_and_pinned_within_seconds(stack) -> None:
    def of_3000() -> list[str]:
        found = stack.http.get("/v1/recommendations/u33", params={"filter": "year == 3000", "fields": "title"})
        return [(item["item_id"], item["title"], item["source"]) for item in found.json()["recommended_items"]]

    assert of_3000() == []
    assert stack.admin.put("/v1/items/brand-new", json={"title": "Brand new", "year": 3000}).status_code == 200
    try:
        assert stack.wait(lambda: of_3000() == [("brand-new", "Brand new", "new")], 5.0) < 5.0
        assert stack.admin.patch("/v1/items/brand-new", json={"year": 3001}).status_code == 200
        stack.wait(lambda: of_3000() == [], 5.0)
    finally:
        stack.admin.delete("/v1/items/brand-new")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/recommendations/u1?top_k=0", "top_k"),
        ("/v1/recommendations/u1?top_k=-3", "top_k"),
        ("/v1/recommendations/u1?top_k=501", "top_k"),
        ("/v1/recommendations/u1?top_k=" + "9" * 3000, "top_k"),
        ("/v1/recommendations/u1?filter=year+%3E%3D", "filter"),
        ("/v1/recommendations/u1?filter=year+%3E+%22x%22", "filter"),
        ("/v1/recommendations/u1?filter=" + "%5B" * 1000, "filter"),
        ("/v1/recommendations/u1?filter=year+in+" + "%5B%28" * 500, "filter"),
        ("/v1/recommendations/u1?filter=true%29+%7C%7C+%28true", "filter"),
        ("/v1/recommendations/u1?diversity=2", "diversity"),
        ("/v1/recommendations/u1?diversity=nan", "diversity"),
        ("/v1/recommendations/u1?explain=maybe", "explain"),
        ("/v1/recommendations/u1?placement=nowhere", "placement"),
        ("/v1/recommendations/u1?exclude_seen_max_age_days=0", "exclude_seen"),
        ("/v1/recommendations/u1?exclude_seen=stolen", "exclude_seen"),
        ("/v1/recommendations/u1?language=" + ",".join("abcdefghi"), "language"),
        ("/v1/recommendations/u1?colour=red", "colour"),
    ],
)
def test_bad_parameters_are_named(stack, path: str, field: str) -> None:
    refused = stack.http.get(path)
    assert refused.status_code == 422
    assert refused.json()["error"]["field"] == field


def test_a_filter_that_nothing_passes_is_an_empty_answer_and_no_error(stack) -> None:
    for nothing in ("year > 9999", "&&".join(["a"] * 1_300), "||".join(["a"] * 1_300)):
        answer = stack.http.get("/v1/recommendations/u1", params={"filter": nothing})
        assert (answer.status_code, answer.json()["recommended_items"], answer.json()["next_cursor"]) == (200, [], None)


def test_malformed_and_oversized_bodies_and_other_content_types(stack) -> None:
    path = "/v1/recommendations"
    json_type = {"Content-Type": "application/json"}
    assert stack.http.post(path, content=b"{", headers=json_type).status_code == 400
    assert stack.http.post(path, content=b"[" * 100_000, headers=json_type).status_code == 400
    assert stack.http.post(path, content=b"x" * (5 << 20), headers=json_type).status_code == 413
    assert stack.http.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert stack.http.put("/v1/rules", json={"rules": []}).status_code == 401


def test_explanations_sum_to_the_scores_and_say_why(stack) -> None:
    for user, filter_ in [("u34", None), ("u35", "year >= 1990"), ("nobody-at-all", None)]:
        body = {"user_id": user, "top_k": 20, "explain": True, "filter": filter_}
        answer = stack.http.post("/v1/recommendations", json=body).json()
        assert len(answer["recommended_items"]) == 20
        for item in answer["recommended_items"]:
            assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-4)
            assert item["reason"]
        if user == "u34":
            assert any("because of your interest in" in item["reason"] for item in answer["recommended_items"])
    plain = stack.http.get("/v1/recommendations/u34", params={"top_k": 20}).json()
    told = stack.http.get("/v1/recommendations/u34", params={"top_k": 20, "explain": "true"}).json()
    assert [item["item_id"] for item in told["recommended_items"]] == [item["item_id"] for item in plain["recommended_items"]]
    last = plain["recommended_items"][-1]["item_id"]
    boosted = {"user_id": "u34", "explain": True, "boost": [{"filter": f'item_id == "{last}"', "weight": 5}]}
    first = stack.http.post("/v1/recommendations", json=boosted).json()["recommended_items"][0]
    assert first["item_id"] == last
    assert "lifted by boost" in first["reason"]
    assert sum(first["contributions"].values()) == pytest.approx(first["score"], abs=1e-4)


def test_similar_and_trending_over_http(stack) -> None:
    similar = stack.http.get("/v1/items/i020/similar", params={"top_k": 3, "fields": "title"}).json()["items"]
    assert (similar[0]["item_id"], similar[0]["title"]) == ("i021", "Item 21")
    assert stack.http.get("/v1/items/i020/similar", params={"filter": "year > 2025"}).json()["items"]
    assert stack.http.get("/v1/items/no-such/similar").status_code == 404
    assert len(stack.http.get("/v1/trending", params={"top_k": 5}).json()["items"]) == 5
    assert stack.http.get("/v1/trending", params={"window": "9d"}).json()["error"]["field"] == "window"
