"""Where feature values come from: one Parquet table a view (batch), and push sources for what events change.

Tables carry `event_timestamp` (from when the row is true; microseconds, UTC) and `created_at` (when the row was written; of rows
with equal event time the later written wins).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from feast import FileSource, PushSource
from feast.data_format import ParquetFormat

from feature_repo.entities import OWNER
from feature_repo.specs import CREATED_AT, EVENT_TIMESTAMP, table_path

STATE_TTL = timedelta(0)
"""Feast's "never too old". A row is the state after an entity's last event and stays true until the next: what ages (window counts,
recency) is computed from it at read time, so a person who was away for a year keeps a right row, not a missing one."""


def batch_source(view: str, tables: Path) -> FileSource:
    """The view's Parquet table, `<tables>/<view>.parquet`."""
    return FileSource(
        name=f"{view}_table",
        path=str(table_path(view, tables)),
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_AT,
        description=f"Change log of {view}: one row from each moment on which the state is another.",
        owner=OWNER,
    )


def push_source(view: str, tables: Path) -> PushSource:
    """Live updates of the view on top of its table."""
    return PushSource(
        name=f"{view}_push",
        batch_source=batch_source(view, tables),
        description=f"State of {view} after new events, pushed by the ingestion worker.",
        owner=OWNER,
    )
