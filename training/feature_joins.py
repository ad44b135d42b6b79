"""What rankers learn from, joined by Feast: item columns as of a fold's end, user columns as of each request.

Apart from `training.ranking_features` because Feast is needed for training only: serving loads the columns from the bundle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from features.request_features import ItemFeatureColumns
from features.training_set import item_features_at, user_features_at
from training.dataset import fold_events
from training.interactions import Interactions
from training.item_periods import item_periods
from training.item_vectors import item_vectors
from training.queries import QueryBatch
from training.ranking_features import RankingFeatures, category_columns, item_scalars, user_feature_names


def fit_ranking_features(
    interactions: Interactions,
    items: pa.Table,
    sources: tuple[str, ...],
    *,
    seed: int,
    item_columns: tuple[str, ...] | None = None,
    periods: bool = False,
) -> RankingFeatures:
    """Item side of the features as of the end of `interactions`.

    Args:
        interactions: what the first stages were fitted on.
        items: (N,) `item_id` and attributes.
        sources: names of the funnel's sources.
        seed: of the item vectors.
        item_columns: names of the item columns that a fitted ranker reads; None takes those that vary.
        periods: whether the ranker reads when items are taken, as far as that can be told.
    """
    cutoff_us = int(interactions.time_us.max(initial=0)) + 1
    known = item_features_at(fold_events(interactions), items, interactions.item_ids, cutoff_us, has_times=interactions.has_times)
    return RankingFeatures(
        sources=sources,
        item_columns=item_scalars(known, item_columns),
        vectors=item_vectors(interactions, seed=seed),
        request=ItemFeatureColumns.prepare(known),
        items=category_columns(items),
        has_times=interactions.has_times,
        periods=item_periods(interactions, _attributes(items)) if periods else None,
    )


def with_user_features(features: RankingFeatures, queries: QueryBatch) -> QueryBatch:
    """The queries with the columns of `user_feature_names` as of each request.

    Raises:
        FeatureJoinError: the join lost rows.
    """
    events, ids = features.events(queries)
    categories = features.categories_of(queries)
    catalogue = pa.table(
        {
            "item_id": pa.array(list(categories), pa.string()),
            "categories": pa.array(list(categories.values()), pa.list_(pa.string())),
        }
    )
    names = user_feature_names()
    known = user_features_at(events, catalogue, ids, queries.request_time_us, names=names, has_times=features.has_times)
    return replace(queries, user_features=known)


def _attributes(items: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """The items' attributes as arrays, lists left out."""
    names = [field.name for field in items.schema if field.name != "item_id" and not pa.types.is_nested(field.type)]
    return {name: items.column(name).to_numpy() for name in names}
