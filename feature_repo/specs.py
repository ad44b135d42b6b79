"""What the features are: views, names, kinds, units and descriptions, and where their tables lie. Free of Feast.

Feast takes a second or more to import; what only computes or reads columns imports this module and not the views made of it.

The numpy form of a kind (dtype, what stands for a missing value) is `features.columns`' work. A dataset's schema reaches this
package as the decoded `schema.json`, a plain mapping, because `feature_repo` is the lowest layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["count", "time_us", "integer", "number", "flag", "text", "texts", "integers", "numbers", "tiles"]

EVENT_TIMESTAMP = "event_timestamp"
CREATED_AT = "created_at"
"""The time columns of every feature table: from when a row is true, and when it was written."""

_ATTRIBUTE_KINDS: dict[str, Kind] = {
    "string": "text",
    "int": "integer",
    "float": "number",
    "bool": "flag",
    "timestamp": "time_us",
    "string_list": "texts",
}


@dataclass(frozen=True)
class FeatureSpec:
    """One feature.

    Args:
        name: unique over all views, because feature services join them side by side.
        kind: what the value is: `count` (never missing), `time_us` (microseconds since the epoch, UTC), `integer`, `number`,
            `flag`, `text`, `texts` / `integers` / `numbers` (lists of any length), `tiles` (a list of exactly `width` counts).
        unit: unit of the value, "1" for pure numbers.
        description: one sentence.
        width: length of `tiles`; 0 for other kinds.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    width: int = 0


def attribute_specs(attributes: Sequence[Mapping[str, str]], prefix: str) -> tuple[FeatureSpec, ...]:
    """Features of the attributes that `schema.json` lists, named `<prefix>_<name>`; times get the suffix `_us`.

    Args:
        attributes: mappings with `name`, `source_name` and `type`.
        prefix: keeps attribute names apart from computed features and users' apart from items'.

    Raises:
        ValueError: an attribute type that is not known.
    """
    specs = []
    for attribute in attributes:
        kind = _ATTRIBUTE_KINDS.get(attribute["type"])
        if kind is None:
            raise ValueError(
                f"attribute {attribute['name']!r} has type {attribute['type']!r}; allowed: {', '.join(_ATTRIBUTE_KINDS)}"
            )
        time = kind == "time_us"
        specs.append(
            FeatureSpec(
                name=attribute_feature(attribute["name"], prefix, is_time=time),
                kind=kind,
                unit="us since epoch, UTC" if time else "1",
                description=f"Attribute {attribute['source_name']!r} as the catalogue holds it.",
            )
        )
    return tuple(specs)


def attribute_feature(name: str, prefix: str, *, is_time: bool = False) -> str:
    """Feature name of an attribute."""
    return f"{prefix}_{name}_us" if is_time else f"{prefix}_{name}"


DAY_TILES = 30
"""Daily counts kept: the longest window is 30 days."""

HOUR_TILES = 24
"""Hourly counts kept, for the one-day window."""

RECENT_ITEMS = 50
"""Recent items kept, if their ids are short enough."""

RECENT_ID_BYTES = 320
"""Bytes of the ids of the recent items, in UTF-8; hexadecimal digits and dashes count 5/8, because they deflate better, and
the newest item is always kept. Fifty ids of 6 letters or 9 digits, 32 ids of 10 letters, 13 UUIDs. With `CATEGORY_BYTES` it
bounds what a user takes online at 800 bytes, whatever the user did."""

TOP_CATEGORIES = 8
"""Categories of the recent items kept, strongest first."""

CATEGORY_BYTES = 96
"""Bytes of their names; the strongest is always kept."""

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
    FeatureSpec("recent_items", "texts", "item_id", "Items of the last events, oldest first: 50, or what fits 320 bytes."),
    FeatureSpec(
        "recent_ages_s", "integers", "s", "For each recent item, clock seconds from its event to the last; 0 for the newest."
    ),
    FeatureSpec(
        "recent_actions", "text", "code", "For each recent item, the digit of its event's action (features.events.ACTION_CODES)."
    ),
    FeatureSpec("recent_distinct_items", "count", "items", "Distinct items among the recent ones."),
    FeatureSpec(
        "user_categories",
        "texts",
        "category",
        "The most frequent categories of the recent items (path parts), strongest first: 8, or what fits 96 bytes.",
    ),
    FeatureSpec(
        "user_category_weights", "numbers", "share of recent events", "For each of user_categories, its share of the recent events."
    ),
)


def user_profile_specs(schema: Mapping[str, Any]) -> tuple[FeatureSpec, ...]:
    """Attributes of users as `schema.json` lists them, named `profile_<name>`."""
    return attribute_specs(schema["user_attributes"], PROFILE_PREFIX)


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

ITEM_ENGAGEMENT = "item_engagement"

ITEM_ENGAGEMENT_SPECS: tuple[FeatureSpec, ...] = (
    FeatureSpec("item_impressions", "count", "events", "Times that the item was shown in an answer, as clients report."),
    FeatureSpec("item_impression_last_us", "time_us", "us since epoch, UTC", "Time of the last impression; null without one."),
    FeatureSpec(
        "item_impression_day_tiles",
        "tiles",
        "events",
        "Impressions of each of the last 30 UTC days, [0] the day of item_impression_last_us.",
        DAY_TILES,
    ),
    FeatureSpec("item_clicks", "count", "events", "Clicks on the item that quote the answer they came from."),
    FeatureSpec("item_click_last_us", "time_us", "us since epoch, UTC", "Time of the last such click; null without one."),
    FeatureSpec(
        "item_click_day_tiles",
        "tiles",
        "events",
        "Such clicks of each of the last 30 UTC days, [0] the day of item_click_last_us.",
        DAY_TILES,
    ),
)


def item_metadata_specs(schema: Mapping[str, Any]) -> tuple[FeatureSpec, ...]:
    """Attributes of items as `schema.json` lists them, named `metadata_<name>`."""
    return attribute_specs(schema["item_attributes"], METADATA_PREFIX)


CATEGORY_ATTRIBUTES = ("categories", "tags")
"""Item attributes that are an item's categories, the first that a dataset has."""


def category_attribute(names: Sequence[str]) -> str | None:
    """The attribute among `names` that holds the categories, or None."""
    return next((name for name in CATEGORY_ATTRIBUTES if name in names), None)


def table_path(view: str, tables: Path) -> Path:
    """Path of a view's Parquet table."""
    return tables / f"{view}.parquet"
