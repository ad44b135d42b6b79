"""The real stack: Redis, Ray Serve in HAProxy mode, over HTTP."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


def test_a_known_user_gets_the_next_items_of_the_walk(stack, empty_cache) -> None:
    answer = stack.http.get("/v1/recommendations/u3", params={"top_k": 5, "fields": "title,year"}).json()
    assert answer["user_id"] == "u3"
    assert answer["model_version"] == "1"
    assert answer["served_from"] == "online"
    assert not answer["degraded"]
    items = answer["recommended_items"]
    assert len(items) == 5
    assert items[0]["item_id"] == "i011"
    assert items[0]["title"] == "Item 11"
    assert {item["item_id"] for item in items}.isdisjoint(f"i{n:03d}" for n in range(3, 11))
    again = stack.http.get("/v1/recommendations/u3", params={"top_k": 5, "fields": "title,year"}).json()
    assert again["served_from"] == "cache"
    assert again["recommended_items"] == items


def test_an_unknown_user_gets_popular_items(stack) -> None:
    for _ in range(2):
        answer = stack.http.get("/v1/recommendations/nobody").json()
        assert answer["served_from"] == "popular"
        assert not answer["degraded"]
        assert len(answer["recommended_items"]) == 10


def test_an_accepted_event_changes_the_next_answer(stack) -> None:
    before = stack.http.get("/v1/recommendations/u7").json()["recommended_items"]
    event = {"user_id": "u7", "item_id": before[0]["item_id"], "action": "click", "event_id": "once-7"}
    receipt = stack.http.post("/v1/events", json=event)
    assert receipt.status_code == 202
    assert receipt.json() == {"accepted": 1, "duplicates": 0, "rejected": [], "event_ids": ["once-7"]}
    after = stack.http.get("/v1/recommendations/u7").json()
    assert after["served_from"] == "online"
    assert before[0]["item_id"] not in [item["item_id"] for item in after["recommended_items"]]
    assert stack.http.post("/v1/events", json=event).json()["duplicates"] == 1
    assert stack.http.get("/v1/recommendations/u7").json()["served_from"] == "cache"


def test_a_user_unknown_to_the_model_is_known_after_one_event(stack) -> None:
    stack.http.post("/v1/events", json={"user_id": "newcomer", "item_id": "i020", "action": "view"})
    answer = stack.http.get("/v1/recommendations/newcomer").json()
    assert answer["served_from"] == "online"
    assert answer["recommended_items"][0]["item_id"] == "i021"


def test_a_disliked_item_is_gone(stack) -> None:
    first = stack.http.get("/v1/recommendations/u9").json()["recommended_items"][0]["item_id"]
    stack.http.post("/v1/events", json={"user_id": "u9", "item_id": first, "action": "dislike"})
    for _ in range(2):
        answer = stack.http.get("/v1/recommendations/u9", params={"top_k": 50}).json()
        assert first not in [item["item_id"] for item in answer["recommended_items"]]


def test_half_valid_and_invalid_batches(stack) -> None:
    good, bad = {"user_id": "u1", "item_id": "i001", "action": "view"}, {"user_id": "u1", "action": "view"}
    half = stack.http.post("/v1/events", json={"events": [good, bad]})
    assert half.status_code == 202
    assert half.json()["accepted"] == 1
    assert half.json()["rejected"][0]["index"] == 1
    assert half.json()["event_ids"][1] is None
    assert stack.http.post("/v1/events", json=bad).json()["error"]["field"] == "item_id"
    assert stack.http.post("/v1/events", json={"events": [bad]}).status_code == 422
    assert stack.http.post("/v1/events", json={"events": []}).status_code == 422
    assert stack.http.post("/v1/events", json={"events": [good] * 1001}).status_code == 413
    assert stack.http.post("/v1/events", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert stack.http.post("/v1/events", content=b"a=1", headers={"content-type": "text/plain"}).status_code == 415


def test_session_and_recent_items_without_a_user(stack) -> None:
    asked = {"recent_items": ["i030", "i031"], "top_k": 3, "fields": ["title"]}
    answer = stack.http.post("/v1/recommendations", json=asked).json()
    assert answer["user_id"] is None
    assert answer["recommended_items"][0] | {"score": 0} == {
        "item_id": "i032",
        "score": 0,
        "source": "transition_knn",
        "title": "Item 32",
    }
    stack.http.post("/v1/events", json={"session_id": "s1", "item_id": "i012", "action": "view"})
    answer = stack.http.post("/v1/recommendations", json={"session_id": "s1"}).json()
    assert answer["recommended_items"][0]["item_id"] == "i013"


def test_candidates_of_the_caller_are_ranked(stack) -> None:
    own = ["i040", "i012", "i055", "no-such-item"]
    answer = stack.http.post("/v1/recommendations", json={"user_id": "u4", "candidates": own}).json()
    assert answer["recommended_items"][0]["item_id"] == "i012"
    assert {item["item_id"] for item in answer["recommended_items"]} == {"i040", "i012", "i055"}


@pytest.mark.parametrize(
    ("params", "holds"),
    [
        ({"category": "Comedy"}, lambda n: n % 2 == 0),
        ({"category": "Noir"}, lambda n: n % 2 == 1),
        ({"region": "US"}, lambda n: n % 5 != 0),
        ({"region": "DE"}, lambda n: True),
        ({"language": "en"}, lambda n: n < 50),
        ({"filter": '"Comedy" in categories && year >= 2000'}, lambda n: n % 2 == 0 and n >= 20),
        ({"filter": "year == 2035"}, lambda n: n == 55),
    ],
)
def test_filters_hold_whether_cached_computed_or_popular(stack, params, holds) -> None:
    allowed = {f"i{n:03d}" for n in range(60) if holds(n)}
    for user in ("u15", "u15", "a-stranger"):
        answer = stack.http.get(f"/v1/recommendations/{user}", params={"top_k": 8, **params}).json()
        seen = {f"i{n:03d}" for n in range(15, 23)} if user == "u15" else set()
        got = [item["item_id"] for item in answer["recommended_items"]]
        assert len(got) == min(8, len(allowed - seen))
        assert set(got) <= allowed - seen
    popular = stack.http.get("/v1/popular", params={"top_k": 8, **params}).json()["items"]
    assert {item["item_id"] for item in popular} <= allowed


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/recommendations/u1?top_k=0", 422, "top_k"),
        ("/v1/recommendations/u1?top_k=-3", 422, "top_k"),
        ("/v1/recommendations/u1?top_k=501", 422, "top_k"),
        ("/v1/recommendations/u1?top_k=ten", 422, "top_k"),
        ("/v1/recommendations/u1?filter=year%20%3E%3D", 422, "filter"),
        ("/v1/recommendations/u1?filter=year%20%3E%3D%20%22x%22", 422, "filter"),
        ("/v1/recommendations/u1?colour=red", 422, "colour"),
        ("/v1/recommendations/", 422, "user_id"),
        ("/v1/recommendations/" + "x" * 300, 422, "user_id"),
        ("/v1/nothing", 404, None),
    ],
)
def test_bad_requests_say_what_is_wrong(stack, path, status, field) -> None:
    answer = stack.http.get(path)
    assert answer.status_code == status
    assert answer.json()["error"].get("field") == field
    assert answer.json()["error"]["message"]
