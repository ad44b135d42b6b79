"""The event: the one record of activity, live or imported. Owns its schema and its id; the stores own its keeping.

An event on the wire (DESIGN 4.5) is validated by `parse_event` into an `Event`; in the store it is a row of
`EVENT_SCHEMA`. `experiments` imports this module and no other of ours.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import EventError

ACTIONS: tuple[str, ...] = (
    "view",
    "click",
    "add_to_cart",
    "purchase",
    "rating",
    "like",
    "dislike",
    "dismiss",
    "impression",
)
"""Actions known without configuration."""

POSITIVE_ACTIONS: frozenset[str] = frozenset({"view", "click", "add_to_cart", "purchase", "rating", "like"})
"""Actions that models learn from as interest. A rating is interest whatever its value: it was chosen and consumed."""

NEGATIVE_ACTIONS: frozenset[str] = frozenset({"dislike", "dismiss"})
"""Actions after which an item is not recommended to that user again."""

ACTION_CODES: dict[str, int] = {action: code for code, action in enumerate(ACTIONS, 1)}
"""Actions as one byte, in histories and in the cache. Never renumbered: stored bytes outlive releases."""

OTHER_ACTION_CODE = 0
"""Of actions by configuration, and where no action is known."""


def action_codes(actions: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """The code of each action."""
    place = pc.index_in(actions.cast(pa.string()), value_set=pa.array(list(ACTION_CODES), pa.string()))
    codes = np.array([*ACTION_CODES.values(), OTHER_ACTION_CODE], dtype=np.uint8)
    return codes[pc.fill_null(place, len(ACTION_CODES)).to_numpy()]


UNKNOWN_ACTION = "unknown_action"
UNKNOWN_ITEM = "unknown_item"
"""Values of the `flag` column: the event is kept and not trained on."""

MAX_ID_LENGTH = 256
MAX_CONTEXT_BYTES = 4096

MAX_AHEAD = timedelta(days=1)
"""How far a client's clock may be ahead of the receiver's: a wrong time zone, not a wrong unit or year."""

EVENT_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        # Event time in UTC. Imported histories: raised to the predecessor's where order and time disagree, plus
        # `history_position` microseconds, so that one user's events are strictly ordered by it.
        pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("timestamp_imputed", pa.bool_(), nullable=False),
        pa.field("received_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("history_position", pa.int64()),
        pa.field("split", pa.string()),
        pa.field("recommendation_id", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("context", pa.string()),  # JSON object
        pa.field("flag", pa.string()),
        pa.field("origin", pa.string(), nullable=False),  # "live" or "import"
    ]
)
"""One row of the activity store. Timestamps are microseconds: DuckDB and Feast refuse nanoseconds."""


@dataclass(frozen=True, slots=True)
class Event:
    """One validated event. Either `user_id` or `session_id` is set, or both.

    `timestamp` is UTC. `event_id_given` says whether the client sent the id, derived ids repeat for equal fields.
    """

    event_id: str
    item_id: str
    action: str
    timestamp: datetime
    user_id: str | None = None
    session_id: str | None = None
    value: float | None = None
    recommendation_id: str | None = None
    position: int | None = None
    context: dict[str, Any] = field(default_factory=dict)
    flag: str | None = None

    def to_row(self, *, received_at: datetime, site: str = "local") -> dict[str, Any]:
        """The event as a row of `EVENT_SCHEMA`, of origin `live`."""
        return {
            "event_id": self.event_id,
            "site": site,
            "user_id": self.user_id,
            "session_id": self.session_id,
            "item_id": self.item_id,
            "action": self.action,
            "value": self.value,
            "timestamp": self.timestamp,
            "timestamp_imputed": False,
            "received_at": received_at,
            "history_position": None,
            "split": None,
            "recommendation_id": self.recommendation_id,
            "position": self.position,
            "context": orjson.dumps(self.context, option=orjson.OPT_SORT_KEYS).decode() if self.context else None,
            "flag": self.flag,
            "origin": "live",
        }


def derived_event_id(*parts: object) -> str:
    """Stable id of an event that came without one: 128-bit BLAKE2b over the parts in order, as 32 hex digits."""
    text = "\x1f".join("" if part is None else str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def parse_event(raw: object, *, dataset: str, now: datetime, extra_actions: frozenset[str] = frozenset()) -> Event:
    """Validate one event as a client sends it.

    An unknown action is kept with `flag="unknown_action"`; whether the item is known is for the catalogue's owner to say.
    Without `event_id` the id is derived from the fields when a timestamp is given, and fresh otherwise. A timestamp from 1900 on is
    taken as it is, however late it comes; one ahead of the receiver's clock becomes the receiver's time (nothing can have happened
    later than it was told), and one more than `MAX_AHEAD` ahead is refused.

    Args:
        raw: the decoded JSON value.
        dataset: namespace that goes into a derived id, which quotes the timestamp as given.
        now: the receiver's clock.
        extra_actions: actions added by configuration.

    Raises:
        EventError: a field is missing, of the wrong type or out of range; `field` names it.
    """
    if not isinstance(raw, dict):
        raise EventError("an event must be a JSON object")
    if not raw.keys() <= _EVENT_FIELDS:
        unknown = sorted(raw.keys() - _EVENT_FIELDS)[0]
        raise EventError(f"unknown field {unknown!r}; allowed: {', '.join(sorted(_EVENT_FIELDS))}", unknown)
    user_id, session_id = _optional_id(raw, "user_id"), _optional_id(raw, "session_id")
    if user_id is None and session_id is None:
        raise EventError("one of user_id and session_id is required", "user_id")
    item_id = _optional_id(raw, "item_id")
    if item_id is None:
        raise EventError("item_id is required", "item_id")
    action = _optional_id(raw, "action")
    if action is None:
        raise EventError("action is required", "action")
    value, timestamp = _value(raw.get("value")), parse_timestamp(raw.get("timestamp"))
    event_id = _optional_id(raw, "event_id")
    if event_id is None:
        if timestamp is None:
            event_id = uuid.uuid4().hex
        else:
            event_id = derived_event_id(dataset, user_id or session_id, item_id, action, timestamp.isoformat(), value)
    if timestamp is not None and timestamp > now:
        if timestamp - now > MAX_AHEAD:
            raise EventError(
                f"timestamp {raw['timestamp']!r} is more than a day ahead of the server's clock, which says "
                f"{now.isoformat(timespec='seconds')}; is it in milliseconds, or the client's clock wrong?",
                "timestamp",
            )
        timestamp = now
    return Event(
        event_id=event_id,
        item_id=item_id,
        action=action,
        timestamp=timestamp or now,
        user_id=user_id,
        session_id=session_id,
        value=value,
        recommendation_id=_optional_id(raw, "recommendation_id"),
        position=_position(raw.get("position")),
        context=_context(raw.get("context")),
        flag=None if action in ACTIONS or action in extra_actions else UNKNOWN_ACTION,
    )


def parse_timestamp(raw: object) -> datetime | None:
    """ISO 8601 text, or epoch seconds, as an aware UTC time. Text without an offset is read as UTC.

    Raises:
        EventError: neither form, or outside the years 1900 to 2200.
    """
    if raw is None:
        return None
    try:
        if isinstance(raw, bool):
            raise ValueError
        if isinstance(raw, int | float):
            moment = datetime.fromtimestamp(raw, UTC)
        elif isinstance(raw, str):
            moment = datetime.fromisoformat(raw)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        else:
            raise ValueError
    except (ValueError, OverflowError, OSError):
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            raise EventError(f"timestamp {raw!r} {_OUTSIDE}", "timestamp") from None
        raise EventError(f"timestamp {raw!r} is neither ISO 8601 nor epoch seconds", "timestamp") from None
    if not 1900 <= moment.year <= 2200:
        raise EventError(f"timestamp {raw!r} {_OUTSIDE}", "timestamp")
    return moment


_OUTSIDE = "is outside the years 1900 to 2200; is it in milliseconds?"


_EVENT_FIELDS = {
    "event_id",
    "user_id",
    "session_id",
    "item_id",
    "action",
    "timestamp",
    "value",
    "recommendation_id",
    "position",
    "context",
}


def _optional_id(raw: dict[str, Any], name: str) -> str | None:
    given = raw.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise EventError(f"{name} must be a string", name)
    text = str(given)
    if not text or len(text) > MAX_ID_LENGTH or "\0" in text:
        raise EventError(f"{name} must have 1 to {MAX_ID_LENGTH} characters, none of them NUL", name)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise EventError(f"{name} is not valid Unicode text", name) from None
    return text


def _value(given: object) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise EventError("value must be a finite number", "value")
    return float(given)


def _position(given: object) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 100_000:
        raise EventError("position must be an integer from 0 to 99,999", "position")
    return given


def _context(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise EventError("context must be a JSON object", "context")
    try:
        size = len(orjson.dumps(given))
    except TypeError as error:
        raise EventError(f"context cannot be kept as JSON: {error}", "context") from None
    if size > MAX_CONTEXT_BYTES:
        raise EventError(f"context must be at most {MAX_CONTEXT_BYTES} bytes of JSON", "context")
    return given
