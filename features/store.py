"""The one owner of Feast's FeatureStore: registry, materialization, pushes, online reads and point-in-time joins.

What the features are is `feature_repo`'s to declare, how their values are computed `features.aggregates`', and the tables are
`features.feature_tables`'.

Legend: `B` asked entities.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore, RepoConfig
from feast.data_source import PushMode
from feast.errors import FeastObjectNotFoundException, PushSourceNotFoundException
from redis.exceptions import RedisError

from feature_repo.repository import build_repository
from feature_repo.request_columns import REQUEST_FEATURES
from feature_repo.request_views import REQUEST_TIME, REQUEST_VIEW
from feature_repo.services import RANKING_V1
from feature_repo.specs import (
    EVENT_TIMESTAMP,
    ITEM_ACTIVITY,
    ITEM_ACTIVITY_SPECS,
    ITEM_ENGAGEMENT,
    ITEM_ENGAGEMENT_SPECS,
    ITEM_METADATA,
    USER_ACTIVITY,
    USER_ACTIVITY_SPECS,
    USER_PROFILE,
    FeatureSpec,
    item_metadata_specs,
    table_path,
    user_profile_specs,
)
from features.aggregates import Side
from features.columns import FeatureColumns, table_columns, value_column
from features.errors import FeatureJoinError, FeatureStoreError
from features.feast_values import arrow_frame, plain_value, redis_connection_string
from features.feature_tables import Progress, count_entities, newest_rows, newest_time_us, timed
from features.paths import DatasetPaths
from features.schema import DatasetSchema

IdArray = npt.NDArray[np.object_]
LongArray = npt.NDArray[np.int64]

WRITE_ROWS = 5_000
"""Rows of one online write: 2 round trips and about 60 MB of protobufs."""

LATEST_US = 7_258_118_400_000_000
"""2200-01-01: no event is later."""

ONLINE_STORE = "feature_repo.packed_store.PackedRedisOnlineStore"
"""Feast finds it by this name."""

_ROW = "ask_row"
_PUSHED: dict[Side, tuple[tuple[str, str], ...]] = {
    "user": ((USER_ACTIVITY, "user_events"),),
    "item": ((ITEM_ACTIVITY, "item_events"), (ITEM_ENGAGEMENT, "item_impressions")),
}
"""Views that live events change, and a feature of each."""


def view_specs(schema: DatasetSchema, side: Side) -> dict[str, tuple[FeatureSpec, ...]]:
    """View name -> its features, for the views of one side that the dataset has."""
    raw = asdict(schema)
    if side == "user":
        views = {USER_ACTIVITY: USER_ACTIVITY_SPECS, USER_PROFILE: user_profile_specs(raw)}
    else:
        views = {
            ITEM_ACTIVITY: ITEM_ACTIVITY_SPECS,
            ITEM_ENGAGEMENT: ITEM_ENGAGEMENT_SPECS,
            ITEM_METADATA: item_metadata_specs(raw),
        }
    return {name: specs for name, specs in views.items() if specs}


def training_specs(schema: DatasetSchema, side: Side) -> dict[str, tuple[FeatureSpec, ...]]:
    """`view_specs` without engagement: a fold's interactions do not say what was shown."""
    return {view: specs for view, specs in view_specs(schema, side).items() if view != ITEM_ENGAGEMENT}


class Features:
    """The features of one dataset: offline tables in its folder, online values in Redis.

    Args:
        paths: the dataset's folders.
        schema: its attributes; Feast's fields are built from it.
        redis_url: online store, `redis://[user:password@]host:port/db`, `rediss://` or `unix:///path`. None: no online store; only
            `apply` and point-in-time joins work.
        user_ttl_s: users of whom nothing was written for so long leave the online store; None keeps all. Items stay.

    Raises:
        FeatureStoreError: a URL that Feast cannot take.
    """

    def __init__(self, paths: DatasetPaths, schema: DatasetSchema, redis_url: str | None, *, user_ttl_s: int | None = None) -> None:
        self.paths = paths
        self.schema = schema
        self.user_ttl_s = user_ttl_s
        online_store: Any = {"type": ONLINE_STORE, "connection_string": redis_connection_string(redis_url)} if redis_url else None
        self._store = _open_store(paths.feast_project, paths.feast_registry, online_store)
        # Feast has one expiry for all of a store's keys, so what writes users is a store of its own on the same registry.
        self._user_store = self._store
        if online_store is not None and user_ttl_s is not None:
            expiring = online_store | {"key_ttl_seconds": user_ttl_s}
            self._user_store = _open_store(paths.feast_project, paths.feast_registry, expiring)
        self._repository = build_repository(asdict(schema), paths.feature_tables)
        self._specs: dict[Side, dict[str, tuple[FeatureSpec, ...]]] = {
            "user": view_specs(schema, "user"),
            "item": view_specs(schema, "item"),
        }
        self._served = {service.name: _projected(service) for service in self._repository.services}
        self._last_push_us = 0

    def apply(self) -> dict[str, list[str]]:
        """Register everything that is declared and remove what no longer is; returns the names, by kind of object."""
        self.paths.feast_registry.parent.mkdir(parents=True, exist_ok=True)
        objects = self._repository.objects()
        declared = {declared.name for declared in objects}
        stale = [
            found
            for found in [*self._store.list_feature_services(), *self._store.list_feature_views()]
            if found.name not in declared
        ]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "On demand feature view is an experimental feature", RuntimeWarning)
                self._store.apply(objects, objects_to_delete=stale, partial=False)
        except RedisError as error:
            raise FeatureStoreError(f"removing {[found.name for found in stale]} from the online store failed: {error}") from error
        return {
            "entities": [self._repository.user.name, self._repository.item.name],
            "views": [view.name for view in [*self._repository.user_views, *self._repository.item_views, self._repository.request]],
            "services": [service.name for service in self._repository.services],
            "removed": [found.name for found in stale],
        }

    def materialize(self, as_of: datetime | None = None, progress: Progress | None = None) -> dict[str, int]:
        """Write the newest state of every entity, as the tables have it, into the online store; returns rows by view.

        A value that was pushed after the tables' cutoff stays, because the online store keeps the newer of two. With an expiry,
        users whose last event is older than it are left out, because writing would keep them for ever: unless all are that old.

        Args:
            as_of: states later than this are not written; by default the newest of each table.
            progress: called with view, rows done and rows in all.

        Raises:
            FeatureJoinError: a table was never built.
            FeatureStoreError: Redis cannot be reached, or nothing was applied.
        """
        written = {}
        for view, key in self._views():
            path = table_path(view, self.paths.feature_tables)
            cutoff_us = LATEST_US if as_of is None else _micros(as_of)
            rows = count_entities(path, key, cutoff_us)
            done = 0
            newest = newest_rows(path, key, cutoff_us, WRITE_ROWS)
            if view == USER_ACTIVITY and self.user_ttl_s is not None:
                newest = _active(newest, path, self.user_ttl_s)
            for block in _blocks(newest):
                self._write(view, block)
                done += len(block)
                if progress is not None:
                    progress(view, done, rows)
            self._note_materialized(view, path, cutoff_us)
            written[view] = done
        return written

    def push_users(self, states: pa.Table) -> None:
        """Replace the `user_activity` of users online: `user_id` and the view's features, one row a user.

        Rows are dated now, which is strictly later than any row pushed or materialized before: Feast drops what is not.
        """
        self._push(USER_ACTIVITY, states)

    def push_items(self, states: pa.Table) -> None:
        """Replace the `item_activity` of items online; see `push_users`."""
        self._push(ITEM_ACTIVITY, states)

    def push_engagement(self, states: pa.Table) -> None:
        """Replace the `item_engagement` of items online; see `push_users`."""
        self._push(ITEM_ENGAGEMENT, states)

    def write_attributes(self, side: Side, values: pa.Table) -> None:
        """Replace profiles or metadata online: the id and the view's features, as `attribute_table` makes them."""
        view = USER_PROFILE if side == "user" else ITEM_METADATA
        for block in _blocks(iter([values])):
            self._write(view, self._dated(block))

    def online_users(self, user_ids: Sequence[str], service: str = RANKING_V1) -> FeatureColumns:
        """What a service says of users now: name -> (B,) arrays in the forms of `features.columns`, as training sees them.

        Users that the store does not know get the values of someone who did nothing.

        Raises:
            FeatureStoreError: Redis cannot be reached, nothing was applied, or no such service.
        """
        return self._read("user", user_ids, service)

    def online_items(self, item_ids: Sequence[str], service: str = RANKING_V1) -> FeatureColumns:
        """What a service says of items now; see `online_users`. For whole catalogues at load time, not for each request."""
        return self._read("item", item_ids, service)

    def online_pairs(self, user_ids: Sequence[str], item_ids: Sequence[str], request_time_us: Sequence[int]) -> FeatureColumns:
        """The on-demand features of (user, item, time) rows, computed by Feast: name -> (B,) float64.

        For a few rows and for checks; `features.request_features` gives the same values for whole candidate sets.
        """
        asked: dict[str, list[Any]] = {
            "user_id": list(user_ids),
            "item_id": list(item_ids),
            REQUEST_TIME: [int(moment) for moment in request_time_us],
        }
        found = self._ask([f"{REQUEST_VIEW}:{name}" for name in REQUEST_FEATURES], asked)
        return {name: np.array(found[name], dtype=np.float64) for name in REQUEST_FEATURES}

    def online_times_us(self, side: Side, ids: Sequence[str]) -> npt.NDArray[np.float64]:
        """(B,) float64: when each entity's online state last changed, in microseconds; NaN where there is none."""
        newest = np.full(len(ids), np.nan)
        for view, name in _PUSHED[side]:
            with self._reported():
                response = self._store.get_online_features(features=[f"{view}:{name}"], entity_rows={f"{side}_id": list(ids)})
            position = list(response.proto.metadata.feature_names.val).index(name)
            times = [stamp.seconds * 1e6 + stamp.nanos / 1e3 for stamp in response.proto.results[position].event_timestamps]
            newest = np.fmax(newest, np.array([moment or np.nan for moment in times]))
        return newest

    def historical(self, side: Side, ids: IdArray, before_us: LongArray, names: Sequence[str] | None = None) -> FeatureColumns:
        """Features of each (entity, time) out of the built tables, as they were strictly before; see `point_in_time_join`."""
        with self._reported():
            return point_in_time_join(self._store, self._specs[side], side, ids, before_us, names)

    def specs(self, side: Side, service: str = RANKING_V1) -> tuple[FeatureSpec, ...]:
        """Features of one side that a service serves.

        Raises:
            FeatureStoreError: no such service.
        """
        if service not in self._served:
            raise FeatureStoreError(f"no feature service {service!r}; there are {', '.join(self._served)}")
        served = self._served[service]
        views = self._specs[side]
        return tuple(spec for view, of_view in views.items() for spec in of_view if spec.name in served.get(view, ()))

    def _views(self) -> Iterator[tuple[str, str]]:
        for side in ("user", "item"):
            for view in self._specs[side]:
                yield view, f"{side}_id"

    def _write(self, view: str, rows: pa.Table) -> None:
        with self._reported():
            self._store.get_feature_view(view, allow_registry_cache=True)  # writing to an unknown view is a bare KeyError
            self._writer(view).write_to_online_store(view, df=arrow_frame(rows))

    def _push(self, view: str, states: pa.Table) -> None:
        for block in _blocks(iter([states])):
            with self._reported():
                self._writer(view).push(f"{view}_push", arrow_frame(self._dated(block)), to=PushMode.ONLINE)

    def _writer(self, view: str) -> FeatureStore:
        return self._user_store if view in self._specs["user"] else self._store

    def _dated(self, rows: pa.Table) -> pa.Table:
        self._last_push_us = max(time.time_ns() // 1000, self._last_push_us + 1)
        return timed(rows, np.full(len(rows), self._last_push_us, dtype=np.int64), self._last_push_us)

    def _read(self, side: Side, ids: Sequence[str], service: str) -> FeatureColumns:
        specs = self.specs(side, service)
        if not len(ids):
            return {spec.name: value_column([], spec) for spec in specs}
        views = self._specs[side]
        references = [f"{view}:{spec.name}" for view, of_view in views.items() for spec in of_view if spec in specs]
        values = self._ask(references, {f"{side}_id": list(ids)})
        return {spec.name: value_column(values[spec.name], spec) for spec in specs}

    def _ask(self, references: list[str], asked: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        with self._reported():
            proto = self._store.get_online_features(features=references, entity_rows=asked).proto
        return {
            name: [plain_value(value) for value in vector.values]
            for name, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True)
        }

    def _note_materialized(self, view: str, path: Path, cutoff_us: int) -> None:
        newest = newest_time_us(path)
        if newest is not None:
            registered = self._store.get_feature_view(view)
            end = datetime.fromtimestamp(min(newest, cutoff_us) / 1e6, UTC)
            self._store.registry.apply_materialization(registered, self._store.project, datetime.fromtimestamp(0, UTC), end)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        if not self.paths.feast_registry.exists():  # Feast would make an empty one
            name = self.paths.dataset
            raise FeatureStoreError(f"the features of {name!r} are not registered: run `shortlist features apply --dataset {name}`")
        try:
            yield
        except RedisError as error:
            raise FeatureStoreError(
                f"the online feature store cannot be reached: {error}; start the stack, or set redis.features_url"
            ) from error
        except (FeastObjectNotFoundException, PushSourceNotFoundException) as error:
            # The registry was read before an `apply` of another process: the next call sees what that one registered.
            for store in {id(one): one for one in (self._store, self._user_store)}.values():
                store.refresh_registry()
            raise FeatureStoreError(f"{error}: run `shortlist features apply --dataset {self.paths.dataset}`") from error


class OfflineFeatures:
    """Point-in-time joins against a folder of feature tables, with a registry of its own in it.

    Args:
        folder: holds `<view>.parquet` of every view; the registry is written into it.
        schema: of the dataset.
    """

    def __init__(self, folder: Path, schema: DatasetSchema) -> None:
        self._schema = schema
        self._store = _open_store("offline", folder / "registry.db", None)
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
        joined: pa.Table = store.get_historical_features(entity_df=asks, features=references).to_arrow()
    rows = joined.column(_ROW).to_numpy()
    if len(rows) != len(ids) or len(np.unique(rows)) != len(ids):
        raise FeatureJoinError(
            f"the point-in-time join of {len(ids)} {side}s returned {len(rows)} rows ({len(np.unique(rows))} distinct): "
            "it must return each asked row once; use the duckdb offline store"
        )
    return table_columns(joined.take(np.argsort(rows)), specs)


def _open_store(project: str, registry: Path, online_store: Any) -> FeatureStore:
    return FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            # A cached registry never expires: serving would stall on re-reading it, and `apply` is a deployment step.
            registry={"path": str(registry), "cache_ttl_seconds": 0},
            offline_store={"type": "duckdb"},
            online_store=online_store,
            entity_key_serialization_version=3,
        )
    )


def _projected(service: Any) -> dict[str, set[str]]:
    return {view.name: {field.name for field in view.features} for view in service.feature_view_projections}


def _active(tables: Iterator[pa.Table], path: Path, ttl_s: int) -> Iterator[pa.Table]:
    """The users with an event in the last `ttl_s` seconds; all of them where times are not known or nobody has one."""
    since_us = time.time_ns() // 1000 - ttl_s * 1_000_000
    newest_us = pc.max(pq.read_table(path, columns=["user_last_event_us"]).column(0)).as_py()
    for table in tables:
        if newest_us is None or newest_us < since_us:
            yield table
        else:
            yield table.filter(pc.greater_equal(table.column("user_last_event_us"), since_us))


def _blocks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
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


def _micros(moment: datetime) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(aware.timestamp()) * 1_000_000 + aware.microsecond
