"""An import's entry in the audit log: one, however many items it has changed, which says since when to look at the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, select

from features.catalogue import ITEMS
from serving.audit import AuditLog, now_us

IMPORT_SUBJECT = "import:items"
"""Audit subject of imports; `items` of the value are how many were new or changed, `since_us` is when the import began."""


@contextmanager
def recorded_import(audit: AuditLog, *, actor: str) -> Iterator[Connection]:
    """A transaction in which an import writes items: if some are new or have changed, it ends with an entry of the audit log.

    Args:
        audit: of the dataset.
        actor: who imports.
    """
    with audit.begin() as connection:
        since_us = now_us()
        yield connection
        here = (ITEMS.c.dataset == audit.dataset) & (ITEMS.c.updated_at_us >= since_us)
        count = connection.execute(select(func.count()).select_from(ITEMS).where(here)).scalar_one()
        if count:
            audit.write(connection, actor, "import", IMPORT_SUBJECT, None, {"items": count, "since_us": since_us})
