"""Events as bytes on the bus, and back into rows of `EVENT_SCHEMA`: compact JSON without nulls, times as microseconds.

JSON, so that `events tail` and any other consumer can read it. Decoding trusts nothing: an entry that is not a valid row is an
`EventError`, which the reader turns into a dead letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa

from features.errors import EventError
from features.events import EVENT_SCHEMA, Event

_TIMES = tuple(field.name for field in EVENT_SCHEMA if pa.types.is_timestamp(field.type))
_REQUIRED = tuple(field.name for field in EVENT_SCHEMA if not field.nullable)
_TYPES: dict[str, tuple[type, ...]] = {
    field.name: (
        (str,)
        if pa.types.is_string(field.type)
        else (bool,)
        if pa.types.is_boolean(field.type)
        else (int, float)
        if pa.types.is_floating(field.type)
        else (int,)
    )
    for field in EVENT_SCHEMA
}
_LIMITS = {"position": 1 << 31}


def encode_event(event: Event, *, received_at: datetime, site: str = "local") -> bytes:
    """One accepted event as a bus payload; `event.event_id` is its key."""
    row = event.to_row(received_at=received_at, site=site)
    for name in _TIMES:
        row[name] = to_microseconds(row[name])
    return orjson.dumps({name: value for name, value in row.items() if value is not None})


def decode_event(payload: bytes) -> dict[str, Any]:
    """A bus payload as a row of `EVENT_SCHEMA` (times as int microseconds, nulls left out).

    Raises:
        EventError: not JSON, an unknown or missing column, or a value of the wrong type.
    """
    try:
        row = orjson.loads(payload)
    except ValueError as error:
        raise EventError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise EventError("not a JSON object")
    for name in _REQUIRED:
        if row.get(name) is None:
            raise EventError(f"{name} is missing", name)
    for name, value in row.items():
        allowed = _TYPES.get(name)
        if allowed is None:
            raise EventError(f"unknown column {name!r}", name)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise EventError(f"{name} {value!r} is not {allowed[-1].__name__}", name)
        if isinstance(value, int) and not -(limit := _LIMITS.get(name, 1 << 63)) <= value < limit:
            raise EventError(f"{name} {value!r} is out of range", name)
    if row.get("user_id") is None and row.get("session_id") is None:
        raise EventError("one of user_id and session_id is required", "user_id")
    return row


def event_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Decoded rows as a table of `EVENT_SCHEMA`, in order."""
    return pa.table([pa.array([row.get(field.name) for row in rows], field.type) for field in EVENT_SCHEMA], schema=EVENT_SCHEMA)


def to_microseconds(moment: datetime) -> int:
    """Microseconds since the epoch of an aware time, exactly."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
