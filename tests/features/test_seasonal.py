"""Seasonal items: what peaks at this time of the year in earlier years, and not what is merely popular or new."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from features.seasonal import seasonal_items

NOW = datetime(2026, 12, 10, tzinfo=UTC)


def events(rows: list[tuple[str, datetime]], action: str = "purchase") -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array([item for item, _ in rows], pa.string()),
            "action": pa.array([action] * len(rows), pa.string()),
            "flag": pa.nulls(len(rows), pa.string()),
            "timestamp": pa.array([at for _, at in rows], pa.timestamp("us", tz="UTC")),
        }
    )


def planted() -> list[tuple[str, datetime]]:
    start = datetime(2023, 12, 1, tzinfo=UTC)
    rows = [("bread", start + timedelta(days=day)) for day in range(1100) for _ in range(3)]
    for year in (2024, 2025):
        rows += [("tree", datetime(year, 12, day, tzinfo=UTC)) for day in range(1, 25)]
        rows += [("sunscreen", datetime(year, 7, day, tzinfo=UTC)) for day in range(1, 25)]
    rows += [("fad", NOW - timedelta(days=day)) for day in range(1, 20) for _ in range(50)]
    return rows


def test_what_peaks_at_this_time_of_the_year_is_of_the_season() -> None:
    items, scores = seasonal_items(events(planted()), NOW)
    assert items[0] == "tree"
    assert "sunscreen" not in items
    assert "fad" not in items
    assert scores[0] > 10 * dict(zip(items, scores, strict=True)).get("bread", 0.0) >= 0
    assert seasonal_items(events(planted()), datetime(2026, 7, 10, tzinfo=UTC))[0][0] == "sunscreen"


def test_without_earlier_years_there_is_no_season() -> None:
    young = [("a", NOW - timedelta(days=day)) for day in range(300)]
    assert len(seasonal_items(events(young), NOW)[0]) == 0
    assert len(seasonal_items(events(planted(), action="impression"), NOW)[0]) == 0
    assert len(seasonal_items(events([]), NOW)[0]) == 0
