"""Items from most to least popular, and the quickest way to the first of them that a filter leaves.

Legend: `N` items, `P` items in the order.
"""

from __future__ import annotations

import numpy as np

from training.interactions import BoolArray, IntArray


class PopularOrder:
    """An order of items.

    Args:
        first: (P,) int32 item numbers, most popular first.
        num_items: N.
    """

    def __init__(self, first: IntArray, num_items: int) -> None:
        self.first = first
        self.rank: IntArray = np.full(num_items, len(first), dtype=np.int32)
        """(N,) int32 place in the order, P for items that are not in it."""
        self.rank[first] = np.arange(len(first), dtype=np.int32)

    def head(self, count: int, allowed: BoolArray | None = None) -> IntArray:
        """The first `count` items that are allowed, fewer where there are fewer.

        Wide filters leave enough items near the head, narrow ones few items in all: either way not all N are looked at one by one.

        Args:
            count: items wanted.
            allowed: (N,) bool; None allows all.
        """
        if allowed is None:
            return self.first[:count]
        passing = int(np.count_nonzero(allowed))
        if 16 * passing * passing < count * len(allowed):
            rows = np.flatnonzero(allowed)
            rank = self.rank[rows]
            order = np.argsort(rank, kind="stable")[:count]
            return self.first[rank[order[rank[order] < len(self.first)]]]
        found: list[IntArray] = []
        start, width, missing = 0, 4 * count, count
        while missing > 0 and start < len(self.first):
            part = self.first[start : start + width]
            found.append(part[allowed[part]][:missing])
            start, width, missing = start + width, 4 * width, missing - len(found[-1])
        return np.concatenate(found) if found else self.first[:0]
