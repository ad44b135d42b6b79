"""A visitor logs in: over HTTP on the real stack, and through the real worker into store and online features."""

from __future__ import annotations

import uuid

import pytest

from features.bus import EVENTS, FEATURES_GROUP, SESSIONS, STORE_GROUP
from features.redis_bus import RedisStreamBus
from features.session_merges import decode_merges
from shortlist import Client

pytestmark = pytest.mark.integration


def items_of(answer) -> list[str]:
    return [item["item_id"] for item in answer["recommended_items"]]


def test_a_session_joins_the_account_in_the_next_answer(stack) -> None:
    session, user = f"s-{uuid.uuid4().hex}", f"new-{uuid.uuid4().hex}"
    asked = {"session_id": session, "top_k": 5}
    for item in ("i020", "i030"):
        event = {"session_id": session, "item_id": item, "action": "view"}
        assert stack.http.post("/v1/events", json=event).status_code == 202
    stack.http.post("/v1/events", json={"session_id": session, "item_id": "i031", "action": "dislike"})
    visitor = items_of(stack.http.post("/v1/recommendations", json=asked).json())
    assert stack.http.get(f"/v1/recommendations/{user}").json()["served_from"] == "popular"
    with Client(str(stack.http.base_url)) as client:
        assert client.merge_session(session, user) == {"session_id": session, "user_id": user, "recent_events": 3}
        assert client.merge_session(session, user)["recent_events"] == 0
    account = stack.http.get(f"/v1/recommendations/{user}", params={"top_k": 5}).json()
    assert account["served_from"] == "online"
    assert items_of(account) == visitor
    everything = items_of(stack.http.get(f"/v1/recommendations/{user}", params={"top_k": 60}).json())
    assert {"i020", "i030", "i031"}.isdisjoint(everything)
    # The next person on the same device starts anew, and cannot take what has been given.
    assert stack.http.post("/v1/recommendations", json=asked).json()["served_from"] == "popular"
    other = f"other-{uuid.uuid4().hex}"
    assert stack.http.post(f"/v1/sessions/{session}/merge", json={"user_id": other}).json()["recent_events"] == 0
    assert stack.http.get(f"/v1/recommendations/{other}").json()["served_from"] == "popular"


def test_the_bus_has_the_merge(stack) -> None:
    session = f"s/{uuid.uuid4().hex}"
    answer = stack.http.post(f"/v1/sessions/{session}/merge", json={"user_id": "u1"})
    assert answer.json()["session_id"] == session
    bus = RedisStreamBus(stack.config.bus_url, stack.config.dataset)
    row = decode_merges([bus.tail(SESSIONS, 1)[0].payload]).to_pylist()[0]
    bus.close()
    assert (row["session_id"], row["user_id"]) == (session, "u1")


@pytest.mark.parametrize("body", [{}, {"user_id": ""}, {"user_id": None}, {"user_id": "u", "more": 1}, [], {"user_id": "x" * 300}])
def test_a_merge_without_a_user_is_refused(stack, body) -> None:
    answer = stack.http.post("/v1/sessions/s1/merge", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "user_id"


def test_streams_of_sessions_have_the_groups_of_events() -> None:
    from features.bus import GROUPS

    assert GROUPS[SESSIONS] == GROUPS[EVENTS] == (STORE_GROUP, FEATURES_GROUP)
