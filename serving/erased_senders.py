"""Events of erased people that come late: refused before they are on the bus or move a mark.

The activity store refuses them too, for all that comes another way. What a gateway knows of erasures is a second old at most: an
erasure's second look comes later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import pyarrow as pa

from features.activity_store import ActivityStore
from features.errors import EventError, FeaturesError
from features.events import Event
from serving.config import ServingConfig

_log = logging.getLogger("shortlist.serving")

REREAD_S = 1.0


class ErasedSenders:
    """Knows whose events are not taken any more.

    Args:
        config: of the stack.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._people = ActivityStore.of(config.paths).erased_people
        self._read_at, self._any = float("-inf"), False
        self._reading = asyncio.Lock()

    async def refused(self, parsed: Sequence[Event | EventError]) -> list[Event | EventError]:
        """The same with an error in the place of each event that happened before its person was erased."""
        if time.monotonic() > self._read_at + REREAD_S:
            await self._reread()
        if not self._any:
            return list(parsed)
        events = [one for one in parsed if isinstance(one, Event)]
        rows = pa.table(
            {
                "user_id": pa.array([one.user_id for one in events], pa.string()),
                "session_id": pa.array([one.session_id for one in events], pa.string()),
                "timestamp": pa.array([one.timestamp for one in events], pa.timestamp("us", tz="UTC")),
            }
        )
        late = {id(event) for event, gone in zip(events, self._people.happened_before(rows).tolist(), strict=True) if gone}
        refusal = EventError("it happened before its person was erased, and is not stored again", field="timestamp")
        return [refusal if id(one) in late else one for one in parsed]

    async def _reread(self) -> None:
        async with self._reading:
            if time.monotonic() <= self._read_at + REREAD_S:
                return  # somebody else just has
            try:
                self._any = await asyncio.to_thread(self._people.reread)
            except (FeaturesError, OSError) as error:
                _log.warning("erasures cannot be read, those known still hold: %s", error)
            self._read_at = time.monotonic()
