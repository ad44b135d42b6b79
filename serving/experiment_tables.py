"""What the report of an experiment is made of, read from exposure log and activity store: no more than it counts.

Impressions alone are ten times the clicks of a day, and an exposure names all that was shown.
"""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa

from experiments.exposure import EXPOSURE_SCHEMA
from experiments.outcomes import EVENT_COLUMNS, EXPOSURE_COLUMNS, counted_actions
from features.activity_store import ActivityStore
from features.daily_log import DailyLog
from features.events import EVENT_SCHEMA
from features.paths import DatasetPaths
from serving.control import ExperimentRecord

CLOCKS = timedelta(days=1)
"""Exposures are dated by the gateways' clocks, starts by the control store's client: far more than these differ."""


def exposures_of(paths: DatasetPaths, record: ExperimentRecord) -> pa.Table:
    """An experiment's exposures: `EXPOSURE_COLUMNS` and `degraded`.

    Raises:
        StoreError: the log cannot be read.
    """
    log = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    since = None if record.started_at is None else record.started_at - CLOCKS
    return log.read([*EXPOSURE_COLUMNS, "degraded"], equal={"experiment": record.spec.name}, since=since)


def events_of(paths: DatasetPaths, record: ExperimentRecord) -> pa.Table:
    """Events since an experiment's start that its metrics may count; none for one that has not started.

    Raises:
        StoreError: the store cannot be read.
    """
    if record.started_at is None:
        return pa.schema([EVENT_SCHEMA.field(name) for name in EVENT_COLUMNS]).empty_table()
    return ActivityStore.of(paths).read(EVENT_COLUMNS, since=record.started_at, actions=counted_actions(record.spec))
