"""The order of the catalogue that tells when items came up: numbers, times and codes are given in the course of time.

An attribute gives an order where it has a value of its own for most items: numbers, times, and codes, texts of one word with a
digit. Which one counts, is for the items with activity to say: that whose neighbours tell best when an item was taken, if any tells
more than the overall middle does. An item without activity is then known by its neighbours.

Legend: `N` items, `A` items with activity, `W` neighbours on a side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.interactions import Interactions, LongArray

DAY_US = 86_400e6
NEIGHBOURS = 20
"""W: of items with activity, before and after the item."""
OWN_VALUES = 0.5
"""Share of the items with a value of their own from which on an attribute is an order and not a group."""
JUDGED = 20_000
"""Items with activity that judge the orders at most, spread evenly."""
TELLING = 0.95
"""Error of the neighbours against that of the overall middle below which they tell anything: chance gives some a little less."""
CODE = re.compile(r"\w*\d\w*")


@dataclass(frozen=True)
class CatalogueOrder:
    """An order of the items.

    Shapes: place (N,) int64 place of each item, -1 where it has none; in_order (A',) int64 items with activity and a place.
    """

    place: LongArray
    in_order: LongArray

    def neighbours(self, items: LongArray) -> LongArray:
        """(len(items), 2 W) int64 items with activity around each of `items`, itself left out; at the ends some twice.

        Means nothing for items without a place.
        """
        last = len(self.in_order) - 1
        at = np.searchsorted(self.place[self.in_order], self.place[items])
        own = self.in_order[np.minimum(at, last)] == items
        offset = np.arange(-NEIGHBOURS, NEIGHBOURS)
        # What stands at `at` is the item itself where it has activity: those behind it move on by one.
        around = at[:, None] + offset + (own[:, None] & (offset >= 0))
        return self.in_order[np.clip(around, 0, last)]


def catalogue_order(interactions: Interactions, attributes: Mapping[str, npt.NDArray[np.generic]]) -> CatalogueOrder | None:
    """The telling order of the items; None where the activity has no times, or no attribute tells anything of them.

    Args:
        interactions: activity.
        attributes: name -> (N,) values; ids are no attribute.
    """
    counts = np.bincount(interactions.item_idx, minlength=interactions.num_items)
    active = np.flatnonzero(counts)
    if not interactions.has_times or not len(active):
        return None
    days = np.bincount(interactions.item_idx, weights=interactions.time_us / DAY_US, minlength=len(counts))
    mean = days / np.maximum(counts, 1)
    judges = active[:: max(len(active) // JUDGED, 1)]
    least, best = TELLING * float(np.abs(mean[judges] - np.median(mean[judges])).mean()), None
    for name in sorted(attributes):
        place = _places(attributes[name])
        placed = active[:0] if place is None else active[place[active] >= 0]
        if place is None or not len(placed):
            continue
        order = CatalogueOrder(place, placed[np.argsort(place[placed])])
        told = np.where(place[judges] >= 0, np.median(mean[order.neighbours(judges)], axis=1), np.median(mean[judges]))
        error = float(np.abs(mean[judges] - told).mean())
        if error < least:
            least, best = error, order
    return best


def _places(values: npt.NDArray[np.generic]) -> LongArray | None:
    """(N,) int64 places of the items by an attribute, -1 without a value; None where it gives no order."""
    column = pd.Series(values)
    if values.dtype.kind == "b":
        return None
    if values.dtype.kind == "O":
        is_code = [isinstance(value, str) and CODE.fullmatch(value.strip()) is not None for value in values.tolist()]
        column = column.where(np.array(is_code, dtype=bool))
    if column.nunique() <= OWN_VALUES * len(column):
        return None
    return np.asarray(column.rank(method="first").fillna(0.0), dtype=np.int64) - 1
