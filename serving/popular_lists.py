"""Popular items as a ranked list: the answer for people of whom nothing is known, and the last rung when all else fails.

Legend: `N` items, `n` entries of a list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.item_table import ItemTable
from serving.schemas import Selection
from serving.slate import Ranked, Wish
from training.interactions import FloatArray, IntArray

POPULAR_SOURCE = "popular"
NEW_SOURCE = "new"
"""Source of items that the version was not trained on and that fill a list which would run short."""
LEAST = 200
"""Entries of a list at least, for rules and diversity to choose from."""


def popular_list(
    items: ItemTable, selection: Selection, top_k: int, excluded: IntArray, candidates: Sequence[str] | None = None
) -> Ranked:
    """The most popular items that a request may see; those of the first step of its chains before all others.

    Raises:
        FilterError: the filter does not fit the items.
    """
    count = max(LEAST, 2 * top_k)
    found: list[IntArray] = []
    for step in dict.fromkeys((selection.steps[0], selection)):
        mask = items.mask(step)
        if candidates is not None:
            wanted = np.zeros(len(items), dtype=bool)
            wanted[items.rows(candidates)] = True
            mask = mask & wanted
        found.append(items.popular(count, mask, excluded))
    together = np.concatenate(found)
    rows = together[np.sort(np.unique(together, return_index=True)[1])]
    return Ranked(rows, popularity_scores(items, rows), np.zeros(len(rows), dtype=np.uint8))


def longer_popular_list(
    ranked: Ranked, items: ItemTable, selection: Selection, excluded: IntArray, candidates: Sequence[str] | None = None
) -> Ranked:
    """A list of popular items with those behind it, as many again, that pass a narrower selection."""
    more = popular_list(items, selection, len(ranked.rows), np.concatenate([excluded, ranked.rows]), candidates)
    return Ranked(
        np.concatenate([ranked.rows, more.rows]),
        np.concatenate([ranked.scores, more.scores]),
        np.concatenate([ranked.sources, more.sources]),
    )


def with_new_items(ranked: Ranked, items: ItemTable, wish: Wish, excluded: IntArray, source: int) -> Ranked:
    """The list with items behind it that the version was not trained on: no model can have returned them.

    Args:
        ranked: a list that would run short.
        items: of the version.
        wish: of the request.
        excluded: rows that do not follow.
        source: number of the source that they get.
    """
    mask = items.mask(wish.selection).copy()
    mask[: items.num_trained] = False
    mask[ranked.rows] = False
    mask[excluded] = False
    rows = np.flatnonzero(mask)
    if wish.candidates is not None:
        rows = rows[np.isin(rows, wish.candidates)]
    rows = rows[: max(LEAST, 2 * wish.top_k)].astype(np.int32)
    lowest = float(ranked.scores.min()) if len(ranked.scores) else 0.0
    scores = (lowest - (1 + np.arange(len(rows))) / max(len(rows), 1)).astype(np.float32)
    return Ranked(
        np.concatenate([ranked.rows, rows]),
        np.concatenate([ranked.scores, scores]),
        np.concatenate([ranked.sources, np.full(len(rows), source, dtype=np.uint8)]),
        ranked.fill,
    )


def popularity_scores(items: ItemTable, rows: IntArray) -> FloatArray:
    """(n,) float32: 1 for the most popular of all, falling linearly with the rank to 0."""
    return (1.0 - items.popularity_rank[rows] / max(len(items), 1)).astype(np.float32)
