"""The catalogue's half of an import: schema and attributes of items and users, for people who were not erased."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from features.activity_store import ActivityStore
from features.attributes import merge_attributes
from features.catalogue import Catalogue
from features.catalogue_tables import CatalogueRows
from features.import_events import Progress
from features.paths import DatasetPaths
from features.schema import DatasetSchema


def write_catalogue(
    sides: Mapping[str, CatalogueRows | None],
    old: DatasetSchema,
    paths: DatasetPaths,
    catalogue: Catalogue,
    *,
    has_times: bool,
    has_values: bool,
    progress: Progress,
) -> None:
    """Write what the files say of items and users.

    Args:
        sides: `item` and `user` to their rows; None where there is no file.
        old: the schema so far.
        paths, catalogue: of the dataset.
        has_times, has_values: whether any interaction of the files has one.
        progress: told how far it is.
    """
    items, users = sides["item"], sides["user"]
    new = not catalogue.exists()
    schema = replace(
        old,
        item_attributes=merge_attributes(old.item_attributes, items.attributes if items else ()),
        user_attributes=merge_attributes(old.user_attributes, users.attributes if users else ()),
        has_times=has_times or (old.has_times and not new),
        has_values=has_values or old.has_values,
    )
    catalogue.save_schema(schema)
    schema.save(paths.schema_file)
    done = 0
    for rows, upsert in ((items, catalogue.upsert_items), (users, catalogue.upsert_users)):
        if rows is not None:
            done += upsert(_not_erased(rows.table, paths))
            progress("catalogue", done, None)


def _not_erased(profiles: pa.Table, paths: DatasetPaths) -> pa.Table:
    """Profiles of people who were not erased; a profile has no time, so a file's may be of before."""
    if "user_id" not in profiles.column_names:
        return profiles
    erased = ActivityStore.of(paths).erased(profiles["user_id"].to_pylist())
    keep = pc.invert(pc.is_in(profiles["user_id"], value_set=pa.array(sorted(erased), pa.string())))
    return profiles.filter(keep) if erased else profiles
