"""Feature services: one per model contract. A bundle names the service that its ranker was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from feast import FeatureService, FeatureView
from feast.on_demand_feature_view import OnDemandFeatureView

from feature_repo.entities import OWNER
from feature_repo.specs import ITEM_ENGAGEMENT, USER_ACTIVITY

RETRIEVAL_V1 = "retrieval_v1"
RANKING_V1 = "ranking_v1"
ENGAGEMENT_V1 = "engagement_v1"


def feature_services(
    users: Sequence[FeatureView], items: Sequence[FeatureView], request: OnDemandFeatureView
) -> list[FeatureService]:
    """`retrieval_v1`: what retrievers need of a user; `ranking_v1`: user, item and pair; `engagement_v1`: shown and clicked."""
    activity = next(view for view in users if view.name == USER_ACTIVITY)
    engagement = [view for view in items if view.name == ITEM_ENGAGEMENT]
    return [
        FeatureService(
            name=RETRIEVAL_V1,
            features=[activity[["user_events", "user_last_event_us", "recent_items", "recent_ages_s", "recent_actions"]]],
            description="The user's recent sequence, for retrievers that score histories.",
            owner=OWNER,
            tags={"contract": "retriever"},
        ),
        FeatureService(
            name=RANKING_V1,
            features=[*users, *(view for view in items if view not in engagement), request],
            description="What activity and catalogue say of user, item and pair at the moment of asking.",
            owner=OWNER,
            tags={"contract": "ranker"},
        ),
        FeatureService(
            name=ENGAGEMENT_V1,
            features=engagement,
            description="How often an item was shown and clicked; only live traffic says, so training sets of imports lack it.",
            owner=OWNER,
            tags={"contract": "click-through"},
        ),
    ]
