"""What reports read: no more than their metrics count, and the same report as from everything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from experiments.exposure import EXPOSURE_SCHEMA, Exposure, decode_exposures
from experiments.outcomes import EVENT_COLUMNS
from experiments.report import build_report
from experiments.spec import parse_spec
from features.activity_store import ActivityStore
from features.daily_log import DailyLog
from features.events import EVENT_SCHEMA, Event
from features.paths import DatasetPaths
from serving.control import ExperimentRecord
from serving.experiment_tables import events_of, exposures_of

START = datetime(2026, 11, 1, tzinfo=UTC)
RATE = {"name": "rate", "kind": "ratio", "actions": ["click"], "per": ["view"]}


def record(started_at: datetime | None = START) -> ExperimentRecord:
    variants = [{"name": name, "model": version, "weight": 1} for name, version in (("a", "1"), ("b", "2"))]
    raw = {"name": "slim", "salt": "slim-1", "variants": variants, "metrics": {"primary": RATE, "secondary": ["conversion"]}}
    return ExperimentRecord(parse_spec(raw), "running", {}, started_at)


def fill(paths: DatasetPaths) -> None:
    exposures, events = [], []
    for number in range(40):
        user, at = f"u{number}", START + timedelta(hours=number)
        for name in ("slim", "other"):
            answer = f"{name}-{user}"
            exposures.append(Exposure(answer, name, "ab"[number % 2], "user_id", user, at, "cache", ["x"] * 50, user_id=user))
        done = ["view"] * 3 + ["click"] * (number % 3) + ["impression"] * 20 + ["purchase"] * (number % 2)
        moments = [at + timedelta(minutes=minute) for minute in range(len(done))]
        events += [Event(f"{user}-{n}", "x", what, moments[n], user_id=user) for n, what in enumerate(done)]
    events.append(Event("before", "x", "click", START - timedelta(days=3), user_id="u0"))
    log = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    log.append(decode_exposures([one.encode() for one in exposures]))
    rows = [event.to_row(received_at=event.timestamp) for event in events]
    ActivityStore.of(paths).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))


def test_a_report_reads_what_it_counts_and_says_the_same(tmp_path) -> None:
    paths, now = DatasetPaths(tmp_path, "tiny"), START + timedelta(days=20)
    fill(paths)
    exposures, events = exposures_of(paths, record()), events_of(paths, record())
    assert "item_ids" not in exposures.column_names
    assert exposures.num_rows == 40
    assert set(events["action"].to_pylist()) == {"view", "click", "purchase"}
    log = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
    whole = build_report(record().spec, log.read(), ActivityStore.of(paths).read(EVENT_COLUMNS), now=now, started_at=START)
    assert build_report(record().spec, exposures, events, now=now, started_at=START) == whole
    assert whole.metrics[0].means["a"] is not None


def test_a_draft_reads_no_events(tmp_path) -> None:
    paths = DatasetPaths(tmp_path, "tiny")
    fill(paths)
    assert events_of(paths, record(None)).num_rows == 0
    assert events_of(paths, record(None)).column_names == list(EVENT_COLUMNS)
