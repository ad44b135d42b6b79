"""`shortlist demo --check`: asks the running stack over HTTP whether it does what the demo claims."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from shortlist.client import ApiError, Client
from shortlist.demo.flow import DemoResult

EFFECT_SECONDS = 10.0
"""How long an event may take to change an answer before the check gives up."""
STORED_SECONDS = 60.0
"""How long an event may take into the store: a worker that has just started is still loading Feast."""


@dataclass(frozen=True)
class CheckOutcome:
    """One claim and whether it holds; `detail` is what was seen."""

    claim: str
    holds: bool
    detail: str


def check_demo(result: DemoResult) -> list[CheckOutcome]:
    """Every claim, asked over HTTP."""
    return [ask(claim, result) for claim in CLAIMS]


def ask(claim: str, result: DemoResult) -> CheckOutcome:
    """Whether one claim holds now. A check that raises counts as failed, with the error as its detail."""
    with Client(result.state.base_url, token=result.admin_token) as client:
        try:
            return CheckOutcome(claim, True, CLAIMS[claim](client, result))
        except (AssertionError, ApiError, httpx.HTTPError, KeyError, StopIteration) as error:
            return CheckOutcome(claim, False, f"{type(error).__name__}: {error}")


def _want(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _get(result: DemoResult, path: str, **headers: str) -> httpx.Response:
    return httpx.get(result.state.base_url + path, headers=headers, timeout=10)


def _ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["recommended_items"]]


def _healthy(client: Client, result: DemoResult) -> str:
    for path in ("/healthz", "/readyz", "/docs", "/metrics"):
        _want(_get(result, path).status_code == 200, f"GET {path} did not answer 200")
    paths = _get(result, "/openapi.json").json()["paths"]
    _want("/v1/recommendations/{user_id}" in paths and "/v1/events" in paths, "OpenAPI lacks the main calls")
    return f"{len(paths)} paths in OpenAPI"


def _known_user(client: Client, result: DemoResult) -> str:
    answer = client.recommend(user_id=result.users[0], top_k=10)
    ids = _ids(answer)
    _want(len(ids) == len(set(ids)) == 10, f"got {ids}")
    for item_id in ids:
        client.item(item_id)
    return f"version {answer['model_version']}, {answer['served_from']}, {answer['took_ms']} ms"


def _unknown_user(client: Client, result: DemoResult) -> str:
    answer = client.recommend(user_id="somebody-never-seen", top_k=5)
    _want(len(_ids(answer)) == 5, "fewer than 5 items")
    return f"served from {answer['served_from']}"


def _cached(client: Client, result: DemoResult) -> str:
    hits = result.traffic.served_from.get("cache", 0)
    _want(hits > 0, f"no cache hit in {dict(result.traffic.served_from)}")
    return str(dict(result.traffic.served_from))


def _split(client: Client, result: DemoResult) -> str:
    variants, asked = result.traffic.variants, result.traffic.requests
    _want(len(variants) == 2, f"variants seen: {dict(variants)}")
    outside = asked - sum(variants.values())
    _want(outside > 0, "nobody outside the experiment at traffic 0.5")
    return f"{dict(variants)}, {outside} outside"


def _sticky(client: Client, result: DemoResult) -> str:
    for user in result.users[:5]:
        seen = {str(client.recommend(user_id=user, top_k=1)["assignments"]) for _ in range(3)}
        _want(len(seen) == 1, f"user {user} was assigned {seen}")
    return "5 users, 3 requests each"


def _lists_differ(client: Client, result: DemoResult) -> str:
    lists = {tuple(_ids(client.recommend(user_id=user, top_k=10))) for user in result.users[10:30]}
    _want(len(lists) > 5, f"only {len(lists)} different lists for 20 users")
    return f"{len(lists)} different lists for 20 users"


def _activity_counts(client: Client, result: DemoResult) -> str:
    user = result.users[6]
    before = _ids(client.recommend(user_id=user, top_k=10))
    client.log_user_activity(user, before[0], "click")
    began = time.monotonic()
    while before[0] in _ids(client.recommend(user_id=user, top_k=10)):
        _want(time.monotonic() - began < EFFECT_SECONDS, f"item {before[0]} is still recommended after {EFFECT_SECONDS:.0f} s")
        time.sleep(0.05)
    return f"after {1000 * (time.monotonic() - began):.0f} ms"


def _events_stored(client: Client, result: DemoResult) -> str:
    from features.activity_store import ActivityStore
    from features.paths import DatasetPaths

    user = result.users[7]
    event = client.log_user_activity(user, _ids(client.recommend(user_id=user, top_k=1))[0], "view")
    home = Path(result.state.log_dir).parent
    store = ActivityStore.of(DatasetPaths(home, result.dataset))
    began = time.monotonic()
    while event not in store.read(columns=["event_id"], user_ids=[user])["event_id"].to_pylist():
        _want(time.monotonic() - began < STORED_SECONDS, f"event {event} is not stored after {STORED_SECONDS:.0f} s")
        time.sleep(0.2)
    return f"after {time.monotonic() - began:.1f} s"


def _refusals(client: Client, result: DemoResult) -> str:
    for top_k in ("0", "501", "x"):
        path = f"/v1/recommendations/{result.users[0]}?top_k={top_k}"
        answer = _get(result, path, Authorization=f"Bearer {result.admin_token}")
        _want(answer.status_code == 422, f"GET {path} answered {answer.status_code}")
        _want(answer.json()["error"]["field"] == "top_k", f"GET {path} does not name top_k")
    return "top_k of 0, 501 and x"


def _admin_guarded(client: Client, result: DemoResult) -> str:
    _want(_get(result, "/v1/models").status_code == 401, "GET /v1/models is open")
    _want(_get(result, "/v1/models", Authorization="Bearer wrong").status_code in (401, 403), "a wrong token is accepted")
    return "GET /v1/models"


def _no_failures(client: Client, result: DemoResult) -> str:
    _want(result.traffic.failures == 0, f"{result.traffic.failures} of {result.traffic.requests} failed")
    return f"{result.traffic.requests} requests, {result.traffic.events} events"


CLAIMS: dict[str, Callable[[Client, DemoResult], str]] = {
    "ready, healthy and documented": _healthy,
    "a known user gets 10 distinct items that the catalogue knows": _known_user,
    "an unknown user gets popular items, not an error": _unknown_user,
    "precomputed lists are served from the cache": _cached,
    "both variants and the rest outside the experiment were served": _split,
    "the same user gets the same variant every time": _sticky,
    "users get different lists": _lists_differ,
    "an item acted upon is gone from the next answer": _activity_counts,
    "events reach the activity store": _events_stored,
    "bad requests are refused with a code and a field": _refusals,
    "admin calls need the admin token": _admin_guarded,
    "no request of the traffic failed": _no_failures,
}
"""What the demo claims, and how each claim is asked; a check returns what it saw or raises."""
