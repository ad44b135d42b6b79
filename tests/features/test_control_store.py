"""Transactions of the control store, on SQLite and, where `SHORTLIST_TEST_POSTGRES` is the URL of a database, on PostgreSQL."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from features.control_store import ControlStore

NUMBERED = Table("numbered", MetaData(), Column("id", Integer, primary_key=True, autoincrement=True), Column("writer", Integer))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ControlStore]:
    url = f"sqlite:///{tmp_path}/control.db" if request.param == "sqlite" else os.environ.get("SHORTLIST_TEST_POSTGRES")
    if url is None:
        pytest.skip("SHORTLIST_TEST_POSTGRES does not name a database")
    opened = ControlStore(url)
    opened.create()
    NUMBERED.drop(opened.engine, checkfirst=True)
    NUMBERED.create(opened.engine)
    yield opened
    opened.close()


def test_transactions_of_one_name_follow_one_another(store: ControlStore) -> None:
    """The second writer reads what the first one wrote, and nobody ever reads its number before the first one's."""
    told: list[str] = []
    asked = threading.Event()

    def second() -> None:
        asked.set()
        with store.begin_alone("log") as connection:
            told.append(f"second reads {connection.execute(select(NUMBERED.c.writer)).scalars().all()}")
            connection.execute(insert(NUMBERED).values(writer=2))

    other = threading.Thread(target=second)
    with store.begin_alone("log") as connection:
        assert connection.execute(select(NUMBERED.c.id)).first() is None
        other.start()
        assert asked.wait(60)
        other.join(0.5)  # long enough to get through, were it let
        connection.execute(insert(NUMBERED).values(writer=1))
        told.append("first ends")
    other.join(60)
    assert told == ["first ends", "second reads [1]"]
    with store.begin() as connection:
        assert connection.execute(select(NUMBERED.c.writer).order_by(NUMBERED.c.id)).scalars().all() == [1, 2]


def test_a_failed_transaction_leaves_nothing_and_lets_the_next_one_in(store: ControlStore) -> None:
    with pytest.raises(RuntimeError, match="half way"), store.begin_alone("log") as connection:  # noqa: PT012
        connection.execute(insert(NUMBERED).values(writer=1))
        raise RuntimeError("half way")
    with store.begin_alone("log") as connection:
        assert connection.execute(select(NUMBERED.c.id)).first() is None


def test_a_new_database_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "home" / "control.db"
    opened = ControlStore(f"sqlite:///{file}").create()
    with opened.begin() as connection:
        NUMBERED.create(connection)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in file.parent.iterdir()}
    assert modes == dict.fromkeys(("control.db", "control.db-wal", "control.db-shm"), "0o600")
    file.chmod(0o660)  # somebody's own choice
    ControlStore(f"sqlite:///{file}").create().close()
    assert file.stat().st_mode & 0o777 == 0o660
    opened.close()
