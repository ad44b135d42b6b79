"""The freshness mark and the last events of one user, as one value in the cache Redis.

Accepting an event appends it here in the same round trip that moves the mark, so that the next answer knows both that older lists
are stale and what has happened, before any worker has seen the event. The online features catch up later; entries are told apart
by item and time.

    value: mark as 16 decimal digits (microseconds, strictly rising), then entries, oldest first:
    time_us int64, kind uint8 (action code * 2, + 1 where negative), length uint16, item_id in UTF-8; all little-endian
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from features.events import ACTION_CODES, NEGATIVE_ACTIONS, OTHER_ACTION_CODE, POSITIVE_ACTIONS

MARK_BYTES = 16
MAX_BYTES = 4096
"""Beyond this the oldest entries go: some 100 events of ids of 30 bytes."""
_ENTRY = struct.Struct("<qBH")
MOST_EVENTS = MAX_BYTES // _ENTRY.size
"""No value holds more."""
CHANGING_ACTIONS = POSITIVE_ACTIONS | NEGATIVE_ACTIONS
"""Actions whose events make lists stale."""

# KEYS: the user's value. ARGV: the receiver's clock in microseconds, new entries, most bytes of all entries, seconds to live.
# The mark never repeats or falls back, whatever the clocks of several gateways say.
APPEND_SCRIPT = f"""
local old = redis.call('GET', KEYS[1])
local mark, body = tonumber(ARGV[1]), ARGV[2]
if old and #old >= {MARK_BYTES} then
  local before = tonumber(string.sub(old, 1, {MARK_BYTES}))
  if before >= mark then mark = before + 1 end
  body = string.sub(old, {MARK_BYTES + 1}) .. body
end
local at = 1
while #body - at + 1 > tonumber(ARGV[3]) do
  at = at + {_ENTRY.size} + string.byte(body, at + 9) + 256 * string.byte(body, at + 10)
end
redis.call('SET', KEYS[1], string.format('%016.0f', mark) .. string.sub(body, at), 'EX', ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True)
class RecentEvent:
    """One event as the retriever needs it: the item, its time, whether it shows interest or the contrary, the action's code."""

    item_id: str
    time_us: int
    positive: bool
    action: int = OTHER_ACTION_CODE

    @classmethod
    def of(cls, item_id: str, time_us: int, action: str) -> RecentEvent:
        """An event by its action's name."""
        return cls(item_id, time_us, action not in NEGATIVE_ACTIONS, ACTION_CODES.get(action, OTHER_ACTION_CODE))


@dataclass(frozen=True, slots=True)
class RecentActivity:
    """What `decode_activity` finds: the mark (0 where there is none) and events, oldest first."""

    mark_us: int = 0
    events: tuple[RecentEvent, ...] = ()


def changes_answers(action: str) -> bool:
    """Whether an event of this action makes lists stale: interest and rejection do, being shown does not."""
    return action in CHANGING_ACTIONS


def encode_events(events: Iterable[RecentEvent]) -> bytes:
    """Entries to append."""
    parts = []
    for event in events:
        item = event.item_id.encode()
        parts += [_ENTRY.pack(event.time_us, 2 * event.action + (not event.positive), len(item)), item]
    return b"".join(parts)


def mark_of(value: bytes | None) -> int:
    """The freshness mark alone: all that a cached answer needs."""
    return int(value[:MARK_BYTES]) if value and len(value) >= MARK_BYTES else 0


def decode_activity(value: bytes | None) -> RecentActivity:
    """Mark and events of a value; damaged tails are left out."""
    if not value or len(value) < MARK_BYTES:
        return RecentActivity()
    events, at = [], MARK_BYTES
    while at + _ENTRY.size <= len(value):
        time_us, kind, length = _ENTRY.unpack_from(value, at)
        at += _ENTRY.size + length
        if at > len(value):
            break
        events.append(RecentEvent(value[at - length : at].decode(errors="replace"), time_us, not kind & 1, kind >> 1))
    return RecentActivity(mark_of(value), tuple(events))
