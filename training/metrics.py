"""Ranking metrics over whole lists, per user. Owns formulas and denominators; resampling is `training.bootstrap`'s.

Legend: `B` users, `K` list length, `N` items, `R_u` the user's targets.

All metrics take `hits`, where `hits[b, r]` says that the item at rank r (0 = best) is one of the user's targets, with ties already
resolved against the model (`pessimistic_hits`), and `num_targets` (B,). Every user has at least one target. Range [0, 1].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.interactions import BoolArray, FloatArray, IntArray, LongArray

DoubleArray = npt.NDArray[np.float64]


def hit_rate(hits: BoolArray, num_targets: LongArray, k: int) -> DoubleArray:
    """1 where any of the first k is a target. (B,) float64."""
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def recall(hits: BoolArray, num_targets: LongArray, k: int) -> DoubleArray:
    """Targets among the first k over all of the user's targets |R_u| (not min(k, |R_u|)). (B,) float64."""
    return np.asarray(hits[:, :k].sum(axis=1) / num_targets, dtype=np.float64)


def precision(hits: BoolArray, num_targets: LongArray, k: int) -> DoubleArray:
    """Targets among the first k over k, also where the list is shorter. (B,) float64."""
    return np.asarray(hits[:, :k].sum(axis=1) / k, dtype=np.float64)


def ndcg(hits: BoolArray, num_targets: LongArray, k: int) -> DoubleArray:
    """DCG@k over the DCG@k of min(k, |R_u|) targets on top; gain 1, discount 1 / log2(rank + 2). (B,) float64.

    Source: Järvelin and Kekäläinen 2002 with binary gains.
    """
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(num_targets, k)]
    top = hits[:, :k]
    return np.asarray((top @ discount[: top.shape[1]]) / ideal, dtype=np.float64)


def mrr(hits: BoolArray, num_targets: LongArray, k: int) -> DoubleArray:
    """1 / (rank + 1) of the first target among the first k, 0 without one. (B,) float64."""
    top = hits[:, :k]
    return np.where(top.any(axis=1), 1.0 / (top.argmax(axis=1) + 1), 0.0)


def average_precision(hits: BoolArray, num_targets: LongArray, k: int) -> DoubleArray:
    """Sum of the precisions at the ranks of the targets among the first k, over all of the user's targets |R_u|. (B,) float64.

    The denominator is that of Microsoft Recommenders' table, not min(k, |R_u|).
    """
    top = hits[:, :k]
    at_rank = np.cumsum(top, axis=1) / np.arange(1, top.shape[1] + 1)
    return np.asarray((at_rank * top).sum(axis=1) / num_targets, dtype=np.float64)


METRICS = {"hr": hit_rate, "ndcg": ndcg, "recall": recall, "precision": precision, "mrr": mrr, "map": average_precision}
"""Name in reports (`<name>@<k>`) -> metric."""


def pessimistic_hits(
    item_idx: IntArray, score: FloatArray, target_indptr: LongArray, target_idx: IntArray, num_items: int, *, complete: bool
) -> BoolArray:
    """Which ranks hold a target when every tie is broken against the model. (B, K) bool.

    Within a run of equal scores all targets move behind all other items. A run that reaches the end of a cut list may go on beyond
    it, so that its targets are taken as not found; with K one more than the largest k asked for, this is exact for one target a
    user and a lower bound for several.

    Args:
        item_idx, score: (B, K), best first, padded with -1 and -inf.
        target_indptr, target_idx: targets by user, as in `Fold`.
        num_items: N.
        complete: the lists hold everything that may be recommended, so nothing lies beyond their end.
    """
    num_users, width = item_idx.shape
    owner = np.repeat(np.arange(num_users, dtype=np.int64), np.diff(target_indptr))
    wanted = np.sort(owner * num_items + target_idx)
    key = np.arange(num_users, dtype=np.int64)[:, None] * num_items + item_idx
    place = np.minimum(np.searchsorted(wanted, key), max(len(wanted) - 1, 0))
    hits = (wanted[place] == key) & (item_idx >= 0) if len(wanted) else np.zeros(item_idx.shape, dtype=bool)
    if not complete:
        hits &= (score != score[:, -1:]) | (item_idx[:, -1:] < 0)
    new_run = np.ones((num_users, width), dtype=bool)
    new_run[:, 1:] = score[:, 1:] != score[:, :-1]
    order = np.argsort(2 * np.cumsum(new_run, axis=1) + hits, axis=1, kind="stable")
    return np.take_along_axis(hits, order, axis=1)
