"""DuckDB's progress bar stays off where DuckDB itself would turn it on."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import ibis
import numpy as np
import pyarrow as pa

from features.store_files import LocalFolder
from features.store_remote import RemoteFolder
from features.training_set import user_features_at

def bar(connection):
    ((value,),) = connection.sql("SELECT value FROM duckdb_settings() WHERE name = 'enable_progress_bar'").fetchall()
    return value

events = pa.table({"user_id": ["a", "a"], "item_id": ["x", "y"], "action": ["view", "view"], "value": pa.nulls(2, pa.float64())})
times = pa.array([datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2)], pa.timestamp("us", tz="UTC"))
events = events.append_column("timestamp", times)
joined = user_features_at(events, None, np.array(["a"], dtype=object), np.array([1_800_000_000_000_000]), names=["user_events"])
print(json.dumps({
    "plain": bar(duckdb.connect()),
    "local": bar(LocalFolder(Path("store")).connect()),
    "remote": bar(RemoteFolder("memory://store").connect()),
    "feast": bar(ibis.get_backend().con.cursor()),
    "joined": joined["user_events"].tolist(),
}))
"""


def test_no_connection_shows_progress_in_a_session() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("plain") == "true"  # what DuckDB does by itself in a program without a file
    assert found == {"local": "false", "remote": "false", "feast": "false", "joined": [2]}
