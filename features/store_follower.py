"""State in memory that equals what the activity store holds: loaded from it once, then fed what each append stored.

The store says which events are new, so nothing is counted twice however often the bus hands an event out; and a process that died
loads everything again, so nothing is left out. An append, import or erasure by another process shows as a gap in the store's
sequence: then all is loaded anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from features.activity_store import ActivityStore, AppendResult
from features.errors import StoreError

LOG = logging.getLogger(__name__)

SPAN_BYTES = 64 << 20
"""Files read at once while loading: about 1 GB of memory for the largest."""


class FollowsStore(Protocol):
    """A state that is made of stored events, in any order."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of EVENT_SCHEMA that it reads."""

    def reset(self) -> None:
        """Forget everything."""

    def add(self, events: pa.Table) -> None:
        """Take in events that it has not seen."""


class StoreFollower:
    """Keeps states level with one store.

    Hold `lock` while reading a state that `add` changes; whoever appends calls this with the result.

    Args:
        store: the store.
        states: what is kept.
    """

    def __init__(self, store: ActivityStore, states: Sequence[FollowsStore]) -> None:
        self.lock = threading.RLock()
        self._store, self._states = store, tuple(states)
        self._columns = sorted({name for state in self._states for name in state.columns})
        self._sequence = -1

    def load(self) -> None:
        """Read the whole store into the states.

        Raises:
            StoreError: it cannot be read, or is written to all the time.
        """
        with self.lock:
            for _ in range(5):
                sequence = self._store.sequence()
                for state in self._states:
                    state.reset()
                for since, until in self._store.spans(SPAN_BYTES):
                    self._add(self._store.read(self._columns, since=since, as_of=until))
                if self._store.sequence() == sequence:
                    self._sequence = sequence
                    return
        raise StoreError("the activity store was written to by others during five attempts to load it: try again later")

    def __call__(self, result: AppendResult) -> None:
        """Take in what an append stored."""
        with self.lock:
            if self._sequence == result.follows or (self._sequence == 0 and result.follows == 1):
                self._add(result.stored)
                self._sequence = result.sequence
            elif self._sequence < result.sequence:
                LOG.info("others wrote to the activity store: live aggregates are loaded anew")
                self.load()

    def _add(self, events: pa.Table) -> None:
        if events.num_rows:
            for state in self._states:
                state.add(events.select(list(state.columns)))
