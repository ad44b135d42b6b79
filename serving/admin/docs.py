"""The hot routes as OpenAPI shows them. The gateway answers them before FastAPI sees the request; these are their descriptions."""

from __future__ import annotations

from typing import Any

_ERROR = {"description": '`{"error": {"code", "message", "field"?}}`'}
_ANSWER = {
    "type": "object",
    "properties": {
        "recommendation_id": {"type": "string"},
        "user_id": {"type": "string", "nullable": True},
        "recommended_items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"item_id": {"type": "string"}, "score": {"type": "number"}, "source": {"type": "string"}},
            },
        },
        "last_updated": {"type": "string", "format": "date-time"},
        "model_version": {"type": "string", "nullable": True},
        "assignments": {
            "type": "array",
            "items": {"type": "object", "properties": {"experiment": {"type": "string"}, "variant": {"type": "string"}}},
        },
        "served_from": {"enum": ["cache", "online", "stale", "segment", "popular"]},
        "degraded": {"type": "boolean"},
        "took_ms": {"type": "number"},
        "next_cursor": {"type": "string", "nullable": True},
    },
}
_SELECTION: dict[str, tuple[dict[str, Any], str]] = {
    "top_k": ({"type": "integer", "minimum": 1, "maximum": 500, "default": 10}, "items wanted"),
    "category": ({"type": "string"}, "only items of this category; repeatable"),
    "region": ({"type": "string"}, "only items of this region"),
    "language": ({"type": "string"}, "only items in this language"),
    "filter": ({"type": "string"}, "CEL over item attributes, such as `year >= 1990`"),
    "fields": ({"type": "string"}, "item attributes to return, comma-separated"),
}
_EVENT = {
    "type": "object",
    "required": ["item_id", "action"],
    "properties": {
        "event_id": {"type": "string"},
        "user_id": {"type": "string"},
        "session_id": {"type": "string"},
        "item_id": {"type": "string"},
        "action": {"type": "string"},
        "timestamp": {"description": "ISO 8601 or epoch seconds"},
        "value": {"type": "number"},
        "recommendation_id": {"type": "string"},
        "position": {"type": "integer", "minimum": 0},
        "context": {"type": "object"},
    },
}


def hot_paths() -> dict[str, Any]:
    """OpenAPI path items of the routes that the gateway answers itself."""
    body = {name: schema for name, (schema, _) in _SELECTION.items()}
    return {
        "/v1/recommendations/{user_id}": {
            "get": _operation(
                "recommendations",
                "Personalized list of a user",
                "Unknown users get the anonymous answer, not an error.",
                {"200": _json("the list", _ANSWER), "422": _ERROR},
                parameters=[
                    _parameter("user_id", "path", {"type": "string"}, "the user"),
                    *(_parameter(name, "query", schema, text) for name, (schema, text) in _SELECTION.items()),
                    _parameter("exclude_seen", "query", {"type": "boolean", "default": True}, "leave out what the user consumed"),
                ],
            )
        },
        "/v1/recommendations": {
            "post": _operation(
                "recommendations",
                "The same for sessions, recent items, a caller's own candidates",
                "",
                {"200": _json("the list", _ANSWER), "422": _ERROR},
                body={
                    "type": "object",
                    "properties": {
                        "user_id": {"type": "string"},
                        "session_id": {"type": "string"},
                        "recent_items": {"type": "array", "items": {"type": "string"}, "description": "oldest first"},
                        "exclude": {"type": "array", "items": {"type": "string"}},
                        "candidates": {"type": "array", "items": {"type": "string"}, "description": "rank these alone"},
                        "context": {"type": "object"},
                        "model_version": {"type": "string", "description": "preview of one loaded version (admin)"},
                        "exclude_seen": {"type": "boolean", "default": True},
                        **body,
                    },
                },
            )
        },
        "/v1/popular": {
            "get": _operation(
                "recommendations",
                "Popular items",
                "",
                {"200": {"description": "items, most popular first"}, "422": _ERROR},
                parameters=[_parameter(name, "query", schema, text) for name, (schema, text) in _SELECTION.items()],
            )
        },
        "/v1/events": {
            "post": _operation(
                "events",
                'Log one event, or up to 1,000 as {"events": [...]}',
                "202 only after the bus holds them; 422 when none is valid.",
                {"202": {"description": "accepted, duplicates, rejected and event_ids"}, "422": _ERROR, "429": _ERROR},
                body={"oneOf": [_EVENT, {"type": "object", "properties": {"events": {"type": "array", "items": _EVENT}}}]},
            )
        },
        "/healthz": {"get": _operation("operation", "Liveness", "", {"200": {"description": "the process answers"}})},
        "/readyz": {"get": _operation("operation", "Readiness", "", {"200": {"description": "what is served"}})},
        "/metrics": {"get": _operation("operation", "Prometheus metrics", "", {"200": {"description": "text"}})},
    }


def _operation(
    tag: str,
    summary: str,
    description: str,
    responses: dict[str, Any],
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"tags": [tag], "summary": summary, "description": description, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _parameter(name: str, place: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": text}


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
