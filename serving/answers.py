"""From a valid request to an answer: assignment, cache, one hop to the version, and the fallback ladder below it.

    cache -> online -> stale cache -> popular items of the segment -> popular items

No rung raises: as long as an item passes the filter, there is an answer, and `served_from` and `degraded` say how it came about.

Legend: `n` items of an answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from experiments.assignment import Assignment
from features.served import is_sampled
from serving.cache import ABSENT, CacheRead, ListCache, session_unit, user_unit
from serving.cached_list import CachedList, decode_list
from serving.config import ServingConfig
from serving.errors import RequestError
from serving.item_table import ItemTable
from serving.live_state import LiveVersion, Snapshot
from serving.messages import ComputeRequest
from serving.metrics import GatewayMetrics
from serving.recent_activity import decode_activity
from serving.schemas import RecommendationRequest, Selection, ServedFrom
from training.interactions import BoolArray, IntArray

Compute = Callable[[str, ComputeRequest], Awaitable[bytes]]
"""Version and request to an encoded list; the hop to the version's replicas."""

POPULAR_SOURCE = "popular"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer before it becomes JSON."""

    recommendation_id: str
    request: RecommendationRequest
    items: list[dict[str, Any]]
    computed_at_us: int
    model_version: str | None
    assignments: Sequence[Assignment]
    served_from: ServedFrom
    degraded: bool
    took_s: float

    def to_json(self) -> dict[str, Any]:
        """The envelope of DESIGN 4.6."""
        return {
            "recommendation_id": self.recommendation_id,
            "user_id": self.request.user_id,
            "recommended_items": self.items,
            "last_updated": datetime.fromtimestamp(self.computed_at_us / 1e6, UTC).isoformat(timespec="milliseconds"),
            "model_version": self.model_version,
            "assignments": [{"experiment": one.experiment, "variant": one.variant} for one in self.assignments],
            "served_from": self.served_from,
            "degraded": self.degraded,
            "took_ms": round(self.took_s * 1000, 3),
            "next_cursor": None,
        }


@dataclass(frozen=True, slots=True)
class _Ladder:
    """How far up the ladder an answer got: rows with scores and sources, or none yet."""

    served_from: ServedFrom
    rows: IntArray
    scores: Sequence[float]
    sources: Sequence[str]
    computed_at_us: int
    version: str | None
    degraded: bool


class Answerer:
    """Answers requests of one gateway replica.

    Args:
        config: deadlines and lengths.
        cache: lists and activity.
        compute: the hop; any exception of it is a reason to fall back.
        snapshot: gives the present snapshot.
        metrics: counted here.
    """

    def __init__(
        self, config: ServingConfig, cache: ListCache, compute: Compute, snapshot: Callable[[], Snapshot], metrics: GatewayMetrics
    ) -> None:
        self._config = config
        self._cache = cache
        self._compute = compute
        self._snapshot = snapshot
        self._metrics = metrics
        self._random = random.Random()  # seeded by the system; ids must be unique, not secret

    async def recommend(self, request: RecommendationRequest) -> Answer:
        """The answer to a request.

        Raises:
            RequestError: the filter is wrong or does not fit the items' attributes, or the version asked for is not loaded.
        """
        started = time.perf_counter()
        snapshot = self._snapshot()
        if request.model_version is None:
            assignments = snapshot.plan.assign(request.user_id, request.session_id, request.context)
            live = _version_for(snapshot, assignments)
            request = _with_params(request, assignments)
        else:
            assignments, live = [], _previewed(snapshot, request.model_version)
        mask = (live.items if live is not None else snapshot.items).mask(request.selection)
        found = await self._from_version(live, request, mask) if live is not None else None
        if found is None:
            found = self._popular(snapshot, live, request, degraded=False)
        took_s = time.perf_counter() - started
        self._metrics.answer(found.served_from, found.version, took_s)
        items = live.items if live is not None else snapshot.items
        return Answer(
            recommendation_id=f"{self._random.getrandbits(128):032x}",
            request=request,
            items=_items(items, found, request.fields),
            computed_at_us=found.computed_at_us,
            model_version=found.version,
            assignments=assignments,
            served_from=found.served_from,
            degraded=found.degraded,
            took_s=took_s,
        )

    async def _from_version(self, live: LiveVersion, request: RecommendationRequest, mask: BoolArray) -> _Ladder | None:
        """From the cache or the version; None where nothing is known of the user and popular items are the answer."""
        read = await self._read(live, request)
        if read.cached is not None and read.fresh and request.cacheable:
            if read.cached.anonymous:
                return None
            hit = _take(live, read.cached, request, mask, "cache")
            if len(hit.rows) >= request.top_k or read.cached.complete:
                self._metrics.cache_read("hit")
                return hit
        outcome = "down" if not read.reachable else "miss" if read.cached is None else "stale"
        self._metrics.cache_read(outcome)
        wanted = self._compute_request(live, request, read)
        try:
            blob = await asyncio.wait_for(self._compute(live.version, wanted), self._config.deadline_ms / 1000)
        except TimeoutError:
            return self._fall_back(live, request, read, mask, "deadline")
        except Exception as error:  # whatever a replica or the way to it does, a lower rung answers
            return self._fall_back(live, request, read, mask, type(error).__name__)
        computed = decode_list(blob)
        if computed is None:
            return self._fall_back(live, request, read, mask, "unreadable")
        unit = _unit(request)
        if unit is not None and request.cacheable and not request.selection and not request.exclude and read.reachable:
            self._cache.write(live.version, unit, blob)
        if computed.anonymous:
            return None
        return _take(live, computed, request, mask, "online")

    async def _read(self, live: LiveVersion, request: RecommendationRequest) -> CacheRead:
        unit = _unit(request)
        return ABSENT if unit is None else await self._cache.read(live.version, unit)

    def _compute_request(self, live: LiveVersion, request: RecommendationRequest, read: CacheRead) -> ComputeRequest:
        cacheable_list = request.cacheable and not request.selection and not request.exclude
        return ComputeRequest(
            user_id=request.user_id,
            k=max(request.top_k, self._config.precompute_k) if cacheable_list else min(2 * request.top_k + 20, 1000),
            activity=read.activity,
            selection=request.selection,
            recent_items=request.recent_items,
            exclude=request.exclude,
            exclude_seen=request.exclude_seen,
            candidates=request.candidates,
            log_as=self._log_as(live, request),
        )

    def _log_as(self, live: LiveVersion, request: RecommendationRequest) -> tuple[str, str] | None:
        unit = _unit(request)
        return (unit, live.version) if unit is not None and is_sampled(unit, self._config.feature_log_rate) else None

    def _fall_back(
        self, live: LiveVersion, request: RecommendationRequest, read: CacheRead, mask: BoolArray, reason: str
    ) -> _Ladder:
        """The rungs below a computed answer."""
        self._metrics.fallback(reason)
        if read.cached is not None and len(read.cached) and request.cacheable:
            # What the user did since is known, although the list does not reflect it: leave those items out.
            since = {event.item_id for event in decode_activity(read.activity).events}
            stale = _take(live, read.cached, request, mask, "stale", exclude=live.items.rows(sorted(since)))
            if len(stale.rows) >= min(request.top_k, 1):
                return stale
        return self._popular_of(live.items, live.version, request, _us(live.trained_at), degraded=True, activity=read.activity)

    def _popular(self, snapshot: Snapshot, live: LiveVersion | None, request: RecommendationRequest, *, degraded: bool) -> _Ladder:
        if live is not None:
            return self._popular_of(live.items, live.version, request, _us(live.trained_at), degraded=degraded)
        return self._popular_of(snapshot.items, None, request, _us(snapshot.items_at), degraded=degraded)

    def _popular_of(
        self,
        items: ItemTable,
        version: str | None,
        request: RecommendationRequest,
        computed_at_us: int,
        *,
        degraded: bool,
        activity: bytes = b"",
    ) -> _Ladder:
        mask = items.mask(request.selection)
        if request.candidates is not None:
            wanted = np.zeros(len(items), dtype=bool)
            wanted[items.rows(request.candidates)] = True
            mask = mask & wanted
        seen = [event.item_id for event in decode_activity(activity).events]
        left_out = items.rows([*request.exclude, *request.recent_items, *seen] if request.exclude_seen else request.exclude)
        rows = items.popular(request.top_k, mask, left_out)
        segment = bool(request.selection.region or request.selection.language)
        return _Ladder(
            served_from="segment" if degraded and segment else "popular",
            rows=rows,
            scores=popularity_scores(items, rows),
            sources=[POPULAR_SOURCE] * len(rows),
            computed_at_us=computed_at_us,
            version=version,
            degraded=degraded,
        )

    def popular(self, selection: Selection, top_k: int, fields: Sequence[str]) -> tuple[list[dict[str, Any]], datetime]:
        """Most popular items of a selection, and as of when.

        Raises:
            FilterError: the filter is wrong.
        """
        snapshot = self._snapshot()
        items = snapshot.items
        rows = items.popular(top_k, items.mask(selection))
        found = _Ladder("popular", rows, popularity_scores(items, rows), [POPULAR_SOURCE] * len(rows), 0, None, False)
        return _items(items, found, fields), snapshot.items_at


def popularity_scores(items: ItemTable, rows: IntArray) -> list[float]:
    """Scores of popular items: 1 for the most popular of all, falling linearly with the rank to 0."""
    rank = items.popularity_rank[rows]
    return [float(score) for score in 1.0 - rank / max(len(items), 1)]


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


def _with_params(request: RecommendationRequest, assignments: Sequence[Assignment]) -> RecommendationRequest:
    """The request as its variants' parameters (`live_state.VARIANT_PARAMS`) want it."""
    for one in assignments:
        if one.params:
            selection = request.selection
            if "filter" in one.params:
                both = f"({selection.filter}) && ({one.params['filter']})" if selection.filter else one.params["filter"]
                selection = selection._replace(filter=both)
            request = replace(request, selection=selection, exclude_seen=one.params.get("exclude_seen", request.exclude_seen))
    return request


def _unit(request: RecommendationRequest) -> str | None:
    if request.user_id is not None:
        return user_unit(request.user_id)
    return None if request.session_id is None else session_unit(request.session_id)


def _take(
    live: LiveVersion,
    cached: CachedList,
    request: RecommendationRequest,
    mask: BoolArray,
    served_from: ServedFrom,
    exclude: IntArray | None = None,
) -> _Ladder:
    """The first `top_k` entries of a list that the mask lets through."""
    keep = mask[cached.item_idx]
    excluded = live.items.rows(request.exclude) if request.exclude else None
    for rows in (excluded, exclude):
        if rows is not None and len(rows):
            keep &= ~np.isin(cached.item_idx, rows)
    chosen = np.flatnonzero(keep)[: request.top_k]
    return _Ladder(
        served_from=served_from,
        rows=cached.item_idx[chosen],
        scores=cached.score[chosen].tolist(),
        sources=[live.sources[number] for number in cached.source[chosen].tolist()],
        computed_at_us=cached.computed_at_us,
        version=live.version,
        degraded=served_from == "stale",
    )


def _items(items: ItemTable, found: _Ladder, fields: Sequence[str]) -> list[dict[str, Any]]:
    ids = items.item_ids[found.rows].tolist()
    rows = found.rows.tolist()
    answered: list[dict[str, Any]] = [
        {"item_id": item_id, "score": round(score, 6), "source": source}
        for item_id, score, source in zip(ids, found.scores, found.sources, strict=True)
    ]
    if fields:
        for entry, row in zip(answered, rows, strict=True):
            entry.update(items.fields(row, fields))
    return answered


def _us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)
