"""The control store: one SQL database (sqlite embedded, PostgreSQL in production) for all that is configured, not logged.

Owns the engine and the shared `METADATA`. Each module declares its own tables on `METADATA` (the catalogue here in `features`,
experiments, audit and serving state in `serving`); `ControlStore.create` makes those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from features.errors import StoreError

METADATA = MetaData()
"""All tables of the control store, whichever module declares them."""

SQLITE_BUSY_TIMEOUT_MS = 30_000
"""How long a sqlite writer waits for another process's transaction before it gives up."""


class ControlStore:
    """A control store by URL. Opening connects to nothing; `create` makes the missing tables.

    Args:
        url: SQLAlchemy URL, e.g. `sqlite:////path/control.db` or `postgresql+psycopg://host/name`.

    Raises:
        StoreError: the URL is malformed, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise StoreError("control.url is no SQLAlchemy URL; it looks like sqlite:////folder/control.db") from None
        self.url = parsed.render_as_string(hide_password=True)
        try:
            self.engine: Engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
        except (ArgumentError, ImportError) as error:
            raise StoreError(f"control store {self.url} cannot be used: {error}; install its driver") from None
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is an embedded sqlite file."""
        return self.engine.dialect.name == "sqlite"

    def create(self) -> ControlStore:
        """Make the tables that do not exist yet (and the folder of a sqlite file); returns itself.

        Raises:
            StoreError: the database cannot be reached or written.
        """
        database = self.engine.url.database
        try:
            if self.is_sqlite and database and database != ":memory:":
                file = Path(database)
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.exists():
                    file.touch(mode=0o600)  # it holds what is known of users; sqlite gives its log the same mode
            METADATA.create_all(self.engine)
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"control store {self.url} cannot be opened: {_first_line(error)}; check control.url") from error
        return self

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A connection inside one transaction: committed at the end, rolled back on an error."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"control store {self.url} failed: {_first_line(error)}") from error

    @contextmanager
    def begin_alone(self, name: str) -> Iterator[Connection]:
        """The same as `begin`, while no other transaction of that name is open: the next one begins when this one has ended.

        What is read in it stays so until it commits, and rows written in transactions of one name get their numbers in the order
        in which they can be read. Whoever opens one locks nothing before, and opens no second one inside it.
        """
        with self.begin() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver would begin at the first write, after what was read
            else:
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
            yield connection

    def forget_deleted(self) -> None:
        """See that deleted rows are not left on disk: sqlite's log goes into the file, where freed pages are overwritten.

        PostgreSQL reuses the space after its own vacuum.
        """
        if self.is_sqlite:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # WAL lets the gateway read while an import writes; NORMAL is safe against a killed process under WAL.
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA secure_delete=ON")  # an erased person's profile is overwritten, not only unlinked
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT_MS}")
    cursor.close()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
