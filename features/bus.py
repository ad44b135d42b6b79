"""The event bus: named streams that several groups read at their own pace, each entry at least once. Owns the protocol.

Narrow on purpose, so that a Kafka back end fits: publish, read as a group, acknowledge, take over what a dead reader left, move a
poison entry aside, and look. What an entry's bytes mean is the business of `features.event_codec` and `experiments.exposure`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

EVENTS = "events"
"""Stream of accepted user events."""

EXPOSURES = "exposures"
"""Stream of A/B exposures."""

SESSIONS = "sessions"
"""Stream of sessions that joined an account."""

SLATES = "slates"
"""Stream of served slates (`features.served`)."""

SERVED_FEATURES = "served_features"
"""Stream of the feature values that ranked a list."""

STORE_GROUP = "store"
FEATURES_GROUP = "features"

GROUPS: dict[str, tuple[str, ...]] = {
    EVENTS: (STORE_GROUP, FEATURES_GROUP),
    EXPOSURES: (STORE_GROUP,),
    SESSIONS: (STORE_GROUP, FEATURES_GROUP),
    SLATES: (STORE_GROUP,),
    SERVED_FEATURES: (STORE_GROUP,),
}
"""Every group of every stream: nothing is trimmed before all of them have read it."""


@dataclass(frozen=True, slots=True)
class BusEntry:
    """One entry as a group receives it.

    `deliveries` counts how often it was handed out, this time included. `only_for` names the one group that a replayed dead letter
    is meant for.
    """

    id: str
    payload: bytes
    deliveries: int = 1
    only_for: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that a group could not process: where it came from, and why."""

    id: str
    group: str
    reason: str
    entry_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class GroupLag:
    """How far one group is behind: entries not yet delivered, entries delivered and not acknowledged, age of the oldest of both."""

    group: str
    undelivered: int
    pending: int
    seconds: float

    @property
    def entries(self) -> int:
        """Entries that the group has not finished."""
        return self.undelivered + self.pending


@dataclass(frozen=True, slots=True)
class StreamLag:
    """State of one stream: entries held, unfinished work of each group, dead letters."""

    stream: str
    length: int
    dead: int
    groups: tuple[GroupLag, ...]


class EventBus(Protocol):
    """A bus of streams. Every method raises BusUnavailableError when the back end cannot be reached or refuses."""

    def publish(self, stream: str, payloads: Sequence[bytes], keys: Sequence[str] | None = None) -> list[str | None]:
        """Append payloads; returns when the bus has them.

        Args:
            keys: ids of the payloads. One that was published before within the back end's window is not appended again.

        Returns:
            (B,) ids of the new entries, None where the key was there already.

        Raises:
            BusFullError: readers are too far behind; nothing was appended.
        """

    async def publish_async(self, stream: str, payloads: Sequence[bytes], keys: Sequence[str] | None = None) -> list[str | None]:
        """`publish` for an event loop, with a deadline: after BusUnavailableError the payloads may or may not be on the bus.

        Publishing them again with the same keys appends none twice.
        """

    def ensure_groups(self, stream: str) -> None:
        """Create the stream's groups (`GROUPS`) where they do not exist; a new group starts at the oldest entry."""

    def read_group(self, stream: str, group: str, consumer: str, max_entries: int, block_ms: int) -> list[BusEntry]:
        """The next entries for one consumer of a group, waiting up to `block_ms` for the first.

        A consumer that comes back under its name first receives what it was given before and did not acknowledge.
        """

    def claim_abandoned(self, stream: str, group: str, consumer: str, idle_ms: int, max_entries: int) -> list[BusEntry]:
        """Entries that others of the group received `idle_ms` ago or earlier and did not acknowledge: `consumer` takes them over.

        For a consumer that has nothing in hand: what it was given itself and has not acknowledged, because the answer got lost on
        the way, comes first, however new.
        """

    def ack(self, stream: str, group: str, ids: Sequence[str]) -> None:
        """The group has finished these entries."""

    def has_finished(self, stream: str, group: str, entry_id: str) -> bool:
        """Whether the group has acknowledged this entry and every one before it."""

    def dead_letter(self, stream: str, group: str, entry: BusEntry, reason: str) -> None:
        """Move an entry that the group cannot process to the stream's dead letters, and acknowledge it, in one step."""

    def dead(self, stream: str, max_entries: int) -> list[DeadLetter]:
        """The oldest dead letters."""

    def replay(self, stream: str, ids: Sequence[str] | None = None) -> int:
        """Give dead letters (all, or those of `ids`) back to the group that failed on them, and to no other; returns how many."""

    def discard(self, stream: str, ids: Sequence[str]) -> int:
        """Delete dead letters for good; returns how many."""

    def tail(self, stream: str, max_entries: int) -> list[BusEntry]:
        """The newest entries, oldest first, whoever has read them."""

    def lag(self, stream: str) -> StreamLag:
        """State of the stream."""

    def trim(self, stream: str) -> int:
        """Delete entries that every group of `GROUPS` has finished; returns how many."""

    def erase(self, stream: str, is_meant: Callable[[bytes], bool], keys: Collection[str] = ()) -> int:
        """Delete entries and dead letters whose payload is meant, whoever has or has not read them; returns how many.

        Args:
            keys: keys of payloads that are to be forgotten too.
        """

    def close(self) -> None:
        """Close connections."""
