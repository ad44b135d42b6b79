"""Catalogue changes reach item tables: when they are opened, and afterwards through the audit log, each once."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.errors import StoreError
from serving.audit import AuditLog
from serving.item_changes import AvailabilityFollower, ItemChanges, as_of_now
from serving.item_table import ItemTable
from serving.recorded_import import IMPORT_SUBJECT, recorded_import
from training.pipeline import item_table

BEFORE = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def store(tmp_path, fill_catalogue, item_attributes):
    return fill_catalogue(f"sqlite:///{tmp_path / 'c.db'}", item_attributes)


def item(item_id: str, **attributes: object) -> dict[str, object]:
    return {"item_id": item_id, "available": True, **attributes}


def record_all(audit: AuditLog, changes: dict[str, tuple[object, object]]) -> None:
    with audit.begin() as connection:
        for subject, (before, after) in changes.items():
            audit.write(connection, "t", "item", subject, before, after)


def new_subjects(changes: ItemChanges) -> list[str]:
    with changes.new_entries() as (entries, *_):
        return [entry.subject for entry in entries]


def test_changes_are_applied_once_and_tables_that_nothing_changes_stay(store, bundle) -> None:
    audit = AuditLog(store, "planted")
    audit.record(actor="t", action="item", subject="item:i001", before=item("i001"), after=item("i001", year=1))
    changes, table = ItemChanges(audit), ItemTable.from_bundle(bundle)
    assert changes.apply([table]) == [table]  # what was before it opened is not its business
    year = table.fields(1, ["year"])
    record_all(
        audit,
        {
            "item:i001": (item("i001"), {**item("i001"), "available": False}),
            "item:i002": (item("i002"), None),
            "alias:champion": ("1", "2"),
        },
    )
    assert changes.apply([table]) == [table]
    assert not table.available[[1, 2]].any()
    assert table.fields(1, ["year"]) == year
    record_all(
        audit,
        {
            "item:i001": (item("i001"), item("i001", year=7)),
            "item:new": (None, item("new", categories=["Comedy"])),
            "item:gone": (None, item("gone")),
        },
    )
    audit.record(actor="t", action="item", subject="item:gone", before=item("gone"), after=None)
    (grown,) = changes.apply([table])
    assert grown.fields(1, ["year"]) == {"year": 7}
    assert grown.available[[1, grown.row("new")]].all()
    assert (grown.row("gone"), len(grown), grown.num_trained) == (-1, len(table) + 1, len(table))
    assert changes.apply([grown]) == [grown]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_entry_is_passed_over_whoever_commits_last(tmp_path, database: str) -> None:
    """A batch has its numbers long before it commits: what is written meanwhile must not be read before it."""
    url = f"sqlite:///{tmp_path}/c.db" if database == "sqlite" else os.environ.get("SHORTLIST_TEST_POSTGRES")
    if url is None:
        pytest.skip("SHORTLIST_TEST_POSTGRES does not name a database")
    audit = AuditLog(ControlStore(url).create(), f"d{datetime.now(UTC).timestamp()}")
    changes = ItemChanges(audit)
    late = {"actor": "t", "action": "item", "subject": "item:late", "before": None, "after": item("late")}
    other = threading.Thread(target=lambda: audit.record(**late))
    with audit.begin() as connection:
        for number in range(1200):
            audit.write(connection, "t", "item", f"item:{number}", None, item(str(number)))
        other.start()
        other.join(0.5)  # long enough to commit, were it let
        assert new_subjects(changes) == []
    other.join(60)
    assert new_subjects(changes) == [*(f"item:{number}" for number in range(1200)), "item:late"]
    assert new_subjects(changes) == []


def import_items(store: ControlStore, **columns: list[object]) -> None:
    with recorded_import(AuditLog(store, "planted"), actor="data import") as connection:
        Catalogue(store, "planted").inside(connection).upsert_items(pa.table(columns))


def test_an_import_reaches_tables_that_are_open(store, bundle) -> None:
    catalogue, audit = Catalogue(store, "planted"), AuditLog(store, "planted")
    table = ItemTable.from_bundle(bundle)
    changes, follower = ItemChanges(audit), AvailabilityFollower(audit)
    catalogue.patch_item("i003", {"available": False})
    audit.record(actor="t", action="item", subject="item:i003", before=item("i003"), after={**item("i003"), "available": False})
    follower.apply([table])
    assert not table.available[3]
    import_items(store, item_id=["i002", "i003", "new"], year=[2, 3, 4], available=[False, True, True])
    (grown,) = changes.apply([table])
    follower.again([grown], changes.seen)
    assert grown.available[3]  # what the follower knows is older
    follower.apply([table, grown])
    follower.again([grown], changes.seen)
    assert [grown.fields(row, ["year"])["year"] for row in (1, 2, 3, grown.row("new"))] == [1981, 2, 3, 4]
    assert grown.available[[1, 2, 3, grown.row("new")]].tolist() == [True, False, True, True]
    assert table.available[[1, 2, 3]].tolist() == [True, False, True]
    (entry,) = audit.entries(subject=IMPORT_SUBJECT)
    assert (entry.actor, entry.after["items"]) == ("data import", 3)


def test_an_import_that_says_nothing_new_is_no_change(store, bundle) -> None:
    audit = AuditLog(store, "planted")
    rows = {"item_id": ["i001", "i002"], "year": [1, 2]}
    import_items(store, **rows)
    import_items(store, **rows)
    import_items(store, item_id=["i001", "i002"], year=[1, 3])
    assert [entry.after["items"] for entry in audit.entries(subject=IMPORT_SUBJECT)] == [2, 1]


def test_an_import_that_could_not_be_read_is_looked_at_again(store, bundle, monkeypatch) -> None:
    table, changes = ItemTable.from_bundle(bundle), ItemChanges(AuditLog(store, "planted"))
    import_items(store, item_id=["i001"], year=[7])
    with monkeypatch.context() as broken:
        broken.setattr("serving.item_changes._changed_since", lambda *_: (_ for _ in ()).throw(StoreError("away")))
        with pytest.raises(StoreError, match="away"):
            changes.apply([table])
    (grown,) = changes.apply([table])
    assert grown.fields(1, ["year"]) == {"year": 7}


def test_a_table_opens_with_what_changed_since_the_training(store, bundle) -> None:
    catalogue = Catalogue(store, "planted")
    catalogue.upsert_items(pa.table({"item_id": ["late", "off"], "year": [2030, 2031], "available": [True, False]}))
    catalogue.patch_item("i003", {"year": 5})
    catalogue.delete_item("i004")
    table = as_of_now(ItemTable.from_bundle(bundle), store, "planted", BEFORE)
    assert table.fields(3, ["year"]) == {"year": 5}
    assert table.fields(table.row("late"), ["year", "title"]) == {"year": 2030, "title": None}
    assert table.available[[3, 4, table.row("late"), table.row("off")]].tolist() == [True, False, True, False]
    untouched = as_of_now(ItemTable.from_bundle(bundle), store, "planted", None)
    assert len(untouched) == table.num_trained
    assert not untouched.available[4]


def test_an_integer_that_some_item_lacks_is_shown_as_one(store) -> None:
    trained_at = datetime.now(UTC)
    Catalogue(store, "planted").patch_item("i002", {"year": 2001})
    kept = item_table(np.array(["i000", "i001", "i002"], dtype=object), {"year": np.array([1980.0, np.nan, 1982.0])})
    table = as_of_now(ItemTable.from_arrow(kept, np.arange(3, dtype=np.int32)), store, "planted", trained_at)
    shown = [table.fields(table.row(item_id), ["year"])["year"] for item_id in ("i000", "i001", "i002")]
    assert repr(shown) == "[1980, None, 2001]"


def test_a_table_knows_from_when_on_no_item_has_come_back(store, bundle) -> None:
    catalogue = Catalogue(store, "planted")
    filled_us = round(datetime.now(UTC).timestamp() * 1e6)
    catalogue.patch_item("i001", {"available": False})
    opened = as_of_now(ItemTable.from_bundle(bundle), store, "planted", None)
    assert opened.relisted_us <= filled_us
    catalogue.patch_item("i001", {"available": True})
    again = as_of_now(ItemTable.from_bundle(bundle), store, "planted", None)
    assert again.relisted_us > filled_us
    opened.set_available("i001", True)
    assert opened.relisted_us >= again.relisted_us
    assert opened.with_items({"new": {}}).relisted_us == opened.relisted_us
    assert as_of_now(ItemTable.from_bundle(bundle), store, "other", None).relisted_us < 0


def test_what_one_follower_has_taken_late_undoes_nothing_of_the_others(store, bundle) -> None:
    audit = AuditLog(store, "planted")
    table, changes, follower = ItemTable.from_bundle(bundle), ItemChanges(audit), AvailabilityFollower(audit)
    gone = {**item("i001"), "available": False}
    record_all(audit, {"item:i001": (gone, item("i001"))})
    follower.apply([table])
    record_all(audit, {"item:i001": (item("i001"), gone)})
    (current,) = changes.apply([table])
    follower.again([current], changes.seen)
    assert not current.available[1]  # delisted after what the follower knows
    seen = changes.seen
    record_all(audit, {"item:i002": (item("i002"), None)})
    follower.apply([])
    follower.again([current], seen)
    assert not current.available[2]  # delisted after what the table knows


def test_an_import_of_long_ago_undoes_no_later_change(store, bundle) -> None:
    catalogue, audit = Catalogue(store, "planted"), AuditLog(store, "planted")
    table, changes, follower = ItemTable.from_bundle(bundle), ItemChanges(audit), AvailabilityFollower(audit)
    import_items(store, item_id=["i001", "i002"], year=[1, 2], available=[True, False])
    follower.apply([table])
    (table,) = changes.apply([table])
    catalogue.patch_item("i001", {"available": False})
    catalogue.patch_item("i002", {"available": True})
    gone = {**item("i001"), "available": False}
    record_all(audit, {"item:i001": (item("i001"), gone), "item:i002": ({**item("i002"), "available": False}, item("i002"))})
    (table,) = changes.apply([table])  # before the follower has looked
    follower.again([table], changes.seen)
    assert table.available[[1, 2]].tolist() == [False, True]
