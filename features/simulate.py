"""`data simulate`: writes a simulated world into catalogue and activity store, by the writer that imports and live events use."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.activity_store import ActivityStore
from features.attributes import attribute_type, merge_attributes
from features.catalogue import Catalogue
from features.histories import ROW_SCHEMA, FileTraits, to_events
from features.import_events import Progress
from features.import_report import ImportReport
from features.paths import DatasetPaths
from features.schema import Attribute
from features.simulated_world import SimulatedWorld, SimulationConfig


def simulate(
    config: SimulationConfig,
    paths: DatasetPaths,
    catalogue: Catalogue,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> ImportReport:
    """Simulate activity into a dataset; the same configuration again adds nothing.

    Args:
        config: what to simulate.
        paths: where the dataset lives.
        catalogue: of the same dataset.
        progress: told how far it is.

    Raises:
        StoreError: the stores refuse.
    """
    world, received_at = SimulatedWorld(config), datetime.now(UTC)
    store = ActivityStore.of(paths)
    _widen_schema(world, paths, catalogue)
    for number, table in enumerate(world.item_tables()):
        catalogue.upsert_items(table)
        progress("catalogue", min((number + 1) * 100_000, config.items), config.items)
    traits = FileTraits(first_time_us=world.start_us, has_positions=False)
    users = interactions = duplicates = 0
    seen = np.zeros(config.items, dtype=bool)
    for table, block in world.user_blocks():
        catalogue.upsert_users(table)
        rows = block.rows()
        count = len(block.user)
        table = pa.table([rows.get(f.name, pa.nulls(count, f.type)) for f in ROW_SCHEMA], schema=ROW_SCHEMA)
        events, repeated = to_events(table, traits, dataset=paths.dataset, received_at=received_at)
        duplicates += repeated + store.append(events).duplicates
        interactions += events.num_rows
        users += pc.count_distinct(events["user_id"]).as_py()
        seen[block.item] = True
        progress("writing", interactions, config.events)
    return ImportReport(
        dataset=paths.dataset,
        users=users,
        items=int(seen.sum()),
        interactions=interactions,
        catalogue_items=config.items,
        duplicates=duplicates,
        rejected=0,
        rejected_path=None,
        notes=("the data is simulated: metrics on it say nothing about real users",),
    )


def _widen_schema(world: SimulatedWorld, paths: DatasetPaths, catalogue: Catalogue) -> None:
    one = SimulatedWorld(SimulationConfig(users=1, items=1, events=1, seed=world.config.seed))
    old = catalogue.schema()
    schema = replace(
        old,
        item_attributes=merge_attributes(old.item_attributes, _attributes(next(one.item_tables()), "item_id")),
        user_attributes=merge_attributes(old.user_attributes, _attributes(next(one.user_blocks())[0], "user_id")),
        has_times=True,
        has_values=True,
    )
    catalogue.save_schema(schema)
    schema.save(paths.schema_file)


def _attributes(table: pa.Table, key: str) -> tuple[Attribute, ...]:
    return tuple(Attribute(f.name, f.name, attribute_type(f.type)) for f in table.schema if f.name != key)
