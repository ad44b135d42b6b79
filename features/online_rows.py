"""Rows of feature tables on their way into the online store: who is written, and how many at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

WRITE_ROWS = 5_000
"""Rows of one online write: 2 round trips and about 60 MB of protobufs."""


def active_users(tables: Iterator[pa.Table], path: Path, ttl_s: int) -> Iterator[pa.Table]:
    """The users with an event in the last `ttl_s` seconds; all of them where times are not known or nobody has one."""
    since_us = time.time_ns() // 1000 - ttl_s * 1_000_000
    newest_us = pc.max(pq.read_table(path, columns=["user_last_event_us"]).column(0)).as_py()
    for table in tables:
        if newest_us is None or newest_us < since_us:
            yield table
        else:
            yield table.filter(pc.greater_equal(table.column("user_last_event_us"), since_us))


def write_blocks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows of all tables in blocks of at most WRITE_ROWS."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(len(part) for part in held) >= WRITE_ROWS:
            whole = pa.concat_tables(held)
            yield whole.slice(0, WRITE_ROWS)
            held = [whole.slice(WRITE_ROWS)]
    rest = pa.concat_tables(held) if held else None
    if rest is not None and len(rest):
        yield rest
