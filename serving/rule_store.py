"""Rules in the control store: one document a dataset, replaced as a whole, every rule that changed in the audit log."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import BigInteger, Column, Connection, String, Table, Text, delete, insert, select

from features.control_store import METADATA, ControlStore
from serving.audit import AuditLog, now_us
from serving.rules import Rule, RuleBook

_log = logging.getLogger("shortlist.serving")

RULES = Table(
    "rules",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("document", Text, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
)
RULE_SUBJECT = "rule:"
"""Prefix of audit subjects that are rules."""
_RULES: TypeAdapter[list[Rule]] = TypeAdapter(list[Rule])


class RuleStore:
    """The rules of one dataset.

    Args:
        store: the control store; its tables must exist (`ControlStore.create`).
        dataset: the dataset's name.
    """

    def __init__(self, store: ControlStore, dataset: str) -> None:
        self._store, self._dataset = store, dataset
        self._audit = AuditLog(store, dataset)
        self._known: tuple[str | None, RuleBook] = (None, RuleBook())

    def rules(self) -> list[Rule]:
        """All rules, in the order in which they are applied; without those of earlier releases that this one refuses."""
        with self._store.begin() as connection:
            return _readable(self._text(connection))

    def book(self) -> RuleBook:
        """All rules as gateways use them; the same object while nothing has changed."""
        with self._store.begin() as connection:
            text = self._text(connection)
        if text != self._known[0]:
            self._known = (text, RuleBook(_readable(text)))
        return self._known[1]

    def replace(self, rules: Sequence[Rule], *, actor: str) -> int:
        """Keep these rules and no others; returns how many have changed, come or gone."""
        with self._audit.begin() as connection:
            text = self._text(connection)
            before = {rule["name"]: rule for rule in json.loads(text or "[]")}
            after = {rule.name: rule.model_dump(mode="json") for rule in rules}
            changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            connection.execute(delete(RULES).where(RULES.c.dataset == self._dataset))
            document = _RULES.dump_json(list(rules)).decode()
            connection.execute(insert(RULES).values(dataset=self._dataset, document=document, updated_at_us=now_us()))
            for name in changed:
                self._audit.write(connection, actor, "rule", f"{RULE_SUBJECT}{name}", before.get(name), after.get(name))
        return len(changed)

    def _text(self, connection: Connection) -> str | None:
        return connection.execute(select(RULES.c.document).where(RULES.c.dataset == self._dataset)).scalar()


def _readable(text: str | None) -> list[Rule]:
    rules = []
    for document in json.loads(text or "[]"):
        try:
            rules.append(Rule.model_validate(document))
        except ValidationError as error:
            # One rule that an earlier release took must not keep a replica from starting.
            _log.error("rule %s is not applied, it cannot be read: %s", document.get("name"), error)
    return rules
