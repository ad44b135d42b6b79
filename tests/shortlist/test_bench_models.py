"""What `shortlist bench ease`, `bench evaluation` and `bench cold-items` measure, on worlds that take seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shortlist.bench.cold_items import text_knn
from shortlist.bench.ease import measure_ease
from shortlist.bench.evaluation import measure_evaluation
from training.dataset import from_frame
from training.evaluate import evaluate
from training.models.base import TrainingData
from training.splits import cold_items


def test_ease_is_measured_against_the_inverse() -> None:
    found = measure_ease(300, 1)
    assert found["scipy_inv_s"] > 0
    assert found["fit_over_inv"] > 0


def test_evaluation_by_blocks_says_what_a_loop_says() -> None:
    found = measure_evaluation(900, 400)
    assert found["users"] > 800
    assert abs(found["ndcg@10_difference"]) < 1e-6
    assert found["evaluate_over_loop"] > 0


def test_text_knn_finds_cold_items_by_their_words() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"u{user}", f"i{item:02d}") for user in range(40) for item in rng.choice(np.arange(user % 4, 60, 4), 8, replace=False)]
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"]))
    titles = np.array([f"kind{int(item[1:]) % 4} thing{int(item[1:]) // 8}" for item in interactions.item_ids], dtype=object)
    data = TrainingData(interactions, {"title": titles})
    fold = cold_items(interactions, "test", share=0.2, among="cold")
    found = evaluate(text_knn(data, fold), fold)
    assert found.metrics["recall@10"] > 0.95
    assert found.metrics["ndcg@10"] > 0.6
