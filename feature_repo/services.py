"""Feature services: one per model contract. A bundle names the service that its ranker was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from feast import FeatureService, FeatureView
from feast.on_demand_feature_view import OnDemandFeatureView

from feature_repo.entities import OWNER
from feature_repo.specs import USER_ACTIVITY

RETRIEVAL_V1 = "retrieval_v1"
RANKING_V1 = "ranking_v1"


def feature_services(
    users: Sequence[FeatureView], items: Sequence[FeatureView], request: OnDemandFeatureView
) -> list[FeatureService]:
    """`retrieval_v1`: what retrievers need of a user. `ranking_v1`: all of user, item and pair."""
    activity = next(view for view in users if view.name == USER_ACTIVITY)
    return [
        FeatureService(
            name=RETRIEVAL_V1,
            features=[activity[["user_events", "user_last_event_us", "recent_items", "recent_ages_us"]]],
            description="The user's recent sequence, for retrievers that score histories.",
            owner=OWNER,
            tags={"contract": "retriever"},
        ),
        FeatureService(
            name=RANKING_V1,
            features=[*users, *items, request],
            description="Everything known of user, item and pair at the moment of asking.",
            owner=OWNER,
            tags={"contract": "ranker"},
        ),
    ]
