"""What applications ask of a Shortlist server: each function builds one request and says how its answer is read.

Calls that need the admin token are `shortlist.admin_calls`'. `Client` and `AsyncClient` offer both as methods (`shortlist.client`);
nothing here sends anything. Answers are the JSON objects of the HTTP API unless a function says otherwise; a server's refusal is an
`ApiError`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from numbers import Integral, Real
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

T = TypeVar("T")
Json = dict[str, Any]
When = datetime | str | float
"""A time: a datetime (naive means UTC), ISO 8601 text or epoch seconds."""
Id = str | int
"""An id; whole numbers are sent as their digits."""
Words = str | Sequence[str] | None
Window = Literal["1h", "1d", "7d", "season"]

MAX_EVENTS_PER_CALL = 1000


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. Each may be sent again when its answer got lost: the second changes nothing more, or is refused as done."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    read: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: object = None


def get_recommendations(user_id: Id, top_k: int = 10) -> Call[list[str]]:
    """Ids of the items to recommend to a user, best first. Unknown users get the anonymous answer."""
    path = f"/v1/recommendations/{part(user_id, 'user_id')}"
    return Call("GET", path, lambda body: [item["item_id"] for item in body["recommended_items"]], {"top_k": top_k})


def recommend(
    user_id: Id | None = None,
    *,
    top_k: int = 10,
    session_id: Id | None = None,
    recent_items: Sequence[Id] | None = None,
    placement: str | None = None,
    filter: str | None = None,
    category: Words = None,
    region: Words = None,
    language: Words = None,
    exclude_seen: bool | str | Sequence[str] | Mapping[str, Any] | None = None,
    exclude: Sequence[Id] | None = None,
    boost: Sequence[Mapping[str, Any]] | None = None,
    candidates: Sequence[Id] | None = None,
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
        category: any of these.
        region, language: chains: items of the first come first, those of the next fill up.
        exclude_seen: leave out what the user has already met (the default); an action, a list of them, or
            `{"actions": ["purchase"], "max_age_days": 30}` for what was met so.
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
    return Call("POST", "/v1/recommendations", as_is, body=given(locals()))


def similar_items(
    item_id: Id,
    top_k: int = 10,
    *,
    placement: str | None = None,
    filter: str | None = None,
    category: Words = None,
    region: Words = None,
    language: Words = None,
    diversity: float | None = None,
    fields: Sequence[str] | None = None,
    cursor: str | None = None,
) -> Call[Json]:
    """Items that go together with one item: `items`, `last_updated`, `next_cursor`. Arguments as of `recommend`."""
    return Call("GET", f"/v1/items/{part(item_id, 'item_id')}/similar", as_is, _query(locals(), but="item_id"))


def popular(
    top_k: int = 10,
    *,
    window: Window | None = None,
    placement: str | None = None,
    filter: str | None = None,
    category: Words = None,
    region: Words = None,
    language: Words = None,
    diversity: float | None = None,
    fields: Sequence[str] | None = None,
    cursor: str | None = None,
) -> Call[Json]:
    """The most popular items, of all time or a `window`: `items`, `last_updated`, `next_cursor`. Others as of `recommend`."""
    return Call("GET", "/v1/popular", as_is, _query(locals()))


def trending(
    top_k: int = 10,
    *,
    window: Window | None = None,
    placement: str | None = None,
    filter: str | None = None,
    category: Words = None,
    region: Words = None,
    language: Words = None,
    diversity: float | None = None,
    fields: Sequence[str] | None = None,
    cursor: str | None = None,
) -> Call[Json]:
    """Items that gain now, of a region, language or category, or those of the season. Other arguments as of `recommend`.

    Args:
        top_k: 1 to 500.
        window: the time that counts; a day by default, `season` for what this time of the year brings.
    """
    return Call("GET", "/v1/trending", as_is, _query(locals()))


def log_user_activity(
    user_id: Id | None,
    item_id: Id,
    action: str,
    timestamp: When | None = None,
    *,
    session_id: Id | None = None,
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
    return Call("POST", "/v1/events", as_is, body={"events": [event_body(event) for event in events]})


def merge_session(session_id: Id, user_id: Id) -> Call[Json]:
    """A visitor has logged in: the session's activity joins the user's."""
    return Call("POST", f"/v1/sessions/{part(session_id, 'session_id')}/merge", as_is, body={"user_id": user_id})


def health() -> Call[Json]:
    """Readiness of the server: `status`, `model_version` and more; a server that is not ready is an `ApiError`."""
    return Call("GET", "/readyz", as_is)


def as_is(body: Any) -> Any:
    """Reads an answer as the JSON that it is."""
    return body


def given(arguments: Mapping[str, Any]) -> Json:
    """The arguments that are given."""
    return {name: value for name, value in arguments.items() if value is not None}


def part(given: Id, name: str) -> str:
    """An id as one part of a path.

    Args:
        given: the id.
        name: of the argument, for errors.

    Raises:
        TypeError: it is neither text nor a whole number.
        ValueError: it is empty.
    """
    if isinstance(given, bool) or not isinstance(given, str | Integral):
        raise TypeError(f"{name} must be text or a whole number, got {given!r}")
    text = str(given)
    if not text:
        raise ValueError(f"{name} must not be empty")
    # As they are, these two would be taken for steps of the path and resolved before anything is sent.
    return quote(text, safe="") if text not in {".", ".."} else text.replace(".", "%2E")


def _query(arguments: Mapping[str, Any], but: str = "") -> Json:
    return {name: value for name, value in given(arguments).items() if name != but}


def event_body(event: Mapping[str, Any]) -> Json:
    """The event as it goes over the wire; it always has an id, so that sending it again stores nothing twice.

    Raises:
        TypeError: the timestamp is of another type than `When`.
        ValueError: the timestamp is no finite number.
    """
    sent = {"event_id": uuid.uuid4().hex, **given(event)}
    if "timestamp" in sent:
        sent["timestamp"] = _wire_time(sent["timestamp"])
    return sent


def _wire_time(when: object) -> str | float:
    if isinstance(when, datetime):
        return when.isoformat()
    if isinstance(when, str):
        return when
    if isinstance(when, bool) or not isinstance(when, Real):
        raise TypeError(f"timestamp must be a datetime, ISO 8601 text or epoch seconds, got {when!r}")
    if not isfinite(when):
        raise ValueError(f"timestamp must be finite, got {when!r}")
    return int(when) if isinstance(when, Integral) else float(when)
