"""Ranking features against slow counts, in one query and in many, from the history and from Feast's join."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo import own_views
from feature_repo.own_views import OwnView
from feature_repo.specs import USER_ACTIVITY, FeatureSpec
from features.request_features import request_features
from training.feature_joins import fit_ranking_features, with_user_features
from training.funnel import FunnelConfig, fit_funnel
from training.item_timeline import ItemTimeline
from training.item_vectors import RECENT, history_similarity, item_vectors
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.queries import queries_from_histories
from training.ranking_features import USER_FEATURES, RankingFeatures, item_scalars, user_feature_names
from training.splits import Fold, leave_one_out

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def fold(data: TrainingData) -> Fold:
    return leave_one_out(data.interactions)


@pytest.fixture(scope="module")
def features(pipeline: Pipeline, fold: Fold) -> RankingFeatures:
    return fit_ranking_features(fold.fit, pipeline.items, tuple(s.name for s in pipeline.sources), seed=0)


def test_names_and_values_line_up(pipeline: Pipeline, features: RankingFeatures, fold: Fold) -> None:
    queries = fold.queries.slice(0, 9)
    candidates = pipeline.retrieve(queries)
    batch = features.batch(queries, candidates, pipeline.blend)
    assert batch.names == features.names
    assert len(set(batch.names)) == len(batch.names)
    assert batch.features.shape == (*candidates.item_idx.shape, len(batch.names))

    def column(name: str) -> np.ndarray:
        return batch.features[:, :, batch.names.index(name)]

    valid = candidates.valid
    np.testing.assert_array_equal(column("popularity_score")[valid], candidates.score[:, :, 1][valid])
    np.testing.assert_array_equal(column("source_count")[valid], (~np.isnan(candidates.rank)).sum(axis=2)[valid])
    np.testing.assert_array_equal(column("popularity_present")[valid], ~np.isnan(candidates.rank[:, :, 1])[valid])
    np.testing.assert_allclose(column("blend_score")[valid], pipeline.blend.score(candidates)[valid])
    np.testing.assert_allclose(column("history_log_length")[:, 0], np.log1p(np.diff(queries.indptr)), rtol=1e-6)
    counts = np.bincount(fold.fit.item_idx, minlength=fold.fit.num_items)
    np.testing.assert_allclose(column("item_events_log")[valid], np.log1p(counts[candidates.item_idx])[valid], rtol=1e-6)
    best = np.where(valid, column("blend_inverse_rank"), 0).argmax(axis=1)
    np.testing.assert_array_equal(best, np.where(valid, pipeline.blend.score(candidates), -1).argmax(axis=1))


def test_one_query_has_the_features_that_it_has_in_a_batch(pipeline: Pipeline, features: RankingFeatures, fold: Fold) -> None:
    queries = fold.queries.slice(0, 12)
    together = features.batch(queries, pipeline.retrieve(queries), pipeline.blend)
    for b in range(12):
        query = queries.slice(b, b + 1)
        alone = features.batch(query, pipeline.retrieve(query), pipeline.blend)
        count = int(alone.valid.sum())
        np.testing.assert_allclose(alone.features[0, :count], together.features[b, :count], rtol=1e-4, atol=1e-5)


def test_feasts_join_and_the_history_give_the_same_user_features(features: RankingFeatures, fold: Fold) -> None:
    queries = fold.queries.slice(0, 40)
    joined = with_user_features(features, queries).user_features
    computed = features.user_features(queries)
    for name in USER_FEATURES:
        for left, right in zip(joined[name], computed[name], strict=True):
            np.testing.assert_array_equal(left, right)


def test_given_user_features_are_used_and_missing_ones_are_unknown(
    pipeline: Pipeline, features: RankingFeatures, fold: Fold
) -> None:
    queries = fold.queries.slice(0, 3)
    given = dict(features.user_features(queries))
    given["recent_distinct_items"] = np.array([49, 49, 49])
    batch = features.batch(replace(queries, user_features=given), pipeline.retrieve(queries), pipeline.blend)
    np.testing.assert_allclose(batch.features[:, 0, batch.names.index("user_log_recent_distinct")], np.log1p(49), rtol=1e-6)
    partial = features.user_features(replace(queries, user_features={"user_events": given["user_events"]}))
    assert set(partial) == set(USER_FEATURES)
    assert np.isnan(partial["user_last_event_us"]).all()


def test_a_query_without_history_has_features(pipeline: Pipeline, features: RankingFeatures) -> None:
    queries = queries_from_histories([[], [3, 4]])
    batch = features.batch(queries, pipeline.retrieve(queries), pipeline.blend)
    similarity = batch.features[:, :, batch.names.index("similarity_max")]
    assert np.isnan(similarity[0][batch.valid[0]]).all()
    assert np.isfinite(similarity[1][batch.valid[1]]).all()


def test_saved_and_loaded_features_are_equal(pipeline: Pipeline, features: RankingFeatures, fold: Fold, tmp_path: Path) -> None:
    features.save(tmp_path)
    loaded = RankingFeatures.load(tmp_path, pipeline.items)
    queries = fold.queries.slice(0, 20)
    candidates = pipeline.retrieve(queries)
    one, two = (part.batch(queries, candidates, pipeline.blend) for part in (features, loaded))
    assert one.names == two.names
    np.testing.assert_array_equal(one.features, two.features)


def test_another_blend_changes_its_columns_only(pipeline: Pipeline, features: RankingFeatures, fold: Fold) -> None:
    queries = fold.queries.slice(0, 8)
    candidates = pipeline.retrieve(queries)
    other = replace(pipeline.blend, parts=tuple(part.model_copy(update={"weight": 0.5}) for part in pipeline.blend.parts))
    fresh = features.batch(queries, candidates, other)
    changed = features.reblended(features.batch(queries, candidates, pipeline.blend), candidates, other)
    np.testing.assert_array_equal(fresh.features, changed.features)
    np.testing.assert_array_equal(fresh.base, changed.base)


def test_windows_of_past_requests_are_counted_as_of_then(rng: np.random.Generator) -> None:
    item = rng.integers(0, 6, 300).astype(np.int32)
    moment = rng.integers(100 * DAY_US, 160 * DAY_US, 300)
    timeline = ItemTimeline.of(item, moment)
    asked = rng.integers(0, 6, (15, 4)).astype(np.int32)
    request = rng.integers(95 * DAY_US, 165 * DAY_US, 15)
    for days in (7, 30):
        got = timeline.window_counts(asked, request, days)
        for b in range(15):
            since = (request[b] // DAY_US - days + 1) * DAY_US
            for k in range(4):
                wanted = ((item == asked[b, k]) & (moment >= since) & (moment < request[b])).sum()
                assert got[b, k] == wanted


def test_the_timeline_agrees_with_feasts_windows_at_the_end(pipeline: Pipeline, features: RankingFeatures, fold: Fold) -> None:
    """For a request right after the last event both ways of counting are the same."""
    timeline = ItemTimeline.of(fold.fit.item_idx, fold.fit.time_us)
    queries = replace(fold.queries.slice(0, 5), request_time_us=np.full(5, timeline.end_us + 1, dtype=np.int64))
    candidates = pipeline.retrieve(queries)
    stored = request_features(features.user_features(queries), features.request, queries.request_time_us, candidates.item_idx)
    for name, days in (("item_events_7d", 7), ("item_events_30d", 30)):
        counted = timeline.window_counts(np.maximum(candidates.item_idx, 0), queries.request_time_us, days)
        np.testing.assert_array_equal(counted[candidates.valid], stored[name][candidates.valid])


def test_vectors_bring_items_of_one_taste_together(rng: np.random.Generator, data: TrainingData) -> None:
    vectors = item_vectors(data.interactions, seed=0)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(norms[norms > 0], 1.0, rtol=1e-4)
    chain = np.mean([vectors[n] @ vectors[n + 1] for n in range(119)])
    far = np.mean([vectors[n] @ vectors[(n + 60) % 120] for n in range(119)])
    assert chain > far + 0.2
    np.testing.assert_array_equal(vectors, item_vectors(data.interactions, seed=0))


def test_similarity_equals_a_slow_cosine(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(20, 5)).astype(np.float32)
    histories = [[1, 2, 3], [], list(range(15))]
    item = np.array([[4, -1], [5, 6], [7, 8]], dtype=np.int32)
    last, largest, mean = history_similarity(vectors, queries_from_histories(histories), item)
    for b, history in enumerate(histories):
        for k in range(2):
            if item[b, k] < 0:
                continue
            cosines = [float(vectors[item[b, k]] @ vectors[h]) for h in history[-RECENT:][::-1]]
            if not cosines:
                assert np.isnan([last[b, k], largest[b, k], mean[b, k]]).all()
                continue
            got = [last[b, k], largest[b, k], mean[b, k]]
            np.testing.assert_allclose(got, [cosines[0], max(cosines), np.mean(cosines)], rtol=1e-4, atol=1e-5)


def test_scalars_leave_out_times_texts_lists_and_constants() -> None:
    columns = {
        "count": np.array([1, 3]),
        "number": np.array([0.5, np.nan]),
        "price": np.array([0.5, 2.0]),
        "same": np.array([2.0, 2.0]),
        "seen_us": np.array([1.0, 2.0]),
        "text": np.array(["a", "b"], dtype=object),
        "tiles": np.zeros((2, 3)),
    }
    assert list(item_scalars(columns)) == ["count_log", "price"]
    assert list(item_scalars(columns, ("price", "same"))) == ["price", "same"]


def test_data_without_times_has_unknown_windows(config: FunnelConfig, data: TrainingData) -> None:
    untimed = replace(
        data.interactions,
        time_known=np.zeros(len(data.interactions), dtype=bool),
        time_us=(np.arange(len(data.interactions)) - data.interactions.indptr[data.interactions.user_idx]).astype(np.int64),
    )
    fold = leave_one_out(untimed)
    pipeline = fit_funnel(config, replace(data, interactions=untimed), fold, dataset="planted").pipeline
    features = fit_ranking_features(fold.fit, pipeline.items, tuple(s.name for s in pipeline.sources), seed=0)
    batch = features.batch(fold.queries.slice(0, 4), pipeline.retrieve(fold.queries.slice(0, 4)), pipeline.blend)
    for name in ("user_events_1d", "item_events_7d", "item_age_days", "days_since_last_event"):
        assert np.isnan(batch.features[:, :, batch.names.index(name)]).all(), name


def test_a_view_of_ones_own_on_users_is_read_from_the_join_and_from_the_history_alike(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, features: RankingFeatures, fold: Fold
) -> None:
    def repeats(rows: pa.Table) -> dict[str, np.ndarray]:
        return {"habit_repeats": rows["recent_distinct_items"].to_numpy() / rows["user_events"].to_numpy()}

    spec = FeatureSpec("habit_repeats", "number", "1", "Distinct recent items for an event.")
    monkeypatch.setattr(own_views, "OWN_VIEWS", (OwnView("user_habits", USER_ACTIVITY, (spec,), repeats, "Habits."),))
    features = replace(features)  # names are cached
    queries = fold.queries.take(np.arange(20))
    candidates = pipeline.retrieve(queries, None, 10)
    joined = with_user_features(features, queries)
    alone = features.batch(queries, candidates, pipeline.blend)
    given = features.batch(joined, candidates, pipeline.blend)
    column = alone.names.index("habit_repeats")
    assert "habit_repeats" in user_feature_names()
    np.testing.assert_array_equal(alone.features[:, :, column], given.features[:, :, column])
    expected = joined.user_features["recent_distinct_items"] / joined.user_features["user_events"]
    np.testing.assert_allclose(alone.features[:, 0, column], expected, rtol=1e-6)
    unknown = features.batch(replace(queries, user_features={"user_events": np.ones(20, np.int64)}), candidates, pipeline.blend)
    assert np.isnan(unknown.features[:, :, column]).all()
