"""Lists of one query as a version's replicas put them together and answer with."""

from __future__ import annotations

import numpy as np

from serving.cached_list import CachedList
from serving.explained_list import ExplainedList
from serving.recent_activity import RecentActivity
from training.candidates import RankedLists


def one_list(lists: RankedLists, b: int) -> RankedLists:
    """The list of query `b` alone."""
    return RankedLists(lists.sources, lists.item_idx[b : b + 1], lists.score[b : b + 1], lists.source[b : b + 1])


def joined(first: RankedLists, second: RankedLists) -> RankedLists:
    """One list of one query: the first, then what the second has beside it."""
    new = ~np.isin(second.item_idx[0], first.item_idx[0]) & (second.item_idx[0] >= 0)
    old = first.item_idx[0] >= 0
    return RankedLists(
        first.sources,
        np.concatenate([first.item_idx[0][old], second.item_idx[0][new]])[None, :],
        np.concatenate([first.score[0][old], second.score[0][new]])[None, :],
        np.concatenate([first.source[0][old], second.source[0][new]])[None, :],
    )


def encode_answer(lists: RankedLists, activity: RecentActivity, now_us: int, k: int) -> bytes:
    """The one list of a query as bytes (`serving.cached_list`); complete where it is shorter than the `k` that were asked for."""
    keep = lists.item_idx[0] >= 0
    return CachedList(
        item_idx=lists.item_idx[0][keep],
        score=lists.score[0][keep],
        source=lists.source[0][keep].astype(np.uint8),
        computed_at_us=now_us,
        activity_at_us=activity.mark_us,
        complete=int(keep.sum()) < k,
    ).encode()


def anonymous_answer(activity: RecentActivity, now_us: int, *, explain: bool) -> bytes:
    """The answer for a user of whom nothing is known: the gateway gives popular items, and explains them where that is asked."""
    empty = CachedList(
        item_idx=np.empty(0, np.int32),
        score=np.empty(0, np.float32),
        source=np.empty(0, np.uint8),
        computed_at_us=now_us,
        activity_at_us=activity.mark_us,
        anonymous=True,
    )
    return ExplainedList(empty).encode() if explain else empty.encode()
