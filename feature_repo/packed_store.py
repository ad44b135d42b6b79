"""Feast's Redis online store, with views tagged `packed` in one hash field each instead of one field a feature.

A user's state is then half as large, and bounded (`specs.RECENT_ID_BYTES`). Only what is stored differs: keys, timestamps, expiry,
the order of writes and everything that callers of Feast see are Feast's. Feast finds this class by its name in the configuration,
`feature_repo.packed_store.PackedRedisOnlineStore`. A row of another layout (features were added to the view) reads as missing until
`features materialize` or the entity's next event writes it again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
from feast import FeatureView, Field, RepoConfig
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Bytes
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo.packed_values import PackedLayout

PACKED_TAG = "packed"
_FIELD = "packed"

_Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


class PackedRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """Options of Feast's Redis store; Feast looks this class up by name."""

    type: Literal["feature_repo.packed_store.PackedRedisOnlineStore"] = "feature_repo.packed_store.PackedRedisOnlineStore"


class PackedRedisOnlineStore(RedisOnlineStore):
    """See the module."""

    def __init__(self) -> None:
        self._layouts: dict[str, PackedLayout] = {}

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[_Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows, those of a packed view as one value each."""
        if _is_packed(table):
            layout = self._layout(table)
            data = [(key, {_FIELD: Value(bytes_val=layout.pack(values))}, at, written) for key, values, at, written in data]
        super().online_write_batch(config, table, data, progress)

    def write_table(self, config: RepoConfig, table: FeatureView, rows: pa.Table, at: datetime) -> None:
        """Write rows of a packed view (id and features), true from one moment on: a push without an object a value."""
        (join_key,) = table.join_keys
        options = config.online_store
        name = compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)
        stamp = Timestamp()
        stamp.FromDatetime(at)
        moment, (_, (field, moment_field)) = stamp.SerializeToString(), self._generate_hset_keys_for_features(table, [], name)
        entities = [EntityKey(join_keys=[join_key], entity_values=[Value(string_val=one)]) for one in rows[join_key].to_pylist()]
        keys = self._generate_redis_keys_for_entities(config, entities)
        # Whether a key has a newer row is not asked, as Feast does for its other writes: there is one writer, and it writes now.
        with self._get_client(options).pipeline(transaction=False) as steps:
            for key, packed in zip(keys, self._layout(table, name).pack_table(rows), strict=True):
                value = Value(bytes_val=packed).SerializeToString()
                steps.execute_command("HSET", key, moment_field, moment, field, value)
                if options.key_ttl_seconds:
                    steps.execute_command("EXPIRE", key, options.key_ttl_seconds)
            steps.execute()

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Delete a view's values."""
        if _is_packed(table):
            table = copy.copy(table)
            table.features = [Field(name=_FIELD, dtype=Bytes)]
        super().delete_table(config, table)

    def _generate_hset_keys_for_features(
        self, feature_view: FeatureView, requested_features: list[str] | None = None, fv_name_override: str | None = None
    ) -> tuple[list[str], list[str | bytes]]:
        if not _is_packed(feature_view):
            return super()._generate_hset_keys_for_features(feature_view, requested_features, fv_name_override)
        self._layout(feature_view, fv_name_override)
        stored = [_FIELD]
        _, keys = super()._generate_hset_keys_for_features(feature_view, stored, fv_name_override)
        names = requested_features or [field.name for field in feature_view.features]
        return [*names, stored[-1]], keys

    def _convert_redis_values_to_protobuf(
        self, redis_values: Sequence[Sequence[Any]], feature_view: str, requested_features: list[str]
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        layout = self._layouts.get(feature_view)
        if layout is None:
            return super()._convert_redis_values_to_protobuf(redis_values, feature_view, requested_features)
        names = requested_features[:-1]
        stored = super()._convert_redis_values_to_protobuf(redis_values, feature_view, [_FIELD, requested_features[-1]])
        return [(at, _unpacked(layout, values, names)) for at, values in stored]

    def _layout(self, view: FeatureView, name: str | None = None) -> PackedLayout:
        name = name or view.name
        kinds = {field.name: field.tags["kind"] for field in view.features}
        layout = self._layouts.get(name)
        if layout is None or layout.kinds != kinds:
            layout = self._layouts[name] = PackedLayout(kinds)
        return layout


def _is_packed(view: FeatureView) -> bool:
    return PACKED_TAG in view.tags


def _unpacked(layout: PackedLayout, values: dict[str, Value] | None, names: list[str]) -> dict[str, Value]:
    row = values[_FIELD].bytes_val if values else b""
    found = layout.unpack(row, names) if row else None
    return found if found is not None else {name: Value() for name in names}
