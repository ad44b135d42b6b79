"""The owner of a dataset's FeatureStore: registry, materialization, pushes and online reads; joins are `features.point_in_time`'s.

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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import FeatureStore
from feast.errors import FeastObjectNotFoundException
from redis.exceptions import RedisError

from feature_repo.own_views import own_views
from feature_repo.packed_store import PackedRedisOnlineStore
from feature_repo.repository import build_repository
from feature_repo.request_columns import REQUEST_FEATURES
from feature_repo.request_views import REQUEST_TIME, REQUEST_VIEW
from feature_repo.services import RANKING_V1
from feature_repo.specs import (
    ITEM_ACTIVITY,
    ITEM_ENGAGEMENT,
    ITEM_METADATA,
    USER_ACTIVITY,
    USER_PROFILE,
    FeatureSpec,
    table_path,
)
from features.aggregates import Side
from features.columns import FeatureColumns, value_column
from features.errors import FeatureStoreError
from features.feast_config import ONLINE_STORE, open_store, redis_connection_string
from features.feast_values import arrow_frame, plain_value
from features.feature_tables import Progress, count_entities, newest_rows, newest_time_us, timed
from features.online_rows import WRITE_ROWS, active_users, write_blocks
from features.own_tables import own_tables
from features.paths import DatasetPaths
from features.point_in_time import LATEST_US, point_in_time_join
from features.schema import DatasetSchema
from features.views import view_specs

IdArray = npt.NDArray[np.object_]
LongArray = npt.NDArray[np.int64]

_PUSHED: dict[Side, tuple[tuple[str, str], ...]] = {
    "user": ((USER_ACTIVITY, "user_events"),),
    "item": ((ITEM_ACTIVITY, "item_events"), (ITEM_ENGAGEMENT, "item_impressions")),
}
"""Views that live events change, and a feature of each."""


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
        self._store = open_store(paths.feast_project, paths.feast_registry, online_store)
        # Feast has one expiry for all of a store's keys, so what writes users is a store of its own on the same registry.
        self._user_store = self._store
        if online_store is not None and user_ttl_s is not None:
            expiring = online_store | {"key_ttl_seconds": user_ttl_s}
            self._user_store = open_store(paths.feast_project, paths.feast_registry, expiring)
        self._repository = build_repository(asdict(schema), paths.feature_tables)
        self._specs: dict[Side, dict[str, tuple[FeatureSpec, ...]]] = {
            "user": view_specs(schema, "user"),
            "item": view_specs(schema, "item"),
        }
        self._served = {service.name: _projected(service) for service in self._repository.services}
        self._online = PackedRedisOnlineStore()
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
        for view, side in self._views():
            key = f"{side}_id"
            path = table_path(view, self.paths.feature_tables)
            cutoff_us = LATEST_US if as_of is None else _micros(as_of)
            rows = count_entities(path, key, cutoff_us)
            done = 0
            newest = newest_rows(path, key, cutoff_us, WRITE_ROWS)
            if view == USER_ACTIVITY and self.user_ttl_s is not None:
                newest = active_users(newest, path, self.user_ttl_s)
            own = own_views(view, self._column_names(side, view))
            for block in write_blocks(newest):
                self._write_with_own(view, block)
                done += len(block)
                if progress is not None:
                    progress(view, done, rows)
            for name in (view, *(one.name for one in own)):
                self._note_materialized(name, path, cutoff_us)
                written[name] = done
        return written

    def push_users(self, states: pa.Table) -> None:
        """Replace the `user_activity` of users online: `user_id` and the view's features, one row a user.

        Rows are dated now, which is strictly later than any row pushed or materialized before: a later materialize leaves them.
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
        for block in write_blocks(iter([values])):
            self._write_with_own(view, self._dated(block))

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

    def _views(self) -> Iterator[tuple[str, Side]]:
        for side in self._specs:
            own = {view.name for base in self._specs[side] for view in own_views(base, self._column_names(side, base))}
            for view in self._specs[side]:
                if view not in own:  # written with its base
                    yield view, side

    def _column_names(self, side: Side, view: str) -> list[str]:
        return [spec.name for spec in self._specs[side][view]]

    def _write_with_own(self, view: str, rows: pa.Table) -> None:
        self._write(view, rows)
        for own, computed in own_tables(view, rows):
            self._write(own.name, computed)

    def _write(self, view: str, rows: pa.Table) -> None:
        with self._reported():
            self._store.get_feature_view(view, allow_registry_cache=True)  # writing to an unknown view is a bare KeyError
            self._writer(view).write_to_online_store(view, df=arrow_frame(rows))

    def _push(self, view: str, states: pa.Table) -> None:
        for block in write_blocks(iter([states])):
            with self._reported():
                at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self._next_stamp_us())
                for name, rows in ((view, block), *((own.name, computed) for own, computed in own_tables(view, block))):
                    declared = self._store.get_feature_view(name, allow_registry_cache=True)
                    self._online.write_table(self._writer(name).config, declared, rows, at)

    def _writer(self, view: str) -> FeatureStore:
        return self._user_store if view in self._specs["user"] else self._store

    def _dated(self, rows: pa.Table) -> pa.Table:
        stamp_us = self._next_stamp_us()
        return timed(rows, np.full(len(rows), stamp_us, dtype=np.int64), stamp_us)

    def _next_stamp_us(self) -> int:
        self._last_push_us = max(time.time_ns() // 1000, self._last_push_us + 1)
        return self._last_push_us

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
        except FeastObjectNotFoundException as error:
            # The registry was read before an `apply` of another process: the next call sees what that one registered.
            for store in {id(one): one for one in (self._store, self._user_store)}.values():
                store.refresh_registry()
            raise FeatureStoreError(f"{error}: run `shortlist features apply --dataset {self.paths.dataset}`") from error


def _projected(service: Any) -> dict[str, set[str]]:
    return {view.name: {field.name for field in view.features} for view in service.feature_view_projections}


def _micros(moment: datetime) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(aware.timestamp()) * 1_000_000 + aware.microsecond
