"""The hot routes in OpenAPI: they are answered before FastAPI sees them, so their description is kept here by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from features.events import ACTIONS
from serving.intake import MAX_BATCH
from serving.request_parsing import MAX_CANDIDATES, MAX_RECENT_ITEMS
from serving.schemas import DEFAULT_TOP_K, MAX_TOP_K


class RecommendedItem(BaseModel):
    """One item; attributes asked for by `fields` stand beside these."""

    model_config = ConfigDict(extra="allow")

    item_id: str
    score: float
    source: str


class AssignmentShown(BaseModel):
    """An experiment that the answer is part of."""

    experiment: str
    variant: str


class Recommendations(BaseModel):
    """An answer. `served_from`: cache, online, stale, segment or popular; `degraded`: a lower rung answered because of trouble."""

    recommendation_id: str
    user_id: str | None
    recommended_items: list[RecommendedItem]
    last_updated: str
    model_version: str | None
    assignments: list[AssignmentShown]
    served_from: str
    degraded: bool
    took_ms: float
    next_cursor: str | None


class PopularItems(BaseModel):
    """Popular items, best first."""

    items: list[RecommendedItem]
    last_updated: str


class RejectedEvent(BaseModel):
    """An event of a batch that was not accepted."""

    index: int
    error: str
    field: str | None = None


class EventReceipt(BaseModel):
    """What became of a call's events; `event_ids` has null where rejected."""

    accepted: int
    duplicates: int
    duplicate_ids: list[str] | None = None
    rejected: list[RejectedEvent]
    event_ids: list[str | None]


class SessionMerge(BaseModel):
    """The session's activity is the account's; `recent_events` of it were new to the next answer."""

    session_id: str
    user_id: str
    recent_events: int


class ErrorDetail(BaseModel):
    """Why a call was refused."""

    code: str
    message: str
    field: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


_MODELS = (Recommendations, PopularItems, EventReceipt, SessionMerge, ErrorBody)
HOT_SCHEMAS: dict[str, Any] = models_json_schema(
    [(model, "serialization") for model in _MODELS], ref_template="#/components/schemas/{model}"
)[1]["$defs"]
"""Schemas of the answers, by name."""

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_TOP_K = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": DEFAULT_TOP_K}
_SELECTION: dict[str, tuple[str, dict[str, Any]]] = {
    "top_k": ("Number of items.", _TOP_K),
    "filter": ('CEL over item attributes: "Comedy" in categories && year >= 1990.', _TEXT),
    "category": ("Any of these categories; a path matches as itself and as each part.", _TEXTS),
    "region": ("Any of these regions; items without regions are everywhere.", _TEXTS),
    "language": ("Any of these languages; items without languages are for everyone.", _TEXTS),
    "fields": ("Item attributes to return, separated by commas.", _TEXT),
}
_PERSONAL: dict[str, tuple[str, dict[str, Any]]] = {
    **_SELECTION,
    "exclude_seen": ("Leave out what the user has already met.", {"type": "boolean", "default": True}),
    "session_id": ("For experiments that split sessions.", _TEXT),
}
_BODY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{name: {**schema, "description": text} for name, (text, schema) in _PERSONAL.items()},
        "fields": {**_TEXTS, "description": "Item attributes to return."},
        "user_id": _TEXT,
        "recent_items": {**_TEXTS, "maxItems": MAX_RECENT_ITEMS, "description": "The caller's own history, oldest first."},
        "exclude": {**_TEXTS, "maxItems": MAX_CANDIDATES},
        "candidates": {**_TEXTS, "maxItems": MAX_CANDIDATES, "description": "Rank these and no others."},
        "context": {"type": "object", "description": "Such as region, language, device; experiments may target by it."},
        "model_version": {**_TEXT, "description": "Ask this version whatever aliases and experiments say (admin)."},
    },
}
_EVENT = {
    "type": "object",
    "required": ["item_id", "action"],
    "properties": {
        "event_id": _TEXT,
        "user_id": _TEXT,
        "session_id": _TEXT,
        "item_id": _TEXT,
        "action": {**_TEXT, "examples": list(ACTIONS)},
        "timestamp": {"description": "ISO 8601 or epoch seconds", "anyOf": [_TEXT, {"type": "number"}]},
        "value": {"type": "number"},
        "recommendation_id": _TEXT,
        "position": {"type": "integer", "minimum": 0},
        "context": {"type": "object"},
    },
}
_BATCH = {
    "type": "object",
    "required": ["events"],
    "properties": {"events": {"type": "array", "items": _EVENT, "maxItems": MAX_BATCH}},
}


def _answers(name: str, status: str = "200") -> dict[str, Any]:
    def content(schema: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

    return {
        status: {"description": HOT_SCHEMAS[name].get("description", name), "content": content(name)},
        "422": {"description": "A parameter is wrong; `field` names it.", "content": content("ErrorBody")},
    }


def _parameters(described: dict[str, tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "description": text, "schema": schema} for name, (text, schema) in described.items()]


def _json_body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _open_route(summary: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "tags": ["operations"], "security": [], "responses": {"200": {"description": "OK."}}}}


_USER = {"name": "user_id", "in": "path", "required": True, "schema": _TEXT}

HOT_PATHS: dict[str, Any] = {
    "/v1/recommendations/{user_id}": {
        "get": {
            "summary": "Personalized items for a user; unknown users get popular ones",
            "tags": ["recommendations"],
            "parameters": [_USER, *_parameters(_PERSONAL)],
            "responses": _answers("Recommendations"),
        }
    },
    "/v1/recommendations": {
        "post": {
            "summary": "The same for sessions, own histories and own candidates",
            "tags": ["recommendations"],
            "requestBody": _json_body(_BODY),
            "responses": _answers("Recommendations"),
        }
    },
    "/v1/popular": {
        "get": {
            "summary": "Most popular items",
            "tags": ["recommendations"],
            "parameters": _parameters(_SELECTION),
            "responses": _answers("PopularItems"),
        }
    },
    "/v1/events": {
        "post": {
            "summary": "Log one event or a batch; answered when the bus has them durably",
            "tags": ["events"],
            "requestBody": _json_body({"anyOf": [_EVENT, _BATCH]}),
            "responses": _answers("EventReceipt", "202"),
        }
    },
    "/v1/sessions/{session_id}/merge": {
        "post": {
            "summary": "A visitor has logged in: what the session did without a user until now joins the account",
            "tags": ["events"],
            "parameters": [{"name": "session_id", "in": "path", "required": True, "schema": _TEXT}],
            "requestBody": _json_body({"type": "object", "required": ["user_id"], "properties": {"user_id": _TEXT}}),
            "responses": _answers("SessionMerge"),
        }
    },
    "/healthz": _open_route("Alive"),
    "/readyz": _open_route("Ready: versions that answer, champion, cache"),
    "/metrics": _open_route("Prometheus metrics"),
}
"""Paths that the gateway answers itself."""
