"""The rungs of the fallback ladder as values: what a version's list shows, and what popular items show in its place.

Which rung answers is `answers`'.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from serving.asked import Asked
from serving.beyond_caps import beyond_caps, continued
from serving.cached_list import CachedList
from serving.explained_list import ExplainedList
from serving.item_table import ItemTable
from serving.live_state import LiveVersion
from serving.popular_lists import NEW_SOURCE, POPULAR_SOURCE, longer_popular_list, popular_list, with_new_items
from serving.recent_activity import RecentEvent, decode_activity
from serving.schemas import RecommendationRequest, Selection, ServedFrom
from serving.slate import Ranked, Slate, arranged, behind
from training.interactions import IntArray


@dataclass(slots=True)
class Rung:
    """How far down the ladder an answer had to go, and what is shown.

    `ended`: it is known that nothing follows. `filled`: the list ran short, and new items follow. `beyond`: which items may
    stand on a page that caps have left short, of the version's before any new ones; None where they have not.
    """

    served_from: ServedFrom
    slate: Slate
    sources: Sequence[str]
    computed_at_us: int
    version: str | None
    degraded: bool = False
    explained: ExplainedList | None = None
    ended: bool = False
    filled: bool = False
    beyond: Selection | None = None


def of_list(
    live: LiveVersion, cached: CachedList, asked: Asked, served_from: ServedFrom, activity: bytes, exclude: IntArray | None = None
) -> Rung:
    """What a version's list shows. Where it runs short, new items follow.

    Args:
        live: whose list it is.
        cached: the list, computed without what the user had rejected or met.
        asked: the request.
        served_from: the rung.
        activity: of the user, whose items are no new ones.
        exclude: rows that are left out of the list, too.
    """
    wish = asked.wish(live.items, live.vectors)
    if exclude is not None and len(exclude):
        wish = replace(wish, exclude=exclude if wish.exclude is None else np.concatenate([wish.exclude, exclude]))
    ranked = Ranked(cached.item_idx, cached.score, cached.source, fill=len(live.sources) - 1)
    explain = asked.request.explain
    slate = arranged(ranked, live.items, wish, explain=explain)
    beyond = beyond_caps(slate, live.items, wish)
    new_follow = len(live.items) > live.items.num_trained
    filled = new_follow and len(slate) < asked.top_k
    if filled:
        out, source = left_out(live.items, asked, activity), len(live.sources)

        def further(ranked: Ranked, selection: Selection) -> Ranked:
            return with_new_items(ranked, live.items, replace(wish, selection=selection), out, source)

        slate = continued(further(ranked, asked.selection), live.items, wish, further, explain=explain)
        new_follow = False
    # With a chain of regions or languages a list is complete as far as the steps go that were needed.
    ended = cached.complete and len(asked.selection.steps) == 1 and not new_follow and not len(slate.rest)
    return Rung(
        served_from=served_from,
        slate=slate,
        sources=(*live.sources, NEW_SOURCE),
        computed_at_us=cached.computed_at_us,
        version=live.version,
        degraded=served_from == "stale",
        ended=ended,
        filled=filled,
        beyond=beyond,
    )


def followed(first: CachedList, second: CachedList) -> CachedList:
    """A version's list with what a second one, of fewer items, has beside it behind it."""
    both = behind(*(Ranked(one.item_idx, one.score, one.source) for one in (first, second)))
    return replace(first, item_idx=both.rows, score=both.scores, source=both.sources.astype(np.uint8))


def is_enough(found: Rung, live: LiveVersion, asked: Asked, cached: CachedList, lag_s: float) -> bool:
    """Whether nothing more is to be had from the version: the answer is full, of the most wanted region and language, or the list
    holds all that there is.

    Args:
        found: what the list shows.
        live: whose list it is.
        asked: the request.
        cached: the list.
        lag_s: as `LiveVersion.is_whole` has it.
    """
    is_full = not found.filled and min(len(found.slate), found.slate.preferred) >= asked.top_k
    return is_full or live.is_whole(cached, lag_s)


def of_popular_items(
    items: ItemTable,
    version: str | None,
    asked: Asked,
    computed_at: datetime,
    *,
    degraded: bool = False,
    activity: bytes = b"",
) -> Rung:
    """What popular items show.

    Args:
        items: whose they are.
        version: they are of, None before there is any.
        asked: the request.
        computed_at: when they became popular: the training's time.
        degraded: whether trouble has led here.
        activity: of the user, whose items are left out.
    """
    request = asked.request
    wish = asked.wish(items, None)
    out = left_out(items, asked, activity)
    ranked = popular_list(items, asked.selection, asked.top_k, out, request.candidates)
    segment = bool(asked.selection.region or asked.selection.language)
    slate = continued(
        ranked,
        items,
        wish,
        lambda ranked, selection: longer_popular_list(ranked, items, selection, out, request.candidates),
        explain=request.explain,
    )
    return Rung(
        served_from="segment" if degraded and segment else "popular",
        slate=slate,
        sources=(POPULAR_SOURCE,),
        computed_at_us=round(computed_at.timestamp() * 1e6),
        version=version,
        degraded=degraded,
        ended=not len(slate.rest),
    )


def left_out(items: ItemTable, asked: Asked, activity: bytes) -> IntArray:
    """Rows of what the request excludes and what the user's last events leave out: for items that come from no version's list."""
    rows = items.rows(_left_out(asked.request, decode_activity(activity).events))
    excluded = asked.excluded(items)
    return rows if excluded is None else np.concatenate([rows, excluded])


def _left_out(request: RecommendationRequest, events: Sequence[RecentEvent]) -> list[str]:
    """Items that the user has rejected, and those met so that the request leaves them out, as far as the last events tell."""
    seen, now_us = request.seen, time.time_ns() // 1000
    if seen is None:
        return [event.item_id for event in events if not event.positive]
    met = [one.item_id for one in events if not one.positive or seen.counts(one.action, one.time_us, now_us)]
    return [*request.recent_items, *met]
