"""The real stack: Redis, Ray Serve in HAProxy mode, over HTTP."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


def test_a_known_user_gets_the_next_items_of_the_walk(stack) -> None:
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
