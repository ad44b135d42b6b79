"""Whose row or payload something is: a user with the sessions that were theirs. What an erasure deletes, by one rule everywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

_USER_COLUMNS = ("user_id", "unit_id")


@dataclass(frozen=True)
class Person:
    """One user.

    A row is theirs when it names the user, or names one of the sessions and no other user.
    """

    user_id: str
    session_ids: Collection[str] = ()

    def rows(self, table: pa.Table) -> pa.Array:
        """(n,) bool: which rows are theirs. Columns: `user_id`, `unit_id`, `session_id`, `list_id`, as far as they are there."""
        names = table.column_names
        user = _equal(table, "user_id", [self.user_id])
        theirs = pc.or_(user, _equal(table, "unit_id", [self.user_id]))
        if "list_id" in names:
            theirs = pc.or_(theirs, _starts(table["list_id"], f"u:{self.user_id}@"))
        if self.session_ids:
            sessions = pc.or_(_equal(table, "session_id", self.session_ids), _equal(table, "unit_id", self.session_ids))
            if "list_id" in names:
                for session in self.session_ids:
                    sessions = pc.or_(sessions, _starts(table["list_id"], f"s:{session}@"))
            nobody = pc.is_null(table["user_id"]) if "user_id" in names else pa.scalar(True)
            theirs = pc.or_(theirs, pc.and_(sessions, nobody))
        return theirs.combine_chunks() if isinstance(theirs, pa.ChunkedArray) else theirs

    def has_sent(self, payload: bytes) -> bool:
        """Whether a payload of the bus is theirs. One that is no JSON object is theirs where the user's id stands in it."""
        if self.user_id.encode() not in payload and not any(one.encode() in payload for one in self.session_ids):
            escaped = orjson.dumps(self.user_id)[1:-1]
            if escaped not in payload and b"\\u" not in payload:
                return False
        try:
            row = orjson.loads(payload)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, Mapping):
            return self.user_id.encode() in payload
        return self._is_row(row)

    def _is_row(self, row: Mapping[str, Any]) -> bool:
        if any(row.get(name) == self.user_id for name in _USER_COLUMNS):
            return True
        if str(row.get("list_id", "")).startswith(f"u:{self.user_id}@"):
            return True
        named = {row.get("session_id"), row.get("unit_id"), str(row.get("list_id", "")).removeprefix("s:").split("@")[0]}
        return row.get("user_id") is None and not named.isdisjoint(self.session_ids)


def _equal(table: pa.Table, name: str, values: Collection[str]) -> pa.ChunkedArray:
    if name not in table.column_names:
        return pa.chunked_array([pa.repeat(False, table.num_rows)])
    return pc.is_in(table[name], value_set=pa.array(list(values), pa.string()))


def _starts(column: pa.ChunkedArray, prefix: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.starts_with(column, prefix), False)
