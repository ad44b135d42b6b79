"""A visitor logs in: what the session did without a user joins the account.

The bus takes the merge first, for the store and the online features (`features.session_merges`). Then the session's last events are
moved to the account's own, and its freshness mark moves: the next answer knows them. The session is anonymous again, so that the
next account that logs in on the same device gets nothing of this one. Merging again changes nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from features.bus import SESSIONS, EventBus
from features.errors import BusUnavailableError
from features.events import derived_event_id
from features.session_merges import encode_merge
from serving.cache import ListCache, session_unit, user_unit
from serving.config import ServingConfig
from serving.errors import RequestError, not_taken
from serving.metrics import GatewayMetrics
from serving.recent_activity import decode_activity
from serving.request_values import checked_id


class SessionMerger:
    """Merges sessions for one gateway replica.

    Args:
        config: dataset and site.
        bus: where merges go.
        cache: where last events and freshness marks are.
        metrics: counted here.
    """

    def __init__(self, config: ServingConfig, bus: EventBus, cache: ListCache, metrics: GatewayMetrics) -> None:
        self._config, self._bus, self._cache, self._metrics = config, bus, cache, metrics

    async def merge(self, session_id: str, body: object) -> dict[str, Any]:
        """Join a session to the user that the body names.

        Raises:
            RequestError: the body names no user (422), or the bus is full (429) or gone (503).
        """
        user_id = _user_of(body)
        now_us = time.time_ns() // 1000
        merge_id = derived_event_id(self._config.dataset, session_id, user_id, now_us)
        payload = encode_merge(merge_id, session_id, user_id, now_us, self._config.site)
        try:
            await self._bus.publish_async(SESSIONS, [payload], [merge_id])
        except BusUnavailableError as error:
            raise not_taken(error, "the session was not merged") from None
        return {"session_id": session_id, "user_id": user_id, "recent_events": await self._move_recent(session_id, user_id, now_us)}

    async def _move_recent(self, session_id: str, user_id: str, now_us: int) -> int:
        """Give the account the session's last events that it has not; returns how many."""
        session, user = await self._cache.read(None, session_unit(session_id)), await self._cache.read(None, user_unit(user_id))
        known = set(decode_activity(user.activity).events)
        fresh = [event for event in decode_activity(session.activity).events if event not in known]
        reachable = session.reachable and user.reachable
        if not reachable or (fresh and not await self._cache.append_activity({user_unit(user_id): fresh}, now_us)):
            self._metrics.fallback("mark")
            return 0
        if session.activity:
            await self._cache.forget_activity(session_unit(session_id), now_us)
        return len(fresh)


def _user_of(body: object) -> str:
    if not isinstance(body, Mapping) or set(body) != {"user_id"}:
        raise RequestError('the body must be {"user_id": "..."}', field="user_id")
    user_id = body["user_id"]
    if isinstance(user_id, bool) or not isinstance(user_id, str | int):
        raise RequestError("user_id must be text", field="user_id")
    return checked_id(str(user_id), "user_id")
