"""Requests read from query strings and JSON bodies, every value bounded; refusals name the field.

Parsing is by hand and not by a framework: this runs on every cached answer, whose whole budget is some ten microseconds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from urllib.parse import parse_qsl

from serving.errors import RequestError
from serving.page_cursor import decode_cursor
from serving.request_values import (
    body_seen,
    boosts,
    checked_id,
    flag,
    ids,
    optional_id,
    optional_text,
    parse_fields,
    parse_selection,
    parse_top_k,
    query_seen,
    share,
    texts,
)
from serving.schemas import MAX_TOP_K, RecommendationRequest

MAX_RECENT_ITEMS = 200
MAX_CANDIDATES = 1000
BROWSE_PARAMETERS = frozenset({"top_k", "category", "region", "language", "filter", "fields", "placement", "diversity", "cursor"})
_SHARED_PARAMETERS = BROWSE_PARAMETERS | {"exclude_seen", "explain", "session_id"}
BODY_PARAMETERS = _SHARED_PARAMETERS | {
    "user_id",
    "recent_items",
    "exclude",
    "candidates",
    "boost",
    "context",
    "model_version",
}
QUERY_PARAMETERS = _SHARED_PARAMETERS | {"exclude_seen_max_age_days"}
_SINGLE = (QUERY_PARAMETERS | {"window"}) - {"category", "region", "language", "fields", "exclude_seen"}


def parse_get(user_id: str, query_string: bytes) -> RecommendationRequest:
    """A request from a decoded path and a raw query string.

    Raises:
        RequestError: an unknown parameter or a value that is not allowed; `field` names it.
    """
    user_id = checked_id(user_id, "user_id")
    if not query_string:
        return RecommendationRequest(user_id=user_id)
    return replace(_parse_query(query_string), user_id=user_id)


def query_parameters(query_string: bytes, allowed: frozenset[str]) -> dict[str, list[str]]:
    """Decoded parameters by name.

    Raises:
        RequestError: the string is malformed, or a parameter is not allowed.
    """
    try:
        pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except (UnicodeDecodeError, ValueError) as error:
        raise RequestError(f"the query string cannot be read: {error}", code="malformed_query", status=400) from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in allowed:
            raise RequestError(f"unknown parameter {name!r}; allowed: {', '.join(sorted(allowed))}", field=name)
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name in _SINGLE:
            raise RequestError(f"{name} is given more than once", field=name)
    return given


@lru_cache(maxsize=1024)
def _parse_query(query_string: bytes) -> RecommendationRequest:
    """The request of a query string for a user yet unnamed. Applications ask with few different ones."""
    given = query_parameters(query_string, QUERY_PARAMETERS)
    one = {name: values[0] for name, values in given.items()}
    return RecommendationRequest(
        session_id=checked_id(one["session_id"], "session_id") if "session_id" in one else None,
        top_k=parse_top_k(one["top_k"]) if "top_k" in one else None,
        placement=one.get("placement") or None,
        selection=parse_selection(given),
        seen=query_seen(given.get("exclude_seen", ()), one.get("exclude_seen_max_age_days")),
        fields=parse_fields(given.get("fields", ())),
        diversity=share(one["diversity"], "diversity") if "diversity" in one else None,
        explain=flag(one["explain"], "explain") if "explain" in one else False,
        shown=decode_cursor(one.get("cursor", "")),
    )


@lru_cache(maxsize=1024)
def parse_browse(query_string: bytes, *, with_window: bool = False) -> tuple[RecommendationRequest, str | None]:
    """A request for a list that is nobody's own, and its window where one is given.

    Raises:
        RequestError: as `parse_get`.
    """
    given = query_parameters(query_string, BROWSE_PARAMETERS | {"window"} if with_window else BROWSE_PARAMETERS)
    one = {name: values[0] for name, values in given.items()}
    request = RecommendationRequest(
        top_k=parse_top_k(one["top_k"]) if "top_k" in one else None,
        placement=one.get("placement") or None,
        selection=parse_selection(given),
        fields=parse_fields(given.get("fields", ())),
        diversity=share(one["diversity"], "diversity") if "diversity" in one else None,
        shown=decode_cursor(one.get("cursor", "")),
    )
    return request, one.get("window")


def parse_body(body: object) -> RecommendationRequest:
    """A request from a decoded JSON body.

    Raises:
        RequestError: as `parse_get`.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    unknown = sorted(set(body) - BODY_PARAMETERS)
    if unknown:
        raise RequestError(f"unknown field {unknown[0]!r}; allowed: {', '.join(sorted(BODY_PARAMETERS))}", field=unknown[0])
    context = {} if body.get("context") is None else body["context"]
    if not isinstance(context, dict):
        raise RequestError("context must be a JSON object", field="context")
    top_k = body.get("top_k")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int)):
        raise RequestError(f"top_k must be an integer from 1 to {MAX_TOP_K}", field="top_k")
    explain = body.get("explain", False)
    if not isinstance(explain, bool):
        raise RequestError("explain must be true or false", field="explain")
    candidates = body.get("candidates")
    selection = {name: texts(body.get(name), name) for name in ("category", "region", "language")}
    selection["filter"] = [optional_text(body, "filter") or ""]
    return RecommendationRequest(
        user_id=optional_id(body, "user_id"),
        session_id=optional_id(body, "session_id"),
        top_k=None if top_k is None else parse_top_k(str(top_k)),
        placement=optional_text(body, "placement") or None,
        selection=parse_selection(selection),
        seen=body_seen(body.get("exclude_seen", True)),
        fields=parse_fields(texts(body.get("fields"), "fields")),
        recent_items=ids(body.get("recent_items"), "recent_items", MAX_RECENT_ITEMS),
        exclude=ids(body.get("exclude"), "exclude", MAX_CANDIDATES),
        candidates=None if candidates is None else ids(candidates, "candidates", MAX_CANDIDATES),
        boost=boosts(body.get("boost")),
        diversity=None if body.get("diversity") is None else share(body["diversity"], "diversity"),
        explain=explain,
        context=context,
        model_version=optional_id(body, "model_version"),
        shown=decode_cursor(optional_text(body, "cursor") or ""),
    )
