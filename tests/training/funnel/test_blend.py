"""The blend's scales, and its search."""

from __future__ import annotations

import numpy as np
import pytest

from training.blend import Blend, equal_blend, normalised
from training.blend_search import candidate_ndcg, label_candidates, search_blend
from training.candidates import CandidateSet
from training.funnel_config import BlendConfig, SourceBlend
from training.interactions import BoolArray

NAN = np.nan


@pytest.mark.parametrize("normalisation", ["minmax", "softmax", "rank"])
def test_scales_keep_the_order_and_give_absent_items_zero(normalisation: str) -> None:
    score = np.array([[5.0, 3.0, NAN, 1.0], [NAN] * 4, [2.0, 2.0, 2.0, NAN]], dtype=np.float32)
    rank = np.array([[0, 1, NAN, 2], [NAN] * 4, [0, 1, 2, NAN]], dtype=np.float32)
    scaled = normalised(score, rank, SourceBlend(normalisation=normalisation, power=0.5))
    assert scaled[0, 0] == 1.0
    assert scaled[0, 0] > scaled[0, 1] > scaled[0, 3] >= 0.0
    assert scaled[0, 2] == 0.0
    assert (scaled[1] == 0).all()
    assert scaled[2, 3] == 0.0
    if normalisation != "rank":
        assert (scaled[2] == 0).all(), "equal scores say nothing"


def test_scales_do_not_depend_on_the_source_scale() -> None:
    score = np.array([[5.0, 3.0, 1.0, 0.5]], dtype=np.float32)
    rank = np.arange(4, dtype=np.float32)[None]
    for part in (SourceBlend(), SourceBlend(normalisation="softmax", temperature=0.5)):
        np.testing.assert_allclose(normalised(score, rank, part), normalised(score * 1000 - 7, rank, part), rtol=1e-3)


def random_candidates(rng: np.random.Generator, queries: int, width: int, sources: int) -> CandidateSet:
    item = np.array([np.sort(rng.choice(width * 3, width, replace=False)) for _ in range(queries)], dtype=np.int32)
    score = rng.normal(size=(queries, width, sources)).astype(np.float32)
    score[rng.random(score.shape) < 0.3] = NAN
    rank = np.where(np.isnan(score), NAN, np.argsort(np.argsort(np.where(np.isnan(score), np.inf, -score), axis=1), axis=1))
    return CandidateSet(tuple(f"s{n}" for n in range(sources)), item, score, rank.astype(np.float32))


def test_contributions_sum_to_the_score(rng: np.random.Generator) -> None:
    candidates = random_candidates(rng, 7, 20, 3)
    parts = (SourceBlend(weight=0.5), SourceBlend(normalisation="rank", temperature=9, weight=0.2), SourceBlend(weight=0.0))
    blend = Blend(candidates.sources, parts)
    np.testing.assert_allclose(blend.contributions(candidates).sum(axis=2), blend.score(candidates), rtol=1e-5)
    assert Blend.from_json(blend.to_json()) == blend


def test_candidate_ndcg_equals_a_slow_count(rng: np.random.Generator) -> None:
    scores = rng.integers(0, 6, (40, 30)).astype(np.float32)
    labels = rng.random((40, 30)) < 0.08
    valid = rng.random((40, 30)) < 0.9
    labels &= valid
    num_targets = labels.sum(axis=1) + rng.integers(0, 3, 40)
    got = candidate_ndcg(scores, labels, valid, num_targets, k=5)
    for b in range(40):
        order = sorted((n for n in range(30) if valid[b, n]), key=lambda n: (-scores[b, n], labels[b, n]))
        dcg = sum(1 / np.log2(place + 2) for place, n in enumerate(order[:5]) if labels[b, n])
        ideal = sum(1 / np.log2(place + 2) for place in range(min(5, num_targets[b])))
        assert got[b] == pytest.approx(dcg / ideal if ideal else 0.0)


def test_labels_mark_targets_only() -> None:
    item = np.array([[1, 4, 9], [2, 4, -1]], dtype=np.int32)
    nothing = np.zeros((2, 3, 1), dtype=np.float32)
    labels = label_candidates(
        CandidateSet(("s",), item, nothing, nothing), np.array([0, 2, 3]), np.array([9, 7, 4], dtype=np.int32)
    )
    assert labels.tolist() == [[False, False, True], [False, True, False]]


def single_ndcg(candidates: CandidateSet, labels: BoolArray, source: int) -> float:
    scores = np.where(np.isnan(candidates.rank[:, :, source]), -np.inf, -candidates.rank[:, :, source])
    there = ~np.isnan(candidates.rank[:, :, source])
    return float(candidate_ndcg(scores, labels & there, there, labels.sum(axis=1)).mean())


def test_search_prefers_the_source_that_knows(rng: np.random.Generator) -> None:
    candidates = random_candidates(rng, 300, 30, 3)
    best = np.where(np.isnan(candidates.score[:, :, 1]), -np.inf, candidates.score[:, :, 1]).argmax(axis=1)
    labels = np.zeros(candidates.item_idx.shape, dtype=bool)
    labels[np.arange(300), best] = True
    found = search_blend(candidates, labels, np.ones(300, dtype=np.int64), BlendConfig(trials=40), seed=0)
    assert single_ndcg(candidates, labels, 1) == pytest.approx(1.0)
    assert found.ndcg == pytest.approx(1.0)


@pytest.mark.parametrize("trials", [0, 5])
def test_search_is_never_below_the_best_single(rng: np.random.Generator, trials: int) -> None:
    """Where one source is right and the others are noise, and where there is hardly a search."""
    for seed in range(5):
        candidates = random_candidates(rng, 150, 30, 3)
        signal = np.where(np.isnan(candidates.score[:, :, seed % 3]), -np.inf, candidates.score[:, :, seed % 3])
        labels = np.zeros(candidates.item_idx.shape, dtype=bool)
        labels[np.arange(150), np.argsort(-signal, axis=1)[:, 2]] = True
        found = search_blend(candidates, labels, np.ones(150, dtype=np.int64), BlendConfig(trials=trials), seed=seed)
        assert found.ndcg >= max(single_ndcg(candidates, labels, s) for s in range(3)) - 1e-9


def test_search_beats_both_members_where_each_knows_half(rng: np.random.Generator) -> None:
    signal = rng.normal(size=(500, 40))
    noise = rng.normal(size=(500, 40, 2))
    score = (signal[:, :, None] + 0.7 * noise).astype(np.float32)
    rank = np.argsort(np.argsort(-score, axis=1), axis=1).astype(np.float32)
    item = np.tile(np.arange(40, dtype=np.int32), (500, 1))
    labels = signal == signal.max(axis=1, keepdims=True)
    candidates = CandidateSet(("a", "b"), item, score, rank)
    found = search_blend(candidates, labels, np.ones(500, dtype=np.int64), BlendConfig(), seed=0)
    assert found.ndcg > max(single_ndcg(candidates, labels, s) for s in range(2)) + 0.02
    again = search_blend(candidates, labels, np.ones(500, dtype=np.int64), BlendConfig(), seed=0)
    assert again.blend == found.blend


def test_a_given_blend_is_not_searched(rng: np.random.Generator) -> None:
    candidates = random_candidates(rng, 20, 10, 2)
    labels = np.zeros(candidates.item_idx.shape, dtype=bool)
    labels[:, 0] = True
    given = {"s0": SourceBlend(weight=0.3), "s1": SourceBlend(weight=0.7, normalisation="rank", temperature=5)}
    found = search_blend(candidates, labels, np.ones(20, dtype=np.int64), BlendConfig(sources=given), seed=0)
    assert found.blend.to_json() == {name: part.model_dump() for name, part in given.items()}


def test_equal_blend_weighs_alike() -> None:
    assert {part.weight for part in equal_blend(("a", "b")).parts} == {1.0}
