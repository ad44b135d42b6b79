"""When pipelines run by themselves: one cron expression a dataset, kept in the control store. Times are UTC.

Source: cron expressions as Debian's cron reads them (the library cronsim).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError
from sqlalchemy import BigInteger, Column, String, Table, Text, delete, insert, select, update

from features.control_store import METADATA, ControlStore
from shortlist.commands.console import CommandError
from shortlist.pipeline.record import PipelineOptions

SCHEDULE = Table(
    "schedule",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("cron", String(200), nullable=False),
    Column("options", Text, nullable=False),
    Column("since_us", BigInteger, nullable=False),
)


@dataclass(frozen=True)
class Scheduled:
    """One dataset's schedule. `since`: when it was set, or the last run that it started began."""

    cron: str
    options: PipelineOptions
    since: datetime

    @property
    def due_at(self) -> datetime:
        """The first moment after `since` that the expression names. A run missed while nothing was up is due at once."""
        return next_after(self.cron, self.since)


class Schedules:
    """The schedule of one dataset.

    Args:
        store: the control store, created.
        dataset: whose.
    """

    def __init__(self, store: ControlStore, dataset: str) -> None:
        self._store, self._dataset = store, dataset

    def get(self) -> Scheduled | None:
        """The present schedule, None where there is none."""
        with self._store.begin() as connection:
            row = connection.execute(select(SCHEDULE).where(SCHEDULE.c.dataset == self._dataset)).mappings().first()
        if row is None:
            return None
        since = datetime.fromtimestamp(row["since_us"] / 1e6, UTC)
        return Scheduled(row["cron"], PipelineOptions.model_validate_json(row["options"]), since)

    def put(self, cron: str, options: PipelineOptions, now: datetime) -> Scheduled:
        """Set the schedule, in place of what was.

        Raises:
            CommandError: the expression is wrong, or names a moment that never comes.
        """
        next_after(cron, now)
        values = {"cron": cron, "options": options.model_dump_json(), "since_us": _us(now)}
        with self._store.begin() as connection:
            connection.execute(delete(SCHEDULE).where(SCHEDULE.c.dataset == self._dataset))
            connection.execute(insert(SCHEDULE).values(dataset=self._dataset, **values))
        return Scheduled(cron, options, now)

    def started(self, now: datetime) -> None:
        """Note that a run was started: the next one is due after `now`."""
        with self._store.begin() as connection:
            connection.execute(update(SCHEDULE).where(SCHEDULE.c.dataset == self._dataset).values(since_us=_us(now)))

    def remove(self) -> bool:
        """Stop running by itself; returns whether there was a schedule."""
        with self._store.begin() as connection:
            return connection.execute(delete(SCHEDULE).where(SCHEDULE.c.dataset == self._dataset)).rowcount > 0


def next_after(cron: str, moment: datetime) -> datetime:
    """The first moment after `moment` that a cron expression names, UTC.

    Raises:
        CommandError: not a cron expression, or it names no moment in the next 50 years.
    """
    try:
        return next(CronSim(cron, moment.astimezone(UTC)))
    except (CronSimError, StopIteration) as error:
        reason = str(error) or "it names no moment that ever comes"
        raise CommandError(
            f"{cron!r} is not a usable cron expression ({reason}): minute hour day month weekday, such as '0 3 * * *' for every "
            "night at 3:00 UTC"
        ) from None


def _us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)
