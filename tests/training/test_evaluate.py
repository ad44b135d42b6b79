"""Evaluation: against a slow loop, masking, blocks, and its report."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from training import evaluate as evaluation
from training.candidates import Retrieved
from training.dataset import from_frame
from training.evaluate import evaluate, paired_bootstrap, retriever_recommend
from training.models.base import TrainingData, top_k
from training.models.popularity import Popularity
from training.models.transition_knn import TransitionKnn
from training.splits import given, leave_one_out
from training.testing import small_world


def test_equals_a_slow_loop_over_all_scores() -> None:
    data = small_world(users=60)
    fold = leave_one_out(data.interactions, "test")
    model = TransitionKnn().fit(TrainingData(fold.fit))
    found = evaluate(retriever_recommend(model, fold), fold)
    expected = []
    for b in range(len(fold.queries)):
        scores = model.score(fold.queries.slice(b, b + 1))[0]
        seen = set(fold.queries.history(b).tolist())
        target = int(fold.targets(b)[0])
        rank = sum(s >= scores[target] for i, s in enumerate(scores) if i not in seen and i != target)
        expected.append(1 / math.log2(rank + 2) if rank < 10 else 0.0)
    np.testing.assert_allclose(found.per_user["ndcg@10"], expected, atol=1e-6)
    assert found.metrics["ndcg@10"] == pytest.approx(np.mean(expected))
    low, high = found.ci95["ndcg@10"]
    assert low < found.metrics["ndcg@10"] < high
    report = found.to_json()
    assert report["protocol"] == "leave-one-out"
    assert report["users"] == len(fold.queries)
    promised = {"hr@5", "hr@10", "ndcg@5", "ndcg@10", "recall@20", "ndcg@20", "recall@50", "mrr@10", "map@10", "coverage@10"}
    assert promised <= set(report["metrics"])
    cut = evaluate(retriever_recommend(model, fold), fold, ks=(3, 10))  # lists of 11 of 32 items
    np.testing.assert_array_equal(cut.per_user["ndcg@10"], found.per_user["ndcg@10"])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_world()
    fold = leave_one_out(data.interactions, "test")
    recommend = retriever_recommend(TransitionKnn().fit(TrainingData(fold.fit)), fold)
    whole = evaluate(recommend, fold)
    monkeypatch.setattr(evaluation, "BLOCK_CELLS", 3 * data.interactions.num_items)
    assert evaluate(recommend, fold).metrics == whole.metrics


def test_history_is_dropped_whoever_recommends_it() -> None:
    interactions = from_frame(pd.DataFrame({"user_id": ["a"] * 3, "item_id": ["p", "q", "r"], "position": [0, 1, 2]}))
    fold = leave_one_out(interactions, "test")

    def everything(queries, k: int) -> Retrieved:
        return top_k(np.array([[3.0, 2.0, 1.0]] * len(queries), dtype=np.float32), k)

    assert evaluate(everything, fold).metrics["mrr@5"] == 1.0


def test_given_keeps_a_test_item_that_is_in_the_history_too() -> None:
    rows = [("a", "p", "train"), ("a", "q", "train"), ("a", "p", "test"), ("b", "r", "train"), ("b", "q", "train")]
    fold = given(from_frame(pd.DataFrame(rows, columns=["user_id", "item_id", "split"])), "test", refit=True)
    scores = np.array([[1.0, 3.0, 2.0]], dtype=np.float32)  # q is history and not a target: it must not take a place

    found = evaluate(lambda queries, k: top_k(np.repeat(scores, len(queries), axis=0), k), fold)
    assert found.metrics["mrr@5"] == 0.5


def test_list_figures_on_a_known_case() -> None:
    frame = pd.DataFrame({"user_id": list("aaabbc"), "item_id": list("pqrpqp"), "position": [0, 1, 2, 0, 1, 0]})
    interactions = from_frame(frame)
    fold = leave_one_out(interactions, "test")  # fit: a took p, b took p
    categories = np.empty(3, dtype=object)
    categories[:] = [["x"], ["x > y"], None]
    lists = np.array([[0, 1, 2]] * 2, dtype=np.int32)
    asked = evaluate(lambda queries, k: Retrieved(lists, np.array([[3, 2, 1]] * 2, np.float32)), fold, categories=categories)
    per_user = asked.per_user
    # a's history p, q leaves r; b's history p leaves q, r: 3 exposures on 2 of 3 items.
    assert asked.metrics["coverage@10"] == pytest.approx(2 / 3)
    assert asked.metrics["gini@10"] == pytest.approx((-2 * 0 + 0 * 1 + 2 * 2) / (3 * 3))
    assert per_user["popularity_lift@10"].tolist() == pytest.approx([-1.0, -1.0])
    assert per_user["novelty@10"].tolist() == pytest.approx([1.0, 1.0])  # nobody of 2 users: as one of two
    assert per_user["diversity@10"].isna().all()
    both = evaluate(lambda queries, k: Retrieved(lists[:, :2], np.array([[3, 2]] * 2, np.float32)), fold, categories=categories)
    assert "diversity@10" not in both.metrics


def test_paired_bootstrap_sees_a_difference_and_none() -> None:
    data = small_world(users=300)
    fold = leave_one_out(data.interactions, "test")
    fit = TrainingData(fold.fit)
    strong = evaluate(retriever_recommend(TransitionKnn().fit(fit), fold), fold)
    weak = evaluate(retriever_recommend(Popularity().fit(fit), fold), fold)
    found = paired_bootstrap(strong, weak, "ndcg@10")
    assert found.ci95[0] > 0
    assert found.p < 0.01
    assert found.difference == pytest.approx(strong.metrics["ndcg@10"] - weak.metrics["ndcg@10"])
    same = paired_bootstrap(weak, weak, "ndcg@10")
    assert same.difference == 0
    assert same.p == 1.0
    with pytest.raises(ValueError, match="users differ"):
        paired_bootstrap(strong, evaluate(retriever_recommend(Popularity().fit(fit), leave_one_out(data.interactions)),
                                          leave_one_out(data.interactions)), "ndcg@10")  # fmt: skip
    with pytest.raises(ValueError, match=r"no per-user metric 'auc'"):
        paired_bootstrap(strong, weak, "auc")
