"""Explanations sum to the scores, whatever ranks; similar items are those that go together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.blend_search import label_candidates
from training.explain import BASELINE, explained
from training.feature_joins import fit_ranking_features
from training.first_stage import assemble, fit_sources
from training.funnel import BlendConfig, FunnelConfig, RankerConfig, SourceConfig
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.rankers.registry import ranker_class, ranker_settings
from training.ranking_stage import RankingStage
from training.similar import similar_items
from training.splits import leave_one_out

SOURCES = (SourceConfig(model="popularity", quota=40), SourceConfig(model="transition_knn", quota=40))
RANKERS = {
    "blend": RankerConfig(kind="blend"),
    "lambdamart": RankerConfig(kind="lambdamart", config={"max_trees": 30, "min_data_in_leaf": 10, "num_leaves": 8}),
    "listwise": RankerConfig(kind="listwise", config={"max_epochs": 3, "hidden": (16,), "cross_layers": 1, "batch_queries": 32}),
}


@pytest.fixture(scope="module", params=RANKERS)
def ranked(request: pytest.FixtureRequest, make_world) -> Pipeline:  # type: ignore[no-untyped-def]
    """A funnel with each ranker mixed in, whether it would have shipped or not."""
    world, kind = make_world(users=200, items=100), RANKERS[request.param]
    fold = leave_one_out(world)
    config = FunnelConfig(sources=SOURCES, blend=BlendConfig(trials=0), ranker=kind, k_candidates=50)
    data = TrainingData(fold.fit, {})
    pipeline = assemble(config, fit_sources(config.sources, data, seed=0), None, data, fold.fit, "planted")
    if request.param == "blend":
        return pipeline
    features = fit_ranking_features(fold.fit, pipeline.items, tuple(source.name for source in pipeline.sources), seed=1)
    candidates = pipeline.retrieve(fold.queries)
    labels = label_candidates(candidates, fold.target_indptr, fold.target_idx)
    batch = features.batch(fold.queries, candidates, pipeline.blend)
    hit = np.flatnonzero(labels.any(axis=1))
    ranker = ranker_class(kind.kind)(ranker_settings(kind.kind, kind.config)).fit(batch.rows(hit), labels[hit], seed=1, rounds=5)
    return replace(pipeline, stage=RankingStage(features, ranker, 0.6))


def test_parts_sum_to_the_score_and_the_baseline_is_the_querys_own(ranked: Pipeline) -> None:
    for user in range(5):
        query = ranked.histories.queries(np.array([user], dtype=np.int32))
        candidates = ranked.retrieve(query, None, 90)
        lists = ranked.rank(query, candidates, 80)
        items, scores = lists.item_idx[0], lists.score[0]
        found = explained(ranked, query, candidates, items[items >= 0])
        np.testing.assert_allclose(found.parts.sum(axis=1), scores[items >= 0], atol=1e-4)
        assert found.names[-1] == BASELINE
        top = found.parts[:20, -1]
        assert np.ptp(top) < 1e-4  # all that distinguishes the best items has a name
        assert np.ptp(found.parts[:20, :-1]) > 0


def test_similar_items_are_those_that_follow_and_an_unknown_item_has_none(make_world) -> None:
    world = make_world(users=200, items=100)
    data = TrainingData(world, {})
    config = FunnelConfig(sources=SOURCES)
    pipeline = assemble(config, fit_sources(config.sources, data, seed=0), None, data, world, "planted")
    allowed = np.ones(pipeline.num_items, dtype=bool)
    for item in np.argsort(-pipeline.activity)[:5].tolist():
        after = world.item_idx[1:][(world.item_idx[:-1] == item) & (world.user_idx[1:] == world.user_idx[:-1])]
        found = similar_items(pipeline, item, 10, allowed).item_idx[0]
        assert item not in found
        assert np.bincount(after).argmax() in found[:5]
        assert "popularity" not in {pipeline.source_names[number] for number in similar_items(pipeline, item, 5, allowed).source[0]}
    silent = replace(pipeline, histories=replace(pipeline.histories, item_idx=np.zeros_like(pipeline.histories.item_idx)))
    assert (similar_items(silent, 7, 10, allowed).item_idx == -1).all()
