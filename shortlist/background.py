"""`BackgroundEvents`: activity logged without waiting, sent in batches by a thread.

    with client.background() as events:
        events.log_user_activity("42", "item-7", "click")

Owns the buffer between application and server: bounded, in order, each event under the id that it was given when it was logged, so
that sending a batch again stores nothing twice. Overload (429) and outages are waited out as the server asks; meanwhile the buffer
fills, and a full buffer makes `log_user_activity` wait. What the server refuses for good is told to `on_rejected`, or logged.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shortlist import client_calls as calls
from shortlist.client_errors import ApiError, is_passing, pause_s

if TYPE_CHECKING:
    from shortlist.client import Client

LOG = logging.getLogger("shortlist.client")

Rejected = Callable[[Mapping[str, Any], str], None]
"""Called with an event that the server refused, and why; from the sending thread."""


class BufferFullError(Exception):
    """The buffer stayed full for as long as the caller would wait; the event was not taken."""


class BackgroundEvents:
    """A bounded buffer of events and the thread that sends them. Safe to share between threads; flushed at exit.

    Args:
        client: that sends; it must stay open.
        max_events: events held at most, those being sent included.
        batch_events: events of one call.
        linger_s: how long an event waits for others to fill its batch.
        block_s: how long `log_user_activity` waits for room; None waits for ever, 0 never.
        exit_s: how long leaving the program, or the `with` block, waits for the last events.
        on_rejected: told of events that the server refused; they are logged by default.
    """

    def __init__(
        self,
        client: Client,
        *,
        max_events: int = 10_000,
        batch_events: int = 200,
        linger_s: float = 0.5,
        block_s: float | None = None,
        exit_s: float = 10.0,
        on_rejected: Rejected | None = None,
    ) -> None:
        if not 1 <= batch_events <= min(max_events, calls.MAX_EVENTS_PER_CALL):
            raise ValueError(f"batch_events must be 1 to {min(max_events, calls.MAX_EVENTS_PER_CALL)}, got {batch_events}")
        self._client, self._max_events, self._batch_events = client, max_events, batch_events
        self._linger_s, self._block_s, self._exit_s = linger_s, block_s, exit_s
        self._on_rejected = on_rejected or _log_rejected
        self._held: deque[tuple[float, calls.Json]] = deque()
        self._changed = threading.Condition()
        self._closed = self._abandoned = False
        self._flushing = 0
        self.sent = self.rejected = 0
        self._thread = threading.Thread(target=self._run, name="shortlist-events", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def log_user_activity(
        self, user_id: str | None, item_id: str, action: str, timestamp: calls.When | None = None, **fields: Any
    ) -> str:
        """Take one event to be sent soon; arguments as of `Client.log_user_activity`. Returns its id.

        The event happened now unless `timestamp` says otherwise: it may wait here before the server sees it.

        Raises:
            BufferFullError: no room within `block_s`.
            RuntimeError: closed.
        """
        when = time.time() if timestamp is None else timestamp
        event = calls.event_body({"user_id": user_id, "item_id": item_id, "action": action, "timestamp": when, **fields})
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or len(self._held) < self._max_events, self._block_s):
                raise BufferFullError(
                    f"{self._max_events:,} events wait to be sent and there was no room within {self._block_s} s: is the server up?"
                )
            if self._closed:
                raise RuntimeError("this buffer of events is closed")
            self._held.append((time.monotonic(), event))
            self._changed.notify_all()
        return str(event["event_id"])

    @property
    def pending(self) -> int:
        """Events that the server has not confirmed yet."""
        return len(self._held)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Send what is held without lingering; returns whether all of it was confirmed or refused in time."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._held, timeout_s)
            finally:
                self._flushing -= 1

    def close(self) -> None:
        """Take nothing more, send what is held, stop. What cannot be sent within `exit_s` is logged as lost, by number."""
        with self._changed:
            if self._abandoned:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join(self._exit_s)
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        if self._held:
            LOG.error(
                "%d events were not sent within %.0f s and are lost: the server does not take them", self.pending, self._exit_s
            )
        atexit.unregister(self.close)

    def __enter__(self) -> BackgroundEvents:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while batch := self._next_batch():
            if not self._deliver(batch):
                return
            with self._changed:
                for _ in batch:
                    self._held.popleft()
                self._changed.notify_all()

    def _next_batch(self) -> list[calls.Json]:
        """The oldest events once they fill a batch or have lingered; empty when closed and done."""
        with self._changed:
            while not self._closed and not self._flushing and len(self._held) < self._batch_events:
                left_s = self._held[0][0] + self._linger_s - time.monotonic() if self._held else None
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            if not self._held and not self._closed:
                self._changed.wait_for(lambda: self._held or self._closed)
                return self._next_batch()
            return [event for _, (_, event) in zip(range(self._batch_events), self._held, strict=False)]

    def _deliver(self, batch: list[calls.Json]) -> bool:
        """Send until the server has taken or refused the batch; False where there is no time left for it."""
        attempt = 0
        while True:
            try:
                receipt = self._client.send_once(calls.log_events(batch))
            except ApiError as error:
                if is_passing(error):
                    attempt += 1
                    with self._changed:
                        if self._changed.wait_for(lambda: self._abandoned, pause_s(attempt, error)):
                            return False
                    continue
                refused = dict.fromkeys(range(len(batch)), str(error))
            else:
                refused = {one["index"]: one["error"] for one in receipt["rejected"]}
            self.sent += len(batch) - len(refused)
            self.rejected += len(refused)
            for index, why in refused.items():
                self._on_rejected(batch[index], why)
            return True


def _log_rejected(event: Mapping[str, Any], why: str) -> None:
    LOG.error("the server refused event %s: %s", event["event_id"], why)
