"""The catalogue: what is known of a dataset's items and users, in the control store.

Owns the tables `items`, `users` and `datasets` (the schema of attributes). Attributes are kept as one JSON object a row under
their safe names; `DatasetSchema` says their types, and tables come back in those types.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import Any, Literal

import pyarrow as pa
from sqlalchemy import BigInteger, Boolean, Column, Connection, String, Table, Text, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from features.attributes import ARROW_TYPES, decode_attributes, encode_attributes
from features.control_store import METADATA, ControlStore
from features.schema import Attribute, DatasetSchema

DATASETS = Table(
    "datasets",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("schema", Text, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
)
ITEMS = Table(
    "items",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("item_id", String(256), primary_key=True),
    Column("attributes", Text, nullable=False),
    Column("available", Boolean),  # NULL reads true
    Column("updated_at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
USERS = Table(
    "users",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("user_id", String(256), primary_key=True),
    Column("attributes", Text, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

UPSERT_ROWS = 20_000
"""Rows of one bulk statement: bounded memory, and one transaction for all of them."""

IDS_PER_QUERY = 500
"""Ids in one IN list: SQLite allows 999 parameters in its oldest builds."""

Side = Literal["item", "user"]
_TABLES: dict[Side, Table] = {"item": ITEMS, "user": USERS}


class Catalogue:
    """Items and users of one dataset.

    Args:
        store: the control store; its tables must exist (`ControlStore.create`).
        dataset: the dataset's name.
        connection: in whose open transaction everything is read and written; each call has its own where not given.
    """

    def __init__(self, store: ControlStore, dataset: str, connection: Connection | None = None) -> None:
        self.store = store
        self.dataset = dataset
        self._connection = connection

    def inside(self, connection: Connection) -> Catalogue:
        """The same catalogue in an open transaction: what is written is committed with the rest of it, or not at all."""
        return Catalogue(self.store, self.dataset, connection)

    def schema(self) -> DatasetSchema:
        """Attributes and traits of the dataset; without any where nothing was imported yet."""
        with self._begin() as connection:
            text = connection.execute(select(DATASETS.c.schema).where(DATASETS.c.dataset == self.dataset)).scalar()
        return DatasetSchema.from_json(text) if text else DatasetSchema(self.dataset)

    def exists(self) -> bool:
        """Whether the dataset was ever imported into."""
        with self._begin() as connection:
            return connection.execute(select(DATASETS.c.dataset).where(DATASETS.c.dataset == self.dataset)).first() is not None

    def save_schema(self, schema: DatasetSchema) -> None:
        """Replace the schema."""
        row = {"dataset": self.dataset, "schema": schema.to_json(), "updated_at_us": _now_us()}
        with self._begin() as connection:
            connection.execute(self._upsert(DATASETS, ["dataset"], ["schema", "updated_at_us"]), [row])

    def upsert_items(self, items: pa.Table) -> int:
        """Insert or replace items; returns how many rows were given. Those that say nothing new stay as of when they last changed.

        Args:
            items: `item_id` str and attribute columns under the names and types of `schema()`. Where an item is listed twice,
                the last row counts. `available` is kept beside the attributes too, NULL meaning true.
        """
        return self._upsert_table("item", items)

    def upsert_users(self, users: pa.Table) -> int:
        """Insert or replace users; the same as `upsert_items` with `user_id`."""
        return self._upsert_table("user", users)

    def add_missing_items(self, item_ids: Iterable[str]) -> int:
        """Insert the items that are not in the catalogue, without attributes; returns how many were new."""
        before = self.count_items()
        now = _now_us()
        rows = (
            {"dataset": self.dataset, "item_id": i, "attributes": "{}", "available": None, "updated_at_us": now} for i in item_ids
        )
        statement = self._insert(ITEMS).on_conflict_do_nothing(index_elements=["dataset", "item_id"])
        self._execute_blocks(statement, rows)
        return self.count_items() - before

    def items(self) -> pa.Table:
        """All items sorted by id: `item_id` str, `available` bool (true where never said), typed attributes of the schema."""
        return self._read("item")

    def users(self) -> pa.Table:
        """All users sorted by id: `user_id` str and the typed attributes of the schema."""
        return self._read("user")

    def item(self, item_id: str) -> dict[str, Any] | None:
        """One item's attributes with `item_id` and `available`, or None where it is not in the catalogue."""
        return self._one("item", item_id)

    def user(self, user_id: str) -> dict[str, Any] | None:
        """One user's attributes with `user_id`, or None where the user is not in the catalogue."""
        return self._one("user", user_id)

    def some_items(self, item_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The same as `item` for many ids at once: those that the catalogue has, by id."""
        wanted, found = list(item_ids), dict[str, dict[str, Any]]()
        with self._begin() as connection:
            for start in range(0, len(wanted), IDS_PER_QUERY):
                ids = wanted[start : start + IDS_PER_QUERY]
                query = select(ITEMS).where(ITEMS.c.dataset == self.dataset, ITEMS.c.item_id.in_(ids))
                found.update((row["item_id"], self._entity("item", row)) for row in connection.execute(query).mappings())
        return found

    def item_ids(self) -> list[str]:
        """Ids of all items, sorted."""
        with self._begin() as connection:
            found = connection.execute(select(ITEMS.c.item_id).where(ITEMS.c.dataset == self.dataset).order_by(ITEMS.c.item_id))
            return [row[0] for row in found]

    def existing_items(self, item_ids: Iterable[str]) -> set[str]:
        """Those of the ids that the catalogue has."""
        wanted, found = list(item_ids), set[str]()
        with self._begin() as connection:
            for start in range(0, len(wanted), IDS_PER_QUERY):
                ids = wanted[start : start + IDS_PER_QUERY]
                query = select(ITEMS.c.item_id).where(ITEMS.c.dataset == self.dataset, ITEMS.c.item_id.in_(ids))
                found.update(row[0] for row in connection.execute(query))
        return found

    def count_items(self) -> int:
        """Number of items."""
        return self._count(ITEMS)

    def count_users(self) -> int:
        """Number of users with a profile row."""
        return self._count(USERS)

    def patch_item(self, item_id: str, changes: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change some attributes of one item (None removes one) and return the item, or None where it does not exist.

        Values are JSON values (times as ISO 8601 text); the caller validates them.
        """
        return self._patch("item", item_id, changes)

    def patch_user(self, user_id: str, changes: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change some attributes of one user; the same as `patch_item`."""
        return self._patch("user", user_id, changes)

    def delete_item(self, item_id: str) -> bool:
        """Remove one item; whether it was there."""
        return self._delete("item", item_id)

    def delete_user(self, user_id: str) -> bool:
        """Remove one user's profile; whether it was there."""
        return self._delete("user", user_id)

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        if self._connection is not None:
            yield self._connection
            return
        with self.store.begin() as connection:
            yield connection

    def _attributes(self, side: Side) -> tuple[Attribute, ...]:
        schema = self.schema()
        return schema.item_attributes if side == "item" else schema.user_attributes

    def _upsert_table(self, side: Side, rows: pa.Table) -> int:
        table, key = _TABLES[side], f"{side}_id"
        columns = ["attributes", "updated_at_us"] + (["available"] if side == "item" else [])
        self._execute_blocks(self._upsert(table, ["dataset", key], columns), self._rows(side, rows))
        return int(rows.num_rows)

    def _rows(self, side: Side, rows: pa.Table) -> Iterator[dict[str, Any]]:
        key, now = f"{side}_id", _now_us()
        for start in range(0, rows.num_rows, UPSERT_ROWS):
            block = rows.slice(start, UPSERT_ROWS)
            texts = encode_attributes(block.drop_columns([key]))
            available = block["available"].to_pylist() if side == "item" and "available" in block.column_names else None
            for number, (entity_id, text) in enumerate(zip(block[key].to_pylist(), texts, strict=True)):
                row = {"dataset": self.dataset, key: entity_id, "attributes": text, "updated_at_us": now}
                if side == "item":
                    row["available"] = available[number] if available is not None else None
                yield row

    def _read(self, side: Side) -> pa.Table:
        table, key = _TABLES[side], f"{side}_id"
        wanted = [table.c[key], table.c.attributes] + ([ITEMS.c.available] if side == "item" else [])
        with self._begin() as connection:
            found = connection.execute(select(*wanted).where(table.c.dataset == self.dataset).order_by(table.c[key])).all()
        attributes = tuple(a for a in self._attributes(side) if a.name != "available")
        columns: dict[str, pa.Array] = {key: pa.array([row[0] for row in found], pa.string())}
        if side == "item":
            columns["available"] = pa.array([row[2] is not False for row in found], pa.bool_())
        decoded = decode_attributes([row[1] for row in found], attributes)
        for attribute in attributes:
            columns[attribute.name] = decoded[attribute.name].cast(ARROW_TYPES[attribute.type])
        return pa.table(columns)

    def _one(self, side: Side, entity_id: str) -> dict[str, Any] | None:
        table, key = _TABLES[side], f"{side}_id"
        query = select(table).where(table.c.dataset == self.dataset, table.c[key] == entity_id)
        with self._begin() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else self._entity(side, row)

    def _entity(self, side: Side, row: Mapping[Any, Any]) -> dict[str, Any]:
        entity = {f"{side}_id": row[f"{side}_id"], **json.loads(row["attributes"])}
        if side == "item":
            entity["available"] = row["available"] is not False
        return entity

    def _patch(self, side: Side, entity_id: str, changes: Mapping[str, Any]) -> dict[str, Any] | None:
        table, key = _TABLES[side], f"{side}_id"
        here = (table.c.dataset == self.dataset) & (table.c[key] == entity_id)
        with self._begin() as connection:
            # A patch reads and writes: the row is locked (sqlite takes the write lock with the first statement).
            connection.execute(update(table).where(here).values(updated_at_us=_now_us()))
            row = connection.execute(select(table).where(here)).mappings().first()
            if row is None:
                return None
            merged = {**json.loads(row["attributes"]), **changes}
            merged = {name: value for name, value in merged.items() if value is not None}
            values: dict[str, Any] = {"attributes": json.dumps(merged, ensure_ascii=False, separators=(",", ":"))}
            if side == "item" and "available" in changes:
                values["available"] = changes["available"]
            connection.execute(update(table).where(here).values(**values))
            row = connection.execute(select(table).where(here)).mappings().one()
            return self._entity(side, row)

    def _delete(self, side: Side, entity_id: str) -> bool:
        table = _TABLES[side]
        query = delete(table).where(table.c.dataset == self.dataset, table.c[f"{side}_id"] == bindparam("entity"))
        with self._begin() as connection:
            return connection.execute(query, {"entity": entity_id}).rowcount > 0

    def _count(self, table: Table) -> int:
        with self._begin() as connection:
            found = connection.execute(select(func.count()).select_from(table).where(table.c.dataset == self.dataset))
            return int(found.scalar_one())

    def _insert(self, table: Table) -> Any:
        builders: dict[str, Any] = {"sqlite": sqlite_insert, "postgresql": postgresql_insert}
        return builders.get(self.store.engine.dialect.name, insert)(table)

    def _upsert(self, table: Table, keys: list[str], columns: list[str]) -> Any:
        statement = self._insert(table)
        told = [table.c[name].is_distinct_from(statement.excluded[name]) for name in columns if name != "updated_at_us"]
        replaced = {name: statement.excluded[name] for name in columns}
        return statement.on_conflict_do_update(index_elements=keys, set_=replaced, where=reduce(or_, told))

    def _execute_blocks(self, statement: Any, rows: Iterator[dict[str, Any]]) -> None:
        with self._begin() as connection:
            block: list[dict[str, Any]] = []
            for row in rows:
                block.append(row)
                if len(block) == UPSERT_ROWS:
                    connection.execute(statement, block)
                    block = []
            if block:
                connection.execute(statement, block)


def _now_us() -> int:
    return time.time_ns() // 1000
