"""What goes over HTTP: the parsed request for recommendations, and the answer's envelope (DESIGN 4.6).

Parsing is by hand and not by a framework: this runs on every cached answer, whose whole budget is some ten microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from features.events import MAX_ID_LENGTH
from serving.errors import RequestError

DEFAULT_TOP_K = 10
MAX_TOP_K = 500
MAX_RECENT_ITEMS = 200
MAX_CANDIDATES = 1000
MAX_FIELDS = 32

ServedFrom = Literal["cache", "online", "stale", "segment", "popular"]

_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})
_SHARED_PARAMETERS = frozenset({"top_k", "category", "region", "language", "filter", "exclude_seen", "fields"})
_BODY_PARAMETERS = _SHARED_PARAMETERS | {
    "user_id",
    "session_id",
    "recent_items",
    "exclude",
    "candidates",
    "context",
    "model_version",
}
_QUERY_PARAMETERS = _SHARED_PARAMETERS | {"session_id"}


class Selection(NamedTuple):
    """Which items an answer may hold, beyond being available. Falsy when it asks for nothing; hashable, to cache its mask."""

    category: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    filter: str | None = None

    def __bool__(self) -> bool:
        return bool(self.category or self.region or self.language or self.filter)


NO_SELECTION = Selection()
"""All available items."""


@dataclass(frozen=True, slots=True)
class RecommendationRequest:
    """A valid request.

    `recent_items` are oldest first; `candidates` restricts the answer to a caller's own items; `model_version` asks one version
    whatever aliases and experiments say.
    """

    user_id: str | None = None
    session_id: str | None = None
    top_k: int = DEFAULT_TOP_K
    selection: Selection = NO_SELECTION
    exclude_seen: bool = True
    fields: tuple[str, ...] = ()
    recent_items: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    model_version: str | None = None

    @property
    def cacheable(self) -> bool:
        """Whether a list cached for the user answers this: nothing in it changes the scores."""
        return self.exclude_seen and not self.recent_items and self.candidates is None


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
    return given


@lru_cache(maxsize=1024)
def _parse_query(query_string: bytes) -> RecommendationRequest:
    """The request of a query string for a user yet unnamed. Applications ask with few different ones."""
    given = query_parameters(query_string, _QUERY_PARAMETERS)
    for name in ("top_k", "filter", "exclude_seen", "session_id"):
        if len(given.get(name, ())) > 1:
            raise RequestError(f"{name} is given more than once", field=name)
    return RecommendationRequest(
        session_id=checked_id(given["session_id"][0], "session_id") if "session_id" in given else None,
        top_k=parse_top_k(given["top_k"][0]) if "top_k" in given else DEFAULT_TOP_K,
        selection=parse_selection(given),
        exclude_seen=_flag(given["exclude_seen"][0], "exclude_seen") if "exclude_seen" in given else True,
        fields=parse_fields(given.get("fields", ())),
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
    exclude_seen = body.get("exclude_seen", True)
    if not isinstance(exclude_seen, bool):
        raise RequestError("exclude_seen must be true or false", field="exclude_seen")
    top_k = body.get("top_k", DEFAULT_TOP_K)
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise RequestError(f"top_k must be an integer from 1 to {MAX_TOP_K}", field="top_k")
    candidates = body.get("candidates")
    selection = {name: _texts(body.get(name), name) for name in ("category", "region", "language")}
    if body.get("filter") is not None:
        if not isinstance(body["filter"], str):
            raise RequestError("filter must be text", field="filter")
        selection["filter"] = [body["filter"]]
    return RecommendationRequest(
        user_id=_optional_id(body, "user_id"),
        session_id=_optional_id(body, "session_id"),
        top_k=parse_top_k(str(top_k)),
        selection=parse_selection(selection),
        exclude_seen=exclude_seen,
        fields=parse_fields(_texts(body.get("fields"), "fields")),
        recent_items=_ids(body.get("recent_items"), "recent_items", MAX_RECENT_ITEMS),
        exclude=_ids(body.get("exclude"), "exclude", MAX_CANDIDATES),
        candidates=None if candidates is None else _ids(candidates, "candidates", MAX_CANDIDATES),
        context=context,
        model_version=_optional_id(body, "model_version"),
    )


def parse_top_k(text: str) -> int:
    """The number of items wanted.

    Raises:
        RequestError: not an integer from 1 to 500.
    """
    try:
        top_k = int(text)
    except ValueError:
        top_k = 0
    if not 1 <= top_k <= MAX_TOP_K:
        raise RequestError(f"top_k must be an integer from 1 to {MAX_TOP_K}, got {text[:40]!r}", field="top_k")
    return top_k


def parse_selection(given: Mapping[str, Sequence[str]]) -> Selection:
    """Category, region, language and filter; several words mean any of them, also when separated by commas (not in categories)."""
    expression = given["filter"][0].strip() if given.get("filter") else ""
    return Selection(
        category=tuple(given.get("category", ())),
        region=tuple(word for text in given.get("region", ()) for word in text.split(",") if word),
        language=tuple(word for text in given.get("language", ()) for word in text.split(",") if word),
        filter=expression or None,
    )


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
