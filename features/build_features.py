"""From a dataset's store and catalogue to its feature tables: the step behind `shortlist features build`."""

from __future__ import annotations

from datetime import UTC, datetime

from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.errors import DatasetNotFoundError, FeatureJoinError
from features.feature_tables import EVENT_COLUMNS, BuiltTable, Progress, build_tables
from features.paths import DatasetPaths


def build_features(
    paths: DatasetPaths, catalogue: Catalogue, as_of: datetime | None = None, progress: Progress | None = None
) -> tuple[datetime, list[BuiltTable]]:
    """Build the tables of all views from everything that happened before the cutoff.

    Args:
        paths: the dataset.
        catalogue: its items, users and schema.
        as_of: cutoff, now by default. States go online under this time, and the online store keeps the newer of two rows: a later
            cutoff would make it refuse the live updates that come before.
        progress: told after each block.

    Returns:
        The cutoff and the tables written.

    Raises:
        DatasetNotFoundError: the dataset was never imported.
        FeatureJoinError: the cutoff lies in the future, or before the first event: the present tables stay.
    """
    if not catalogue.exists():
        raise DatasetNotFoundError(f"no dataset {paths.dataset!r} in {paths.home}: import it with `shortlist data import`")
    now = datetime.now(UTC)
    cutoff = now if as_of is None else as_of if as_of.tzinfo is not None else as_of.replace(tzinfo=UTC)
    if cutoff > now:
        raise FeatureJoinError(f"--as-of {cutoff.isoformat()} is in the future; the latest possible is now, {now.isoformat()}")
    store = ActivityStore.of(paths)
    events = store.read(columns=EVENT_COLUMNS, as_of=cutoff)
    if not events.num_rows and (first := store.first_time()) is not None:
        raise FeatureJoinError(
            f"nothing is before --as-of {cutoff.isoformat()}: the first event of {paths.dataset!r} is of {first.isoformat()}; "
            "the tables are left as they are"
        )
    cutoff_us = int(cutoff.timestamp()) * 1_000_000 + cutoff.microsecond
    tables = build_tables(
        paths.feature_tables, catalogue.schema(), events, catalogue.users(), catalogue.items(), cutoff_us, progress
    )
    return cutoff, tables
