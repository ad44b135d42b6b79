"""Accuracy in parts: users by length of history, targets by popularity of the item, items that nobody has taken yet.

Targets are grouped by the item's count in what models were fitted on. A group's figures are over the users who have a target in it,
with the targets of the group alone as right answers: those of other groups are in the way like any other item.

Legend: `B` users, `K` list length, `N` items, `G` groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.bootstrap import ci95
from training.interactions import FloatArray, IntArray, Interactions, LongArray
from training.metrics import hit_rate, ndcg, pessimistic_hits, recall

K = 10
"""Cutoff of the figures of segments."""
HISTORY_EDGES = (0, 5, 20, 100)
"""Upper ends of the history lengths told apart, the last segment being open."""
HEAD_SHARE, MID_SHARE = 0.5, 0.9
"""Items in order of their counts: the first that hold this share of all interactions are the head, then the mid, then the tail."""
METRICS = {f"ndcg@{K}": ndcg, f"hr@{K}": hit_rate, f"recall@{K}": recall}
GROUPS = ("items_head", "items_mid", "items_tail", "items_new")


@dataclass(frozen=True)
class Segment:
    """A part of an evaluation: how many users are in it, the means of `METRICS` and their 95 % intervals over these users."""

    users: int
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "users": self.users,
            "metrics": {name: round(value, 6) for name, value in self.metrics.items()},
            "ci95": {name: [round(low, 6), round(high, 6)] for name, (low, high) in self.ci95.items()},
        }


class ItemSegments:
    """Adds up lists block by block, by the group of the targets.

    Args:
        fit: what models were fitted on.
    """

    def __init__(self, fit: Interactions) -> None:
        self.group = item_groups(np.bincount(fit.item_idx, minlength=fit.num_items))
        self._values: list[list[npt.NDArray[np.float64]]] = [[] for _ in GROUPS]

    def add(self, item_idx: IntArray, score: FloatArray, target_indptr: LongArray, target_idx: IntArray, *, complete: bool) -> None:
        """Count a block of lists; arguments as of `training.metrics.pessimistic_hits`."""
        num_items, num_users = len(self.group), len(item_idx)
        owner = np.repeat(np.arange(num_users), np.diff(target_indptr))
        for group in range(len(GROUPS)):
            own = self.group[target_idx] == group
            counts = np.bincount(owner[own], minlength=num_users)
            asked = np.flatnonzero(counts)
            if not len(asked):
                continue
            indptr = np.concatenate([[0], np.cumsum(counts[asked])]).astype(np.int64)
            hits = pessimistic_hits(item_idx[asked], score[asked], indptr, target_idx[own], num_items, complete=complete)
            self._values[group].append(np.column_stack([metric(hits, counts[asked], K) for metric in METRICS.values()]))

    def totals(self, seed: int) -> dict[str, Segment]:
        """The groups that have targets."""
        return {
            name: _segment(np.concatenate(values), seed) for name, values in zip(GROUPS, self._values, strict=True) if len(values)
        }


def item_groups(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """(N,) place of each item in `GROUPS`, from its number of interactions; equal counts are in one group."""
    values, inverse, items = np.unique(-counts, return_inverse=True, return_counts=True)
    mass = np.cumsum(-values * items)
    # A count belongs where the items above it end: the first ones are the head however much they hold.
    before = (mass + values * items) / max(int(mass[-1]), 1)
    group = np.where(before < HEAD_SHARE, 0, np.where(before < MID_SHARE, 1, 2))
    return np.where(counts == 0, 3, group[inverse]).astype(np.int8)


def history_segments(history_length: LongArray, columns: dict[str, npt.NDArray[np.float64]], seed: int) -> dict[str, Segment]:
    """Users by length of history; `columns` are per-user metrics under the names of `METRICS`. Empty segments are absent."""
    found = {}
    values = np.column_stack([columns[name] for name in METRICS])
    place = np.searchsorted(np.array(HISTORY_EDGES[1:]), history_length, side="left")
    for part in range(len(HISTORY_EDGES)):
        inside = place == part
        if inside.any():
            low = HISTORY_EDGES[part] + (part > 0)
            last = part == len(HISTORY_EDGES) - 1
            name = f"history_over_{HISTORY_EDGES[part]}" if last else f"history_{low}_{HISTORY_EDGES[part + 1]}"
            found[name] = _segment(values[inside], seed)
    return found


def _segment(values: npt.NDArray[np.float64], seed: int) -> Segment:
    names = tuple(METRICS)
    means = values.mean(axis=0)
    intervals = ci95(values, seed=seed)
    return Segment(
        len(values),
        {name: float(mean) for name, mean in zip(names, means, strict=True)},
        {name: (float(low), float(high)) for name, (low, high) in zip(names, intervals, strict=True)},
    )
