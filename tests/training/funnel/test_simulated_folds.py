"""Rankers for new items learn on hidden items: what is hidden, what is learned, and that it holds for items never seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.bundle import fingerprint
from training.dataset import from_frame
from training.errors import ProtocolError
from training.evaluate import evaluate
from training.funnel import BlendConfig, FittedFunnel, FunnelConfig, RankerConfig, SourceConfig, fit_funnel, refit
from training.item_periods import PERIOD_FEATURES
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.rankers.base import hold_out
from training.simulated_folds import simulated_draws, simulated_folds
from training.splits import Fold, cold_items, leave_one_out

ITEMS, USERS, TOPICS = 240, 400, 6
TREES = RankerConfig(kind="lambdamart", config={"max_trees": 60, "min_data_in_leaf": 20, "num_leaves": 8, "base_weight": 0.3})


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """Users keep to a topic, which texts tell, and to the items listed near a day, which only codes tell; ids say nothing."""
    rng = np.random.default_rng(5)
    topic, listed = rng.integers(TOPICS, size=ITEMS), np.arange(ITEMS)
    names = rng.permutation(ITEMS)
    rows = []
    for user in range(USERS):
        day, taste = rng.uniform(0, ITEMS), rng.integers(TOPICS)
        likely = np.exp(-(((listed - day) / 20.0) ** 2)) * np.where(topic == taste, 1.0, 0.02)
        for step, item in enumerate(rng.choice(ITEMS, 8, replace=False, p=likely / likely.sum())):
            rows.append((f"u{user}", f"i{names[item]:03d}", step, listed[item] + 30 + rng.uniform(0, 5)))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "day"])
    frame["timestamp"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(frame["day"], unit="D")
    interactions = from_frame(frame.drop(columns="day"), item_ids=np.array([f"i{n:03d}" for n in range(ITEMS)], dtype=object))
    number = np.argsort(names)  # of item_idx: ids are in order
    words = np.array([f"topic{topic[n]} thing" for n in number], dtype=object)
    codes = np.array([f"AB{listed[n]:04d}X" for n in number], dtype=object)
    return TrainingData(interactions, {"title": words, "code": codes})


@pytest.fixture(scope="module")
def fold(data: TrainingData) -> Fold:
    return cold_items(data.interactions, share=0.1, among="cold")


@pytest.fixture(scope="module")
def config() -> FunnelConfig:
    text = SourceConfig(model="text_knn", quota=100, config={"freedom": 0.0, "code_weight": 0.0})
    return FunnelConfig(sources=(text,), blend=BlendConfig(trials=0), ranker=TREES, k_candidates=30, simulated_folds=3)


@pytest.fixture(scope="module")
def fitted(config: FunnelConfig, data: TrainingData, fold: Fold) -> FittedFunnel:
    return fit_funnel(config, data, fold, dataset="planted", seed=1)


def test_each_draw_hides_other_items_with_activity_and_asks_for_them(fold: Fold) -> None:
    assert fold.allowed is not None
    seen = np.zeros(fold.fit.num_items, dtype=int)
    for part in simulated_folds(fold, 3, seed=0):
        assert part.allowed is not None
        seen += part.allowed
        assert part.allowed.sum() == fold.allowed.sum()
        assert part.allowed[part.target_idx].all()
        assert not part.allowed[part.fit.item_idx].any()
        assert not part.allowed[part.queries.item_idx].any()
        assert len(part.fit) < len(fold.fit)
    assert seen.max() == 1
    assert not seen[fold.allowed].any()


def test_a_fold_that_ranks_known_items_too_is_refused(data: TrainingData, fold: Fold) -> None:
    for other in (leave_one_out(data.interactions), cold_items(data.interactions)):
        with pytest.raises(ProtocolError, match='among = "cold"'):
            next(simulated_folds(other, 2, seed=0))
    with pytest.raises(ProtocolError, match="ask for fewer"):
        next(simulated_folds(fold, 6, seed=0))


def test_what_hidden_items_teach_holds_for_new_ones(fitted: FittedFunnel, data: TrainingData) -> None:
    """The text alone cannot tell items of a topic apart; that their days must fit is learned on hidden items."""
    assert fitted.report.shipped == "lambdamart"
    assert fitted.report.ndcg10["lambdamart"] > 1.2 * fitted.report.ndcg10["blend"]
    assert fitted.report.comparisons["lambdamart"].ci95[0] > 0
    assert fitted.evaluation.metrics["ndcg@10"] == pytest.approx(fitted.report.ndcg10["lambdamart"], abs=1e-6)
    test = cold_items(data.interactions, "test", share=0.1, among="cold")
    whole = evaluate(lambda queries, k: fitted.pipeline.recommend(queries, k, test.allowed), test)
    by_blend = replace(fitted.pipeline, stage=None)
    floor = evaluate(lambda queries, k: by_blend.recommend(queries, k, test.allowed), test)
    assert whole.metrics["ndcg@10"] > 1.2 * floor.metrics["ndcg@10"]


def test_targets_of_validation_teach_nothing(fitted: FittedFunnel, config: FunnelConfig, data: TrainingData, fold: Fold) -> None:
    """With every query's targets moved to another item, blend and trees are the same, and only the verdict differs."""
    assert fold.allowed is not None
    new = np.flatnonzero(fold.allowed)
    moved = replace(fold, target_idx=np.roll(new, 1)[np.searchsorted(new, fold.target_idx)].astype(np.int32))
    other = fit_funnel(
        config.model_copy(update={"ranker": TREES.model_copy(update={"confidence": 0.01})}), data, moved, dataset="p", seed=1
    )
    assert other.pipeline.blend == fitted.pipeline.blend
    assert other.report.ndcg10["lambdamart"] != fitted.report.ndcg10["lambdamart"]
    draws = simulated_draws(config, data, fold, with_features=True, seed=1)
    again = simulated_draws(config, data, moved, with_features=True, seed=1)
    for mine, theirs in zip(draws, again, strict=True):
        np.testing.assert_array_equal(mine.found.candidates.item_idx, theirs.found.candidates.item_idx)
        np.testing.assert_array_equal(mine.found.labels, theirs.found.labels)


def test_a_bundle_keeps_the_periods_and_a_refit_reads_them_anew(
    fitted: FittedFunnel, data: TrainingData, fold: Fold, tmp_path: Path
) -> None:
    stage = fitted.pipeline.stage
    assert stage is not None
    assert stage.features.periods is not None
    assert set(PERIOD_FEATURES) <= set(stage.features.names)
    assert not any(name.startswith(("item_first", "metadata_")) for name in stage.features.names)
    fitted.pipeline.save(tmp_path / "b", seed=1, fingerprint=fingerprint(fold.fit, trained_on="fit", includes_test_rows=False))
    loaded, queries = Pipeline.load(tmp_path / "b"), fold.queries.slice(0, 40)
    before, after = fitted.pipeline.recommend(queries, 10, fold.allowed), loaded.recommend(queries, 10, fold.allowed)
    np.testing.assert_array_equal(before.item_idx, after.item_idx)
    served = refit(fitted.pipeline, data, seed=1)
    assert served.stage is not None
    assert served.stage.features.names == stage.features.names
    assert served.stage.features.periods is not None
    assert not np.array_equal(served.stage.features.periods, stage.features.periods)


def test_whole_groups_are_held_out() -> None:
    groups = np.repeat([4, 7, 9, 11], [5, 1, 3, 2])
    learn, held = hold_out(len(groups), 0.25, seed=2, groups=groups)
    assert sorted([*learn, *held]) == list(range(len(groups)))
    assert len(np.unique(groups[held])) == 1
    assert not set(groups[learn]) & set(groups[held])
