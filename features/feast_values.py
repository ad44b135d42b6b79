"""Forms that Feast wants: its Redis connection string, frames to write, and protobuf values read."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pyarrow as pa

from features.errors import FeatureStoreError


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


def arrow_frame(table: pa.Table) -> pd.DataFrame:
    """A pandas frame that keeps Arrow's types: plain pandas would turn nullable integers into floats."""
    return table.combine_chunks().to_pandas(types_mapper=pd.ArrowDtype)


def plain_value(value: Any) -> Any:
    """A Feast protobuf value as a Python value, None where it is not set; lists stay protobuf sequences."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    found = getattr(value, kind)
    return found.val if kind.endswith("_list_val") else found
