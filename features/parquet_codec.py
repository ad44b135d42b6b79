"""The one choice of a codec for Parquet files that DuckDB reads: the activity store, the logs and the feature tables.

Snappy, not Zstandard: DuckDB's reader has returned wrong values and "ZSTD Decompression failure" for sound Zstandard files read by
several threads (duckdb/duckdb issue 24905, which found Snappy unharmed). A busy machine has shown the failure here once with 2.0.0.
"""

from __future__ import annotations

from typing import Final

PARQUET_CODEC: Final = "snappy"
"""For `pyarrow.parquet`'s `compression`. Readers take any codec: older files stay as they are."""
