"""Reading an activity store: events in order, how many, which files; by DuckDB, wherever the parts lie.

Takes no lock. A part that a writer replaced between listing and opening is looked for again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from features.daily_log import DailyLog
from features.errors import StoreError
from features.events import EVENT_SCHEMA
from features.session_merges import JOINED_EVENTS
from features.store_files import LocalFolder, Part, PartFolder

_EVENTS = "read_parquet(?, hive_partitioning = false)"


class StoreReader:
    """Reads the parts of one store.

    Args:
        uri: the store's name in errors.
        folder: where the parts lie.
        merges: sessions that joined an account.
    """

    def __init__(self, uri: str, folder: PartFolder, merges: DailyLog) -> None:
        self.uri, self._folder, self._merges = uri, folder, merges

    @property
    def root(self) -> Path:
        """Folder of a store on this machine."""
        if not isinstance(self._folder, LocalFolder):
            raise StoreError(f"activity store {self.uri} has no folder on this machine")
        return self._folder.root

    def read(
        self,
        columns: Sequence[str] | None = None,
        as_of: datetime | None = None,
        *,
        since: datetime | None = None,
        user_ids: Sequence[str] | None = None,
        actions: Collection[str] | None = None,
        on_dates: Collection[str] | None = None,
    ) -> pa.Table:
        """Events sorted by user (then session, for events without a user) and time.

        Anonymous events of a session that was merged into an account have the account's user (`features.session_merges`).

        Args:
            columns: names of `EVENT_SCHEMA`; all by default.
            as_of: only events up to this moment of event time, included.
            since: only events from this moment on, included.
            user_ids: only events of these users.
            actions: only events of these actions.
            on_dates: only events of these UTC days, as YYYY-MM-DD: no other file is opened.
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
        if actions is not None:
            where.append("action IN (SELECT unnest(?::VARCHAR[]))")
            limits.append(sorted(actions))
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        names = ", ".join(f'"{name}"' for name in wanted)
        query = (
            f"SELECT {names} FROM {self._source()} {condition} "
            "ORDER BY user_id NULLS LAST, session_id NULLS LAST, timestamp, event_id"
        )
        found = self._ask(query, limits, since, as_of, on_dates)
        return schema.empty_table() if found is None else found.cast(schema)

    def spans(self, max_bytes: int) -> Iterator[tuple[datetime, datetime]]:
        """Event times that cover the store in stretches of whole days, each of about `max_bytes` of files, oldest first."""
        days: list[str] = []
        size = 0
        for date in self._folder.dates():
            days.append(date)
            size += sum(part.size for part in self._folder.parts(date))
            if size >= max_bytes:
                yield _span(days)
                days, size = [], 0
        if days:
            yield _span(days)

    def count(self) -> int:
        """Number of events."""
        found = self._ask(f"SELECT count(*) AS n FROM {_EVENTS}", [])
        return 0 if found is None else int(found["n"][0].as_py())

    def flagged(self, flag: str, actions: Collection[str]) -> dict[str, int]:
        """How many events of these actions have a flag, by action."""
        those = "flag = ? AND action IN (SELECT unnest(?::VARCHAR[]))"
        query = f"SELECT action, count(*) AS n FROM {_EVENTS} WHERE {those} GROUP BY action ORDER BY action"
        found = self._ask(query, [flag, sorted(actions)])
        return {} if found is None else dict(zip(found["action"].to_pylist(), found["n"].to_pylist(), strict=True))

    def first_time(self) -> datetime | None:
        """Time of the earliest event; None where there are none."""
        found = self._ask(f"SELECT min(timestamp) AS first FROM {_EVENTS}", [])
        first: datetime | None = None if found is None else found["first"][0].as_py()
        return first

    def files(self) -> list[str]:
        """Current data files, oldest date first: what another Parquet reader should open (by `connect`, where they are remote)."""
        return [self._folder.url(part.place) for part in self._parts()]

    def size_bytes(self) -> int:
        """Size of the current data files."""
        return sum(part.size for part in self._parts())

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection that can open `files`."""
        connection = self._folder.connect()
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    def sessions(self, user_id: str) -> list[str]:
        """Sessions that are stored with a user, or were merged into the account."""
        query = f"SELECT DISTINCT session_id FROM {_EVENTS} WHERE user_id = ? AND session_id IS NOT NULL"
        found = self._ask(query, [user_id])
        merged = self._merges.read(equal={"user_id": user_id})["session_id"].to_pylist()
        return sorted({*merged, *(found["session_id"].to_pylist() if found is not None else ())})

    def _ids_of(self, user_id: str, session_ids: Sequence[str]) -> pa.Array:
        """Ids of a person's events: the user's, and anonymous ones of the sessions that no other account was given."""
        query = (
            f"SELECT event_id FROM {self._source()} "
            "WHERE user_id = ? OR (user_id IS NULL AND session_id IN (SELECT unnest(?::VARCHAR[])))"
        )
        found = self._ask(query, [user_id, list(session_ids)])
        return pa.array([], pa.string()) if found is None else found["event_id"].combine_chunks()

    def _source(self) -> str:
        """Stored events in SQL, with the users that their sessions joined."""
        return JOINED_EVENTS if self._merges.read().num_rows else _EVENTS

    def _parts(
        self, since: datetime | None = None, until: datetime | None = None, on_dates: Collection[str] | None = None
    ) -> list[Part]:
        first = _aware(since).date().isoformat() if since else ""
        last = _aware(until).date().isoformat() if until else "9999"
        wanted = [date for date in self._folder.dates() if first <= date <= last and (on_dates is None or date in on_dates)]
        return [part for date in wanted for part in self._folder.parts(date)]

    def _ask(
        self,
        query: str,
        parameters: list[object],
        since: datetime | None = None,
        until: datetime | None = None,
        on_dates: Collection[str] | None = None,
    ) -> pa.Table | None:
        """The answer to a query whose first parameter is the list of files; None where there are none."""
        for attempt in range(3):
            files = [self._folder.url(part.place) for part in self._parts(since, until, on_dates)]
            if not files:
                return None
            try:
                with self.connect() as connection:
                    connection.register("merges", self._merges.read())
                    return connection.sql(query, params=[files, *parameters]).to_arrow_table()
            except (duckdb.IOException, FileNotFoundError) as error:
                # A part may have been compacted away between listing and opening: list again.
                if attempt == 2:
                    raise StoreError(f"activity store {self.uri} cannot be read: {error}") from error
        raise AssertionError("unreachable")


def _span(days: list[str]) -> tuple[datetime, datetime]:
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (days[0], days[-1]))
    return first, last + timedelta(days=1, microseconds=-1)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
