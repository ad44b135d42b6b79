"""Places of an answer that are given away by chance, with the probability of what was drawn; and new items that need to be seen.

The last `slots` places are drawn, each from a pool of its own: first from new items that have had fewer exposures than the floor
(all alike), else from what the slate had there and what follows it in the list (by rank). Pools are disjoint, so each draw's
probability is that of the item at that place, whatever was drawn elsewhere. Pinned items stay; caps hold.

Exposures of new items are counted in the cache Redis by all gateways together; when it loses them, items are shown more often than
the floor asks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from serving.columns import NumberColumn
from serving.errors import CacheDownError
from serving.item_table import ItemTable
from serving.placements import Exploration
from serving.redis_cluster import ClusterWire
from serving.redis_wire import RedisWire
from serving.rules import RulePlan
from serving.slate import EXPLORED, Slate, capped_without
from training.interactions import BoolArray, IntArray

DAY_US, MINUTE_US = 86_400_000_000, 60_000_000
MAX_NEW = 1000
"""New items that one answer chooses from."""
COUNTS_TTL_S = 400 * 86_400
MANY_COUNTS, MAX_DROPPED = 10_000, 1_000
"""Counts that are read at each look without asking whether they are still needed, and those dropped at one."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What one place is drawn from. Shapes: rows (m,) int32, probability (m,) float64, summing to 1."""

    place: int
    rows: IntArray
    probability: npt.NDArray[np.float64]


def draws(slate: Slate, items: ItemTable, rules: RulePlan, settings: Exploration, new_rows: IntArray) -> list[Draw]:
    """The pools of a slate's explored places.

    Args:
        slate: what would be shown, and the rest of its list.
        items: whose rows they are.
        rules: whose caps hold.
        settings: of the placement.
        new_rows: items that need exposures and may be shown.
    """
    first = max(len(slate) - settings.slots, 1)
    places = [place for place in range(first, len(slate)) if int(slate.rows[place]) not in slate.pinned]
    while places:
        found = _pools(slate, places, items, rules, settings, new_rows)
        left = [pool.place for pool in found]
        if left == places:
            return found
        places = left  # what stays at a place for lack of others must not be drawn at another
    return []


def _pools(
    slate: Slate, places: Sequence[int], items: ItemTable, rules: RulePlan, settings: Exploration, new_rows: IntArray
) -> list[Draw]:
    """Disjoint pools of some places, as far as there are items for each."""
    fixed = np.delete(slate.rows, places)
    new_rows = new_rows[~np.isin(new_rows, fixed)]
    ranked = np.concatenate([slate.rows[places], slate.rest[: settings.pool]])
    ranked = ranked[~np.isin(ranked, new_rows)]
    if rules.caps:
        new_rows = new_rows[capped_without(fixed, new_rows, items, rules, len(places) - 1)]
        ranked = ranked[capped_without(fixed, ranked, items, rules, len(places) - 1)]
    weight = 1.0 / (settings.temperature + np.arange(len(ranked)))
    found = []
    of_new = min(len(new_rows), len(places))
    for number, place in enumerate(places):
        if number < of_new:
            rows = new_rows[number::of_new]
            share: npt.NDArray[np.floating] = np.ones(len(rows))
        else:
            others = slice(number - of_new, None, len(places) - of_new)
            rows, share = ranked[others], weight[others]
        if len(rows):
            found.append(Draw(place, rows.astype(np.int32), np.asarray(share / share.sum(), dtype=np.float64)))
    return found


def explored(slate: Slate, pools: Sequence[Draw], rng: random.Random) -> tuple[Slate, tuple[float, ...]]:
    """The slate with its pools drawn from, and the probability of each item at its place."""
    rows, scores, sources = slate.rows.copy(), slate.scores.copy(), slate.sources.astype(np.int64)
    propensities = np.ones(len(rows))
    for pool in pools:
        chosen = min(int(np.searchsorted(np.cumsum(pool.probability), rng.random(), side="right")), len(pool.rows) - 1)
        propensities[pool.place] = pool.probability[chosen]
        if rows[pool.place] != pool.rows[chosen]:
            rows[pool.place], sources[pool.place] = pool.rows[chosen], EXPLORED
            scores[pool.place] = slate.scores.min()
    return replace(slate, rows=rows, scores=scores, sources=sources), tuple(propensities.tolist())


class NewItems:
    """New items and how often they have been shown.

    Args:
        wire: to the cache Redis.
        key: of the hash of counts.
    """

    def __init__(self, wire: RedisWire | ClusterWire, key: str) -> None:
        self._wire, self._key = wire, key
        self.counts: dict[str, int] = {}
        self._found: WeakKeyDictionary[ItemTable, dict[float, tuple[int, IntArray, list[str]]]] = WeakKeyDictionary()

    async def refresh(self) -> None:
        """Read the counts of all gateways; keeps the present ones when Redis is gone."""
        try:
            flat = await self._wire.call("HGETALL", self._key)
        except CacheDownError:
            return
        read = {item.decode(): int(count) for item, count in zip(flat[::2], flat[1::2], strict=True)}
        self._drop_old(read)
        self.counts = {item: max(count, self.counts.get(item, 0)) for item, count in read.items()}

    def _drop_old(self, read: dict[str, int]) -> None:
        """Take out counts of items that are new no longer, some at a time, where they have become many."""
        new = {item for by_days in self._found.values() for _, _, ids in by_days.values() for item in ids}
        old = [item for item in read if item not in new] if new and len(read) > MANY_COUNTS else []
        for item in old[:MAX_DROPPED]:
            del read[item]
        if old:
            self._wire.send(lambda _: None, "HDEL", self._key, *old[:MAX_DROPPED])

    def note(self, item_ids: Sequence[str]) -> None:
        """Count exposures; nobody waits for it."""
        for item_id in item_ids:
            self.counts[item_id] = self.counts.get(item_id, 0) + 1
            self._wire.send(lambda _: None, "HINCRBY", self._key, item_id, 1)
        if item_ids:
            self._wire.send(lambda _: None, "EXPIRE", self._key, COUNTS_TTL_S)

    def due(
        self,
        items: ItemTable,
        settings: Exploration,
        now_us: int,
        may_be_shown: Callable[[IntArray], BoolArray] = lambda rows: np.ones(len(rows), dtype=bool),
    ) -> IntArray:
        """Rows of the new items below the floor that may be shown, those with the fewest exposures first, `MAX_NEW` at most.

        Args:
            items: whose rows they are.
            settings: of the placement.
            now_us: the clock.
            may_be_shown: which of some rows the request lets through. Asked before the bound is applied: where an import has
                brought more new items than that, those of one region would else wait for all others.
        """
        if not settings.floor:
            return np.zeros(0, dtype=np.int32)
        rows, ids = self._young(items, settings.new_days, now_us // MINUTE_US)
        counts = np.fromiter(map(self.counts.get, ids, repeat(0)), dtype=np.int64, count=len(ids))
        below = np.flatnonzero(counts < settings.floor)
        below = below[may_be_shown(rows[below])]
        return rows[below[np.argsort(counts[below], kind="stable")[:MAX_NEW]]]

    def _young(self, items: ItemTable, new_days: float, minute: int) -> tuple[IntArray, list[str]]:
        """Rows and ids of a table's new items, looked for once a minute: at a million items that takes longer than an answer."""
        known = self._found.setdefault(items, {})
        found = known.get(new_days)
        if found is None or found[0] != minute:
            rows = _new_rows(items, minute * MINUTE_US - round(new_days * DAY_US))
            found = known[new_days] = (minute, rows, items.item_ids[rows].tolist())
        return found[1:]


def _new_rows(items: ItemTable, since_us: int) -> IntArray:
    """Rows of the items created since then, and of those without a date that no model was trained on."""
    rows = np.arange(items.num_trained, len(items), dtype=np.int32)
    created = items.columns.get("created_at")
    if not (isinstance(created, NumberColumn) and created.is_time):
        return rows
    young = created.values >= since_us
    late = rows[created.missing[rows] | young[rows]]
    return np.union1d(np.flatnonzero(~created.missing & young), late).astype(np.int32)
