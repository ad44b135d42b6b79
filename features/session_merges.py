"""Visitors who logged in: from when on a session's activity belongs to which account.

Events are never rewritten. A merge is a row beside them, and `ActivityStore.read` gives the anonymous events of the session that
were received until then the account's user: so the store holds exactly what was accepted, and session, recommendation and position
of each event stay as they were. Events that come later without a user wait for the next merge, which may be another account's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from features.daily_log import DailyLog
from features.errors import EventError
from features.store_files import local_root
from features.store_remote import RemoteFolder

_PLACE = "_state/sessions"

MERGE_SCHEMA = pa.schema(
    [
        pa.field("merge_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("merged_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""One row of the log of merges. The same session and user may come again: what was received since joins too."""


def merge_log(uri: str | Path, state: Path) -> DailyLog:
    """The merges of an activity store, beside its parts wherever these lie; `state` is the writers' folder on this machine."""
    local = local_root(str(uri))
    if local is not None:
        return DailyLog(local / _PLACE, MERGE_SCHEMA, id_column="merge_id", time_column="merged_at")
    place = RemoteFolder(f"{uri}/{_PLACE}")
    return DailyLog(place, MERGE_SCHEMA, id_column="merge_id", time_column="merged_at", state=state / "sessions")


def encode_merge(merge_id: str, session_id: str, user_id: str, merged_at_us: int, site: str = "local") -> bytes:
    """One merge as a bus payload; `merge_id` is its key."""
    row = {"merge_id": merge_id, "site": site, "session_id": session_id, "user_id": user_id, "merged_at": merged_at_us}
    return json.dumps(row, separators=(",", ":")).encode()


def decode_merges(payloads: Sequence[bytes]) -> pa.Table:
    """Bus payloads as rows of `MERGE_SCHEMA`.

    Raises:
        EventError: a payload is not a merge.
    """
    try:
        rows: list[dict[str, Any]] = [json.loads(payload) for payload in payloads]
        columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in MERGE_SCHEMA]
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise EventError(f"not a session merge: {error}") from None
    for field, column in zip(MERGE_SCHEMA, columns, strict=True):
        if column.null_count:
            raise EventError(f"not a session merge: {field.name} is missing", field.name)
    return pa.table(columns, schema=MERGE_SCHEMA)


JOINED_EVENTS = """(
    WITH stored AS (SELECT * FROM read_parquet(?, hive_partitioning = false))
    SELECT * FROM stored WHERE user_id IS NOT NULL OR session_id NOT IN (SELECT session_id FROM merges)
    UNION ALL BY NAME
    SELECT anonymous.* REPLACE (merges.user_id AS user_id)
    FROM (SELECT * FROM stored WHERE user_id IS NULL AND session_id IN (SELECT session_id FROM merges)) anonymous
    ASOF LEFT JOIN merges ON anonymous.session_id = merges.session_id AND anonymous.received_at <= merges.merged_at
)"""
"""Events with the users that their sessions joined, in DuckDB's SQL; a table `merges` of MERGE_SCHEMA must be registered."""
