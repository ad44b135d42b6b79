"""The fallback ladder rung by rung with a real Redis: what each rung needs is taken away, then given back."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

GONE_S = 60.0
EVENT = {"item_id": "i020", "action": "click"}


def rung(answer: dict[str, Any]) -> tuple[str, bool]:
    return answer["served_from"], answer["degraded"]


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["recommended_items"]]


def cached(running: Any, user: str) -> list[str]:
    """A user's list, kept in the cache."""
    running.wait(lambda: running.answer(user)["served_from"] == "cache", "a cached list")
    return ids(running.answer(user, top_k=20))


def test_every_rung_answers_when_what_the_one_above_needs_is_gone(gateways) -> None:
    running = gateways()
    assert rung(running.answer("u1")) == ("online", False)
    listed = cached(running, "u1")
    running.version = "dead"
    # The list is there: nobody misses the version.
    assert rung(running.answer("u1")) == ("cache", False)
    assert running.first.http.post("/v1/events", json={**EVENT, "user_id": "u1", "item_id": listed[0]}).status_code == 202
    # The list is older than the activity and there is no version to compute another: the old one, without what was just met.
    stale = running.answer("u1", top_k=19)
    assert rung(stale) == ("stale", True)
    assert ids(stale) == listed[1:20]
    # Somebody without a list: popular items, of the region where one is named.
    assert rung(running.answer("u2")) == ("popular", True)
    segment = running.answer("u2", region="DE")
    assert rung(segment) == ("segment", True)
    assert ids(running.answer("u2", top_k=60)) != ids(running.answer("u2", top_k=60, language="en"))
    running.redis.kill()
    # Nothing but memory is left.
    for asked in ({}, {"region": "DE"}, {"filter": "year == 1985"}, {"exclude_seen": "purchase"}, {"explain": "true"}):
        answer = running.answer("u1", **asked)
        assert rung(answer) in {("popular", True), ("segment", True)}
        assert ids(answer), asked
    assert ids(running.answer("u1", filter="year == 1985")) == ["i005"]
    assert running.first.http.get("/v1/popular").json()["items"]
    assert running.first.http.get("/v1/items/i020/similar").json()["items"]
    assert running.first.http.get("/readyz").json()["cache"] == "down"
    # Everything comes back, from the top rung down.
    running.version = "works"
    assert rung(running.answer("u1")) == ("online", False)
    running.redis.start()
    running.wait(lambda: rung(running.answer("u1")) == ("cache", False), "the cache again")
    assert running.counted("shortlist_fallbacks_total", reason="ConnectionError") > 0


@pytest.mark.parametrize("version", ["works", "dead"])
@pytest.mark.parametrize("redis_there", [True, False])
def test_as_long_as_one_item_passes_the_filter_it_is_shown(gateways, version: str, redis_there: bool) -> None:
    running = gateways()
    cached(running, "u3")
    if not redis_there:
        running.redis.kill()
    running.version = version
    for number in (0, 7, 31, 58):
        # u3 has met i003 to i010: what was met may be all that is left.
        asked = {"filter": f"year == {1980 + number}", "exclude_seen": "false"}
        assert ids(running.answer("u3", **asked)) == [f"i{number:03d}"], number
    assert ids(running.answer("u3", filter="year > 9999")) == []


def test_a_version_that_does_not_answer_costs_the_deadline(gateways) -> None:
    """Each request waits for its own deadline, is answered by the next rung, and counted as such."""
    running = gateways(deadline_ms=50)
    running.version = "hangs"
    answers = [running.answer(f"u{number}") for number in range(10)]
    assert {rung(answer) for answer in answers} == {("popular", True)}
    assert {len(ids(answer)) for answer in answers} == {10}
    assert running.counted("shortlist_fallbacks_total", reason="deadline") == 10
    similar = running.first.http.get("/v1/items/i020/similar").json()["items"]
    assert {item["source"] for item in similar} == {"content"}


def test_a_redis_that_was_gone_for_a_minute_loses_nothing_that_was_accepted_and_takes_lists_again(gateways) -> None:
    running = gateways()
    listed = cached(running, "u1")
    assert running.first.http.post("/v1/events", json={**EVENT, "user_id": "u1", "event_id": "before"}).status_code == 202
    running.redis.kill()
    back_at = time.monotonic() + GONE_S
    refused = running.first.http.post("/v1/events", json={**EVENT, "user_id": "u1", "event_id": "during"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "bus_unavailable")
    assert "Retry-After" in refused.headers
    for number in range(20):
        assert rung(running.answer(f"u{number}")) == ("online", False)
    assert running.first.admin.patch("/v1/items/i030", json={"available": False}).status_code == 200
    while time.monotonic() < back_at:
        assert rung(running.answer("u1")) == ("online", False)
        time.sleep(0.5)
    running.redis.start()
    running.wait(
        lambda: running.first.http.post("/v1/events", json={**EVENT, "user_id": "u1", "event_id": "during"}).status_code == 202,
        "events to be taken again",
    )
    receipt = running.first.http.post("/v1/events", json={**EVENT, "user_id": "u1", "event_id": "before"}).json()
    assert receipt["duplicates"] == 1, "what was accepted before is still on the bus"
    running.wait(lambda: running.answer("u1")["served_from"] == "cache", "lists to be kept again")
    now = ids(running.answer("u1", top_k=20))
    assert "i020" not in now
    assert "i030" not in now
    assert listed
    assert running.first.http.get("/readyz").json()["cache"] == "up"
