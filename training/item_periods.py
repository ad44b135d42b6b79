"""When items are taken: from their activity, and for items without any from those next to them in the order of the catalogue.

Legend: `N` items, `B` queries, `K` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from training.catalogue_order import DAY_US, catalogue_order
from training.interactions import FloatArray, IntArray, Interactions
from training.queries import QueryBatch

PERIOD_FEATURES = ("period_gap", "period_distance", "period_before")
"""Mean day of the history less the item's, its size, and by how much the history ends before the item's first day (negative)."""
ITEMS_AT_ONCE = 100_000


def item_periods(interactions: Interactions, attributes: Mapping[str, npt.NDArray[np.generic]]) -> FloatArray:
    """(N, 2) float32: first and mean day of each item's activity since the epoch; of its neighbours where it has none.

    Args:
        interactions: activity.
        attributes: name -> (N,) values; ids are no attribute.

    Returns:
        NaN where nothing tells: the activity has no times, or an item has neither activity nor a place in a telling order.
    """
    counts = np.bincount(interactions.item_idx, minlength=interactions.num_items)
    active, new = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    known = np.full((interactions.num_items, 2), np.nan)
    if interactions.has_times:
        days = interactions.time_us / DAY_US
        known[active, 0] = np.inf
        np.minimum.at(known[:, 0], interactions.item_idx, days)
        known[active, 1] = np.bincount(interactions.item_idx, weights=days, minlength=len(counts))[active] / counts[active]
    order = catalogue_order(interactions, attributes)
    if order is None:
        return known.astype(np.float32)
    new = new[order.place[new] >= 0]
    for start in range(0, len(new), ITEMS_AT_ONCE):
        block = new[start : start + ITEMS_AT_ONCE]
        near = known[order.neighbours(block)]
        known[block] = np.column_stack([np.quantile(near[:, :, 0], 0.25, axis=1), np.median(near[:, :, 1], axis=1)])
    return known.astype(np.float32)


def period_columns(periods: FloatArray, queries: QueryBatch, item_idx: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """How the times of a history fit the candidates' periods, in days: `PERIOD_FEATURES`; NaN where either is unknown.

    Shapes: periods (N, 2), item_idx (B, K) int32 -> three (B, K) float32.
    """
    days = queries.time_us / DAY_US
    count = np.diff(queries.indptr)
    mean = np.bincount(queries.row, weights=days, minlength=len(queries)) / np.where(count > 0, count, np.nan)
    last = np.where(count > 0, np.append(days, np.nan)[queries.indptr[1:] - 1], np.nan)
    first, middle = periods[np.maximum(item_idx, 0)].transpose(2, 0, 1)
    gap = mean[:, None] - middle
    return gap.astype(np.float32), np.abs(gap).astype(np.float32), np.minimum(last[:, None] - first, 0.0).astype(np.float32)
