"""Single values of requests, out of texts and JSON, each bounded; refusals name the field. Every function raises RequestError."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from features.events import ACTION_CODES, MAX_ID_LENGTH
from serving.errors import RequestError, blaming
from serving.filters import compile_filter
from serving.schemas import ALL_SEEN, MAX_TOP_K, Seen, Selection

MAX_FIELDS = 32
MAX_BOOSTS = 10
MAX_BOOST = 100.0
MAX_WORDS = 32
"""Words of category, region and language."""
MAX_WORD_LENGTH = 512
MAX_CHAIN = 8
MAX_SEEN_DAYS = 36_500.0
OWN_KEYS = frozenset({"score", "source", "reason", "contributions"})
"""What an answer says of each item itself, beside its id: attributes of such names cannot stand in its place."""

_SEEN_FORM = 'exclude_seen must be true, false, an action, a list of actions or {"actions": [...], "max_age_days": number}'
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


def parse_top_k(text: str) -> int:
    """The number of items wanted.

    Raises:
        RequestError: not an integer from 1 to 500.
    """
    top_k = int(text) if len(text) <= 10 and text.isascii() and text.isdigit() else 0
    if not 1 <= top_k <= MAX_TOP_K:
        raise RequestError(f"top_k must be an integer from 1 to {MAX_TOP_K}, got {text[:40]!r}", field="top_k")
    return top_k


def parse_selection(given: Mapping[str, Sequence[str]]) -> Selection:
    """Category, region, language and filter; several words may also be separated by commas (not in categories).

    Raises:
        RequestError: too many words, or one that is too long.
    """
    expression = given["filter"][0].strip() if given.get("filter") else ""
    category = tuple(dict.fromkeys(word for word in given.get("category", ()) if word))
    if len(category) > MAX_WORDS:
        raise RequestError(f"category names {len(category)} categories, {MAX_WORDS} are allowed", field="category")
    chains = dict[str, tuple[str, ...]]()
    for name in ("region", "language"):
        chains[name] = tuple(dict.fromkeys(_words(given.get(name, ()))))
        if len(chains[name]) > MAX_CHAIN:
            raise RequestError(f"{name} names {len(chains[name])} {name}s, {MAX_CHAIN} are allowed", field=name)
    for name, words in (("category", category), *chains.items()):
        if any(len(word) > MAX_WORD_LENGTH for word in words):
            raise RequestError(f"a {name} has up to {MAX_WORD_LENGTH} characters", field=name)
    return Selection(category, chains["region"], chains["language"], expression or None)


def parse_fields(given: Sequence[str]) -> tuple[str, ...]:
    """Names of item attributes, separated by commas or given several times.

    Raises:
        RequestError: more than 32, or a name that the answer itself uses.
    """
    names = tuple(dict.fromkeys(_words(given)))
    if len(names) > MAX_FIELDS:
        raise RequestError(f"fields names {len(names)} attributes, {MAX_FIELDS} are allowed", field="fields")
    own = next((name for name in names if name in OWN_KEYS), None)
    if own is not None:
        raise RequestError(f"fields names item attributes; {own} is what the answer says of each item itself", field="fields")
    return names


def checked_id(text: str, name: str) -> str:
    """An id that can be one.

    Raises:
        RequestError: empty, too long, or with a NUL character, which not every store can hold.
    """
    if not 0 < len(text) <= MAX_ID_LENGTH or "\0" in text:
        raise RequestError(f"{name} must have 1 to {MAX_ID_LENGTH} characters, none of them NUL", field=name)
    return text


def flag(text: str, name: str) -> bool:
    """A truth value."""
    lower = text.lower()
    if lower not in _TRUE and lower not in _FALSE:
        raise RequestError(f"{name} must be true or false, got {text[:40]!r}", field=name)
    return lower in _TRUE


def share(given: object, name: str) -> float:
    """A number from 0 to 1."""
    share = _number(given) if isinstance(given, str) else math.nan
    if isinstance(given, int | float) and not isinstance(given, bool):
        share = given
    if not 0 <= share <= 1:
        raise RequestError(f"{name} must be a number from 0 to 1, got {str(given)[:40]!r}", field=name)
    return float(share)


def query_seen(texts: Sequence[str], days: str | None) -> Seen | None:
    """`exclude_seen` and `exclude_seen_max_age_days` of a query string: a truth value, or actions separated by commas."""
    words = [word for text in texts for word in text.split(",")] or ["true"]
    lower = words[0].lower() if len(words) == 1 else ""
    seen = _seen(None if days is None else _number(days), None if lower in _TRUE | _FALSE else words)
    return None if lower in _FALSE else seen


def body_seen(given: object) -> Seen | None:
    """`exclude_seen` of a body: a truth value, an action, a list of actions, or both bounds by name."""
    if isinstance(given, bool):
        return ALL_SEEN if given else None
    if not isinstance(given, dict):
        given = {"actions": given}
    if set(given) - {"actions", "max_age_days"}:
        raise RequestError(_SEEN_FORM, field="exclude_seen")
    days, actions = given.get("max_age_days"), given.get("actions")
    if days is not None and (isinstance(days, bool) or not isinstance(days, int | float)):
        days = math.nan
    if isinstance(actions, str):
        actions = [actions]
    if actions is not None and (not isinstance(actions, list) or not all(isinstance(one, str) for one in actions)):
        raise RequestError(_SEEN_FORM, field="exclude_seen")
    return _seen(None if days is None else float(days), actions)


def _seen(days: float | None, actions: Sequence[str] | None) -> Seen:
    if days is not None and not 0 < days <= MAX_SEEN_DAYS:
        raise RequestError(f"the age of exclude_seen must be above 0 and at most {MAX_SEEN_DAYS:.0f} days", field="exclude_seen")
    if actions is None:
        return Seen(days)
    unknown = next((one for one in actions if one not in ACTION_CODES), None)
    if unknown is not None or not actions:
        got = "an empty list" if unknown is None else repr(unknown[:40])
        known = ", ".join(ACTION_CODES)
        raise RequestError(f"exclude_seen must be true, false or some of {known}, got {got}", field="exclude_seen")
    return Seen(days, frozenset(ACTION_CODES[one] for one in actions))


def _number(text: str) -> float:
    """A number as JSON writes one, or with a bare point; NaN for anything else that `float` would take."""
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def _words(texts: Sequence[str]) -> list[str]:
    """Words separated by commas, without the spaces around them."""
    return [word for text in texts for part in text.split(",") if (word := part.strip())]


def item_filter(given: object) -> str:
    """CEL over item attributes."""
    if not isinstance(given, str):
        raise RequestError(f"filter must be text, got {str(given)[:40]!r}", field="filter")
    return compile_filter(given).expression


def boosts(given: object) -> tuple[tuple[str, float], ...]:
    """`boost` of a body: CEL and weight."""
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
        with blaming("boost"):
            compile_filter(one["filter"])
        boosts.append((one["filter"], float(weight)))
    return tuple(boosts)


def optional_text(body: Mapping[str, Any], name: str) -> str | None:
    """A text that may be missing."""
    given = body.get(name)
    if given is not None and not isinstance(given, str):
        raise RequestError(f"{name} must be text", field=name)
    return given


def optional_id(body: Mapping[str, Any], name: str) -> str | None:
    """An id that may be missing."""
    given = body.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise RequestError(f"{name} must be text", field=name)
    return checked_id(str(given), name)


def ids(given: object, name: str, limit: int) -> tuple[str, ...]:
    """A list of item ids."""
    if given is None:
        return ()
    if not isinstance(given, list) or any(isinstance(one, bool) or not isinstance(one, str | int) for one in given):
        raise RequestError(f"{name} must be a list of item ids", field=name)
    if len(given) > limit:
        raise RequestError(f"{name} has {len(given)} entries, {limit} are allowed", field=name)
    return tuple(str(one) for one in given)


def texts(given: object, name: str) -> list[str]:
    """A text or a list of texts."""
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise RequestError(f"{name} must be text or a list of texts", field=name)
    return list(given)
