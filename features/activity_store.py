"""The activity store: every event of a dataset, once, as Parquet partitioned by event date.

Owns exactly-once writing and reading back. Bus, import and simulation write through `append`; training, features and reports
read through `read`. DuckDB, pandas and Feast may read the same files. A write is a transaction of `features.store_journal`; readers
see a file whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.erased_people import ErasedPeople
from features.errors import StoreError
from features.event_index import EventIndex, first_of_each
from features.events import EVENT_SCHEMA
from features.paths import DatasetPaths
from features.person import Person
from features.session_merges import merge_log
from features.store_files import LocalFolder, Part, local_root, place, writer_lock
from features.store_journal import Journal, Transaction
from features.store_parts import by_date, conform, write_part, write_parts
from features.store_reader import StoreReader
from features.store_remote import RemoteFolder

COMPACT_AT_PARTS = 16
"""A date with so many small parts is rewritten as one."""

SMALL_PART_BYTES = 64 << 20
"""Parts of this size and above are left alone by compaction."""

LOCK_TIMEOUT_S = 120.0
"""How long a writer waits for another one."""

ERASED_NOTE = "_state/erased.json"


@dataclass(frozen=True)
class AppendResult:
    """What an append did: rows stored, and rows left out because their id was stored before or earlier in the same table.

    `stored` are the rows that were new. `follows` is the store's sequence when the append began, `sequence` when it was done: who
    has seen every append up to `follows` and adds `stored` has everything (`features.store_follower`). `erased` rows were left out
    because their person was erased after they happened.
    """

    added: int
    duplicates: int
    stored: pa.Table
    follows: int
    sequence: int
    erased: int = 0


class ActivityStore(StoreReader):
    """The activity of one dataset.

    Args:
        uri: folder, or URL that fsspec can open. Nothing is created before the first append.
        state: folder on this machine for what writers need; `_state` below a local root by default.
        lock_timeout_s: how long an append waits for another writer.

    Raises:
        StoreError: the URL cannot be used, or is not of this machine and no state folder was named.
    """

    def __init__(self, uri: str | Path, *, state: Path | None = None, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        local = local_root(str(uri))
        if local is None and state is None:
            raise StoreError(f"activity store {uri} is not on this machine: its writers need a state folder here")
        self._state = state or Path(local or "") / "_state"
        super().__init__(str(uri), RemoteFolder(str(uri)) if local is None else LocalFolder(local), merge_log(uri, self._state))
        self._index = EventIndex(self._state / "index")
        self._journal = Journal(self._state, self._folder, self._index)
        self._erased = ErasedPeople(self._folder, ERASED_NOTE)
        self._lock_timeout_s = lock_timeout_s
        self._opened = False

    @classmethod
    def of(cls, paths: DatasetPaths) -> ActivityStore:
        """The store of a dataset."""
        return cls(paths.activity, state=paths.activity_state)

    def append(self, events: pa.Table) -> AppendResult:
        """Store the events whose ids are not stored yet; durable when it returns.

        Args:
            events: rows of `EVENT_SCHEMA` (a subset of its nullable columns may be missing). Of rows with one id the first
                counts; an id that is stored already keeps its stored row, whatever the new row says.

        Raises:
            StoreError: the rows do not fit the schema, the disk refuses, or another writer holds the lock.
        """
        events = conform(events)
        with self._writing("written"):
            given = events.num_rows
            events = self._erased.without(events)
            keys = self._index.keys(events["event_id"])
            fresh = first_of_each(keys) & ~self._index.contains(keys)
            added = int(fresh.sum())
            follows = self._index.manifest.next_sequence
            stored = events if added == events.num_rows else events.filter(pa.array(fresh))
            if added:
                self._write(stored, keys[:, fresh])
            sequence = self._index.manifest.next_sequence
            return AppendResult(added, events.num_rows - added, stored, follows, sequence, given - events.num_rows)

    def sequence(self) -> int:
        """Number of the next transaction: the same at two moments where nothing was written in between. 0 for no store."""
        reader = EventIndex(self._index.folder)
        return reader.manifest.next_sequence if reader.load() else 0

    @property
    def erased_people(self) -> ErasedPeople:
        """Who was erased, and when."""
        return self._erased

    def erased(self, user_ids: Sequence[str]) -> set[str]:
        """Those of the users who were erased, and may have come back since."""
        return self._erased.among(user_ids)

    def erased_as(self, user_id: str) -> str:
        """The keyed hash that stands for an erased user, for logs that must not name anybody."""
        return self._erased.stand_in(user_id)

    def erasures(self) -> int:
        """How many erasures there have been: what was read before the last one is not to be used."""
        return self._erased.count()

    def erase(self, user_id: str, session_ids: Sequence[str] = (), *, at: datetime | None = None) -> int:
        """Delete a person's events, and keep them from coming back: those that happened until `at` are not stored again.

        Args:
            user_id: of the person.
            session_ids: the person's anonymous sessions; those that are stored with the user are found here.
            at: the moment of the erasure; now by default.

        Returns:
            Number of events deleted.

        Raises:
            StoreError: as `append`. Doing it again finishes what was begun.
        """
        with self._writing("erased from"):
            sessions = sorted({*session_ids, *self.sessions(user_id)})
            self._erased.add([user_id], sessions, at or datetime.now(UTC))
            deleted = self._delete(self._ids_of(user_id, sessions))
            self._merges.erase(Person(user_id))
            return deleted

    def compact(self, min_parts: int = 2) -> int:
        """Rewrite each date of at least `min_parts` small parts as one; returns how many files went.

        Raises:
            StoreError: as `append`.
        """
        with self._writing("compacted"):
            return sum(self._compact_date(date, min_parts) for date in self._folder.dates())

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """The writer's lock, with everything that dead writers had decided carried out."""
        try:
            with writer_lock(self._state / "lock", self._lock_timeout_s):
                self._recover()
                yield
        except OSError as error:
            raise StoreError(f"activity store {self.uri} cannot be {what}: {error}; free space or check permissions") from error

    def _write(self, events: pa.Table, keys: np.ndarray) -> None:
        transaction = self._journal.begin()
        parts = by_date(events)
        dates = [date for date, _ in parts]
        places = [transaction.aside(place(date, transaction.sequence, transaction.sequence)) for date in dates]
        write_parts([(rows, aside) for (_, rows), aside in zip(parts, places, strict=True)])
        transaction.files = len(dates)
        transaction.add_ids(self._index, keys)
        self._journal.commit(transaction)
        for date in dates:
            self._compact_date(date, COMPACT_AT_PARTS)

    def _compact_date(self, date: str, min_parts: int) -> int:
        small: list[Part] = []
        # Only a run of neighbours can become one range; the newest run is the one that grows.
        for part in reversed(self._folder.parts(date)):
            if part.size >= SMALL_PART_BYTES:
                break
            small.insert(0, part)
        if len(small) < max(2, min_parts):
            return 0
        transaction = self._journal.begin()
        merged = pa.concat_tables([self._folder.read(part.place, schema=EVENT_SCHEMA) for part in small])
        final = place(date, small[0].first, small[-1].last)
        write_part(merged, transaction.aside(final))
        transaction.removals = [part.place for part in small if part.place != final]
        transaction.files = 1 - len(small)
        self._journal.commit(transaction)
        return len(small) - 1

    def _delete(self, event_ids: pa.Array) -> int:
        """Rewrite every part that holds one of the events, in one transaction."""
        deleted = 0
        if len(event_ids):
            transaction = self._journal.begin()
            for part in self._parts():
                gone = pc.is_in(self._folder.read(part.place, ["event_id"])["event_id"], value_set=event_ids)
                if number := pc.sum(gone).as_py():
                    rows = self._folder.read(part.place, schema=EVENT_SCHEMA)
                    _replace(transaction, part, rows.filter(pc.invert(gone)))
                    deleted += number
            self._journal.commit(transaction)
        return deleted

    def _recover(self) -> None:
        """Bring index and files together: finish what a dead writer had decided, forget what it had not, rebuild a lost index."""
        loaded = self._index.load()
        if not loaded:
            self._index.reset()
        self._journal.finish_pending(index_lost=not loaded)
        if not loaded:
            self._rebuild()
        if not self._opened:
            if loaded and len(self._parts()) != self._index.manifest.files:
                self._rebuild()
            self._journal.sweep()
            self._index.sweep()
            self._opened = True

    def _rebuild(self) -> None:
        found = self._parts()
        self._index.reset()
        sequence = max(self._index.manifest.next_sequence, max((part.last for part in found), default=0) + 1)
        block: list[pa.ChunkedArray] = []
        names: list[str] = []

        def flush() -> None:
            keys = self._index.keys(pa.chunked_array([chunk for ids in block for chunk in ids.chunks], pa.string()))
            name = f"rebuilt-{time.time_ns()}-{len(names)}.npy"
            self._index.write_segment(keys[:, first_of_each(keys)], self._index.folder / name)
            names.append(name)
            block.clear()

        for part in found:
            block.append(self._folder.read(part.place, ["event_id"])["event_id"])
            if sum(map(len, block)) >= 1 << 22:
                flush()
        if block:
            flush()
        for name in names:
            self._index.commit(name, files_added=0, next_sequence=sequence)
        self._index.commit(None, files_added=len(found), next_sequence=sequence)


def _replace(transaction: Transaction, part: Part, rows: pa.Table) -> None:
    """A part's new content; it goes where nothing is left."""
    if rows.num_rows:
        write_part(rows, transaction.aside(part.place))
    else:
        transaction.removals.append(part.place)
        transaction.files -= 1
