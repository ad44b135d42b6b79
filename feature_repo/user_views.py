"""User feature views: what a user did (from events) and who a user is (from the catalogue)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feast import Entity, FeatureView

from feature_repo.entities import OWNER
from feature_repo.fields import FeatureSpec, attribute_specs
from feature_repo.sources import STATE_TTL, batch_source, push_source

DAY_TILES = 30
"""Daily counts kept: the longest window is 30 days."""

HOUR_TILES = 24
"""Hourly counts kept, for the one-day window."""

RECENT_ITEMS = 50
"""Recent items kept. With ids of 8 bytes they are about 700 bytes of a user's online memory."""

TOP_CATEGORIES = 12
"""Categories of the recent items kept, strongest first."""

USER_ACTIVITY = "user_activity"
USER_PROFILE = "user_profile"
PROFILE_PREFIX = "profile"

USER_ACTIVITY_SPECS: tuple[FeatureSpec, ...] = (
    FeatureSpec("user_events", "count", "events", "Positive events of the user so far."),
    FeatureSpec("user_value_count", "count", "events", "Of these, events with a value (a rating or an amount)."),
    FeatureSpec("user_value_mean", "number", "value", "Mean of the values; null without any."),
    FeatureSpec("user_last_event_us", "time_us", "us since epoch, UTC", "Time of the last event; null where times are unknown."),
    FeatureSpec(
        "user_day_tiles",
        "tiles",
        "events",
        "Events of each of the last 30 UTC days, [0] the day of user_last_event_us. Sum at read time: a stored window goes stale.",
        DAY_TILES,
    ),
    FeatureSpec(
        "user_hour_tiles", "tiles", "events", "Events of each of the last 24 hours, [0] the hour of user_last_event_us.", HOUR_TILES
    ),
    FeatureSpec("recent_items", "texts", "item_id", "Items of the last 50 events, oldest first."),
    FeatureSpec(
        "recent_ages_us", "integers", "us", "For each recent item, microseconds from its event to the last one; 0 for the newest."
    ),
    FeatureSpec("recent_distinct_items", "count", "items", "Distinct items among the recent ones."),
    FeatureSpec(
        "user_categories", "texts", "category", "The 12 most frequent categories of the recent items (path parts), strongest first."
    ),
    FeatureSpec(
        "user_category_weights", "numbers", "share of recent events", "For each of user_categories, its share of the recent events."
    ),
)


def user_profile_specs(schema: Mapping[str, Any]) -> tuple[FeatureSpec, ...]:
    """Attributes of users as `schema.json` lists them, named `profile_<name>`."""
    return attribute_specs(schema["user_attributes"], PROFILE_PREFIX)


def user_views(schema: Mapping[str, Any], tables: Path, user: Entity) -> list[FeatureView]:
    """`user_activity`, and `user_profile` where the dataset has user attributes."""
    views = [
        FeatureView(
            name=USER_ACTIVITY,
            entities=[user],
            ttl=STATE_TTL,
            schema=[spec.field() for spec in USER_ACTIVITY_SPECS],
            source=push_source(USER_ACTIVITY, tables),
            online=True,
            description="State of a user after the last event: counts, tiles, recent items, category affinities.",
            owner=OWNER,
            tags={"entity": "user", "source": "events"},
        )
    ]
    profile = user_profile_specs(schema)
    if profile:
        views.append(
            FeatureView(
                name=USER_PROFILE,
                entities=[user],
                ttl=STATE_TTL,
                schema=[spec.field() for spec in profile],
                source=batch_source(USER_PROFILE, tables),
                online=True,
                description="Attributes of a user as the catalogue holds them.",
                owner=OWNER,
                tags={"entity": "user", "source": "catalogue"},
            )
        )
    return views
