"""The activity store: every event of a dataset, once, as Parquet partitioned by event date.

Owns exactly-once writing and reading back. Bus, import and simulation write through `append`; training, features and reports
read through `read`. DuckDB, pandas and Feast may read the same files.

How a write is exactly-once: an append is a transaction. Its files are written aside; then a journal entry that names their final
places is renamed into being, which is the moment of truth; then they are moved and the id index takes the new ids. A writer that
dies before that moment leaves nothing but scratch files; one that dies after it leaves a journal entry that the next writer
finishes first. Readers see a file whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlparse

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import StoreError
from features.event_index import EventIndex, first_of_each
from features.events import EVENT_SCHEMA
from features.session_merges import JOINED_EVENTS, merge_log
from features.store_files import Part, dates, partition, parts, write_synced, writer_lock

COMPACT_AT_PARTS = 16
"""A date with so many small parts is rewritten as one."""

SMALL_PART_BYTES = 64 << 20
"""Parts of this size and above are left alone by compaction."""

LOCK_TIMEOUT_S = 120.0
"""How long a writer waits for another one."""

_DAY_US = 86_400_000_000
_REPEATING = [name for name in EVENT_SCHEMA.names if pa.types.is_string(EVENT_SCHEMA.field(name).type) and name != "event_id"]


@dataclass(frozen=True)
class AppendResult:
    """What an append did: rows stored, and rows left out because their id was stored before or earlier in the same table.

    `stored` are the rows that were new. `follows` is the store's sequence when the append began, `sequence` when it was done: who
    has seen every append up to `follows` and adds `stored` has everything (`features.store_follower`).
    """

    added: int
    duplicates: int
    stored: pa.Table
    follows: int
    sequence: int


class ActivityStore:
    """The activity of one dataset.

    Args:
        uri: folder, or `file://` URL of it. Nothing is created before the first append.
        lock_timeout_s: how long an append waits for another writer.

    Raises:
        StoreError: the URL's scheme is not supported.
    """

    def __init__(self, uri: str | Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        self.root = _local_root(str(uri))
        self._state = self.root / "_state"
        self._journal = self._state / "journal"
        self._scratch = self._state / "scratch"
        self._index = EventIndex(self._state / "index")
        self._merges = merge_log(self.root)
        self._lock_timeout_s = lock_timeout_s
        self._opened = False

    def append(self, events: pa.Table) -> AppendResult:
        """Store the events whose ids are not stored yet; durable when it returns.

        Args:
            events: rows of `EVENT_SCHEMA` (a subset of its nullable columns may be missing). Of rows with one id the first
                counts; an id that is stored already keeps its stored row, whatever the new row says.

        Raises:
            StoreError: the rows do not fit the schema, the disk refuses, or another writer holds the lock.
        """
        events = _conform(events)
        try:
            with writer_lock(self._state / "lock", self._lock_timeout_s):
                self._recover()
                keys = self._index.keys(events["event_id"])
                fresh = first_of_each(keys) & ~self._index.contains(keys)
                added = int(fresh.sum())
                follows = self._index.manifest.next_sequence
                stored = events if added == events.num_rows else events.filter(pa.array(fresh))
                if added:
                    self._write(stored, keys[:, fresh])
                return AppendResult(added, events.num_rows - added, stored, follows, self._index.manifest.next_sequence)
        except OSError as error:
            raise StoreError(f"activity store {self.root} cannot be written: {error}; free space or check permissions") from error

    def read(
        self,
        columns: Sequence[str] | None = None,
        as_of: datetime | None = None,
        *,
        since: datetime | None = None,
        user_ids: Sequence[str] | None = None,
    ) -> pa.Table:
        """Events sorted by user (then session, for events without a user) and time.

        Anonymous events of a session that was merged into an account have the account's user (`features.session_merges`).

        Args:
            columns: names of `EVENT_SCHEMA`; all by default.
            as_of: only events up to this moment of event time, included.
            since: only events from this moment on, included.
            user_ids: only events of these users.
        """
        wanted = list(columns) if columns is not None else EVENT_SCHEMA.names
        schema = pa.schema([EVENT_SCHEMA.field(name) for name in wanted])
        where = list[str]()
        limits = list[object]()
        for operator, moment in (("<=", as_of), (">=", since)):
            if moment is not None:
                where.append(f"timestamp {operator} ?")
                limits.append(_aware(moment))
        if user_ids is not None:
            where.append("user_id IN (SELECT unnest(?::VARCHAR[]))")
            limits.append(list(user_ids))
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        names = ", ".join(f'"{name}"' for name in wanted)
        for attempt in range(3):
            files = self._files(since, as_of)
            if not files:
                return schema.empty_table()
            merges = self._merges.read()
            source = JOINED_EVENTS if merges.num_rows else "read_parquet(?, hive_partitioning = false)"
            try:
                with duckdb.connect() as connection:
                    connection.execute("SET TimeZone = 'UTC'")
                    connection.register("merges", merges)
                    found = connection.sql(
                        f"SELECT {names} FROM {source} {condition} "
                        "ORDER BY user_id NULLS LAST, session_id NULLS LAST, timestamp, event_id",
                        params=[files, *limits],
                    )
                    return found.to_arrow_table().cast(schema)
            except duckdb.IOException as error:
                # A part may have been compacted away between listing and opening: list again.
                if attempt == 2:
                    raise StoreError(f"activity store {self.root} cannot be read: {error}") from error
        raise AssertionError("unreachable")

    def sequence(self) -> int:
        """Number of the next transaction: the same at two moments where nothing was written in between. 0 for no store."""
        reader = EventIndex(self._index.folder)
        return reader.manifest.next_sequence if reader.load() else 0

    def spans(self, max_bytes: int) -> Iterator[tuple[datetime, datetime]]:
        """Event times that cover the store in stretches of whole days, each of about `max_bytes` of files, oldest first."""
        days: list[str] = []
        size = 0
        for date in dates(self.root):
            days.append(date)
            size += sum(part.path.stat().st_size for part in parts(self.root, date))
            if size >= max_bytes:
                yield _span(days)
                days, size = [], 0
        if days:
            yield _span(days)

    def count(self) -> int:
        """Number of events."""
        files = self._files(None, None)
        if not files:
            return 0
        with duckdb.connect() as connection:
            row = connection.execute("SELECT count(*) FROM read_parquet(?, hive_partitioning = false)", [files]).fetchone()
        return int(row[0]) if row else 0

    def files(self) -> list[Path]:
        """Current data files, oldest date first: what another Parquet reader should open."""
        return [part.path for date in dates(self.root) for part in parts(self.root, date)]

    def compact(self, min_parts: int = 2) -> int:
        """Rewrite each date of at least `min_parts` small parts as one; returns how many files went.

        Raises:
            StoreError: as `append`.
        """
        removed = 0
        try:
            with writer_lock(self._state / "lock", self._lock_timeout_s):
                self._recover()
                for date in dates(self.root):
                    removed += self._compact_date(date, min_parts)
        except OSError as error:
            raise StoreError(f"activity store {self.root} cannot be compacted: {error}") from error
        return removed

    def _files(self, since: datetime | None, until: datetime | None) -> list[str]:
        first = _aware(since).date().isoformat() if since else ""
        last = _aware(until).date().isoformat() if until else "9999"
        return [str(part.path) for date in dates(self.root) if first <= date <= last for part in parts(self.root, date)]

    def _write(self, events: pa.Table, keys: np.ndarray) -> None:
        sequence = self._index.manifest.next_sequence
        scratch = self._scratch / f"{sequence:010d}"
        scratch.mkdir(parents=True, exist_ok=True)
        moves: list[tuple[Path, Path]] = []
        for date, rows in _by_date(events):
            aside = scratch / f"{date}.parquet"
            _write_part(rows, aside)
            moves.append((aside, partition(self.root, date) / Part.name(sequence, sequence)))
        segment = f"added-{sequence:010d}.npy"
        self._index.write_segment(keys, scratch / segment)
        write_synced([aside for aside, _ in moves])
        self._commit(sequence, moves, [], segment)
        for date in {final.parent.name.removeprefix("date=") for _, final in moves}:
            self._compact_date(date, COMPACT_AT_PARTS)

    def _compact_date(self, date: str, min_parts: int) -> int:
        small: list[Part] = []
        # Only a run of neighbours can become one range; the newest run is the one that grows.
        for part in reversed(parts(self.root, date)):
            if part.path.stat().st_size >= SMALL_PART_BYTES:
                break
            small.insert(0, part)
        if len(small) < max(2, min_parts):
            return 0
        sequence = self._index.manifest.next_sequence
        scratch = self._scratch / f"{sequence:010d}"
        scratch.mkdir(parents=True, exist_ok=True)
        merged = pa.concat_tables([pq.read_table(part.path, partitioning=None, schema=EVENT_SCHEMA) for part in small])
        aside = scratch / f"{date}.parquet"
        _write_part(merged, aside)
        write_synced([aside])
        final = partition(self.root, date) / Part.name(small[0].first, small[-1].last)
        self._commit(sequence, [(aside, final)], [part.path for part in small], None)
        return len(small) - 1

    def _commit(self, sequence: int, moves: list[tuple[Path, Path]], removals: list[Path], segment: str | None) -> None:
        def relative(path: Path) -> str:
            return str(path.relative_to(self.root))  # so that a store may be moved with an entry pending

        decision = {
            "sequence": sequence,
            "moves": [(relative(aside), relative(final)) for aside, final in moves],
            "removals": [relative(path) for path in removals],
            "segment": segment,
        }
        self._journal.mkdir(parents=True, exist_ok=True)
        entry = self._journal / f"{sequence:010d}.json"
        temporary = entry.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(decision, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, entry)
        self._finish(entry)

    def _finish(self, entry: Path) -> None:
        """Carry out a journal entry; every step may have been done before."""
        journal = json.loads(entry.read_text())
        sequence: int = journal["sequence"]
        scratch = self._scratch / f"{sequence:010d}"
        for aside, final in journal["moves"]:
            if (self.root / aside).exists():
                (self.root / final).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.root / aside, self.root / final)
        for path in journal["removals"]:
            (self.root / path).unlink(missing_ok=True)
        if self._index.manifest.next_sequence <= sequence:
            segment = journal["segment"]
            if segment is not None and (scratch / segment).exists():
                os.replace(scratch / segment, self._index.folder / segment)
            self._index.commit(
                segment, files_added=len(journal["moves"]), files_removed=len(journal["removals"]), next_sequence=sequence + 1
            )
        entry.unlink()
        shutil.rmtree(scratch, ignore_errors=True)

    def _recover(self) -> None:
        """Bring index and files together: finish what a dead writer had decided, forget what it had not, rebuild a lost index."""
        loaded = self._index.load()
        pending = sorted(self._journal.glob("*.json")) if self._journal.is_dir() else []
        if not loaded:
            self._index.reset()
            for entry in pending:
                journal = json.loads(entry.read_text())
                self._index.manifest.next_sequence = journal["sequence"] + 1
                self._finish(entry)
            self._rebuild()
        else:
            for entry in pending:
                self._finish(entry)
        if not self._opened:
            if loaded and len(self.files()) != self._index.manifest.files:
                self._rebuild()
            if self._scratch.is_dir():
                shutil.rmtree(self._scratch)
            self._index.sweep()
            self._opened = True

    def _rebuild(self) -> None:
        files = self.files()
        self._index.reset()
        last = max((part.last for date in dates(self.root) for part in parts(self.root, date)), default=0)
        sequence = max(self._index.manifest.next_sequence, last + 1)
        block: list[pa.ChunkedArray] = []
        names: list[str] = []

        def flush() -> None:
            keys = self._index.keys(pa.chunked_array([chunk for ids in block for chunk in ids.chunks], pa.string()))
            name = f"rebuilt-{time.time_ns()}-{len(names)}.npy"
            self._index.write_segment(keys[:, first_of_each(keys)], self._index.folder / name)
            names.append(name)
            block.clear()

        for path in files:
            block.append(pq.read_table(path, columns=["event_id"], partitioning=None)["event_id"])
            if sum(map(len, block)) >= 1 << 22:
                flush()
        if block:
            flush()
        for name in names:
            self._index.commit(name, files_added=0, next_sequence=sequence)
        self._index.commit(None, files_added=len(files), next_sequence=sequence)


def _span(days: list[str]) -> tuple[datetime, datetime]:
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (days[0], days[-1]))
    return first, last + timedelta(days=1, microseconds=-1)


def _local_root(uri: str) -> Path:
    parsed = urlparse(uri)
    if parsed.scheme in ("", "file"):
        return Path(parsed.path if parsed.scheme else uri)
    raise StoreError(f"activity store {uri!r}: scheme {parsed.scheme!r} is not supported yet; use a folder")


def _conform(events: pa.Table) -> pa.Table:
    columns = []
    for field in EVENT_SCHEMA:
        if field.name in events.column_names:
            columns.append(events[field.name])
        elif field.nullable:
            columns.append(pa.nulls(events.num_rows, field.type))
        else:
            raise StoreError(f"events lack the column {field.name!r}")
    extra = set(events.column_names) - set(EVENT_SCHEMA.names)
    if extra:
        raise StoreError(f"events have the unknown column {sorted(extra)[0]!r}; allowed: {', '.join(EVENT_SCHEMA.names)}")
    for field, column in zip(EVENT_SCHEMA, columns, strict=True):
        if not field.nullable and column.null_count:
            raise StoreError(f"events have no value in {column.null_count} rows of {field.name!r}")
    try:
        return pa.table(columns, names=EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise StoreError(f"events do not fit the schema: {error}") from error


def _by_date(events: pa.Table) -> list[tuple[str, pa.Table]]:
    """The rows of each UTC event date, dates ascending; rows of a date keep their order."""
    day = np.floor_divide(pc.cast(events["timestamp"], pa.int64()).to_numpy(), _DAY_US)
    order = np.argsort(day, kind="stable")
    table = events if (order[1:] > order[:-1]).all() else events.take(pa.array(order))
    day = day[order]
    starts = np.flatnonzero(np.diff(day, prepend=day[0] - 1))
    stops = np.append(starts[1:], len(day))
    table = table.combine_chunks()
    names = [str(np.datetime64(int(day[start]), "D")) for start in starts]
    return [(name, table.slice(start, stop - start)) for name, start, stop in zip(names, starts, stops, strict=True)]


def _write_part(rows: pa.Table, path: Path) -> None:
    # Statistics and dictionaries of a part with few rows cost more than the rows; ids never repeat.
    large = rows.num_rows >= 1000
    pq.write_table(
        rows,
        path,
        compression="zstd",
        use_dictionary=_REPEATING if large else False,
        write_statistics=["timestamp"] if large else False,
        store_schema=False,
    )


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
