"""Evaluation by blocks against a plain loop over users, with the same scores: processor time, wall time and memory of one run."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from training.candidates import Retrieved
from training.dataset import from_frame
from training.evaluate import Recommend, evaluate
from training.fold import Fold
from training.interactions import FloatArray
from training.models.base import top_k
from training.queries import QueryBatch
from training.splits import leave_one_out
from training.trial import peak_memory_mb, reset_peak_memory

WIDTH = 64
LOOP_USERS = 1_000
"""Users that the loop is timed on; its time for all is that many times as long."""


def measure_evaluation(users: int, items: int, history: int = 9) -> dict[str, float]:
    """All metrics of `evaluate` by blocks, and NDCG@10 alone by a loop, on a simulated world.

    Args:
        users: asked, one target each.
        items: ranked for each of them.
        history: interactions a user.
    """
    rng = np.random.default_rng(0)
    rows = {"user_id": np.repeat(np.arange(users), history), "item_id": (items * rng.random(users * history) ** 2).astype(int)}
    interactions = from_frame(pd.DataFrame(rows), item_ids=np.arange(items).astype(object))
    fold = leave_one_out(interactions, "test")
    vectors = rng.normal(size=(interactions.num_items, WIDTH)).astype(np.float32)
    reset_peak_memory()
    before_mb, cpu, wall = peak_memory_mb(), time.process_time(), time.perf_counter()
    found = evaluate(_dot_products(vectors), fold)
    blocks_s, blocks_wall_s, peak_mb = time.process_time() - cpu, time.perf_counter() - wall, peak_memory_mb()
    sample = min(LOOP_USERS, len(fold.queries))
    cpu = time.process_time()
    by_loop = ndcg_by_loop(vectors, fold, sample)
    loop_s = (time.process_time() - cpu) / sample * len(fold.queries)
    return {
        "users": len(fold.queries),
        "evaluate_s": round(blocks_wall_s, 2),
        "evaluate_cpu_s": round(blocks_s, 2),
        "loop_cpu_s": round(loop_s, 2),
        "evaluate_over_loop": round(blocks_s / loop_s, 3),
        "peak_memory_mb": round(peak_mb - before_mb, 1),
        "all_scores_mb": round(len(fold.queries) * interactions.num_items * 4 / 2**20, 1),
        "ndcg@10_difference": round(float(found.per_user["ndcg@10"][:sample].mean()) - by_loop, 6),
    }


def ndcg_by_loop(vectors: FloatArray, fold: Fold, users: int) -> float:
    """Mean NDCG@10 of the first `users`, one by one: score all items, sort them, look where the target stands."""
    total = 0.0
    for b in range(users):
        history = fold.queries.history(b)
        scores = vectors[history].sum(axis=0) @ vectors.T
        scores[history] = -np.inf
        place = np.flatnonzero(np.isin(np.argsort(-scores)[:10], fold.targets(b)))
        total += float((1.0 / np.log2(place + 2.0)).sum())
    return total / users


def _dot_products(vectors: FloatArray) -> Recommend:
    def recommend(queries: QueryBatch, k: int) -> Retrieved:
        sums = np.zeros((len(queries), vectors.shape[1]), dtype=np.float32)
        np.add.at(sums, queries.row, vectors[queries.item_idx])
        scores = sums @ vectors.T
        scores[queries.row, queries.item_idx] = -np.inf
        return top_k(scores, k)

    return recommend
