"""Metrics against direct, slow definitions; ties against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.metrics import METRICS, pessimistic_hits


def slow(name: str, ranked: list[int], relevant: set[int], k: int) -> float:
    top = ranked[:k]
    found = [item in relevant for item in top]
    if name == "hr":
        return float(any(found))
    if name == "recall":
        return sum(found) / len(relevant)
    if name == "precision":
        return sum(found) / k
    if name == "mrr":
        return next((1 / rank for rank, hit in enumerate(found, start=1) if hit), 0.0)
    if name == "map":
        return sum(sum(found[: r + 1]) / (r + 1) for r, hit in enumerate(found) if hit) / len(relevant)
    ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(relevant))))
    return sum(1 / math.log2(r + 2) for r, hit in enumerate(found) if hit) / ideal


lists = st.permutations(range(8)).flatmap(
    lambda items: st.tuples(st.just(items), st.integers(1, 8), st.sets(st.integers(0, 9), min_size=1, max_size=6))
)


@given(st.lists(lists, min_size=1, max_size=5), st.integers(1, 10))
@settings(max_examples=150, deadline=None)
def test_metrics_equal_the_slow_definitions(cases, k: int) -> None:
    item_idx = np.array(
        [[item if rank < length else -1 for rank, item in enumerate(items)] for items, length, _ in cases], np.int32
    )
    score = np.where(item_idx >= 0, -np.arange(8, dtype=np.float32), -np.inf).astype(np.float32)
    targets = [sorted(relevant) for _, _, relevant in cases]
    indptr = np.concatenate([[0], np.cumsum([len(t) for t in targets])])
    hits = pessimistic_hits(item_idx, score, indptr, np.concatenate(targets).astype(np.int32), 10, complete=True)
    for name, metric in METRICS.items():
        expected = [slow(name, list(items[:length]), relevant, k) for items, length, relevant in cases]
        np.testing.assert_allclose(metric(hits, np.diff(indptr), k), expected, err_msg=name)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_ties_count_as_the_worst_order(levels: list[int], data) -> None:
    scores = sorted(levels, reverse=True)
    relevant = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1))
    k = data.draw(st.integers(1, len(scores)))
    worst = min(
        slow("ndcg", list(order), relevant, k)
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    )
    hits = pessimistic_hits(
        np.arange(len(scores), dtype=np.int32)[None],
        np.array([scores], dtype=np.float32),
        np.array([0, len(relevant)]),
        np.array(sorted(relevant), dtype=np.int32),
        len(scores),
        complete=True,
    )
    assert METRICS["ndcg"](hits, np.array([len(relevant)]), k)[0] == pytest.approx(worst)


def test_a_tie_that_may_go_on_beyond_the_list_is_a_miss() -> None:
    item_idx, indptr, target = np.array([[4, 1, 2]], np.int32), np.array([0, 1]), np.array([2], np.int32)
    tied, apart = np.array([[3, 1, 1]], np.float32), np.array([[3, 2, 1]], np.float32)
    assert not pessimistic_hits(item_idx, tied, indptr, target, 9, complete=False).any()
    assert pessimistic_hits(item_idx, tied, indptr, target, 9, complete=True)[0].tolist() == [False, False, True]
    # The last place of a cut list is always such a run; callers ask for one more than they count.
    assert not pessimistic_hits(item_idx, apart, indptr, target, 9, complete=False).any()
    short = np.array([[4, 2, -1]], np.int32)
    assert pessimistic_hits(short, np.array([[3, 1, -np.inf]], np.float32), indptr, target, 9, complete=False)[0, 1]
