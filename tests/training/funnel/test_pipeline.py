"""The pipeline: lists of the length asked for, masks, histories, single against batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.bundle import POPULARITY_FILL
from training.funnel import FunnelConfig, fit_funnel, refit
from training.interactions import Interactions
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.splits import leave_one_out
from training.union import fill


def test_single_queries_give_the_lists_of_the_batch(pipeline: Pipeline) -> None:
    users = [f"u{n}" for n in range(30)]
    batch = pipeline.recommend(pipeline.queries_for(users), 12)
    for b, user in enumerate(users):
        alone = pipeline.recommend(pipeline.queries_for([user]), 12)
        np.testing.assert_array_equal(alone.item_idx[0], batch.item_idx[b])
        np.testing.assert_allclose(alone.score[0], batch.score[b], rtol=1e-5)


def test_lists_are_best_first_without_repeats_or_seen_items(pipeline: Pipeline) -> None:
    queries = pipeline.queries_for([f"u{n}" for n in range(50)])
    lists = pipeline.recommend(queries, 20)
    assert (np.diff(lists.score, axis=1) <= 0).all()
    for b in range(50):
        row = lists.item_idx[b].tolist()
        assert len(set(row)) == 20
        assert not set(row) & set(queries.history(b).tolist())
    seen = pipeline.recommend(queries, 20, exclude_history=False)
    assert any(set(seen.item_idx[b].tolist()) & set(queries.history(b).tolist()) for b in range(50))


def test_lists_reach_k_as_far_as_the_catalogue_goes(pipeline: Pipeline) -> None:
    queries = pipeline.queries_for(["u1", "nobody"])
    lists = pipeline.recommend(queries, 1000)
    assert lists.item_idx.shape == (2, 1000)
    assert (lists.item_idx[0] >= 0).sum() == pipeline.num_items - len(queries.history(0))
    assert (lists.item_idx[1] >= 0).sum() == pipeline.num_items
    assert np.isneginf(lists.score[lists.item_idx < 0]).all()
    assert (lists.source[lists.item_idx < 0] == -1).all()


def test_only_allowed_items_are_returned(pipeline: Pipeline, rng: np.random.Generator) -> None:
    queries = pipeline.queries_for(["u1", "u2", "u3"])
    few = np.zeros(pipeline.num_items, dtype=bool)
    few[[3, 50, 121]] = True
    lists = pipeline.recommend(queries, 5, few)
    assert set(lists.item_idx[lists.item_idx >= 0].tolist()) <= {3, 50, 121}
    each = rng.random((3, pipeline.num_items)) < 0.2
    lists = pipeline.recommend(queries, 10, each)
    for b in range(3):
        assert each[b, lists.item_idx[b][lists.item_idx[b] >= 0]].all()
    nothing = pipeline.recommend(queries, 5, np.zeros(pipeline.num_items, dtype=bool))
    assert (nothing.item_idx == -1).all()


def test_fill_stands_last_and_is_named(config: FunnelConfig, data: TrainingData) -> None:
    tiny = config.model_copy(update={"sources": tuple(s.model_copy(update={"quota": 2}) for s in config.sources)})
    fitted = fit_funnel(tiny, data, leave_one_out(data.interactions), dataset="planted").pipeline
    queries = fitted.queries_for(["u1"])
    candidates = fitted.retrieve(queries, k=None)
    assert candidates.item_idx.shape[1] <= 4
    longer = fill(candidates, 30, fitted.popular, queries, None, True)
    lists = fitted.rank(queries, longer, 30)
    names = [fitted.source_names[s] for s in lists.source[0]]
    first = names.index(POPULARITY_FILL)
    assert names[first:] == [POPULARITY_FILL] * (30 - first)
    assert (np.diff(lists.score[0]) <= 0).all()


def test_queries_for_reads_histories_sessions_and_both(pipeline: Pipeline, data: TrainingData) -> None:
    known = pipeline.queries_for(["u4", "nobody"])
    items = data.interactions.item_ids
    assert known.user_idx[0] >= 0
    assert known.user_idx[1] == -1
    assert len(known.history(0)) == 6, "histories are of the fit part: two of eight are held out"
    session = pipeline.queries_for(recent_items=[["i003", "no such item", "i001"], []])
    assert [items[i] for i in session.history(0)] == ["i003", "i001"]
    assert (session.time_us < np.repeat(session.request_time_us, np.diff(session.indptr))).all()
    both = pipeline.queries_for(["u4"], recent_items=[["i003"]])
    assert both.history(0).tolist() == [*known.history(0).tolist(), session.history(0)[0]]
    assert (np.diff(both.time_us) > 0).all()
    with pytest.raises(ValueError, match="needs user_ids"):
        pipeline.queries_for()
    with pytest.raises(ValueError, match="must be as many"):
        pipeline.queries_for(["a"], recent_items=[])


def test_histories_end_at_the_request_time(pipeline: Pipeline) -> None:
    whole = pipeline.queries_for(["u4", "u5"])
    cut = pipeline.queries_for(["u4", "u5"], request_time_us=whole.time_us[[2, whole.indptr[1] + 4]])
    assert cut.history(0).tolist() == whole.history(0)[:2].tolist()
    assert cut.history(1).tolist() == whole.history(1)[:4].tolist()


def test_first_stages_never_see_the_targets(config: FunnelConfig, data: TrainingData) -> None:
    """Another validation item for every user leaves the first stages as they are."""
    world = data.interactions
    fold = leave_one_out(world)
    moved = np.where(world.from_end <= 1, (world.item_idx + 11) % 120, world.item_idx).astype(np.int32)
    other: Interactions = replace(world, item_idx=moved)
    other_fold = replace(fold, target_idx=((fold.target_idx + 11) % 120).astype(np.int32))
    one = fit_funnel(config, data, fold, dataset="planted").pipeline
    two = fit_funnel(config, replace(data, interactions=other), other_fold, dataset="planted").pipeline
    for a, b in zip(one.sources, two.sources, strict=True):
        np.testing.assert_array_equal(a.retriever.score(fold.queries), b.retriever.score(fold.queries))


def test_refit_reads_everything_and_keeps_the_blend(pipeline: Pipeline, data: TrainingData) -> None:
    served = refit(pipeline, data)
    assert served.blend == pipeline.blend
    assert len(served.histories.item_idx) == len(data.interactions)
    assert len(pipeline.histories.item_idx) == len(data.interactions) - 2 * data.interactions.num_users


def test_the_funnel_finds_the_planted_chain(config: FunnelConfig, data: TrainingData) -> None:
    report = fit_funnel(config, data, leave_one_out(data.interactions), dataset="planted").report
    assert report.ndcg10["blend"] >= max(report.ndcg10["transition_knn"], report.ndcg10["popularity"])
    assert report.ndcg10["transition_knn"] > 2 * report.ndcg10["popularity"]
    assert report.recall["union"] >= max(report.recall["transition_knn"], report.recall["popularity"])
