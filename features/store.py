"""The one owner of Feast's FeatureStore: registry, materialization, online reads, pushes and point-in-time joins.

What the features are is `feature_repo`'s to declare; how their values are computed, `features.aggregates`'.

Legend: `B` asked entities.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

# Feast's usage statistics go to a public address unless told otherwise before it is imported.
os.environ.setdefault("FEAST_USAGE", "False")

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from feast import FeatureStore, RepoConfig

from feature_repo.fields import FeatureSpec
from feature_repo.item_views import ITEM_ACTIVITY, ITEM_ACTIVITY_SPECS, ITEM_METADATA, item_metadata_specs
from feature_repo.repository import build_repository
from feature_repo.sources import EVENT_TIMESTAMP
from feature_repo.user_views import USER_ACTIVITY, USER_ACTIVITY_SPECS, USER_PROFILE, user_profile_specs
from features.columns import FeatureColumns, table_columns
from features.errors import FeatureJoinError
from features.schema import DatasetSchema

Side = Literal["user", "item"]

_ROW = "ask_row"

LATEST_US = 7_258_118_400_000_000
"""2200-01-01: no event is later."""


def view_specs(schema: DatasetSchema, side: Side) -> dict[str, tuple[FeatureSpec, ...]]:
    """View name -> its features, for the views of one side that the dataset has."""
    raw = asdict(schema)
    if side == "user":
        views = {USER_ACTIVITY: USER_ACTIVITY_SPECS, USER_PROFILE: user_profile_specs(raw)}
    else:
        views = {ITEM_ACTIVITY: ITEM_ACTIVITY_SPECS, ITEM_METADATA: item_metadata_specs(raw)}
    return {name: specs for name, specs in views.items() if specs}


class OfflineFeatures:
    """Point-in-time joins against a folder of feature tables, with a registry of its own beside them.

    Args:
        folder: holds `<view>.parquet` of every view; the registry is written into it.
        schema: of the dataset.
    """

    def __init__(self, folder: Path, schema: DatasetSchema) -> None:
        self._schema = schema
        self._store = FeatureStore(
            config=RepoConfig(
                project="offline",
                provider="local",
                registry={"path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
                offline_store={"type": "duckdb"},
                online_store={"type": "sqlite", "path": str(folder / "online.db")},
                entity_key_serialization_version=3,
            )
        )
        self._repository = build_repository(asdict(schema), folder)

    def apply(self, side: Side) -> None:
        """Register the entity and views of one side."""
        if side == "user":
            self._store.apply([self._repository.user, *self._repository.user_views])
        else:
            self._store.apply([self._repository.item, *self._repository.item_views])

    def join(
        self, side: Side, ids: npt.NDArray[np.object_], before_us: npt.NDArray[np.int64], names: Sequence[str] | None = None
    ) -> FeatureColumns:
        """Features of each (entity, time) as they were strictly before the time; see `point_in_time_join`."""
        return point_in_time_join(self._store, view_specs(self._schema, side), side, ids, before_us, names)


def point_in_time_join(
    store: FeatureStore,
    views: dict[str, tuple[FeatureSpec, ...]],
    side: Side,
    ids: npt.NDArray[np.object_],
    before_us: npt.NDArray[np.int64],
    names: Sequence[str] | None = None,
) -> FeatureColumns:
    """Join entities with their features as of one microsecond before each time.

    Args:
        store: applied store.
        views: view name -> features of the side.
        side: which entity.
        ids: (B,) outside ids.
        before_us: (B,) int64 microseconds since the epoch. (id, time) pairs may repeat.
        names: features wanted; all by default.

    Returns:
        name -> (B,) column in the order asked.

    Raises:
        FeatureJoinError: the join returned another number of rows than asked, or lacks a feature.
    """
    key = f"{side}_id"
    specs = [spec for of_view in views.values() for spec in of_view if names is None or spec.name in names]
    references = [f"{view}:{spec.name}" for view, of_view in views.items() for spec in of_view if spec in specs]
    # Events lie in the years 1900 to 2200, so a later ask means the same as the bound, which pandas' nanoseconds can hold.
    as_of = pd.to_datetime(np.minimum(before_us, LATEST_US) - 1, unit="us", utc=True)
    asks = pd.DataFrame({key: ids, EVENT_TIMESTAMP: as_of, _ROW: np.arange(len(ids), dtype=np.int64)})
    joined: pa.Table = store.get_historical_features(entity_df=asks, features=references).to_arrow()
    rows = joined.column(_ROW).to_numpy()
    if len(rows) != len(ids) or len(np.unique(rows)) != len(ids):
        raise FeatureJoinError(
            f"the point-in-time join of {len(ids)} {side}s returned {len(rows)} rows ({len(np.unique(rows))} distinct): "
            "it must return each asked row once; use the duckdb offline store"
        )
    return table_columns(joined.take(np.argsort(rows)), specs)


def feature_table(values: pa.Table, event_us: npt.NDArray[np.int64], written_us: int) -> pa.Table:
    """`values` with the two time columns that every feature table has."""
    times: dict[str, Any] = {
        "event_timestamp": pa.array(event_us).cast(pa.timestamp("us", tz="UTC")),
        "created_at": pa.array(np.full(len(values), written_us)).cast(pa.timestamp("us", tz="UTC")),
    }
    for name, column in times.items():
        values = values.append_column(name, column)
    return values
