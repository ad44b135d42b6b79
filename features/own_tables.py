"""Rows of feature views of one's own (`feature_repo.own_views`), computed from rows of their base view."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.own_views import OwnView, own_views
from feature_repo.specs import CREATED_AT, EVENT_TIMESTAMP, table_path
from features.columns import arrow_type
from features.errors import FeatureJoinError
from features.parquet_codec import PARQUET_CODEC


def own_rows(view: OwnView, base: pa.Table) -> pa.Table:
    """The id, the view's features and the base's time columns, if it has them: one row a row of `base`.

    Raises:
        FeatureJoinError: `compute` gives another number of rows, another type, or not the declared features.
    """
    computed = view.compute(base)
    if set(computed) != {spec.name for spec in view.specs}:
        raise FeatureJoinError(
            f"view {view.name!r} computes {', '.join(sorted(computed))}; it declares {', '.join(spec.name for spec in view.specs)}"
        )
    key = f"{view.side}_id"
    columns = {key: base.column(key)}
    for spec in view.specs:
        values = computed[spec.name]
        try:
            column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, from_pandas=True)
            columns[spec.name] = column.cast(arrow_type(spec))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise FeatureJoinError(f"{spec.name!r} of view {view.name!r} is no {spec.kind}: {error}") from error
        if len(columns[spec.name]) != len(base):
            raise FeatureJoinError(f"{spec.name!r} of view {view.name!r} has {len(columns[spec.name])} rows for {len(base)}")
    times = {name: base.column(name) for name in (EVENT_TIMESTAMP, CREATED_AT) if name in base.column_names}
    return pa.table(columns | times)


def own_tables(base: str, rows: pa.Table) -> Iterator[tuple[OwnView, pa.Table]]:
    """Each view on `base` with its rows."""
    for view in own_views(base, rows.column_names):
        yield view, own_rows(view, rows)


def write_own_tables(folder: Path, base: str, rows_per_block: int) -> list[tuple[OwnView, Path, int]]:
    """Write the table of each view on `base` out of the base's table; returns view, path and rows.

    Raises:
        FeatureJoinError: a view computes what it does not declare.
    """
    written = []
    with pq.ParquetFile(table_path(base, folder)) as file:
        for view in own_views(base, file.schema_arrow.names):
            path = table_path(view.name, folder)
            temporary = path.with_suffix(".tmp")
            empty = own_rows(view, file.schema_arrow.empty_table())
            with pq.ParquetWriter(temporary, empty.schema, compression=PARQUET_CODEC) as out:
                for batch in file.iter_batches(batch_size=rows_per_block):
                    out.write_table(own_rows(view, pa.Table.from_batches([batch])))
            os.replace(temporary, path)
            written.append((view, path, file.metadata.num_rows))
    return written
