"""Requests read from query strings and JSON bodies, every value bounded; refusals name the field.

Parsing is by hand and not by a framework: this runs on every cached answer, whose whole budget is some ten microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from features.events import MAX_ID_LENGTH
from serving.errors import RequestError
from serving.filters import compile_filter
from serving.page_cursor import decode_cursor
from serving.schemas import ALL_SEEN, MAX_TOP_K, RecommendationRequest, Seen, Selection

MAX_RECENT_ITEMS = 200
MAX_CANDIDATES = 1000
MAX_FIELDS = 32
MAX_BOOSTS = 10
MAX_BOOST = 100.0
MAX_WORDS = 32
"""Words of category, region, language, and actions of exclude_seen."""
MAX_CHAIN = 8
MAX_SEEN_DAYS = 36_500.0

_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})
SELECTION_PARAMETERS = frozenset({"top_k", "category", "region", "language", "filter", "fields"})
_SHARED_PARAMETERS = SELECTION_PARAMETERS | {"placement", "exclude_seen", "diversity", "explain", "cursor", "session_id"}
_BODY_PARAMETERS = _SHARED_PARAMETERS | {
    "user_id",
    "recent_items",
    "exclude",
    "candidates",
    "boost",
    "context",
    "model_version",
}
_QUERY_PARAMETERS = _SHARED_PARAMETERS | {"exclude_seen_days"}
_SINGLE = _QUERY_PARAMETERS - {"category", "region", "language", "fields"}


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
    given = query_parameters(query_string, _QUERY_PARAMETERS)
    one = {name: values[0] for name, values in given.items()}
    return RecommendationRequest(
        session_id=checked_id(one["session_id"], "session_id") if "session_id" in one else None,
        top_k=parse_top_k(one["top_k"]) if "top_k" in one else None,
        placement=one.get("placement") or None,
        selection=parse_selection(given),
        seen=_query_seen(one.get("exclude_seen", "true"), one.get("exclude_seen_days")),
        fields=parse_fields(given.get("fields", ())),
        diversity=_share(one["diversity"], "diversity") if "diversity" in one else None,
        explain=_flag(one["explain"], "explain") if "explain" in one else False,
        shown=decode_cursor(one.get("cursor", "")),
    )


def parse_body(body: object) -> RecommendationRequest:
    """A request from a decoded JSON body.

    Raises:
        RequestError: as `parse_get`.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    unknown = sorted(set(body) - _BODY_PARAMETERS)
    if unknown:
        raise RequestError(f"unknown field {unknown[0]!r}; allowed: {', '.join(sorted(_BODY_PARAMETERS))}", field=unknown[0])
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
    selection = {name: _texts(body.get(name), name) for name in ("category", "region", "language")}
    selection["filter"] = [_optional_text(body, "filter") or ""]
    return RecommendationRequest(
        user_id=_optional_id(body, "user_id"),
        session_id=_optional_id(body, "session_id"),
        top_k=None if top_k is None else parse_top_k(str(top_k)),
        placement=_optional_text(body, "placement") or None,
        selection=parse_selection(selection),
        seen=_body_seen(body.get("exclude_seen", True)),
        fields=parse_fields(_texts(body.get("fields"), "fields")),
        recent_items=_ids(body.get("recent_items"), "recent_items", MAX_RECENT_ITEMS),
        exclude=_ids(body.get("exclude"), "exclude", MAX_CANDIDATES),
        candidates=None if candidates is None else _ids(candidates, "candidates", MAX_CANDIDATES),
        boost=_boosts(body.get("boost")),
        diversity=None if body.get("diversity") is None else _share(body["diversity"], "diversity"),
        explain=explain,
        context=context,
        model_version=_optional_id(body, "model_version"),
        shown=decode_cursor(_optional_text(body, "cursor") or ""),
    )


def parse_top_k(text: str) -> int:
    """The number of items wanted.

    Raises:
        RequestError: not an integer from 1 to 500.
    """
    try:
        top_k = int(text) if len(text) <= 10 else 0
    except ValueError:
        top_k = 0
    if not 1 <= top_k <= MAX_TOP_K:
        raise RequestError(f"top_k must be an integer from 1 to {MAX_TOP_K}, got {text[:40]!r}", field="top_k")
    return top_k


def parse_selection(given: Mapping[str, Sequence[str]]) -> Selection:
    """Category, region, language and filter; several words may also be separated by commas (not in categories).

    Raises:
        RequestError: too many words.
    """
    expression = given["filter"][0].strip() if given.get("filter") else ""
    category = tuple(dict.fromkeys(word for word in given.get("category", ()) if word))
    if len(category) > MAX_WORDS:
        raise RequestError(f"category names {len(category)} categories, {MAX_WORDS} are allowed", field="category")
    chains = {}
    for name in ("region", "language"):
        chains[name] = tuple(dict.fromkeys(word for text in given.get(name, ()) for word in text.split(",") if word))
        if len(chains[name]) > MAX_CHAIN:
            raise RequestError(f"{name} names {len(chains[name])} {name}s, {MAX_CHAIN} are allowed", field=name)
    return Selection(category=category, filter=expression or None, **chains)


def parse_fields(given: Sequence[str]) -> tuple[str, ...]:
    """Names of item attributes, separated by commas or given several times.

    Raises:
        RequestError: more than 32.
    """
    names = tuple(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))
    if len(names) > MAX_FIELDS:
        raise RequestError(f"fields names {len(names)} attributes, {MAX_FIELDS} are allowed", field="fields")
    return names


def checked_id(text: str, name: str) -> str:
    """An id that can be one.

    Raises:
        RequestError: empty, too long, or not Unicode.
    """
    if not 0 < len(text) <= MAX_ID_LENGTH:
        raise RequestError(f"{name} must have 1 to {MAX_ID_LENGTH} characters", field=name)
    return text


def _flag(text: str, name: str) -> bool:
    lower = text.lower()
    if lower not in _TRUE and lower not in _FALSE:
        raise RequestError(f"{name} must be true or false, got {text[:40]!r}", field=name)
    return lower in _TRUE


def _share(given: object, name: str) -> float:
    try:
        share = float(given) if isinstance(given, str | int | float) and not isinstance(given, bool) else math.nan
    except (ValueError, OverflowError):
        share = math.nan
    if not 0 <= share <= 1:
        raise RequestError(f"{name} must be a number from 0 to 1, got {str(given)[:40]!r}", field=name)
    return share


def _query_seen(text: str, days: str | None) -> Seen | None:
    lower = text.lower()
    if lower in _FALSE:
        return None
    actions = () if lower in _TRUE else tuple(word.strip() for word in text.split(",") if word.strip())
    if days is None:
        return _seen(actions, None)
    try:
        return _seen(actions, float(days))
    except ValueError:
        return _seen(actions, math.nan)


def _body_seen(given: object) -> Seen | None:
    if isinstance(given, bool):
        return ALL_SEEN if given else None
    if not isinstance(given, dict) or set(given) - {"actions", "days"}:
        raise RequestError('exclude_seen must be true, false or {"actions": [...], "days": number}', field="exclude_seen")
    days = given.get("days")
    if days is not None and (isinstance(days, bool) or not isinstance(days, int | float)):
        days = math.nan
    return _seen(tuple(_texts(given.get("actions"), "exclude_seen")), None if days is None else float(days))


def _seen(actions: tuple[str, ...], days: float | None) -> Seen:
    if len(actions) > MAX_WORDS or any(not 0 < len(action) <= 64 for action in actions):
        raise RequestError(f"exclude_seen names up to {MAX_WORDS} actions of 1 to 64 characters", field="exclude_seen")
    if days is not None and not 0 < days <= MAX_SEEN_DAYS:
        raise RequestError(f"the days of exclude_seen must be above 0, to {MAX_SEEN_DAYS:.0f}", field="exclude_seen")
    return Seen(tuple(sorted(set(actions))), days)


def _boosts(given: object) -> tuple[tuple[str, float], ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MAX_BOOSTS:
        raise RequestError(f'boost must be a list of up to {MAX_BOOSTS} {{"filter", "weight"}}', field="boost")
    boosts = []
    for one in given:
        if not isinstance(one, dict) or set(one) != {"filter", "weight"} or not isinstance(one["filter"], str):
            raise RequestError('a boost is {"filter": CEL, "weight": number}', field="boost")
        weight = one["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= MAX_BOOST:
            raise RequestError(f"the weight of a boost must be a number from -{MAX_BOOST:g} to {MAX_BOOST:g}", field="boost")
        compile_filter(one["filter"])
        boosts.append((one["filter"], float(weight)))
    return tuple(boosts)


def _optional_text(body: Mapping[str, Any], name: str) -> str | None:
    given = body.get(name)
    if given is not None and not isinstance(given, str):
        raise RequestError(f"{name} must be text", field=name)
    return given


def _optional_id(body: Mapping[str, Any], name: str) -> str | None:
    given = body.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise RequestError(f"{name} must be text", field=name)
    return checked_id(str(given), name)


def _ids(given: object, name: str, limit: int) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or any(isinstance(one, bool) or not isinstance(one, str | int) for one in given):
        raise RequestError(f"{name} must be a list of item ids", field=name)
    if len(given) > limit:
        raise RequestError(f"{name} has {len(given)} entries, {limit} are allowed", field=name)
    return tuple(str(one) for one in given)


def _texts(given: object, name: str) -> list[str]:
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise RequestError(f"{name} must be text or a list of texts", field=name)
    return list(given)
