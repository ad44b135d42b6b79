"""The log: rows by date, each id once when read, merged files, whatever happens in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from features.daily_log import MERGE_AT_FILES, DailyLog
from features.errors import StoreError
from features.person import Person

SCHEMA = pa.schema(
    [("id", pa.string()), ("kind", pa.string()), ("at", pa.timestamp("us", tz="UTC")), ("items", pa.list_(pa.string()))]
)
START = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)


def make_log(root: Path) -> DailyLog:
    return DailyLog(root, SCHEMA, id_column="id", time_column="at")


def rows(*numbers: int) -> pa.Table:
    columns = {
        "id": [f"r{number:03d}" for number in numbers],
        "kind": ["even" if number % 2 == 0 else "odd" for number in numbers],
        "at": [START + timedelta(minutes=10 * number) for number in numbers],
        "items": [["x"] * (number % 3) for number in numbers],
    }
    return pa.table(columns, schema=SCHEMA)


def test_rows_lie_in_their_own_day_and_come_back_in_order(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log")
    assert log.read().num_rows == 0
    log.append(rows(9, 3, 1))
    assert sorted(folder.name for folder in (tmp_path / "log").glob("date=*")) == ["date=2026-11-22", "date=2026-11-23"]
    assert log.read().equals(rows(1, 3, 9))


def test_a_row_written_twice_is_read_once(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.append(rows(1, 2, 3))
    log.append(rows(2, 3, 4))
    assert log.read().equals(rows(1, 2, 3, 4))


def test_reading_by_value_and_time(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.append(rows(*range(12)))
    assert log.read(equal={"kind": "odd"}).equals(rows(1, 3, 5, 7, 9, 11))
    assert log.read(since=START + timedelta(minutes=50), until=START + timedelta(minutes=70)).equals(rows(5, 6, 7))


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    assert log.read(["kind"]).schema.names == ["kind"]
    log.append(rows(4, 3, 1, 2))
    log.append(rows(2, 3))  # told apart by id and in order of time, though neither is asked for
    assert log.read(["kind"]).equals(rows(1, 2, 3, 4).select(["kind"]))
    assert log.read(["items", "id"], equal={"kind": "odd"}).equals(rows(1, 3).select(["items", "id"]))


def test_small_files_are_merged(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    for number in range(MERGE_AT_FILES + 3):
        log.append(rows(number % 6))
    assert len(list(tmp_path.glob("*/*.parquet"))) < MERGE_AT_FILES
    assert log.read().equals(rows(*range(6)))


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot be written"):
        make_log(tmp_path / "log").append(rows(1))


def test_erased_rows_are_gone_from_every_file(tmp_path: Path) -> None:
    schema = pa.schema([*SCHEMA, pa.field("user_id", pa.string()), pa.field("session_id", pa.string())])
    log = DailyLog(tmp_path / "log", schema, id_column="id", time_column="at")
    people = {0: ("erika", "s"), 1: (None, "s"), 2: ("other", "s"), 3: ("erika", None), 4: (None, "t"), 5: (None, None)}
    for numbers in ((0, 1, 2), (3,), (4, 5)):
        table = rows(*numbers)
        users, sessions = zip(*(people[number] for number in numbers), strict=True)
        log.append(pa.table([*table.columns, pa.array(users, pa.string()), pa.array(sessions, pa.string())], schema=schema))
    assert log.erase(Person("erika", {"s"})) == 3
    assert log.read()["id"].to_pylist() == ["r002", "r004", "r005"]
    assert log.erase(Person("erika", {"s"})) == 0
    assert DailyLog(tmp_path / "nothing", schema, id_column="id", time_column="at").erase(Person("erika")) == 0
    assert b"erika" not in b"".join(file.read_bytes() for file in tmp_path.rglob("*.parquet"))


def test_a_column_that_came_later_is_null_in_older_rows(tmp_path: Path) -> None:
    make_log(tmp_path).append(rows(1))
    wider = DailyLog(tmp_path, SCHEMA.append(pa.field("share", pa.list_(pa.float64()))), id_column="id", time_column="at")
    assert wider.read()["share"].to_pylist() == [None]
    wider.append(rows(2).append_column("share", pa.array([[0.5]], pa.list_(pa.float64()))))
    assert wider.read()["share"].to_pylist() == [None, [0.5]]
