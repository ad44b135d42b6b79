"""Trees by bits say what LightGBM says, and a text that is no forest is refused before LightGBM sees it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.interactions import BoolArray
from training.rankers.base import RankingBatch
from training.rankers.lambdamart import LambdaMart, LambdaMartConfig, load_lightgbm
from training.rankers.tree_scorer import TreeScorer
from training.rankers.tree_text import Tree, read_trees

FEATURES = 12


def rows_with_holes(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Reals, whole numbers, constants, infinities, zeros of either sign, and missing values in the odd columns."""
    rows = rng.normal(size=(count, FEATURES)).astype(np.float32)
    rows[:, 2:4] = np.round(rows[:, 2:4])
    rows[:, 4] = 3.0
    rows[:, 5] = rng.choice([-0.0, 0.0, np.nan], count)
    rows[:, 6] = rng.choice([-np.inf, -1.0, 1.0, np.inf], count)
    rows[:, 7] = rows[:, 1] * np.float32(1e-30)
    rows[:, 1::2][rng.random((count, FEATURES // 2)) < 0.3] = np.nan
    return rows


def trained(rng: np.random.Generator, leaves: int, trees: int = 40) -> Any:
    lgb = load_lightgbm()
    rows = rows_with_holes(rng, 3_000)
    finite = np.nan_to_num(np.clip(rows, -2, 2), nan=0.7)
    target = finite[:, 0] * finite[:, 1] + finite[:, 2:8].sum(axis=1) + np.isnan(rows[:, 9]) + finite[:, 10] * finite[:, 11]
    params = {"objective": "regression", "num_leaves": leaves, "min_data_in_leaf": 5, "verbosity": -1, "num_threads": 1}
    return lgb.train(params, lgb.Dataset(rows, label=target), trees)


def planted(features: np.ndarray[Any, np.dtype[np.float32]], signal: np.ndarray[Any, Any]) -> tuple[RankingBatch, BoolArray]:
    """A query a row of (B, K, F) features, whose target has the largest (B, K) signal."""
    names = tuple("abc"[: features.shape[2]])
    labels = signal == signal.max(axis=1, keepdims=True)
    return RankingBatch(names, features, np.ones(features.shape[:2], dtype=bool), features[:, :, 0]), labels


@pytest.mark.parametrize("leaves", [2, 8, 31, 32, 33, 64])
def test_scores_are_those_of_lightgbm(rng: np.random.Generator, leaves: int) -> None:
    booster = trained(rng, leaves)
    names, trees = read_trees(booster.model_to_string())
    assert names == tuple(booster.feature_name())
    scorer = TreeScorer(trees)
    rows = rows_with_holes(rng, 2_000)
    np.testing.assert_allclose(scorer.score(rows), booster.predict(rows), rtol=0, atol=1e-12)
    for few in (0, 1, 3):
        np.testing.assert_allclose(scorer.score(rows[:few]), booster.predict(rows[: max(few, 1)])[:few], rtol=0, atol=1e-12)
    alike = rows.copy()
    alike[:, :6] = rows[0, :6]  # a user's features are equal in all rows, missing ones too
    np.testing.assert_allclose(scorer.score(alike), booster.predict(alike), rtol=0, atol=1e-12)
    strided = np.asfortranarray(rows)[::3]
    np.testing.assert_allclose(scorer.score(strided), booster.predict(rows)[::3], rtol=0, atol=1e-12)


def test_values_beside_a_threshold_go_where_lightgbm_sends_them(rng: np.random.Generator) -> None:
    booster = trained(rng, 16, 10)
    _, trees = read_trees(booster.model_to_string())
    thresholds = np.unique(np.concatenate([tree.threshold for tree in trees]))
    near = np.append(thresholds[np.abs(thresholds) < 1e30], [1e-35, -1e-35, 0.0]).astype(np.float32)
    beside = np.concatenate(
        [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf)), [np.inf, -np.inf]]
    )
    rows = np.repeat(beside.astype(np.float32)[:, None], FEATURES, axis=1)
    np.testing.assert_allclose(TreeScorer(trees).score(rows), booster.predict(rows), rtol=0, atol=1e-12)


def test_a_constant_is_a_tree_of_one_leaf() -> None:
    lgb = load_lightgbm()
    rows = np.zeros((50, 2), dtype=np.float32)
    booster = lgb.train({"verbosity": -1, "objective": "regression"}, lgb.Dataset(rows, label=np.full(50, 2.5)), 3)
    _, trees = read_trees(booster.model_to_string())
    np.testing.assert_allclose(TreeScorer(trees).score(rows), booster.predict(rows))


def test_larger_trees_are_scored_by_lightgbm(rng: np.random.Generator, tmp_path: Path) -> None:
    features = rng.normal(size=(200, 40, 3)).astype(np.float32)
    batch, labels = planted(features, features[:, :, 1] * features[:, :, 2])
    ranker = LambdaMart(LambdaMartConfig(num_leaves=200, min_data_in_leaf=1, max_trees=3)).fit(batch, labels, seed=0, rounds=3)
    assert max(len(tree.leaf_value) for tree in read_trees(ranker.text)[1]) > 64
    ranker.save(tmp_path)
    again = LambdaMart.load(tmp_path, ranker.config, batch.names)
    np.testing.assert_array_equal(again.score(batch), ranker.score(batch))
    assert np.ptp(ranker.score(batch) - batch.base) > 0.01
    with pytest.raises(ValueError, match="leaves, of at most 64"):
        TreeScorer(read_trees(ranker.text)[1])


def test_few_rows_and_many_score_alike(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    features = rng.normal(size=(100, 40, 3)).astype(np.float32)
    batch, labels = planted(features, features[:, :, 1])
    batch = replace(batch, valid=rng.random((100, 40)) < 0.8)
    ranker = LambdaMart(LambdaMartConfig(num_leaves=8, min_data_in_leaf=5)).fit(batch, labels, seed=0, rounds=5)
    by_bits = ranker.score(batch)
    monkeypatch.setattr("training.rankers.lambdamart.FEW_ROWS", 10)
    np.testing.assert_allclose(ranker.score(batch), by_bits, atol=1e-6)


def test_a_ranker_of_trees_is_read_and_scores_without_lightgbm(rng: np.random.Generator, tmp_path: Path) -> None:
    features = rng.normal(size=(60, 20, 2)).astype(np.float32)
    batch, labels = planted(features, features[:, :, 1])
    ranker = LambdaMart(LambdaMartConfig(num_leaves=8, min_data_in_leaf=5)).fit(batch, labels, seed=0, rounds=3)
    ranker.save(tmp_path)
    np.save(tmp_path / "rows.npy", features)
    script = """
import sys, numpy as np
from pathlib import Path
from training.rankers.base import RankingBatch
from training.rankers.lambdamart import LambdaMart, LambdaMartConfig
rows = np.load(sys.argv[1] + "/rows.npy")
batch = RankingBatch(("a", "b"), rows, np.ones(rows.shape[:2], dtype=bool), rows[:, :, 0])
print(float(LambdaMart.load(Path(sys.argv[1]), LambdaMartConfig(), batch.names).score(batch).sum()), "lightgbm" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True).stdout.split()
    assert float(said[0]) == pytest.approx(float(ranker.score(batch).sum()), rel=1e-6)
    assert said[1] == "False"


@pytest.mark.parametrize(
    ("pattern", "by", "message"),
    [
        (r"end of trees[\s\S]*", "", "not all of them"),
        (r"Tree=1\n[\s\S]*?(?=Tree=2)", "", "as many trees as it says"),
        (r"threshold=\S+ ", "threshold=", "of threshold where"),
        (r"split_feature=\d+", "split_feature=99", "a feature that the model does not have"),
        (r"num_leaves=\d+", "num_leaves=x", "invalid literal"),
        (r"num_leaves=\d+", "num_leaves=-3", "where 0 are due"),
        (r"num_cat=0", "num_cat=2", "by category"),
        (r"is_linear=0", "is_linear=1", "linear leaves"),
        (r"decision_type=\d+", "decision_type=4", "of a kind"),
        (r"decision_type=\d+", "decision_type=1", "of a kind"),
        (r"left_child=-?\d+", "left_child=0", "do not make a tree"),
        (r"leaf_value=\S+", "leaf_value=nan", "NaN or infinite"),
    ],
)
def test_a_damaged_text_is_refused(rng: np.random.Generator, pattern: str, by: str, message: str) -> None:
    text = trained(rng, 8, 3).model_to_string()
    damaged, changes = re.subn(pattern, by, text, count=1)
    assert changes == 1
    with pytest.raises(ValueError, match=message):
        read_trees(damaged)


def test_splits_that_go_round_in_a_circle_are_refused(rng: np.random.Generator) -> None:
    """Each hangs from one split, as in a tree, but two of them from each other."""
    tree = Tree(
        np.zeros(4), np.zeros(3, dtype=np.int64), np.zeros(3), np.zeros(3, dtype=bool), np.array([-1, 2, 1]), np.array([-2, -3, -4])
    )
    with pytest.raises(ValueError, match="do not make a tree"):
        TreeScorer([tree])
    whole = replace(tree, left=np.array([1, 2, -1]))
    assert TreeScorer([whole]).score(np.zeros((2, 1), dtype=np.float32)).tolist() == [0.0, 0.0]
