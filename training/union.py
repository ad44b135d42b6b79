"""The union of what several retrievers return, as one CandidateSet; and filling it from popular items where it is short.

Everything is done on whole columns, so that one query costs tens of microseconds and a thousand queries not much per query.

Legend: `B` queries, `K` candidates, `S` sources, `N` items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.candidates import CandidateSet, Retrieved
from training.interactions import BoolArray, IntArray
from training.popular_order import PopularOrder
from training.queries import QueryBatch

ABSENT = np.iinfo(np.int32).max
"""Sorts after every item number."""


def unite(sources: Sequence[str], lists: Sequence[Retrieved]) -> CandidateSet:
    """The union of the lists, each query's candidates in ascending item number.

    Args:
        sources: S names.
        lists: S lists with B rows each; widths may differ.
    """
    widths = [part.item_idx.shape[1] for part in lists]
    item = np.concatenate([part.item_idx for part in lists], axis=1)
    score = np.concatenate([part.score for part in lists], axis=1)
    source = np.repeat(np.arange(len(lists)), widths)
    rank = np.concatenate([np.arange(width) for width in widths]).astype(np.float32)

    key = np.where(item < 0, ABSENT, item)
    order = np.argsort(key, axis=1, kind="stable")
    key = np.take_along_axis(key, order, axis=1)
    first = np.empty(key.shape, dtype=bool)
    first[:, :1] = True
    first[:, 1:] = key[:, 1:] != key[:, :-1]
    present = key != ABSENT
    slot = np.cumsum(first & present, axis=1) - 1
    rows, columns = np.nonzero(present)
    slots, origin = slot[rows, columns], order[rows, columns]
    shape = (len(item), int(slots.max(initial=-1)) + 1, len(lists))

    out_item = np.full(shape[:2], -1, dtype=np.int32)
    out_score = np.full(shape, np.nan, dtype=np.float32)
    out_rank = np.full(shape, np.nan, dtype=np.float32)
    out_item[rows, slots] = key[rows, columns]
    out_score[rows, slots, source[origin]] = score[rows, origin]
    out_rank[rows, slots, source[origin]] = rank[origin]
    return CandidateSet(tuple(sources), out_item, out_score, out_rank)


def fill(
    candidates: CandidateSet,
    count: int,
    popular: PopularOrder,
    queries: QueryBatch,
    allowed: BoolArray | None,
    exclude_history: bool,
) -> CandidateSet:
    """Append popular items, without score or rank of any source, to the queries that have fewer than `count` candidates.

    Args:
        candidates: of B queries.
        count: candidates wanted; fewer where the catalogue has no more that may be returned.
        popular: every item, most popular first.
        queries: B queries.
        allowed: (N,) or (B, N) bool of items that may be returned; None allows all.
        exclude_history: leave out the items of the query's history too.
    """
    lengths, out = candidates.valid.sum(axis=1), queries.excluded(exclude_history)
    added: dict[int, IntArray] = {}
    for b in np.flatnonzero(lengths < count).tolist():
        there = candidates.item_idx[b, : lengths[b]]
        taken = np.concatenate([there, out.of(b)])
        mask = allowed if allowed is None or allowed.ndim == 1 else allowed[b]
        head = popular.head(count + len(taken) - int(lengths[b]), mask)
        added[b] = head[~np.isin(head, taken)][: count - int(lengths[b])]
    width = max([candidates.item_idx.shape[1], *(int(lengths[b]) + len(items) for b, items in added.items())])
    grow = width - candidates.item_idx.shape[1]
    item = np.pad(candidates.item_idx, ((0, 0), (0, grow)), constant_values=-1)
    for b, items in added.items():
        item[b, lengths[b] : lengths[b] + len(items)] = items
    if not grow:
        return replace(candidates, item_idx=item)
    pad = ((0, 0), (0, grow), (0, 0))
    return CandidateSet(
        candidates.sources,
        item,
        np.pad(candidates.score, pad, constant_values=np.nan),
        np.pad(candidates.rank, pad, constant_values=np.nan),
    )
