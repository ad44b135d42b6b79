"""Point-in-time joins by Feast: what was known of entities just before given times, out of the feature tables.

Legend: `B` asked entities.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from feature_repo.repository import build_repository
from feature_repo.specs import EVENT_TIMESTAMP, FeatureSpec
from features.aggregates import Side
from features.columns import FeatureColumns, table_columns
from features.errors import FeatureJoinError
from features.feast_config import open_store
from features.quiet_duckdb import quiet_feast
from features.schema import DatasetSchema
from features.views import training_specs

IdArray = npt.NDArray[np.object_]
LongArray = npt.NDArray[np.int64]

LATEST_US = 7_258_118_400_000_000
"""2200-01-01: no event is later."""

_ROW = "ask_row"


class OfflineFeatures:
    """Point-in-time joins against a folder of feature tables, with a registry of its own in it.

    Args:
        folder: holds `<view>.parquet` of every view; the registry is written into it.
        schema: of the dataset.
    """

    def __init__(self, folder: Path, schema: DatasetSchema) -> None:
        self._schema = schema
        self._store = open_store("offline", folder / "registry.db", None)
        self._repository = build_repository(asdict(schema), folder)

    def apply(self, side: Side) -> None:
        """Register the entity and views of one side."""
        if side == "user":
            self._store.apply([self._repository.user, *self._repository.user_views])
        else:
            self._store.apply([self._repository.item, *self._repository.item_views])

    def join(self, side: Side, ids: IdArray, before_us: LongArray, names: Sequence[str] | None = None) -> FeatureColumns:
        """Features of each (entity, time) as they were strictly before the time; see `point_in_time_join`."""
        return point_in_time_join(self._store, training_specs(self._schema, side), side, ids, before_us, names)


def point_in_time_join(
    store: FeatureStore,
    views: Mapping[str, tuple[FeatureSpec, ...]],
    side: Side,
    ids: IdArray,
    before_us: LongArray,
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
    with warnings.catch_warnings():
        # ibis calls an older name of DuckDB's; Feast's import turns such warnings on for everybody.
        warnings.simplefilter("ignore", DeprecationWarning)
        quiet_feast()
        joined: pa.Table = store.get_historical_features(entity_df=asks, features=references).to_arrow()
    rows = joined.column(_ROW).to_numpy()
    if len(rows) != len(ids) or len(np.unique(rows)) != len(ids):
        raise FeatureJoinError(
            f"the point-in-time join of {len(ids)} {side}s returned {len(rows)} rows ({len(np.unique(rows))} distinct): "
            "it must return each asked row once; use the duckdb offline store"
        )
    return table_columns(joined.take(np.argsort(rows)), specs)
