"""Catalogue changes on their way into item tables: as the catalogue has it when a table is opened, and the audit log from then on.

Delisting touches one entry of a table in place; changed attributes and new items make a new table, a batch of changes at a time.
A change of single items is in the log with what it changed. Of an import, which may change a million, the log has one entry that
says since when: followers read from the catalogue what has changed since.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import func, select

from features.catalogue import ITEMS, Catalogue
from features.control_store import ControlStore
from serving.audit import AuditEntry, AuditLog
from serving.item_table import ItemTable
from serving.process import give_back_memory
from serving.recorded_import import IMPORT_SUBJECT

ITEM_SUBJECT = "item:"
"""Prefix of audit subjects that are catalogue items."""
ROWS_AT_ONCE = 10_000
REMEMBERED = 10_000
"""Items whose last change of availability is known, those changed last."""


class ItemChanges:
    """Follows changes of items in the audit log, from its construction on.

    Args:
        audit: of the dataset.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._seen = audit.last_change()

    @property
    def seen(self) -> int:
        """Number of the last entry of the log that has been taken."""
        return self._seen

    def apply(self, tables: Sequence[ItemTable]) -> list[ItemTable]:
        """Bring tables up to date; each is returned as it is or as the one that takes its place.

        Raises:
            StoreError: the control store cannot be read.
        """
        with self.new_entries() as (entries, imported_us, _):
            changed: dict[str, Mapping[str, Any]] = {}
            available: dict[str, bool] = {}
            for entry in entries:
                item_id = entry.subject.removeprefix(ITEM_SUBJECT)
                available[item_id] = _is_available(entry)
                if entry.after is None:
                    changed.pop(item_id, None)
                elif _attributes(entry.before) != _attributes(entry.after):
                    changed[item_id] = entry.after
            if imported_us is not None:
                imported = _changed_since(self._audit.store, self._audit.dataset, imported_us)
                changed |= imported
                available |= {item_id: item["available"] for item_id, item in imported.items()}
        current = [table.with_items(changed) if changed else table for table in tables]
        for item_id, there in available.items():
            for table in (*tables, *current):
                table.set_available(item_id, there)
        if imported_us is not None:
            give_back_memory()
        return current

    @contextmanager
    def new_entries(self) -> Iterator[tuple[list[AuditEntry], int | None, int]]:
        """Changes of single items since the last time, oldest first, since when imports have changed others (epoch us), and the
        number of the last entry that was read.

        They are given again the next time where reading what else they need fails. The catalogue is at least as new as they are.
        """
        found: list[AuditEntry] = []
        imported_us: int | None = None
        seen = self._seen
        while entries := self._audit.entries(after_id=seen):
            seen = entries[-1].id
            found += [entry for entry in entries if entry.subject.startswith(ITEM_SUBJECT)]
            since = [int(entry.after["since_us"]) for entry in entries if entry.subject == IMPORT_SUBJECT]
            imported_us = min([*since, *([] if imported_us is None else [imported_us])], default=None)
        yield found, imported_us, seen
        self._seen = seen


class AvailabilityFollower:
    """Availability alone, in tables that answer already: reading a new version takes seconds, and delisting must not wait for it.

    Args:
        audit: of the dataset.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._changes = ItemChanges(audit)
        self._store, self._dataset = audit.store, audit.dataset
        self._latest: dict[str, tuple[bool, int]] = {}
        """Availability by item, and the number of the entry that says so; of an import, of the last one when it was read."""

    def apply(self, tables: Sequence[ItemTable]) -> None:
        """Bring tables up to date, in place.

        Raises:
            StoreError: the control store cannot be read.
        """
        with self._changes.new_entries() as (entries, imported_us, seen):
            for entry in entries:
                self._set(tables, entry.subject.removeprefix(ITEM_SUBJECT), _is_available(entry), entry.id)
            if imported_us is not None:
                self._set_imported(tables, imported_us, seen)

    def again(self, tables: Sequence[ItemTable], after: int) -> None:
        """What is newer than the entry `after`, for tables that somebody else has brought up to that one meanwhile."""
        for item_id, (available, number) in list(self._latest.items()):
            if number > after:
                for table in tables:
                    table.set_available(item_id, available)

    def _set_imported(self, tables: Sequence[ItemTable], since_us: int, number: int) -> None:
        here = (ITEMS.c.dataset == self._dataset) & (ITEMS.c.updated_at_us >= since_us)
        with self._store.begin() as connection:
            query = select(ITEMS.c.item_id, ITEMS.c.available).where(here)
            for item_id, available in connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query):
                self._set(tables, item_id, available is not False, number)

    def _set(self, tables: Sequence[ItemTable], item_id: str, available: bool, number: int) -> None:
        self._latest.pop(item_id, None)
        self._latest[item_id] = (available, number)
        for table in tables:
            table.set_available(item_id, available)
        if len(self._latest) > REMEMBERED:
            del self._latest[next(iter(self._latest))]


def as_of_now(items: ItemTable, store: ControlStore, dataset: str, since: datetime | None) -> ItemTable:
    """The items of a bundle as the catalogue has them now: changed and new ones, and which are available.

    An item that was deleted from the catalogue is not available. A dataset without a catalogue leaves the items as they are.

    Args:
        items: as of the training.
        store: the control store.
        dataset: the dataset's name.
        since: when the training read the catalogue; None looks at availability alone.
    """
    schema = Catalogue(store, dataset).schema()
    items.read_as_integers(one.name for one in schema.item_attributes if one.type == "int")
    here = ITEMS.c.dataset == dataset
    changed = {} if since is None else _changed_since(store, dataset, round(since.timestamp() * 1e6))
    if changed:
        items = items.with_items(changed)
    available, there = np.zeros(len(items), dtype=bool), False
    with store.begin() as connection:
        query = select(ITEMS.c.item_id, ITEMS.c.available).where(here)
        # In portions: a million rows at once leave a process 150 MB larger for good.
        for rows in connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query).partitions():
            there = True
            available[items.rows(row[0] for row in rows if row[1] is not False)] = True
        latest = connection.execute(select(func.max(ITEMS.c.updated_at_us)).where(here, ITEMS.c.available.is_not(False))).scalar()
    if there:
        items.set_all_available(available)
    # An item that came back has changed then; what else has changed since does no harm.
    items.relisted_us = -math.inf if latest is None else latest
    return items


def _changed_since(store: ControlStore, dataset: str, since_us: int) -> dict[str, Mapping[str, Any]]:
    """The items that are new or have changed, as the catalogue has them now."""
    here = (ITEMS.c.dataset == dataset) & (ITEMS.c.updated_at_us >= since_us)
    with store.begin() as connection:
        rows = connection.execute(select(ITEMS.c.item_id, ITEMS.c.attributes, ITEMS.c.available).where(here))
        return {item_id: {**json.loads(text), "available": available is not False} for item_id, text, available in rows}


def _is_available(entry: AuditEntry) -> bool:
    return entry.after is not None and entry.after.get("available") is not False


def _attributes(item: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if item is None else {name: value for name, value in item.items() if name != "available"}
