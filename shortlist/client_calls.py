"""What can be asked of a Shortlist server: each function builds one request and says how its answer is read.

`Client` and `AsyncClient` offer these as methods (`shortlist.client`); nothing here sends anything. Answers are the JSON objects of
the HTTP API unless a function says otherwise; a server's refusal is an `ApiError`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

T = TypeVar("T")
Json = dict[str, Any]
When = datetime | str | float
"""A time: a datetime (naive means UTC), ISO 8601 text or epoch seconds."""

MAX_EVENTS_PER_CALL = 1000


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. Each may be sent again when its answer got lost: the second changes nothing more, or is refused as done."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    read: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: object = None


def get_recommendations(user_id: str, top_k: int = 10) -> Call[list[str]]:
    """Ids of the items to recommend to a user, best first. Unknown users get the anonymous answer."""
    path = f"/v1/recommendations/{_part(user_id)}"
    return Call("GET", path, lambda body: [item["item_id"] for item in body["recommended_items"]], {"top_k": top_k})


def recommend(
    user_id: str | None = None,
    *,
    top_k: int = 10,
    session_id: str | None = None,
    recent_items: Sequence[str] | None = None,
    placement: str | None = None,
    filter: str | None = None,
    category: str | Sequence[str] | None = None,
    region: str | Sequence[str] | None = None,
    language: str | Sequence[str] | None = None,
    exclude_seen: bool | None = None,
    exclude: Sequence[str] | None = None,
    boost: Sequence[Mapping[str, Any]] | None = None,
    candidates: Sequence[str] | None = None,
    context: Mapping[str, Any] | None = None,
    diversity: float | None = None,
    explain: bool | None = None,
    fields: Sequence[str] | None = None,
    cursor: str | None = None,
    model_version: str | None = None,
) -> Call[Json]:
    """The whole answer: `recommended_items` with scores, `recommendation_id`, `model_version`, `assignments`, `served_from`, ...

    Args:
        user_id: the user; or `session_id`, `recent_items` (oldest first) for visitors.
        top_k: 1 to 500.
        placement: named place in the application, with its own defaults and rules.
        filter: CEL over item attributes, such as `"Comedy" in categories && year >= 1990`.
        category, region, language: any of these.
        exclude_seen: leave out what the user already consumed (the default).
        exclude: item ids to leave out.
        boost: changes of score for items that match a filter.
        candidates: rank these items and no others.
        context: such as `{"region": "es"}`; experiments may target by it.
        diversity: 0 (best scores) to 1 (most different items).
        explain: with source, reason and contributions.
        fields: item attributes to return with each item.
        cursor: `next_cursor` of the page before.
        model_version: ask this version instead of the one that experiments and aliases choose (admin).
    """
    return Call("POST", "/v1/recommendations", _as_is, body=_given(locals()))


def similar_items(item_id: str, top_k: int = 10, **options: Any) -> Call[Json]:
    """Items like one item. Options: `filter`, `category`, `region`, `language`, `fields`."""
    return Call("GET", f"/v1/items/{_part(item_id)}/similar", _as_is, _given({"top_k": top_k, **options}))


def popular(top_k: int = 10, **options: Any) -> Call[Json]:
    """The most popular items. Options: `filter`, `category`, `region`, `language`, `fields`."""
    return Call("GET", "/v1/popular", _as_is, _given({"top_k": top_k, **options}))


def trending(top_k: int = 10, **options: Any) -> Call[Json]:
    """Items on the rise. Options: `window`, `filter`, `category`, `region`, `language`, `fields`."""
    return Call("GET", "/v1/trending", _as_is, _given({"top_k": top_k, **options}))


def item(item_id: str) -> Call[Json]:
    """One item of the catalogue with its attributes."""
    return Call("GET", f"/v1/items/{_part(item_id)}", _as_is)


def log_user_activity(
    user_id: str | None,
    item_id: str,
    action: str,
    timestamp: When | None = None,
    *,
    session_id: str | None = None,
    value: float | None = None,
    recommendation_id: str | None = None,
    position: int | None = None,
    context: Mapping[str, Any] | None = None,
    event_id: str | None = None,
) -> Call[str]:
    """Log one event; returns its id when the server has it durably.

    Args:
        user_id: the user, or None with a `session_id` for a visitor.
        item_id: the item.
        action: view, click, add_to_cart, purchase, rating, like, dislike, dismiss, impression, or one of the configuration's.
        timestamp: when it happened; the server's clock by default.
        value: of a rating or purchase.
        recommendation_id: of the answer that showed the item, so that the event is credited to it.
        position: 0-based slot of the item in that answer.
        context: such as `{"device": "phone"}`.
        event_id: to log the same event again without storing it twice; a fresh one by default.
    """
    return Call("POST", "/v1/events", lambda body: str(body["event_ids"][0]), body=event_body(locals()))


def log_events(events: Sequence[Mapping[str, Any]]) -> Call[Json]:
    """Log up to 1,000 events at once: objects with the arguments of `log_user_activity`.

    Returns:
        `accepted`, `duplicates`, `rejected` (`index`, `error`) and `event_ids` (None where rejected).

    Raises:
        ValueError: there are none, or too many.
    """
    if not 1 <= len(events) <= MAX_EVENTS_PER_CALL:
        raise ValueError(f"log_events takes 1 to {MAX_EVENTS_PER_CALL} events, got {len(events)}")
    return Call("POST", "/v1/events", _as_is, body={"events": [event_body(event) for event in events]})


def merge_session(session_id: str, user_id: str) -> Call[Json]:
    """A visitor has logged in: the session's activity joins the user's."""
    return Call("POST", f"/v1/sessions/{_part(session_id)}/merge", _as_is, body={"user_id": user_id})


def models() -> Call[Json]:
    """Versions and aliases of the served model: wanted and actual. Needs the admin token, as all that follow."""
    return Call("GET", "/v1/models", _as_is)


def update_model(model_id: str, model_data: Mapping[str, Any]) -> Call[Json]:
    """Change what is served.

    Args:
        model_id: the registered model, `shortlist-<dataset>`.
        model_data: `version` or `alias`, `mode` (promote, canary, shadow, rollback), `traffic` of a canary or shadow.
    """
    return Call("PUT", f"/v1/models/{_part(model_id)}", _as_is, body=dict(model_data))


def audit(at: datetime | None = None, subject: str | None = None, after: int | None = None, limit: int | None = None) -> Call[Json]:
    """The audit log: `entries` after a number, or with `at` the `state` at that time, of subjects that start with `subject`."""
    moment = at.isoformat() if at is not None else None
    return Call("GET", "/v1/audit", _as_is, params=_given({"at": moment, "subject": subject, "after": after, "limit": limit}))


def rollback(model_id: str) -> Call[Json]:
    """Serve the version before again."""
    return Call("POST", f"/v1/models/{_part(model_id)}/rollback", _as_is)


def experiments() -> Call[list[Json]]:
    """All experiments with their status."""
    return Call("GET", "/v1/experiments", lambda body: list(body["experiments"]))


def experiment(name: str) -> Call[Json]:
    """One experiment: its file, status, pinned versions and share of traffic."""
    return Call("GET", _experiment(name), _as_is)


def put_experiment(name: str, spec: Mapping[str, Any]) -> Call[Json]:
    """Create an experiment, or change it as far as its status allows. `spec` has the fields of an experiment file."""
    return Call("PUT", _experiment(name), _as_is, body=dict(spec))


def start_experiment(name: str) -> Call[Json]:
    """Start or resume an experiment; aliases are resolved to versions and pinned."""
    return Call("POST", f"{_experiment(name)}/start", _as_is)


def ramp_experiment(name: str, traffic: float | None = None) -> Call[Json]:
    """Raise an experiment's traffic: to a share, or to the next step of its plan."""
    return Call("POST", f"{_experiment(name)}/ramp", _as_is, body=_given({"traffic": traffic}))


def pause_experiment(name: str) -> Call[Json]:
    """Send an experiment's units back to the champion, to be resumed later."""
    return Call("POST", f"{_experiment(name)}/pause", _as_is)


def stop_experiment(name: str) -> Call[Json]:
    """End an experiment for good."""
    return Call("POST", f"{_experiment(name)}/stop", _as_is)


def experiment_report(name: str) -> Call[Json]:
    """What the experiment shows so far."""
    return Call("GET", f"{_experiment(name)}/report", _as_is)


def health() -> Call[Json]:
    """Readiness of the server: `status`, `model_version` and more; a server that is not ready is an `ApiError`."""
    return Call("GET", "/readyz", _as_is)


def _as_is(body: Any) -> Any:
    return body


def _given(arguments: Mapping[str, Any]) -> Json:
    return {name: value for name, value in arguments.items() if value is not None}


def _part(text: str) -> str:
    if not text:
        raise ValueError("an id must not be empty")
    return quote(text, safe="")


def _experiment(name: str) -> str:
    return f"/v1/experiments/{_part(name)}"


def event_body(event: Mapping[str, Any]) -> Json:
    """The event as it goes over the wire; it always has an id, so that sending it again stores nothing twice."""
    sent = {"event_id": uuid.uuid4().hex, **_given(event)}
    if isinstance(sent.get("timestamp"), datetime):
        sent["timestamp"] = sent["timestamp"].isoformat()
    return sent
