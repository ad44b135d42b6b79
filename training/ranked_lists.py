"""From scores of candidates to the final lists: what stands behind what, and which source a list owes an item to.

Legend: `B` queries, `K` candidates, `S` sources, `N` items.
"""

from __future__ import annotations

import numpy as np

from training.candidates import CandidateSet, RankedLists
from training.interactions import FloatArray
from training.models.base import top_k


def completed(scores: FloatArray, candidates: CandidateSet, popularity_rank: FloatArray) -> FloatArray:
    """Scores made ready for sorting: items that only fill the list come behind all others, by popularity; padding is -inf.

    Shapes: scores (B, K) float32, popularity_rank (N,) float32 in [0, 1), 0 for the most popular -> (B, K) float32.
    """
    sourced = candidates.sourced
    floor = np.where(sourced, scores, np.inf).min(axis=1, keepdims=True, initial=0.0) - 1.0
    ready = np.where(sourced, scores, floor - popularity_rank[candidates.item_idx])
    return np.where(candidates.valid, ready, -np.inf).astype(np.float32)


def ahead_of(columns: np.ndarray[tuple[int, int], np.dtype[np.int64]], best: FloatArray, others: FloatArray) -> FloatArray:
    """Scores in which the candidates `columns` come first, by `best`, and the rest behind them, by `others`.

    Shapes: columns (B, k) int64, best (B, k) float32, others (B, K) float32, -inf being padding -> (B, K) float32.
    """
    top = np.full(others.shape, -np.inf, dtype=np.float32)
    np.put_along_axis(top, columns, best, axis=1)
    chosen, valid = ~np.isneginf(top), ~np.isneginf(others)
    floor = np.where(chosen, top, np.inf).min(axis=1, keepdims=True, initial=0.0) - 1.0
    highest = np.where(valid, others, -np.inf).max(axis=1, keepdims=True, initial=0.0)
    behind = np.where(valid, floor - (highest - np.where(valid, others, 0.0)), -np.inf)
    return np.where(chosen, top, behind).astype(np.float32)


def best_lists(candidates: CandidateSet, scores: FloatArray, k: int, source_names: tuple[str, ...]) -> RankedLists:
    """The `k` best candidates of each query, best first, equal scores in the order of the candidates.

    Args:
        candidates: (B, K).
        scores: (B, K) float32, -inf being padding.
        k: length of the lists, padded where there are fewer.
        source_names: the S sources, then the name for items that no source returned.
    """
    if candidates.item_idx.shape[1] == 0:
        shape = (len(candidates.item_idx), k)
        nothing = np.full(shape, -1, dtype=np.int32), np.full(shape, -np.inf, dtype=np.float32)
        return RankedLists(source_names, *nothing, np.full(shape, -1, dtype=np.int8))
    best = top_k(scores, k)
    column = np.maximum(best.item_idx, 0)
    there = best.item_idx >= 0
    item = np.where(there, np.take_along_axis(candidates.item_idx, column, axis=1), -1).astype(np.int32)
    rank = np.take_along_axis(candidates.rank, column[:, :, None], axis=1)
    nearest = np.where(np.isnan(rank), np.inf, rank)
    source = np.where(np.isinf(nearest).all(axis=2), len(candidates.sources), nearest.argmin(axis=2))
    return RankedLists(source_names, item, best.score, np.where(there, source, -1).astype(np.int8))
