"""From a valid request to an answer: assignment, cache, one hop to the version, and the fallback ladder below it.

    cache -> online -> stale cache -> popular items of the segment -> popular items

No rung raises: as long as an item passes the filter, there is an answer, and `served_from` and `degraded` say how it came about.
What is shown of a list is `slate`'s, what applies to a request `asked`'s.

Legend: `n` items of an answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from experiments.assignment import Assignment
from features.served import is_sampled
from serving.answer import Answer, next_cursor, shown_items
from serving.asked import Asked, resolved
from serving.cache import ABSENT, CacheRead, ListCache, session_unit, user_unit
from serving.cached_list import CachedList, decode_list
from serving.config import ServingConfig
from serving.errors import RequestError
from serving.explained_list import ExplainedList, decode_explained
from serving.explanations import add_explanations
from serving.exploration import draws, explored
from serving.item_table import ItemTable
from serving.live_state import LiveVersion, Snapshot
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.placements import Exploration
from serving.recent_activity import decode_activity
from serving.rules import RuleBook
from serving.rungs import Rung, followed, is_enough, left_out, of_list, of_popular_items
from serving.schemas import RecommendationRequest
from training.interactions import BoolArray, IntArray

Compute = Callable[[str, ComputeRequest], Awaitable[bytes]]
"""Version and request to an encoded list; the hop to the version's replicas."""
LONGEST_LIST = 1000
MOST_CONTINUATIONS = 4
"""Lists that a version is asked for behind the first, where caps leave a page short."""
Computed = Callable[[LiveVersion, ComputeRequest, CachedList, float], None]
"""Told of every computed list: whose, what was asked, the list, the seconds of the hop."""


class Answerer:
    """Answers requests of one gateway replica.

    Args:
        config: deadlines, lengths and placements.
        cache: lists and activity.
        compute: the hop; any exception of it is a reason to fall back.
        snapshot: gives the present snapshot.
        metrics: counted here.
        computed: told of every list that was computed for a user.
    """

    def __init__(
        self,
        config: ServingConfig,
        cache: ListCache,
        compute: Compute,
        snapshot: Callable[[], Snapshot],
        metrics: GatewayMetrics,
        computed: Computed = lambda live, request, answer, seconds: None,
    ) -> None:
        self._config = config
        self._cache = cache
        self._compute = compute
        self._on_computed = computed
        self._snapshot = snapshot
        self._metrics = metrics
        self._new_items = cache.new_items
        self._random = random.Random()  # seeded by the system; ids must be unique, not secret

    def tables(self) -> list[ItemTable]:
        """Items of all versions that may answer."""
        return self._snapshot().tables()

    async def recommend(self, request: RecommendationRequest, rules: RuleBook | None = None, *, dry_run: bool = False) -> Answer:
        """The answer to a request.

        Args:
            request: of a caller.
            rules: instead of the present ones, to see what they would do.
            dry_run: chance takes no part, and no new item counts as shown: two answers differ in what was asked alone.

        Raises:
            RequestError: the filter is wrong or does not fit the items' attributes, there is no such placement, or the version
                asked for is not loaded.
        """
        started, now = time.perf_counter(), time.time()
        snapshot = self._snapshot()
        assignments: Sequence[Assignment] = []
        if request.model_version is None:
            assignments = snapshot.plan.assign(request.user_id, request.session_id, request.context)
            live = _version_for(snapshot, assignments)
        else:
            live = _previewed(snapshot, request.model_version)
        asked = resolved(request, self._config.placements, rules or snapshot.rules, assignments, now)
        items = live.items if live is not None else snapshot.items
        asked.check(items)  # a wrong filter is refused before anything is asked
        read = await self._read(live, asked.request)
        if live is not None:
            found = await self._from_version(live, asked, read)
        else:
            found = of_popular_items(items, None, asked, snapshot.items_at, activity=read.activity)
        propensities = None
        if asked.exploration is not None and not dry_run and found.slate.rows.size > 1:
            found, propensities = self._explored(found, items, asked, asked.exploration, read.activity, now)
        shown = shown_items(items, found.slate, found.sources, asked.request.fields)
        if asked.request.explain:
            add_explanations(shown, found.slate, items, asked.request, found.explained)
        took_s = time.perf_counter() - started
        self._metrics.answer(found.served_from, found.version, took_s)
        return Answer(
            recommendation_id=self._random.randbytes(16).hex(),
            request=asked.request,
            items=shown,
            computed_at_us=found.computed_at_us,
            model_version=found.version,
            assignments=assignments,
            served_from=found.served_from,
            degraded=found.degraded,
            took_s=took_s,
            # An item whose place chance has given to another comes on a later page.
            next_cursor=next_cursor(items, asked.request, found.slate, asked.top_k, ended=found.ended and propensities is None),
            propensities=propensities,
        )

    def _explored(
        self, found: Rung, items: ItemTable, asked: Asked, settings: Exploration, activity: bytes, now: float
    ) -> tuple[Rung, tuple[float, ...]]:
        """The slate with its last places drawn by chance."""

        def may_be_shown(rows: IntArray) -> BoolArray:
            may = items.passing(asked.selection, rows) & ~np.isin(rows, left_out(items, asked, activity))
            candidates = asked.candidates(items)
            return may if candidates is None else may & np.isin(rows, candidates)

        new = self._new_items.due(items, settings, round(now * 1e6), may_be_shown)
        slate, propensities = explored(found.slate, draws(found.slate, items, asked.rules, settings, new), self._random)
        if len(new):
            self._new_items.note(items.item_ids[slate.rows[np.isin(slate.rows, new)]].tolist())
        return replace(found, slate=slate), propensities

    async def _from_version(self, live: LiveVersion, asked: Asked, read: CacheRead) -> Rung:
        """From the cache or the version; popular items where nothing is known of the user, or where both fail."""
        request = asked.request
        by = time.perf_counter() + self._config.deadline_ms / 1000
        if read.cached is not None and read.fresh and request.cacheable:
            if read.cached.anonymous:
                return of_popular_items(live.items, live.version, asked, live.trained_at, activity=read.activity)
            hit = of_list(live, read.cached, asked, "cache", read.activity)
            if is_enough(hit, live, asked, read.cached, self._config.replica_lag_s):
                self._metrics.cache_read("hit")
                return hit
            if hit.beyond is not None:
                found = await self._beyond_caps(live, asked, read, by, read.cached, hit)
                if len(found.slate) == asked.top_k or len(found.slate.rest):  # else the list may end before the version does
                    self._metrics.cache_read("hit")
                    return found
        outcome = "down" if not read.reachable else "miss" if read.cached is None else "stale"
        self._metrics.cache_read(outcome)
        try:
            explained, plain = await self._computed(live, asked, read, by)
        except TimeoutError:
            return self._fall_back(live, asked, read, "deadline")
        except Exception as error:  # whatever a replica or the way to it does, a lower rung answers
            return self._fall_back(live, asked, read, type(error).__name__)
        if explained is None:
            return self._fall_back(live, asked, read, "unreadable")
        if explained.ranked.anonymous:
            return of_popular_items(live.items, live.version, asked, live.trained_at, activity=read.activity)
        found = of_list(live, explained.ranked, asked, "online", read.activity)
        listed = explained.ranked
        if plain and asked.selection and not is_enough(found, live, asked, listed, self._config.replica_lag_s):
            # The list that is kept for the user holds too little of what placement and rules let through here.
            try:
                explained, _ = await self._computed(live, asked, read, by, narrow=True)
            except Exception as error:
                self._metrics.fallback(type(error).__name__)
                return found
            if explained is not None:
                listed = explained.ranked
                found = of_list(live, listed, asked, "online", read.activity)
        found = await self._beyond_caps(live, asked, read, by, listed, found)
        return replace(found, explained=explained) if asked.request.explain else found

    async def _beyond_caps(
        self, live: LiveVersion, asked: Asked, read: CacheRead, by: float, listed: CachedList, found: Rung
    ) -> Rung:
        """What a list shows with what the version has behind it, where caps leave the page short: of the values with room alone.

        Args:
            live: whose list it is.
            asked: the request.
            read: of the cache.
            by: the deadline, seconds of `time.perf_counter`.
            listed: the list.
            found: what it shows.
        """
        if live.is_whole(listed, self._config.replica_lag_s):
            return found
        for _ in range(MOST_CONTINUATIONS):
            if found.beyond is None:
                break
            try:
                more, _plain = await self._computed(live, replace(asked, selection=found.beyond), read, by, narrow=True)
            except Exception as error:  # a short page is better than another list
                self._metrics.fallback(type(error).__name__)
                break
            if more is None or np.isin(more.ranked.item_idx, listed.item_idx).all():
                break
            listed = followed(listed, more.ranked)
            found = of_list(live, listed, asked, "online", read.activity)
            if more.ranked.complete:
                break
        return found

    async def _computed(
        self, live: LiveVersion, asked: Asked, read: CacheRead, by: float, *, narrow: bool = False
    ) -> tuple[ExplainedList | None, bool]:
        """A list of the version, and whether it is the one that is kept for the user; that one is computed where it can answer.

        `by`: the deadline, seconds of `time.perf_counter`.

        Raises:
            TimeoutError: the deadline has passed.
            Exception: whatever the hop raises.
        """
        request = asked.request
        unit = _unit(request)
        # One that is fresh and complete is asked for again only where it lacks what has become available since.
        stale = read.cached is None or not read.fresh or read.cached.complete
        plain = not narrow and stale and request.cacheable and not (request.selection or request.exclude or len(request.shown))
        wanted = ComputeRequest(
            user_id=request.user_id,
            k=min(max(2 * asked.top_k + 20, self._config.precompute_k), LONGEST_LIST),
            top_k=asked.top_k,
            activity=read.activity,
            recent_items=request.recent_items,
            seen=request.seen,
            candidates=request.candidates,
            log_as=self._log_as(live, request),
            explain=request.explain,
        )
        if not plain:
            wanted = replace(wanted, selection=asked.selection, exclude=asked.excluded_ids(live.items))
        asked_at = time.perf_counter()
        blob = await asyncio.wait_for(self._compute(live.version, wanted), max(by - asked_at, 0.0))
        if request.explain:
            explained = decode_explained(blob)
            return explained if explained is not None and live.holds(explained.ranked) else None, plain
        computed = decode_list(blob)
        if computed is not None and not live.holds(computed):
            computed = None
        if computed is not None:
            self._metrics.computed(live.version, live.sources, computed.source)
            self._on_computed(live, wanted, computed, time.perf_counter() - asked_at)
        if computed is not None and plain and unit is not None and read.reachable:
            self._cache.write(live.version, unit, blob)
        return None if computed is None else ExplainedList(computed), plain

    async def _read(self, live: LiveVersion | None, request: RecommendationRequest) -> CacheRead:
        unit = _unit(request)
        if unit is None:
            return ABSENT
        read = await self._cache.read(None if live is None else live.version, unit)
        return read if read.cached is None or live is None or live.holds(read.cached) else read._replace(cached=None)

    def _log_as(self, live: LiveVersion, request: RecommendationRequest) -> tuple[str, str] | None:
        unit = _unit(request)
        return (unit, live.version) if unit is not None and is_sampled(unit, self._config.feature_log_rate) else None

    def _fall_back(self, live: LiveVersion, asked: Asked, read: CacheRead, reason: str) -> Rung:
        """The rungs below a computed answer."""
        self._metrics.fallback(reason)
        if read.cached is not None and len(read.cached) and asked.request.cacheable:
            # What the user did since is known, although the list does not reflect it: leave those items out.
            since = {event.item_id for event in decode_activity(read.activity).events}
            stale = of_list(live, read.cached, asked, "stale", read.activity, exclude=live.items.rows(sorted(since)))
            if len(stale.slate):
                return stale
        return of_popular_items(live.items, live.version, asked, live.trained_at, degraded=True, activity=read.activity)


def _previewed(snapshot: Snapshot, version: str) -> LiveVersion:
    live = snapshot.versions.get(version)
    if live is None:
        loaded = ", ".join(sorted(snapshot.versions)) or "none"
        message = f"model_version {version!r} is not loaded; loaded: {loaded}"
        raise RequestError(message, code="not_found", status=404, field="model_version")
    return live


def _version_for(snapshot: Snapshot, assignments: Sequence[Assignment]) -> LiveVersion | None:
    for one in assignments:
        if one.model is not None:
            pinned = snapshot.pins.get(one.experiment, {}).get(one.variant)
            live = None if pinned is None else snapshot.versions.get(pinned)
            if live is not None:
                return live
    return snapshot.champion


def _unit(request: RecommendationRequest) -> str | None:
    if request.user_id is not None:
        return user_unit(request.user_id)
    return None if request.session_id is None else session_unit(request.session_id)
