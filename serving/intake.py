"""Event intake: validate, put on the bus, and only then say so; then move the freshness marks of the users concerned.

The bus is what makes an event accepted. The mark comes after it and may fail: then a cached list stays until it expires or the
online features catch up, and nothing is lost. An event that the bus has already is one that was sent again, maybe because nobody
could say whether it had arrived: where the user's last events lack it, it moves the mark too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from features.bus import EVENTS, EventBus
from features.errors import BusUnavailableError, EventError
from features.event_codec import encode_event, to_microseconds
from features.events import Event, parse_event
from serving.cache import ListCache, session_unit, user_unit
from serving.config import ServingConfig
from serving.erased_senders import ErasedSenders
from serving.errors import RequestError, not_taken
from serving.metrics import GatewayMetrics
from serving.recent_activity import RecentEvent, changes_answers, decode_activity

MAX_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a call's events. `event_ids` has an entry for each, None where it was rejected.

    `duplicate_ids` are those that the bus has had within its window (`UNIQUE_WINDOW_S`); the store tells repeats apart for good.
    """

    accepted: int
    duplicate_ids: list[str] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    event_ids: list[str | None] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The body of the 202."""
        return {
            "accepted": self.accepted,
            "duplicates": len(self.duplicate_ids),
            "rejected": self.rejected,
            "event_ids": self.event_ids,
            **({"duplicate_ids": self.duplicate_ids} if self.duplicate_ids else {}),
        }


class EventIntake:
    """Takes events of one gateway replica.

    Args:
        config: dataset and site.
        bus: where accepted events go.
        cache: where freshness marks are.
        metrics: counted here.
    """

    def __init__(self, config: ServingConfig, bus: EventBus, cache: ListCache, metrics: GatewayMetrics) -> None:
        self._config, self._bus, self._cache, self._metrics = config, bus, cache, metrics
        self._extra_actions = frozenset(config.extra_actions)
        self._erased = ErasedSenders(config)

    async def take(self, body: object) -> Receipt:
        """Accept one event, or a batch `{"events": [...]}`.

        Raises:
            RequestError: no event is valid (422), too many (413), the bus is full (429) or gone (503).
        """
        raw = _raw_events(body)
        now = datetime.now(UTC)
        parsed = [self._parsed(one, now) for one in raw]
        parsed = await self._erased.refused(parsed)
        events = [one for one in parsed if isinstance(one, Event)]
        event_ids = [one.event_id if isinstance(one, Event) else None for one in parsed]
        rejected: list[dict[str, Any]] = [
            {"index": index, "error": str(one)} | ({"field": one.field} if one.field else {})
            for index, one in enumerate(parsed)
            if isinstance(one, EventError)
        ]
        self._metrics.events("rejected", len(rejected))
        if not events:
            first = rejected[0]
            several = f" (and {len(rejected) - 1} more rejected)" if len(rejected) > 1 else ""
            raise RequestError(f"{first['error']}{several}", code="invalid_event", field=first.get("field"))
        new = await self._publish(events, now)
        duplicate_ids = [event.event_id for event, is_new in zip(events, new, strict=True) if not is_new]
        for (action, is_new), number in Counter((event.action, one) for event, one in zip(events, new, strict=True)).items():
            self._metrics.events("accepted" if is_new else "duplicate", number, action)
        await self._move_marks(events, new, now)
        return Receipt(len(events), duplicate_ids, rejected, event_ids)

    def _parsed(self, raw: Any, now: datetime) -> Event | EventError:
        try:
            return parse_event(raw, dataset=self._config.dataset, now=now, extra_actions=self._extra_actions)
        except EventError as error:
            return error

    async def _publish(self, events: list[Event], now: datetime) -> list[bool]:
        payloads = [encode_event(event, received_at=now, site=self._config.site) for event in events]
        try:
            ids = await self._bus.publish_async(EVENTS, payloads, [event.event_id for event in events])
        except BusUnavailableError as error:
            # A bus that hangs may still append them when it goes on: their ids keep the second sending from being stored again.
            raise not_taken(error, "no event was accepted, send them again with the same event_id") from None
        return [one is not None for one in ids]

    async def _move_marks(self, events: Sequence[Event], new: Sequence[bool], now: datetime) -> None:
        fresh: dict[str, list[RecentEvent]] = {}
        repeated: dict[str, list[RecentEvent]] = {}
        for event, is_new in zip(events, new, strict=True):
            if changes_answers(event.action):
                # An event has a user or a session.
                unit = user_unit(event.user_id) if event.user_id is not None else session_unit(str(event.session_id))
                recent = RecentEvent.of(event.item_id, to_microseconds(event.timestamp), event.action)
                (fresh if is_new else repeated).setdefault(unit, []).append(recent)
        reads = await asyncio.gather(*(self._cache.read(None, unit) for unit in repeated))
        for (unit, again), read in zip(repeated.items(), reads, strict=True):
            # Without a timestamp of its own, an event has another time each time it is sent.
            known = {(one.item_id, one.action) for one in decode_activity(read.activity).events}
            lacking = [one for one in again if (one.item_id, one.action) not in known]
            if lacking and read.reachable:
                fresh[unit] = lacking + fresh.get(unit, [])
        if fresh and not await self._cache.append_activity(fresh, to_microseconds(now)):
            self._metrics.fallback("mark")


def _raw_events(body: object) -> list[Any]:
    if not isinstance(body, Mapping):
        raise RequestError('the body must be an event or {"events": [...]}')
    if "events" not in body:
        return [body]
    events = body["events"]
    if not isinstance(events, list) or len(body) > 1:
        raise RequestError('a batch is {"events": [...]} and nothing else', field="events")
    if not 1 <= len(events) <= MAX_BATCH:
        raise RequestError(
            f"a batch has 1 to {MAX_BATCH} events, got {len(events)}",
            code="batch_size",
            status=413 if events else 422,
            field="events",
        )
    return events
