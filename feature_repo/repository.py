"""All Feast objects of one dataset, built from its decoded `schema.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView
from feast.on_demand_feature_view import OnDemandFeatureView

from feature_repo.entities import item_entity, user_entity
from feature_repo.item_views import item_views
from feature_repo.request_views import request_view
from feature_repo.services import feature_services
from feature_repo.user_views import user_views


@dataclass(frozen=True)
class Repository:
    """What `feast apply` registers for one dataset."""

    user: Entity
    item: Entity
    user_views: list[FeatureView]
    item_views: list[FeatureView]
    request: OnDemandFeatureView
    services: list[FeatureService]

    def objects(self) -> list[Any]:
        """Everything, in the order in which Feast wants it."""
        return [self.user, self.item, *self.user_views, *self.item_views, self.request, *self.services]


def build_repository(schema: Mapping[str, Any], tables: Path) -> Repository:
    """Declare the dataset's features.

    Args:
        schema: `schema.json`, decoded: `user_attributes` and `item_attributes` are lists of `{name, source_name, type}`.
        tables: folder of the views' Parquet tables.

    Raises:
        ValueError: an attribute type that is not known, or two views with a feature of the same name.
    """
    user, item = user_entity(), item_entity()
    of_users, of_items = user_views(schema, tables, user), item_views(schema, tables, item)
    request = request_view([*of_users, *of_items])
    _refuse_equal_names([*of_users, *of_items, request])
    return Repository(user, item, of_users, of_items, request, feature_services(of_users, of_items, request))


def _refuse_equal_names(views: Sequence[FeatureView | OnDemandFeatureView]) -> None:
    """Features are read side by side, by their names alone: of two with one name a reader would get either."""
    if len({view.name for view in views}) < len(views):
        raise ValueError(f"two feature views have the same name: {', '.join(sorted(view.name for view in views))}")
    owner: dict[str, str] = {}
    for view in views:
        for name in {field.name for field in view.features}:
            if name in owner:
                raise ValueError(f"feature {name!r} is in the views {owner[name]!r} and {view.name!r}: rename one")
            owner[name] = view.name
