"""The audit log: every change with the whole new value, append-only, in the control store.

Replaying it gives the state at any time; gateways follow it by its numbers to learn what changed. What is changed is the business
of others: they write their changes and the entries (`write`) in one transaction of `begin`. One is open at a time, so that numbers
can be read in their order: a database gives them out before the commit, and followers would pass over one that commits late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, String, Table, Text, func, insert, select

from features.control_store import METADATA, ControlStore

AUDIT = Table(
    "audit",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("dataset", String(63), nullable=False, index=True),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", String(256), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(320), nullable=False),
    Column("before", Text),
    Column("after", Text),
)


@dataclass(frozen=True)
class AuditEntry:
    """One change: when, who, what, before and after (JSON values; None for did or does not exist)."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    before: Any
    after: Any


class AuditLog:
    """The audit log of one dataset.

    Args:
        store: the control store; its tables must exist (`ControlStore.create`).
        dataset: the dataset's name.
    """

    def __init__(self, store: ControlStore, dataset: str) -> None:
        self.store = store
        self.dataset = dataset

    def begin(self) -> AbstractContextManager[Connection]:
        """A transaction that may append to the log; who opens another one waits until this one has ended."""
        return self.store.begin_alone(f"audit/{self.dataset}")

    def record(self, *, actor: str, action: str, subject: str, before: object, after: object) -> None:
        """Append a change of what is not in the control store (aliases)."""
        with self.begin() as connection:
            self.write(connection, actor, action, subject, before, after)

    def last_change(self) -> int:
        """Number of the newest audit entry, 0 before the first."""
        query = select(func.max(AUDIT.c.id)).where(AUDIT.c.dataset == self.dataset)
        with self.store.begin() as connection:
            return int(connection.execute(query).scalar() or 0)

    def entries(self, *, after_id: int = 0, limit: int = 1000, subject: str = "") -> list[AuditEntry]:
        """Entries after a number, oldest first, of subjects that start with `subject`."""
        query = select(AUDIT).where(AUDIT.c.dataset == self.dataset, AUDIT.c.id > after_id).order_by(AUDIT.c.id).limit(limit)
        if subject:
            query = query.where(AUDIT.c.subject.startswith(subject, autoescape=True))
        with self.store.begin() as connection:
            return [_audit(row) for row in connection.execute(query).mappings()]

    def last_value(self, subject: str) -> Any:
        """The newest value of a subject in the log, None where there is none."""
        query = select(AUDIT.c.after).where(AUDIT.c.dataset == self.dataset, AUDIT.c.subject == subject)
        with self.store.begin() as connection:
            text = connection.execute(query.order_by(AUDIT.c.id.desc()).limit(1)).scalar()
        return None if text is None else json.loads(text)

    def replay(self, until: datetime, *, subject: str = "", leave_out: Sequence[str] = ()) -> dict[str, Any]:
        """The state at a time, from the audit log alone: subject -> value of its last entry until then.

        Args:
            until: the time.
            subject: only subjects that start so.
            leave_out: no subjects that start with one of these.
        """
        newest = select(func.max(AUDIT.c.id)).where(
            AUDIT.c.dataset == self.dataset, AUDIT.c.at_us <= round(until.timestamp() * 1e6)
        )
        if subject:
            newest = newest.where(AUDIT.c.subject.startswith(subject, autoescape=True))
        for prefix in leave_out:
            newest = newest.where(~AUDIT.c.subject.startswith(prefix, autoescape=True))
        query = select(AUDIT).where(AUDIT.c.id.in_(newest.group_by(AUDIT.c.subject))).order_by(AUDIT.c.subject)
        with self.store.begin() as connection:
            entries = [_audit(row) for row in connection.execute(query).mappings()]
        return {entry.subject: entry.after for entry in entries if entry.after is not None}

    def write(self, connection: Connection, actor: str, action: str, subject: str, before: object, after: object) -> None:
        """Append to the log inside a transaction of `begin`."""
        connection.execute(
            insert(AUDIT).values(
                dataset=self.dataset,
                at_us=now_us(),
                actor=actor,
                action=action,
                subject=subject,
                before=None if before is None else json.dumps(before, default=str),
                after=None if after is None else json.dumps(after, default=str),
            )
        )


def _audit(row: Mapping[Any, Any]) -> AuditEntry:
    return AuditEntry(
        id=int(row["id"]),
        at=datetime.fromtimestamp(row["at_us"] / 1e6, UTC),
        actor=row["actor"],
        action=row["action"],
        subject=row["subject"],
        before=None if row["before"] is None else json.loads(row["before"]),
        after=None if row["after"] is None else json.loads(row["after"]),
    )


def now_us() -> int:
    """The present in microseconds since 1970 (UTC)."""
    return round(datetime.now(UTC).timestamp() * 1e6)
