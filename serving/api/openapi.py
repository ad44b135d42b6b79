"""The OpenAPI document: what FastAPI knows of its routes, and the hot routes, which are answered before FastAPI sees them.

The hot routes' parameters are those that `serving.request_parsing` accepts: one that is accepted and not described here is an error
at import.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from experiments.spec import ExperimentSpec
from features.events import ACTIONS
from serving.api.answer_schemas import Alive, ErrorBody, EventReceipt, ItemList, Ready, Recommendations, SessionMerge, errors
from serving.browse import DEFAULT_WINDOW
from serving.filters import MAX_LENGTH
from serving.intake import MAX_BATCH
from serving.request_parsing import (
    BODY_PARAMETERS,
    BROWSE_PARAMETERS,
    MAX_CANDIDATES,
    MAX_RECENT_ITEMS,
    QUERY_PARAMETERS,
)
from serving.request_values import MAX_BOOST, MAX_BOOSTS, MAX_CHAIN, MAX_FIELDS, MAX_SEEN_DAYS, MAX_WORDS
from serving.schemas import DEFAULT_TOP_K, MAX_TOP_K
from serving.trend_lists import WINDOWS

_REF = "#/components/schemas/{model}"
_MODELS = (Recommendations, ItemList, EventReceipt, SessionMerge, Alive, Ready, ErrorBody)
_SCHEMAS: dict[str, Any] = {
    **models_json_schema([(model, "serialization") for model in _MODELS], ref_template=_REF)[1]["$defs"],
    **models_json_schema([(ExperimentSpec, "validation")], ref_template=_REF)[1]["$defs"],
}
_SCHEMAS["ExperimentSpec"]["required"].remove("name")  # a file needs it, a body does not: the path has it

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_FILTER: Json = {**_TEXT, "maxLength": MAX_LENGTH}
_TEXTS: Json = {"type": "array", "items": _TEXT}


def _texts(most: int) -> Json:
    return {**_TEXTS, "maxItems": most}


_BOOST = {
    "type": "object",
    "required": ["filter", "weight"],
    "properties": {"filter": _FILTER, "weight": {"type": "number", "minimum": -MAX_BOOST, "maximum": MAX_BOOST}},
}
_ACTION = {**_TEXT, "enum": list(ACTIONS)}
_DAYS = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SEEN_DAYS}
_DESCRIBED: dict[str, tuple[str, Json, Any]] = {
    "user_id": ("Whom the list is for; users that nobody has met get the anonymous answer.", _TEXT, "42"),
    "session_id": ("A visitor; with `user_id`, for experiments that split sessions.", _TEXT, "c0ffee"),
    "top_k": (
        "Number of items; the placement's by default.",
        {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": DEFAULT_TOP_K},
        10,
    ),
    "placement": ("Named place of the settings with its own filter, rules, top_k and diversity.", _TEXT, "home"),
    "filter": ("CEL over item attributes that every item must pass.", _FILTER, '"Comedy" in categories && year >= 1990'),
    "category": ("Any of these categories; a path matches as itself and as each part.", _texts(MAX_WORDS), ["Comedy"]),
    "region": (
        "A chain: items of the first region, then, where these run short, of the next. Items without regions are everywhere.",
        _texts(MAX_CHAIN),
        ["DE", "AT"],
    ),
    "language": (
        "A chain of languages, as of regions. Items without languages are for everyone.",
        _texts(MAX_CHAIN),
        ["de", "en"],
    ),
    "exclude_seen": (
        "Leave out what the user has already met: `true`, `false`, or by which actions.",
        {"default": True, "anyOf": [{"type": "boolean"}, _ACTION, {"type": "array", "items": _ACTION}]},
        "purchase",
    ),
    "exclude_seen_max_age_days": ("With `exclude_seen`: only what was met in the last so many days.", _DAYS, 30),
    "diversity": ("0 (best scores) to 1 (most different items).", {"type": "number", "minimum": 0, "maximum": 1}, 0.3),
    "explain": ("With reason and contributions that sum to the score.", {"type": "boolean", "default": False}, True),
    "fields": ("Item attributes to return with each item.", _texts(MAX_FIELDS), ["title", "year"]),
    "cursor": ("`next_cursor` of the page before: pages never repeat an item.", _TEXT, ""),
    "window": (
        "What is taken now counts, within this time; `season`: what this time of the year brings.",
        {**_TEXT, "enum": list(WINDOWS)},
        DEFAULT_WINDOW,
    ),
    "recent_items": ("The caller's own history, oldest first.", _texts(MAX_RECENT_ITEMS), ["348", "589"]),
    "exclude": ("Items to leave out.", _texts(MAX_CANDIDATES), ["1"]),
    "candidates": ("Rank these items and no others.", _texts(MAX_CANDIDATES), ["348", "589", "1214"]),
    "boost": (
        "Adds `weight` times the list's spread of scores to items that pass a filter.",
        {"type": "array", "maxItems": MAX_BOOSTS, "items": _BOOST},
        [{"filter": "year >= 2020", "weight": 0.5}],
    ),
    "context": ("Such as region, language, device; rules and experiments read it.", {"type": "object"}, {"device": "phone"}),
    "model_version": ("Ask this version whatever aliases and experiments say (scope admin).", _TEXT, "3"),
}
_BODY_SEEN: Json = {
    "default": True,
    "anyOf": [
        *_DESCRIBED["exclude_seen"][1]["anyOf"],
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {"actions": {"type": "array", "items": _ACTION}, "max_age_days": _DAYS},
        },
    ],
}


def _query(names: Iterable[str]) -> list[Json]:
    """Parameters of a query string; lists are given several times or, but for categories, separated by commas."""
    found = []
    for name in (known for known in _DESCRIBED if known in set(names)):
        text, schema, example = _DESCRIBED[name]
        found.append({"name": name, "in": "query", "description": text, "schema": schema, "example": example})
    return found


def _body() -> Json:
    properties = {name: {**_DESCRIBED[name][1], "description": _DESCRIBED[name][0]} for name in sorted(BODY_PARAMETERS)}
    properties["exclude_seen"] = {**_BODY_SEEN, "description": _DESCRIBED["exclude_seen"][0]}
    for name in ("category", "region", "language", "fields"):
        properties[name] = {"anyOf": [_TEXT, _DESCRIBED[name][1]], "description": _DESCRIBED[name][0]}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _in_path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


_EVENT: Json = {
    "type": "object",
    "required": ["item_id", "action"],
    "properties": {
        "event_id": {**_TEXT, "description": "Clients send one: the same id again is stored once."},
        "user_id": {**_TEXT, "description": "This or `session_id`."},
        "session_id": _TEXT,
        "item_id": _TEXT,
        "action": {**_TEXT, "examples": list(ACTIONS)},
        "timestamp": {
            "description": "ISO 8601 or epoch seconds; the server's clock by default.",
            "anyOf": [_TEXT, {"type": "number"}],
        },
        "value": {"type": "number"},
        "recommendation_id": {**_TEXT, "description": "Of the answer that showed the item."},
        "position": {"type": "integer", "minimum": 0, "description": "0-based slot of the item in that answer."},
        "context": {"type": "object"},
    },
}
_BATCH: Json = {
    "type": "object",
    "required": ["events"],
    "properties": {"events": {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": MAX_BATCH}},
}
_CLICK = {"event_id": "6f9619ff", "user_id": "42", "item_id": "348", "action": "click", "position": 0}


def _content(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": _REF.format(model=schema)}}}


def _answers(name: str, *refusals: int, status: str = "200") -> Json:
    answer = {status: {"description": _SCHEMAS[name].get("description", name), "content": _content(name)}}
    return {**answer, **_refused(*refusals)}


def _refused(*refusals: int) -> Json:
    return {
        str(code): {"description": told["description"], "content": _content("ErrorBody")}
        for code, told in errors(*refusals).items()
    }


def _route(summary: str, tag: str, scope: str, responses: Json, parameters: list[Json], body: Json | None = None) -> Json:
    return {
        "summary": summary,
        "tags": [tag],
        "security": [{"bearer": [scope]}],
        "parameters": parameters,
        **({"requestBody": body} if body else {}),
        "responses": responses,
    }


def _json_body(schema: Json, **examples: Any) -> Json:
    named = {name.replace("_", " "): {"value": value} for name, value in examples.items()}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": named}}}


def _open_route(summary: str, content: Json) -> Json:
    return {
        "get": {
            "summary": summary,
            "tags": ["operations"],
            "security": [],
            "responses": {"200": {"description": "OK.", "content": content}},
        }
    }


_READ_ERRORS, _BODY_ERRORS = (400, 401, 403, 422), (400, 401, 403, 413, 415, 422)
_ASKED_OF_A_SESSION = {"session_id": "c0ffee", "recent_items": ["348", "589"], "top_k": 5, "context": {"device": "phone"}}
_RERANKED = {"user_id": "42", "candidates": ["348", "589", "1214"], "explain": True}

HOT_PATHS: Json = {
    "/v1/recommendations/{user_id}": {
        "get": _route(
            "Personalized items for a user; unknown users get the anonymous answer",
            "recommendations",
            "read",
            _answers("Recommendations", *_READ_ERRORS),
            [_in_path("user_id"), *_query(QUERY_PARAMETERS)],
        )
    },
    "/v1/recommendations": {
        "post": _route(
            "The same for sessions, own histories, boosts and a caller's own candidates",
            "recommendations",
            "read",
            _answers("Recommendations", 404, *_BODY_ERRORS),
            [],
            _json_body(_body(), a_visitor=_ASKED_OF_A_SESSION, own_candidates=_RERANKED),
        )
    },
    "/v1/items/{item_id}/similar": {
        "get": _route(
            "Items that go together with one item",
            "recommendations",
            "read",
            _answers("ItemList", 404, *_READ_ERRORS),
            [_in_path("item_id"), *_query(BROWSE_PARAMETERS)],
        )
    },
    "/v1/trending": {
        "get": _route(
            "Items that gain now (within a day without `window`), of a region, language or category; or those of the season",
            "recommendations",
            "read",
            _answers("ItemList", *_READ_ERRORS),
            _query({*BROWSE_PARAMETERS, "window"}),
        )
    },
    "/v1/popular": {
        "get": _route(
            "Most popular items as of the champion's training, or with `window` within it",
            "recommendations",
            "read",
            _answers("ItemList", *_READ_ERRORS),
            _query({*BROWSE_PARAMETERS, "window"}),
        )
    },
    "/v1/events": {
        "post": _route(
            "Log one event or a batch; answered when the bus has them durably",
            "events",
            "write",
            _answers("EventReceipt", *_BODY_ERRORS, 429, 503, status="202"),
            [],
            _json_body({"anyOf": [_EVENT, _BATCH]}, one_event=_CLICK, a_batch={"events": [_CLICK]}),
        )
    },
    "/v1/sessions/{session_id}/merge": {
        "post": _route(
            "A visitor has logged in: what the session did without a user until now joins the account",
            "events",
            "write",
            _answers("SessionMerge", *_BODY_ERRORS, 429, 503),
            [_in_path("session_id")],
            _json_body({"type": "object", "required": ["user_id"], "properties": {"user_id": _TEXT}}, logged_in={"user_id": "42"}),
        )
    },
    "/healthz": _open_route("Alive", _content("Alive")),
    "/readyz": _open_route("Ready: versions that answer, champion, cache", _content("Ready")),
    "/metrics": _open_route("Prometheus metrics", {"text/plain": {"schema": _TEXT}}),
}
"""Paths that the gateway answers itself."""

DESCRIPTION = """Recommendations, activity events, catalogue, rules, models and experiments.

Every error is `{"error": {"code", "message", "field"?}}`, except that request line and headers of more than some 15,000 bytes
get the proxy's own 400 in HTML. Scopes of bearer tokens: `read` (answers), `write` (events; may read
too), `admin` (everything). A caller's `X-Request-ID` (at most 64 letters, digits, `.`, `_`, `-`) comes back in the answer and
stands in the server's logs."""


def openapi_document(app: FastAPI) -> Json:
    """The document of all routes; built once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        document["paths"] = {**HOT_PATHS, **document["paths"]}
        document["components"]["schemas"].update(_SCHEMAS)
        for told in (told for methods in document["paths"].values() for told in methods.values()):
            if "requestBody" in told and told["security"]:
                told["responses"] = {**_refused(*_BODY_ERRORS), **told["responses"]}
        app.openapi_schema = document
    return app.openapi_schema
