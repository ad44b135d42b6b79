"""Item feature views: what was done with an item (from events) and what it is (from the catalogue)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feast import Entity, FeatureView

from feature_repo.entities import OWNER
from feature_repo.fields import feast_field
from feature_repo.own_feature_views import own_feature_views
from feature_repo.packed_store import PACKED_TAG
from feature_repo.sources import STATE_TTL, batch_source, push_source
from feature_repo.specs import (
    ITEM_ACTIVITY,
    ITEM_ACTIVITY_SPECS,
    ITEM_ENGAGEMENT,
    ITEM_ENGAGEMENT_SPECS,
    ITEM_METADATA,
    item_metadata_specs,
)


def item_views(schema: Mapping[str, Any], tables: Path, item: Entity) -> list[FeatureView]:
    """`item_activity`, `item_metadata` where the dataset has item attributes, and what is computed from these."""
    views = [
        FeatureView(
            name=ITEM_ACTIVITY,
            entities=[item],
            ttl=STATE_TTL,
            schema=[feast_field(spec) for spec in ITEM_ACTIVITY_SPECS],
            source=push_source(ITEM_ACTIVITY, tables),
            online=True,
            description="State of an item after its last event: counts, tiles, values, first and last time.",
            owner=OWNER,
            tags={"entity": "item", "source": "events", PACKED_TAG: "one field"},
        ),
        FeatureView(
            name=ITEM_ENGAGEMENT,
            entities=[item],
            ttl=STATE_TTL,
            schema=[feast_field(spec) for spec in ITEM_ENGAGEMENT_SPECS],
            source=push_source(ITEM_ENGAGEMENT, tables),
            online=True,
            description="Impressions and clicks of an item in answers: click-through rates are computed from it.",
            owner=OWNER,
            tags={"entity": "item", "source": "events", PACKED_TAG: "one field"},
        ),
    ]
    metadata = item_metadata_specs(schema)
    if metadata:
        views.append(
            FeatureView(
                name=ITEM_METADATA,
                entities=[item],
                ttl=STATE_TTL,
                schema=[feast_field(spec) for spec in metadata],
                source=batch_source(ITEM_METADATA, tables),
                online=True,
                description="Attributes of an item as the catalogue holds them.",
                owner=OWNER,
                tags={"entity": "item", "source": "catalogue"},
            )
        )
    views += own_feature_views(ITEM_ACTIVITY, ITEM_ACTIVITY_SPECS, tables, item)
    return views + own_feature_views(ITEM_METADATA, metadata, tables, item)
