"""Lists that are nobody's own: popular, trending and seasonal items, and items like one item. Rules apply to them too.

A list that runs short goes on with what comes next: trending with the region's, then everybody's trend, then popular items;
similar items with those made of the same words.

Legend: `n` items of an answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.errors import StoreError
from serving.answer import next_cursor, shown_items
from serving.answers import MOST_CONTINUATIONS, Compute
from serving.asked import Asked, resolved
from serving.beyond_caps import beyond_caps, continued
from serving.cache import ListCache
from serving.cached_list import CachedList, decode_list
from serving.config import ServingConfig
from serving.content_similarity import CONTENT_SOURCE, content_list
from serving.errors import RequestError
from serving.item_table import ItemTable
from serving.live_state import LiveVersion, Snapshot
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.popular_lists import POPULAR_SOURCE, longer_popular_list, popular_list
from serving.schemas import RecommendationRequest, Selection
from serving.slate import Ranked, Slate, arranged, behind
from serving.trend_lists import SEASON, WINDOWS, TrendLists
from training.interactions import IntArray

DEFAULT_WINDOW = "1d"
TRENDING_SOURCE, SEASONAL_SOURCE = "trending", "seasonal"
_NO_ROWS: IntArray = np.zeros(0, dtype=np.int32)


class Browser:
    """Answers for one gateway replica.

    Args:
        config: of the stack.
        cache: of similar items.
        compute: the hop to a version's replicas.
        snapshot: gives the present snapshot.
        trends: trending and seasonal items.
        metrics: counted here.
    """

    def __init__(
        self,
        config: ServingConfig,
        cache: ListCache,
        compute: Compute,
        snapshot: Callable[[], Snapshot],
        trends: TrendLists,
        metrics: GatewayMetrics,
    ) -> None:
        self._config, self._cache, self._compute = config, cache, compute
        self._snapshot, self._trends, self._metrics = snapshot, trends, metrics
        self._catalogue = Catalogue(ControlStore(config.control_url), config.dataset)

    def popular(self, request: RecommendationRequest, window: str | None = None) -> dict[str, Any]:
        """Most popular items as of the champion's training; of a window, what is taken most in it, then these.

        Raises:
            RequestError: there is no such window, the filter is wrong, or there is no such placement.
        """
        if window is not None:
            return self.trending(request, window)
        snapshot = self._snapshot()
        asked = self._asked(snapshot, request)
        items, out = snapshot.items, _left_out(asked, snapshot.items)
        slate = continued(
            popular_list(items, asked.selection, _depth(asked), _NO_ROWS),
            items,
            asked.wish(items, None),
            lambda ranked, selection: longer_popular_list(ranked, items, selection, out),
        )
        return _answer(items, asked, slate, (POPULAR_SOURCE,), snapshot.items_at)

    def trending(self, request: RecommendationRequest, window: str | None = None) -> dict[str, Any]:
        """Items that gain now (within a day where no window is given), or (`season`) those of this time of the year.

        A region and a language are where events came from; the answer's items must be for them, too. The first of several counts.

        Raises:
            RequestError: there is no such window, the filter is wrong, or there is no such placement.
        """
        window = DEFAULT_WINDOW if window is None else window
        if window not in WINDOWS:
            raise RequestError(f"window must be one of {', '.join(WINDOWS)}, got {window[:40]!r}", field="window")
        snapshot = self._snapshot()
        items, asked = snapshot.items, self._asked(snapshot, request)
        wanted, mask = request.selection, items.mask(asked.selection)
        segments: list[dict[str, str]] = [
            {name: words[0]}
            for name, words in (("region", wanted.region), ("language", wanted.language), ("category", wanted.category))
            if words
        ]
        ranked = Ranked(_NO_ROWS, np.zeros(0, np.float32), np.zeros(0, np.uint8), fill=1)
        for segment in (*segments, {}):
            ids, scores = self._trends.top(window, **segment)
            ranked = _then(ranked, items, items.rows(ids.tolist()), ids, scores)
        ranked = _kept(ranked, mask[ranked.rows])
        popular = popular_list(items, asked.selection, _depth(asked), ranked.rows)
        out = _left_out(asked, items)

        def further(ranked: Ranked, selection: Selection) -> Ranked:
            more = popular_list(items, selection, len(ranked.rows), np.concatenate([out, ranked.rows]))
            return behind(ranked, more, source=1)

        slate = continued(behind(ranked, popular, source=1), items, asked.wish(items, None), further)
        first = SEASONAL_SOURCE if window == SEASON else TRENDING_SOURCE
        return _answer(items, asked, slate, (first, POPULAR_SOURCE), self._trends.as_of(window) or snapshot.items_at)

    async def similar(self, item_id: str, request: RecommendationRequest) -> dict[str, Any]:
        """Items that go together with one, by the champion; those made of the same words where nobody has taken it yet.

        Raises:
            RequestError: the item is unknown or deleted, the filter is wrong, or there is no such placement.
        """
        snapshot = self._snapshot()
        items, live = snapshot.items, snapshot.champion
        row = items.row(item_id)
        if row < 0 or (not items.available[row] and await self._is_deleted(item_id)):
            raise RequestError(f"there is no item {item_id[:80]!r}", code="not_found", status=404, field="item_id")
        asked = self._asked(snapshot, replace(request, exclude=(item_id,)))
        items.matches(asked.selection)
        found = None
        if live is not None and row < items.num_trained:
            found = await self._go_together(live, item_id, asked)
        ranked = Ranked(_NO_ROWS, np.zeros(0, np.float32), np.zeros(0, np.uint8))
        sources: tuple[str, ...] = ()
        if live is not None and found is not None:
            ranked, sources = Ranked(found.item_idx, found.score, found.source), live.sources
        ranked = _kept(ranked, items.passing(asked.selection, ranked.rows))
        wish = asked.wish(items, None)
        if live is not None and found is not None and wish.rules.caps:
            ranked = await self._beyond_caps(live, item_id, asked, ranked)

        def further(ranked: Ranked, selection: Selection) -> Ranked:
            mask = items.mask(selection).copy()
            mask[ranked.rows] = False
            return behind(ranked, content_list(items, row, self._longest(asked), mask), source=len(sources))

        if len(ranked.rows) <= _depth(asked):
            ranked = await asyncio.to_thread(further, ranked, asked.selection)
        slate = (
            await asyncio.to_thread(continued, ranked, items, wish, further) if wish.rules.caps else arranged(ranked, items, wish)
        )
        return _answer(items, asked, slate, (*sources, CONTENT_SOURCE), snapshot.items_at)

    async def _is_deleted(self, item_id: str) -> bool:
        """Whether an item that is not available has left the catalogue, and is not just sold out; False where nobody can say."""
        try:
            async with asyncio.timeout(self._config.deadline_ms / 1000):
                return await asyncio.to_thread(self._catalogue.item, item_id) is None
        except (StoreError, TimeoutError):
            return False

    async def _go_together(self, live: LiveVersion, item_id: str, asked: Asked) -> CachedList | None:
        """The version's list for an item, from the cache or computed; None where it cannot be had.

        Sources give so many items each, and what passes a filter may be others than those that they give of all. So the caller's
        own filter is asked of the version, whatever the cache holds; a list for all is looked at for rules' and placements', and
        the version where it holds too little of what they let through.
        """
        by = time.perf_counter() + self._config.deadline_ms / 1000
        unit = f"i:{item_id}"
        read = await self._cache.read(live.version, unit)
        found = read.cached if read.cached is not None and live.holds(read.cached) else None
        k = self._longest(asked)
        wanted = ComputeRequest(user_id=None, k=k, similar_to=item_id)
        if not asked.request.selection:
            if found is None or not (live.is_whole(found, self._config.replica_lag_s) or len(found) >= k):
                computed = await self._computed(live, wanted, by)
                if computed is not None and k == self._config.precompute_k and read.reachable:
                    self._cache.write(live.version, unit, computed.encode())
                found = computed if computed is not None else found
            if found is None or not asked.selection or live.items.passing(asked.selection, found.item_idx).sum() > _depth(asked):
                return found
        computed = await self._computed(live, replace(wanted, selection=asked.selection), by)
        return computed if computed is not None else found

    async def _beyond_caps(self, live: LiveVersion, item_id: str, asked: Asked, ranked: Ranked) -> Ranked:
        """A version's list with what it has behind it, where caps leave the page short: of the values with room alone."""
        by = time.perf_counter() + self._config.deadline_ms / 1000
        wish = asked.wish(live.items, None)
        for _ in range(MOST_CONTINUATIONS):
            selection = beyond_caps(arranged(ranked, live.items, wish), live.items, wish)
            if selection is None:
                break
            wanted = ComputeRequest(user_id=None, k=self._longest(asked), similar_to=item_id, selection=selection)
            more = await self._computed(live, wanted, by)
            if more is None or np.isin(more.item_idx, ranked.rows).all():
                break
            longer = behind(ranked, Ranked(more.item_idx, more.score, more.source))
            ranked = _kept(longer, live.items.passing(asked.selection, longer.rows))
        return ranked

    def _longest(self, asked: Asked) -> int:
        return max(self._config.precompute_k, 2 * _depth(asked))

    async def _computed(self, live: LiveVersion, wanted: ComputeRequest, by: float) -> CachedList | None:
        """The version's list, None where it cannot be had. `by`: the deadline, seconds of `time.perf_counter`."""
        try:
            blob = await asyncio.wait_for(self._compute(live.version, wanted), max(by - time.perf_counter(), 0.0))
        except Exception as error:  # whatever ails the version, words are left
            self._metrics.fallback(type(error).__name__)
            return None
        computed = decode_list(blob)
        return computed if computed is not None and live.holds(computed) else None

    def _asked(self, snapshot: Snapshot, request: RecommendationRequest) -> Asked:
        return resolved(request, self._config.placements, snapshot.rules, (), time.time())


def _answer(items: ItemTable, asked: Asked, slate: Slate, sources: Sequence[str], at: datetime) -> dict[str, Any]:
    return {
        "items": shown_items(items, slate, sources, asked.request.fields),
        "last_updated": at.isoformat(),
        "next_cursor": next_cursor(items, asked.request, slate, asked.top_k, ended=not len(slate.rest)),
    }


def _depth(asked: Asked) -> int:
    """Items down to the end of the page: a list that holds more than these is known to go on."""
    return len(asked.request.shown) + asked.top_k


def _left_out(asked: Asked, items: ItemTable) -> IntArray:
    excluded = asked.excluded(items)
    return _NO_ROWS if excluded is None else excluded


def _kept(ranked: Ranked, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> Ranked:
    return Ranked(ranked.rows[keep], ranked.scores[keep], ranked.sources[keep], ranked.fill)


def _then(ranked: Ranked, items: ItemTable, rows: IntArray, ids: Any, scores: Any) -> Ranked:
    """The list, then scored items that it lacks, below it."""
    known = np.fromiter((items.row(one) >= 0 for one in ids), dtype=bool, count=len(ids))
    more = Ranked(rows, scores[known].astype(np.float32), np.zeros(len(rows), dtype=np.uint8))
    return behind(ranked, more, source=0) if len(ranked.rows) else replace(more, fill=ranked.fill)
