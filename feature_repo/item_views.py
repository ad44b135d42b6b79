"""Item feature views: what was done with an item (from events) and what it is (from the catalogue)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feast import Entity, FeatureView

from feature_repo.entities import OWNER
from feature_repo.fields import FeatureSpec, attribute_specs
from feature_repo.sources import STATE_TTL, batch_source, push_source
from feature_repo.user_views import DAY_TILES

ITEM_ACTIVITY = "item_activity"
ITEM_METADATA = "item_metadata"
METADATA_PREFIX = "metadata"

ITEM_ACTIVITY_SPECS: tuple[FeatureSpec, ...] = (
    FeatureSpec("item_events", "count", "events", "Positive events on the item so far."),
    FeatureSpec("item_value_count", "count", "events", "Of these, events with a value (a rating or an amount)."),
    FeatureSpec("item_value_mean", "number", "value", "Mean of the values; null without any."),
    FeatureSpec("item_first_event_us", "time_us", "us since epoch, UTC", "Time of the first event; null where times are unknown."),
    FeatureSpec("item_last_event_us", "time_us", "us since epoch, UTC", "Time of the last event; null where times are unknown."),
    FeatureSpec(
        "item_day_tiles",
        "tiles",
        "events",
        "Events of each of the last 30 UTC days, [0] the day of item_last_event_us. Sum at read time: a stored window goes stale.",
        DAY_TILES,
    ),
)


def item_metadata_specs(schema: Mapping[str, Any]) -> tuple[FeatureSpec, ...]:
    """Attributes of items as `schema.json` lists them, named `metadata_<name>`."""
    return attribute_specs(schema["item_attributes"], METADATA_PREFIX)


def item_views(schema: Mapping[str, Any], tables: Path, item: Entity) -> list[FeatureView]:
    """`item_activity`, and `item_metadata` where the dataset has item attributes."""
    views = [
        FeatureView(
            name=ITEM_ACTIVITY,
            entities=[item],
            ttl=STATE_TTL,
            schema=[spec.field() for spec in ITEM_ACTIVITY_SPECS],
            source=push_source(ITEM_ACTIVITY, tables),
            online=True,
            description="State of an item after its last event: counts, tiles, values, first and last time.",
            owner=OWNER,
            tags={"entity": "item", "source": "events"},
        )
    ]
    metadata = item_metadata_specs(schema)
    if metadata:
        views.append(
            FeatureView(
                name=ITEM_METADATA,
                entities=[item],
                ttl=STATE_TTL,
                schema=[spec.field() for spec in metadata],
                source=batch_source(ITEM_METADATA, tables),
                online=True,
                description="Attributes of an item as the catalogue holds them.",
                owner=OWNER,
                tags={"entity": "item", "source": "catalogue"},
            )
        )
    return views
