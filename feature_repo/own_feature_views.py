"""Feast's views of `OWN_VIEWS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from feast import Entity, FeatureView

from feature_repo.entities import OWNER
from feature_repo.fields import feast_field
from feature_repo.own_views import own_views
from feature_repo.packed_store import PACKED_TAG
from feature_repo.sources import STATE_TTL, push_source
from feature_repo.specs import FeatureSpec


def own_feature_views(base: str, base_specs: Sequence[FeatureSpec], tables: Path, entity: Entity) -> list[FeatureView]:
    """The views that are computed from `base`, which has the features `base_specs` in this dataset."""
    return [
        FeatureView(
            name=view.name,
            entities=[entity],
            ttl=STATE_TTL,
            schema=[feast_field(spec) for spec in view.specs],
            source=push_source(view.name, tables),
            online=True,
            description=view.description,
            owner=OWNER,
            tags={"entity": view.side, "source": base, PACKED_TAG: "one field"},
        )
        for view in own_views(base, [spec.name for spec in base_specs])
    ]
