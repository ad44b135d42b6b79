"""Catalogue changes on their way into item tables: as the catalogue has it when a table is opened, and the audit log from then on.

Delisting touches one entry of a table in place; changed attributes and new items make a new table, a batch of changes at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import select

from features.catalogue import ITEMS
from features.control_store import ControlStore
from serving.audit import AuditEntry, AuditLog
from serving.item_table import ItemTable

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

    def apply(self, tables: Sequence[ItemTable]) -> list[ItemTable]:
        """Bring tables up to date; each is returned as it is or as the one that takes its place.

        Raises:
            StoreError: the control store cannot be read.
        """
        entries = self.new_entries()
        changed: dict[str, Mapping[str, Any]] = {}
        for entry in entries:
            item_id = entry.subject.removeprefix(ITEM_SUBJECT)
            if entry.after is None:
                changed.pop(item_id, None)
            elif _attributes(entry.before) != _attributes(entry.after):
                changed[item_id] = entry.after
        current = [table.with_items(changed) if changed else table for table in tables]
        for entry in entries:
            available = entry.after is not None and entry.after.get("available") is not False
            for table in (*tables, *current):
                table.set_available(entry.subject.removeprefix(ITEM_SUBJECT), available)
        return current

    def new_entries(self) -> list[AuditEntry]:
        """Changes of items since the last call, oldest first."""
        found: list[AuditEntry] = []
        seen = self._seen
        while entries := self._audit.entries(after_id=seen):
            seen = entries[-1].id
            found += [entry for entry in entries if entry.subject.startswith(ITEM_SUBJECT)]
        self._seen = seen
        return found


class AvailabilityFollower:
    """Availability alone, in tables that answer already: reading a new version takes seconds, and delisting must not wait for it.

    Args:
        audit: of the dataset.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._changes = ItemChanges(audit)
        self._latest: dict[str, bool] = {}

    def apply(self, tables: Sequence[ItemTable]) -> None:
        """Bring tables up to date, in place.

        Raises:
            StoreError: the control store cannot be read.
        """
        for entry in self._changes.new_entries():
            item_id = entry.subject.removeprefix(ITEM_SUBJECT)
            available = entry.after is not None and entry.after.get("available") is not False
            self._latest.pop(item_id, None)
            self._latest[item_id] = available
            for table in tables:
                table.set_available(item_id, available)
        while len(self._latest) > REMEMBERED:
            del self._latest[next(iter(self._latest))]

    def again(self, tables: Sequence[ItemTable]) -> None:
        """The same for tables on which somebody else's older reading was applied since."""
        for item_id, available in list(self._latest.items()):
            for table in tables:
                table.set_available(item_id, available)


def as_of_now(items: ItemTable, store: ControlStore, dataset: str, since: datetime | None) -> ItemTable:
    """The items of a bundle as the catalogue has them now: changed and new ones, and which are available.

    An item that was deleted from the catalogue is not available. A dataset without a catalogue leaves the items as they are.

    Args:
        items: as of the training.
        store: the control store.
        dataset: the dataset's name.
        since: when the training read the catalogue; None looks at availability alone.
    """
    here = ITEMS.c.dataset == dataset
    with store.begin() as connection:
        changed: dict[str, Mapping[str, Any]] = {}
        if since is not None:
            query = select(ITEMS.c.item_id, ITEMS.c.attributes).where(here, ITEMS.c.updated_at_us > round(since.timestamp() * 1e6))
            changed = {item_id: json.loads(text) for item_id, text in connection.execute(query)}
    if changed:
        items = items.with_items(changed)
    available, there = np.zeros(len(items), dtype=bool), False
    with store.begin() as connection:
        query = select(ITEMS.c.item_id, ITEMS.c.available).where(here)
        # In portions: a million rows at once leave a process 150 MB larger for good.
        for rows in connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query).partitions():
            there = True
            available[items.rows(row[0] for row in rows if row[1] is not False)] = True
    if there:
        items.set_all_available(available)
    return items


def _attributes(item: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if item is None else {name: value for name, value in item.items() if name != "available"}
