"""All Feast objects of one dataset, built from its decoded `schema.json`."""

from __future__ import annotations

from collections.abc import Mapping
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
        ValueError: an attribute type that is not known.
    """
    user, item = user_entity(), item_entity()
    of_users, of_items = user_views(schema, tables, user), item_views(schema, tables, item)
    request = request_view([*of_users, *of_items])
    return Repository(user, item, of_users, of_items, request, feature_services(of_users, of_items, request))
