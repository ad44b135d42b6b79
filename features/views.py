"""Which features each view of a dataset has. Free of Feast."""

from __future__ import annotations

from dataclasses import asdict

from feature_repo.own_views import own_views
from feature_repo.specs import (
    ITEM_ACTIVITY,
    ITEM_ACTIVITY_SPECS,
    ITEM_ENGAGEMENT,
    ITEM_ENGAGEMENT_SPECS,
    ITEM_METADATA,
    USER_ACTIVITY,
    USER_ACTIVITY_SPECS,
    USER_PROFILE,
    FeatureSpec,
    item_metadata_specs,
    user_profile_specs,
)
from features.aggregates import Side
from features.schema import DatasetSchema


def view_specs(schema: DatasetSchema, side: Side) -> dict[str, tuple[FeatureSpec, ...]]:
    """View name -> its features, for the views of one side that the dataset has."""
    raw = asdict(schema)
    if side == "user":
        views = {USER_ACTIVITY: USER_ACTIVITY_SPECS, USER_PROFILE: user_profile_specs(raw)}
    else:
        views = {
            ITEM_ACTIVITY: ITEM_ACTIVITY_SPECS,
            ITEM_ENGAGEMENT: ITEM_ENGAGEMENT_SPECS,
            ITEM_METADATA: item_metadata_specs(raw),
        }
    own = {view.name: view.specs for base, specs in views.items() for view in own_views(base, [spec.name for spec in specs])}
    return {name: specs for name, specs in (views | own).items() if specs}


def training_specs(schema: DatasetSchema, side: Side) -> dict[str, tuple[FeatureSpec, ...]]:
    """`view_specs` without engagement: a fold's interactions do not say what was shown."""
    return {view: specs for view, specs in view_specs(schema, side).items() if view != ITEM_ENGAGEMENT}
