"""User feature views: what a user did (from events) and who a user is (from the catalogue)."""

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
from feature_repo.specs import USER_ACTIVITY, USER_ACTIVITY_SPECS, USER_PROFILE, user_profile_specs


def user_views(schema: Mapping[str, Any], tables: Path, user: Entity) -> list[FeatureView]:
    """`user_activity`, what is computed from it, and `user_profile` where the dataset has user attributes."""
    views = [
        FeatureView(
            name=USER_ACTIVITY,
            entities=[user],
            ttl=STATE_TTL,
            schema=[feast_field(spec) for spec in USER_ACTIVITY_SPECS],
            source=push_source(USER_ACTIVITY, tables),
            online=True,
            description="State of a user after the last event: counts, tiles, recent items, category affinities.",
            owner=OWNER,
            tags={"entity": "user", "source": "events", PACKED_TAG: "one field"},
        )
    ]
    views += own_feature_views(USER_ACTIVITY, USER_ACTIVITY_SPECS, tables, user)
    profile = user_profile_specs(schema)
    if profile:
        views.append(
            FeatureView(
                name=USER_PROFILE,
                entities=[user],
                ttl=STATE_TTL,
                schema=[feast_field(spec) for spec in profile],
                source=batch_source(USER_PROFILE, tables),
                online=True,
                description="Attributes of a user as the catalogue holds them.",
                owner=OWNER,
                tags={"entity": "user", "source": "catalogue"},
            )
        )
    return views
