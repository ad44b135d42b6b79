"""The catalogue's half of an import: schema and attributes of items and users, for people who were not erased."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection

from features.activity_store import ActivityStore
from features.attributes import merge_attributes
from features.catalogue import Catalogue
from features.catalogue_tables import CatalogueRows
from features.import_events import Progress
from features.paths import DatasetPaths
from features.schema import DatasetSchema

ItemsTransaction = Callable[[], AbstractContextManager[Connection]]
"""Opens a transaction of the control store in which items may be written: who serves records there that they have changed."""


def write_catalogue(
    sides: Mapping[str, CatalogueRows | None],
    old: DatasetSchema,
    paths: DatasetPaths,
    catalogue: Catalogue,
    *,
    has_times: bool,
    has_values: bool,
    items_transaction: ItemsTransaction,
    progress: Progress,
) -> None:
    """Write what the files say of items and users.

    Args:
        sides: `item` and `user` to their rows; None where there is no file.
        old: the schema so far.
        paths, catalogue: of the dataset.
        has_times, has_values: whether any interaction of the files has one.
        items_transaction: in which the items are written.
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
    if items is not None:
        with items_transaction() as connection:
            done += catalogue.inside(connection).upsert_items(items.table)
        progress("catalogue", done, None)
    if users is not None:
        done += catalogue.upsert_users(_not_erased(users.table, paths))
        progress("catalogue", done, None)


def _not_erased(profiles: pa.Table, paths: DatasetPaths) -> pa.Table:
    """Profiles of people who were not erased; a profile has no time, so a file's may be of before."""
    erased = ActivityStore.of(paths).erased(profiles["user_id"].to_pylist())
    keep = pc.invert(pc.is_in(profiles["user_id"], value_set=pa.array(sorted(erased), pa.string())))
    return profiles.filter(keep) if erased else profiles
