"""The whole funnel with rankers: what ships, what is reported, and that nothing is judged on what it was fitted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.blend_search import candidate_ndcg, label_candidates
from training.bootstrap import PairedComparison
from training.bundle import feature_hash, fingerprint
from training.cross_fit import ValidationCandidates, beats, cross_fit
from training.errors import BundleError, StudyError
from training.evaluate import evaluate
from training.feature_joins import fit_ranking_features
from training.funnel import BlendConfig, FittedFunnel, FunnelConfig, RankerConfig, SourceConfig, fit_funnel, refit
from training.interactions import Interactions
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.rankers.registry import ranker_class, ranker_settings
from training.splits import Fold, leave_one_out

TREES = RankerConfig(kind="lambdamart", config={"max_trees": 60, "min_data_in_leaf": 10, "num_leaves": 8})
NETWORK = RankerConfig(kind="listwise", config={"max_epochs": 4, "hidden": (16,), "cross_layers": 1, "batch_queries": 32})


@pytest.fixture(scope="module")
def parted(make_world) -> TrainingData:  # type: ignore[no-untyped-def]
    """The planted world, where every user in addition stays within one of two categories: the sources do not know them."""
    world: Interactions = make_world(users=400, items=120)
    half = (world.user_idx % 2).astype(np.int32)
    items = (world.item_idx // 2 * 2 + half).clip(0, 119).astype(np.int32)
    categories = np.empty(world.num_items, dtype=object)
    categories[:] = [["even"] if n % 2 == 0 else ["odd"] for n in range(world.num_items)]
    keep = np.zeros(len(world), dtype=bool)  # an item that parity brings in twice is kept once
    key = world.user_idx.astype(np.int64) * 1000 + items
    keep[np.unique(key, return_index=True)[1]] = True
    return TrainingData(replace(world, item_idx=items).select(keep), {"categories": categories})


@pytest.fixture(scope="module")
def popular() -> FunnelConfig:
    return FunnelConfig(sources=(SourceConfig(model="popularity", quota=80),), blend=BlendConfig(trials=0), ranker=TREES)


@pytest.fixture(scope="module")
def fold(parted: TrainingData) -> Fold:
    return leave_one_out(parted.interactions)


@pytest.fixture(scope="module")
def fitted(popular: FunnelConfig, parted: TrainingData, fold: Fold) -> FittedFunnel:
    return fit_funnel(popular, parted, fold, dataset="planted", seed=2, rankers=[TREES, NETWORK])


def test_a_ranker_that_knows_more_than_the_blend_ships(fitted: FittedFunnel) -> None:
    report = fitted.report
    assert report.shipped in {"lambdamart", "listwise"}
    assert fitted.pipeline.stage is not None
    assert fitted.pipeline.config.ranker.kind == report.shipped
    assert report.ndcg10[report.shipped] == max(report.ndcg10["lambdamart"], report.ndcg10["listwise"])
    assert report.ndcg10[report.shipped] > 1.3 * report.ndcg10["blend"]
    assert report.comparisons[report.shipped].ci95[0] > 0
    assert fitted.evaluation.metrics["ndcg@10"] > 1.3 * fitted.singles["popularity"].metrics["ndcg@10"]
    assert sum(report.importance.values()) == pytest.approx(1.0, abs=1e-3)


def test_the_reported_ndcg_is_that_of_the_lists(fitted: FittedFunnel) -> None:
    """Scores over candidates and whole lists agree, but for targets that only the filling finds."""
    assert fitted.evaluation.metrics["ndcg@10"] == pytest.approx(fitted.report.ndcg10[fitted.report.shipped], abs=0.005)


def test_on_new_users_the_funnel_does_what_validation_said(fitted: FittedFunnel, parted: TrainingData) -> None:
    test = leave_one_out(parted.interactions, "test")
    whole = evaluate(lambda queries, k: fitted.pipeline.recommend(queries, k), test)
    floor = evaluate(lambda queries, k: replace(fitted.pipeline, stage=None).recommend(queries, k), test)
    assert whole.metrics["ndcg@10"] > 1.2 * floor.metrics["ndcg@10"]


def test_a_bundle_with_a_ranker_answers_as_before(fitted: FittedFunnel, fold: Fold, tmp_path: Path) -> None:
    manifest = fitted.pipeline.save(
        tmp_path / "b", seed=2, fingerprint=fingerprint(fold.fit, trained_on="fit", includes_test_rows=False)
    )
    assert manifest.ranker == fitted.report.shipped
    assert manifest.feature_services == ("ranking_v1",)
    assert manifest.feature_hash == feature_hash(manifest.feature_names)
    loaded = Pipeline.load(tmp_path / "b")
    queries = fold.queries.slice(0, 60)
    before, after = fitted.pipeline.recommend(queries, 20), loaded.recommend(queries, 20)
    np.testing.assert_array_equal(before.item_idx, after.item_idx)
    np.testing.assert_array_equal(before.score, after.score)
    broken = next((tmp_path / "b" / "ranker").iterdir())
    broken.unlink()
    with pytest.raises(BundleError, match=f"lacks ranker/{broken.name}"):
        Pipeline.load(tmp_path / "b")


def test_single_queries_give_the_lists_of_the_batch(fitted: FittedFunnel, fold: Fold) -> None:
    queries = fold.queries.slice(0, 15)
    batch = fitted.pipeline.recommend(queries, 10)
    for b in range(15):
        np.testing.assert_array_equal(fitted.pipeline.recommend(queries.slice(b, b + 1), 10).item_idx[0], batch.item_idx[b])


def test_candidates_beyond_the_cut_keep_the_order_of_the_blend(fitted: FittedFunnel, fold: Fold) -> None:
    cut = replace(fitted.pipeline, config=fitted.pipeline.config.model_copy(update={"k_candidates": 10}))
    queries = fold.queries.slice(0, 10)
    lists = cut.recommend(queries, 60)
    by_blend = replace(cut, stage=None).recommend(queries, 60)
    assert (np.diff(lists.score, axis=1) <= 0).all()
    for b in range(10):
        assert set(lists.item_idx[b, :10]) == set(by_blend.item_idx[b, :10])
        np.testing.assert_array_equal(lists.item_idx[b, 10:], by_blend.item_idx[b, 10:])


def test_the_refit_keeps_ranker_and_feature_names(fitted: FittedFunnel, parted: TrainingData) -> None:
    served = refit(fitted.pipeline, parted)
    assert served.stage is not None
    assert fitted.pipeline.stage is not None
    assert served.stage.ranker is fitted.pipeline.stage.ranker
    assert served.stage.features.names == fitted.pipeline.stage.features.names
    lists = served.recommend(served.queries_for(["u1", "nobody"]), 10)
    assert (lists.item_idx >= 0).all()


def test_noise_does_not_ship_and_does_not_flatter(popular: FunnelConfig, parted: TrainingData, fold: Fold) -> None:
    """Targets drawn at random: fitted on them a ranker looks good on the same users, out of fold it does not."""
    drawn = np.random.default_rng(7).permutation(120)[: len(fold.target_idx) % 60 + 60]
    targets = np.random.default_rng(8).choice(drawn, len(fold.target_idx)).astype(np.int32)
    noisy = replace(fold, target_idx=targets)
    eager = RankerConfig(
        kind="lambdamart", config={"max_trees": 40, "min_data_in_leaf": 1, "num_leaves": 60, "learning_rate": 0.5}, confidence=0.99
    )
    pipeline = fit_funnel(popular, parted, noisy, dataset="planted", rankers=[RankerConfig()]).pipeline
    candidates = pipeline.retrieve(noisy.queries)
    labels = label_candidates(candidates, noisy.target_indptr, noisy.target_idx)
    found = ValidationCandidates(noisy.queries, candidates, labels, np.diff(noisy.target_indptr))
    features = fit_ranking_features(noisy.fit, pipeline.items, candidates.sources, seed=0)
    crossed = cross_fit(found, popular.blend, [eager], features, seed=0)
    rows = np.flatnonzero(labels.any(axis=1))
    batch = features.batch(noisy.queries.take(rows), candidates.take(rows), pipeline.blend)
    inside = ranker_class("lambdamart")(ranker_settings("lambdamart", eager.config)).fit(batch, labels[rows], seed=0, rounds=40)
    flattered = candidate_ndcg(inside.score(batch), labels[rows], batch.valid, np.ones(len(rows), dtype=np.int64)).sum() / len(
        labels
    )
    assert flattered > 2 * crossed.ndcg["lambdamart"]
    assert crossed.ranker is None
    assert crossed.config.kind == "blend"


def test_a_ranker_beats_the_blend_only_beyond_doubt() -> None:
    def outcome(difference: float, p: float) -> PairedComparison:
        return PairedComparison("ndcg@10", difference, (0.0, 0.0), p, 100)

    assert beats(outcome(0.01, 0.1), 0.9)
    assert not beats(outcome(0.01, 0.3), 0.9)
    assert not beats(outcome(-0.01, 0.001), 0.9)


def test_equal_seeds_give_equal_funnels(popular: FunnelConfig, parted: TrainingData, fold: Fold, fitted: FittedFunnel) -> None:
    again = fit_funnel(popular, parted, fold, dataset="planted", seed=2)
    for name in ("popularity", "blend", "lambdamart"):
        assert again.report.ndcg10[name] == fitted.report.ndcg10[name]
    assert again.pipeline.blend == fitted.pipeline.blend


def test_a_sample_of_validation_users_is_enough(popular: FunnelConfig, parted: TrainingData, fold: Fold) -> None:
    few = popular.model_copy(update={"validation_users": 80, "ranker": RankerConfig()})
    fitted = fit_funnel(few, parted, fold, dataset="planted", seed=1)
    assert len(fitted.evaluation.per_user) == 80


def test_a_bad_ranker_is_refused_before_any_work(popular: FunnelConfig, parted: TrainingData, fold: Fold) -> None:
    steps: list[str] = []
    bad = RankerConfig(kind="lambdamart", config={"leaves": 3})
    with pytest.raises(StudyError, match="parameter 'leaves'"):
        fit_funnel(popular, parted, fold, dataset="planted", rankers=[bad], progress=steps.append)
    assert steps == []


def test_a_handful_of_users_ends_in_a_blend(popular: FunnelConfig, make_world) -> None:  # type: ignore[no-untyped-def]
    tiny = TrainingData(make_world(users=3, items=20, length=4))
    fitted = fit_funnel(popular, tiny, leave_one_out(tiny.interactions), dataset="planted")
    assert fitted.report.shipped == "blend"
    assert (fitted.pipeline.recommend(fitted.pipeline.queries_for(["u0"]), 5).item_idx >= 0).all()


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="listed twice"):
        FunnelConfig(sources=(SourceConfig(model="ease"), SourceConfig(model="ease")))
    named = FunnelConfig(sources=(SourceConfig(model="ease"), SourceConfig(model="ease", name="ease_short")))
    assert [source.source for source in named.sources] == ["ease", "ease_short"]
