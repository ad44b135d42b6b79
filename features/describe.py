"""What a dataset holds: counts, density, time span and the distributions that decide how hard it is to recommend on.

Computed by DuckDB over the Parquet of the activity store, so that its size does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.errors import DatasetNotFoundError
from features.paths import DatasetPaths

LongArray = npt.NDArray[np.int64]

_WHO = "coalesce(user_id, session_id)"


@dataclass(frozen=True)
class Description:
    """A dataset in figures.

    Shapes:
        history_lengths (U,) int64: events of each user.
        popularities (N,) int64: events of each item with activity.
        days (D,) datetime64[D] and events_per_day (D,) int64: days with activity.
        value_counts: value -> events, the most frequent ones.
    """

    summary: dict[str, Any]
    history_lengths: LongArray
    popularities: LongArray
    days: npt.NDArray[np.datetime64]
    events_per_day: LongArray
    value_counts: dict[float, int]


def describe(paths: DatasetPaths, catalogue: Catalogue) -> Description:
    """Describe a dataset.

    Raises:
        DatasetNotFoundError: it has no activity.
    """
    store = ActivityStore.of(paths)
    files = store.files()
    if not files:
        raise DatasetNotFoundError(
            f"dataset {paths.dataset!r} has no activity under {paths.home}; import some with: "
            f"shortlist data import PATH --dataset {paths.dataset}"
        )
    with store.connect() as connection:
        connection.from_parquet(files, hive_partitioning=False).create_view("events")
        return _describe(connection, paths, catalogue, store)


def plot(description: Description, path: Path) -> None:
    """Draw a description as four panels into a PNG (or any format that the suffix names).

    Raises:
        OSError: the file cannot be written.
        ValueError: the suffix names no image format.
    """
    # Here, not above: matplotlib takes half a second to import, and only this function draws.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (activity, histories), (popularity, values) = figure.subplots(2, 2)
    activity.plot(description.days, description.events_per_day, linewidth=0.8)
    activity.set(title="activity", xlabel="event date (UTC)", ylabel="events a day", ylim=(0, None))
    activity.tick_params(axis="x", rotation=30)
    lengths = description.history_lengths
    histories.hist(lengths, bins=_log_bins(lengths))
    histories.set(title="history lengths", xlabel="events of a user", ylabel="users", xscale="log", yscale="log")
    popularity.plot(np.arange(1, len(description.popularities) + 1), np.sort(description.popularities)[::-1])
    popularity.set(title="item popularity", xlabel="rank of the item", ylabel="events", xscale="log", yscale="log")
    if description.value_counts:
        shown = sorted(description.value_counts.items())
        values.bar([f"{value:g}" for value, _ in shown], [count for _, count in shown])
        values.set(title="values", xlabel="value", ylabel="events")
    else:
        actions = description.summary["actions"]
        values.bar(list(actions), list(actions.values()))
        values.set(title="actions", ylabel="events")
    figure.suptitle(f"{description.summary['dataset']}: {description.summary['interactions']:,} events")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _describe(
    connection: duckdb.DuckDBPyConnection, paths: DatasetPaths, catalogue: Catalogue, store: ActivityStore
) -> Description:
    lengths = _column(connection, f"SELECT count(*) FROM events GROUP BY {_WHO}")
    popularities = _column(connection, "SELECT count(*) FROM events GROUP BY item_id")
    schema = catalogue.schema()
    (totals,) = connection.sql(
        "SELECT count(*), count(*) FILTER (timestamp_imputed), count(*) FILTER (flag IS NOT NULL), count(value), min(value), "
        "avg(value), max(value), min(timestamp) FILTER (NOT timestamp_imputed), max(timestamp) FILTER (NOT timestamp_imputed), "
        "count(*) FILTER (origin = 'live') FROM events"
    ).fetchall()
    ((pairs,),) = connection.sql(f"SELECT count(*) FROM (SELECT DISTINCT {_WHO}, item_id FROM events)").fetchall()
    days = connection.sql("SELECT timestamp::DATE AS day, count(*) AS events FROM events GROUP BY day ORDER BY day").fetchnumpy()
    common = connection.sql(
        "SELECT value, count(*) FROM events WHERE value IS NOT NULL GROUP BY value ORDER BY count(*) DESC LIMIT 20"
    ).fetchall()
    first: datetime | None = totals[7]
    last: datetime | None = totals[8]
    summary: dict[str, Any] = {
        "dataset": paths.dataset,
        "users": len(lengths),
        "items": len(popularities),
        "interactions": totals[0],
        "live_interactions": totals[9],
        "catalogue_items": catalogue.count_items(),
        "catalogue_users": catalogue.count_users(),
        "density": pairs / (len(lengths) * len(popularities)),
        "repeat_rate": 1 - pairs / totals[0],
        "has_times": schema.has_times,
        "first_time": first.isoformat() if first else None,
        "last_time": last.isoformat() if last else None,
        "span_days": round((last - first).total_seconds() / 86_400, 1) if first and last else None,
        "imputed_times": totals[1],
        "flagged": totals[2],
        "actions": _counts(connection, "action"),
        "splits": _counts(connection, "split"),
        "values": {"count": totals[3], "min": totals[4], "mean": totals[5], "max": totals[6]} if totals[3] else None,
        "history_length": _distribution(lengths),
        "users_with_one_event": int((lengths == 1).sum()),
        "item_popularity": {
            **_distribution(popularities),
            "gini": gini(popularities),
            "top_1_percent_share": _top_share(popularities),
        },
        "items_without_activity": max(0, catalogue.count_items() - len(popularities)),
        "item_attributes": {attribute.name: attribute.type for attribute in schema.item_attributes},
        "user_attributes": {attribute.name: attribute.type for attribute in schema.user_attributes},
        "files": len(store.files()),
        "bytes": store.size_bytes(),
    }
    return Description(
        summary,
        lengths,
        popularities,
        np.asarray(days["day"], dtype="datetime64[D]"),
        np.asarray(days["events"], dtype=np.int64),
        {float(value): int(count) for value, count in common},
    )


def gini(counts: LongArray) -> float:
    """Gini coefficient of counts, 0 (all equal) to 1 (one has all): sum((2 i - n - 1) x_i) / (n sum(x)), x ascending, i from 1."""
    ascending = np.sort(counts).astype(np.float64)
    n = len(ascending)
    total = ascending.sum()
    return float(((2 * np.arange(1, n + 1) - n - 1) * ascending).sum() / (n * total)) if total else 0.0


def _top_share(counts: LongArray) -> float:
    """Share of all events that the most popular 1 % of the items (one at least) have."""
    top = np.sort(counts)[::-1][: max(1, len(counts) // 100)]
    return float(top.sum() / counts.sum())


def _distribution(counts: LongArray) -> dict[str, float]:
    low, median, p90, p99, high = np.quantile(counts, [0, 0.5, 0.9, 0.99, 1])
    return {
        "min": int(low),
        "median": float(median),
        "mean": round(float(counts.mean()), 2),
        "p90": float(p90),
        "p99": float(p99),
        "max": int(high),
    }


def _counts(connection: duckdb.DuckDBPyConnection, column: str) -> dict[str, int]:
    query = f"SELECT {column}, count(*) FROM events WHERE {column} IS NOT NULL GROUP BY {column} ORDER BY count(*) DESC, {column}"
    return {str(name): int(count) for name, count in connection.sql(query).fetchall()}


def _column(connection: duckdb.DuckDBPyConnection, query: str) -> LongArray:
    (column,) = connection.sql(query).fetchnumpy().values()
    return np.asarray(column, dtype=np.int64)


def _log_bins(counts: LongArray) -> npt.NDArray[np.float64]:
    return np.geomspace(1, max(2, int(counts.max()) + 1), 40)
