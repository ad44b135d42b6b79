"""An append-only log of rows as Parquet by UTC date, for what may arrive twice and is told apart when read.

Cheaper than the activity store: a crash between writing and acknowledging leaves rows twice in the files, and `read` returns each
id once. Exposures are kept here. Small files of a date are merged as they pile up.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import StoreError
from features.parquet_codec import PARQUET_CODEC
from features.person import Person
from features.store_files import LocalFolder, PartFolder, writer_lock

MERGE_AT_FILES = 32
"""A date with so many small files is rewritten as one."""

LOCK_TIMEOUT_S = 120.0
"""How long a writer waits for another one."""

SMALL_FILE_BYTES = 32 << 20
"""Files of this size and above are not merged again."""


class DailyLog:
    """One log in one folder; writers take turns by a file lock, any number of readers.

    Args:
        place: its folder, created at the first append; or where else its files lie.
        schema: columns of the rows, with `id_column` str and `time_column` timestamp[us, UTC], both required.
        id_column: tells rows apart; of rows with one id `read` returns one.
        time_column: decides the date.
        state: folder on this machine for lock and unfinished files; the log's own by default.
    """

    def __init__(
        self, place: Path | PartFolder, schema: pa.Schema, *, id_column: str, time_column: str, state: Path | None = None
    ) -> None:
        if isinstance(place, Path):
            self._folder: PartFolder = LocalFolder(place)
            self._state = state or place
        elif state is None:
            raise ValueError("a log that lies elsewhere needs a state folder on this machine")
        else:
            self._folder, self._state = place, state
        self._schema, self._id, self._time = schema, id_column, time_column

    def append(self, rows: pa.Table) -> None:
        """Write rows; they are on disk when it returns.

        Raises:
            StoreError: the disk refuses.
        """
        days = pc.strftime(rows[self._time], format="%Y-%m-%d")
        try:
            with writer_lock(self._state / "lock", LOCK_TIMEOUT_S):
                for day in sorted(days.unique().to_pylist()):
                    self._write(rows.filter(pc.equal(days, day)), day)
                    self._merge(day)
        except OSError as error:
            raise StoreError(f"log {self._name} cannot be written: {error}; free space or check permissions") from error

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        equal: dict[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pa.Table:
        """Rows in order of time and id, each id once.

        Args:
            columns: names of the schema; all by default.
            equal: column to the value it must have.
            since, until: bounds of the time column, both included.
        """
        wanted = self._schema.names if columns is None else list(columns)
        limits: list[tuple[str, object]] = [(f'"{column}" = ?', value) for column, value in (equal or {}).items()]
        limits += [(f'"{self._time}" {sign} ?', _aware(moment)) for sign, moment in ((">=", since), ("<=", until)) if moment]
        where = " AND ".join(condition for condition, _ in limits) or "true"
        for attempt in range(3):
            places = self._files(since, until)
            files = [self._folder.url(where) for where in places]
            if not files:
                return self._schema.empty_table().select(wanted)
            try:
                with self._folder.connect() as connection:
                    # Files of earlier releases lack columns that came later.
                    described = connection.sql("SELECT DISTINCT name FROM parquet_schema(?)", params=[files]).fetchall()
                    kept = {name for (name,) in described}
                    read = [name for name in self._schema.names if name in {*wanted, self._id, self._time}]
                    names = ", ".join(f'"{name}"' if name in kept else f'NULL AS "{name}"' for name in read)
                    connection.execute("SET TimeZone = 'UTC'")
                    found = connection.sql(
                        f'SELECT DISTINCT ON ("{self._id}") {names} '
                        "FROM read_parquet(?, hive_partitioning = false, union_by_name = true) "
                        f'WHERE {where} ORDER BY "{self._id}", "{self._time}"',
                        params=[files, *(value for _, value in limits)],
                    )
                    table = found.to_arrow_table().cast(pa.schema([self._schema.field(name) for name in read]))
                return table.sort_by([(self._time, "ascending"), (self._id, "ascending")]).select(wanted)
            except (duckdb.IOException, FileNotFoundError) as error:
                # A file may have been merged away between listing and opening: list again.
                if attempt == 2:
                    raise StoreError(f"log {self._name} cannot be read: {error}") from error
        raise AssertionError("unreachable")

    def erase(self, person: Person) -> int:
        """Delete a person's rows; returns how many. Safe while a writer appends and merges.

        Raises:
            StoreError: the disk refuses. Doing it again finishes what was begun.
        """
        deleted = 0
        try:
            with writer_lock(self._state / "lock", LOCK_TIMEOUT_S) if self._state.is_dir() else nullcontext():
                for where in self._files(None, None):
                    rows = self._folder.read(where, schema=self._schema)
                    gone = person.rows(rows)
                    if number := pc.sum(gone).as_py():
                        deleted += number
                        kept = rows.filter(pc.invert(gone))
                        if kept.num_rows:
                            self._write(kept, where.removeprefix("date=").partition("/")[0])
                        self._folder.remove(where)
        except OSError as error:
            raise StoreError(f"log {self._name} cannot be erased from: {error}; check permissions") from error
        return deleted

    @property
    def _name(self) -> str:
        return self._folder.url("")

    def _files(self, since: datetime | None, until: datetime | None) -> list[str]:
        first = _aware(since).date().isoformat() if since else ""
        last = _aware(until).date().isoformat() if until else "9999"
        dates = [date for date in self._folder.dates() if first <= date <= last]
        return [where for date in dates for where, _ in sorted(self._folder.files(date)) if where.endswith(".parquet")]

    def _write(self, rows: pa.Table, date: str) -> None:
        name = uuid.uuid4().hex
        temporary = self._state / f"{name}.tmp"
        pq.write_table(rows.cast(self._schema), temporary, compression=PARQUET_CODEC)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        self._folder.put(temporary, f"date={date}/{name}.parquet")

    def _merge(self, date: str) -> None:
        files = sorted(self._folder.files(date))
        small = [where for where, size in files if where.endswith(".parquet") and size < SMALL_FILE_BYTES]
        if len(small) < MERGE_AT_FILES:
            return
        merged: Sequence[pa.Table] = [self._folder.read(where, schema=self._schema) for where in small]
        # A crash in between leaves rows twice, which `read` is made for; never none.
        self._write(pa.concat_tables(merged), date)
        for where in small:
            self._folder.remove(where)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
