"""How Feast's FeatureStore is configured: offline by DuckDB, online on Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from feast import FeatureStore, RepoConfig

from features.errors import FeatureStoreError

ONLINE_STORE = "feature_repo.packed_store.PackedRedisOnlineStore"
"""Feast finds it by this name."""


def open_store(project: str, registry: Path, online_store: Any) -> FeatureStore:
    """A FeatureStore of a project; `online_store` is None or Feast's options of one."""
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


def redis_connection_string(url: str) -> str:
    """A Redis URL in Feast's own form (`host:port,db=0,...`).

    Retries are off and time-outs short: redis-py's defaults take 8 seconds to say that a server is not there.

    Raises:
        FeatureStoreError: another scheme, or a password with a comma, which Feast would cut in two.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise FeatureStoreError(f"redis.features_url {url!r} must start with redis://, rediss:// or unix://")
    options = ["retry=null", "socket_connect_timeout=2", "socket_timeout=30"]
    if parts.scheme == "unix":
        address, options = "localhost:0", [f"unix_socket_path={parts.path}", *options]
    else:
        address = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
        options.append(f"db={parts.path.strip('/') or 0}")
    if parts.scheme == "rediss":
        options.append("ssl=true")
    for name, value in (("username", parts.username), ("password", parts.password)):
        if value:
            plain = unquote(value)
            if "," in plain:
                raise FeatureStoreError(f"the {name} in redis.features_url holds a comma, which Feast cannot carry: use another")
            # Feast decodes values as JSON: without quotes a password of digits would become a number.
            options.append(f'{name}="{plain}"' if '"' not in plain else f"{name}={plain}")
    return ",".join([address, *options])
