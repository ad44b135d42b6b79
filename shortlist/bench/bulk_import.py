"""How many events a second `data import` stores, by the clock and by processor time."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.import_dataset import import_dataset
from features.paths import DatasetPaths


def measure_import(rows: int) -> dict[str, Any]:
    """Import a Parquet file of `rows` events of a year into a new dataset."""
    rng = np.random.default_rng(0)
    seconds = 1_700_000_000 + np.sort(rng.integers(0, 365 * 86_400, rows))
    table = pa.table(
        {
            "user_id": pa.array(np.char.add("u", rng.integers(0, max(rows // 50, 1), rows).astype(str))),
            "item_id": pa.array(np.char.add("i", (rng.zipf(1.3, rows) % 20_000).astype(str))),
            "timestamp": pa.array(seconds * 1_000_000, pa.timestamp("us", tz="UTC")),
            "action": pa.array(rng.choice(["view", "click", "purchase"], rows)),
        }
    )
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        home = Path(folder)
        pq.write_table(table, home / "interactions.parquet")
        paths = DatasetPaths(home / "home", "bench")
        control = ControlStore(f"sqlite:///{home / 'control.db'}").create()
        wall, cpu = time.perf_counter(), time.process_time()
        report = import_dataset(str(home / "interactions.parquet"), paths, Catalogue(control, "bench"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        control.close()
    return {
        "events": report.interactions,
        "seconds": round(wall, 2),
        "events_per_s": round(report.interactions / wall),
        "events_per_cpu_s": round(report.interactions / cpu),
    }
