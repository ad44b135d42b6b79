"""Explanations in an answer: a reason for people, and contributions that sum to the score.

Contributions of a version's lists are `training.explain`'s; boosts and buries add theirs; a popular item's score is its popularity.
The reason names what adds most to the score, which need not be the item's `source`: that is the retriever that ranked it highest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.answer import EXPLORED_SOURCE, PINNED_SOURCE
from serving.explained_list import ExplainedList
from serving.item_table import ItemTable
from serving.popular_lists import NEW_SOURCE, POPULAR_SOURCE
from serving.schemas import RecommendationRequest, Selection
from serving.slate import Slate

POPULARITY_SOURCES = frozenset({POPULAR_SOURCE, "popularity"})
_SOURCE, _FEATURE = "source:", "feature:"


def add_explanations(
    shown: Sequence[dict[str, Any]], slate: Slate, items: ItemTable, request: RecommendationRequest, explained: ExplainedList | None
) -> None:
    """Put `reason` and `contributions` into the items of an answer.

    Args:
        shown: items of the answer.
        slate: the same, as rows.
        items: whose rows they are.
        request: that was answered.
        explained: of the list that the slate was taken from; None where it was not a version's.
    """
    place = {} if explained is None else {int(row): n for n, row in enumerate(explained.ranked.item_idx.tolist())}
    for entry, row in zip(shown, slate.rows.tolist(), strict=True):
        n = place.get(row)
        told = _own_parts(explained, n) if entry["source"] != EXPLORED_SOURCE else None
        changes = {
            f"rule:{name}" if name != "boost" else name: by_row[row] for name, by_row in slate.changes.items() if row in by_row
        }
        leading = entry["source"]
        if told is None:
            told = {entry["source"]: entry["score"] - sum(changes.values())}
        elif explained is not None and leading != PINNED_SOURCE:
            leading = _leading(told, explained.names, leading)
        because = None if explained is None or n is None or not explained.because else explained.because[n]
        entry["reason"] = _reason(leading, row, slate.pinned.get(row), because, changes, items, request)
        entry["contributions"] = {name: round(value, 6) for name, value in {**told, **changes}.items()}


def _own_parts(explained: ExplainedList | None, n: int | None) -> dict[str, float] | None:
    if explained is None or n is None or explained.parts is None:
        return None
    parts = explained.parts[n]
    return {explained.names[p]: float(parts[p]) for p in np.flatnonzero(parts).tolist()}


def _leading(told: Mapping[str, float], names: Sequence[str], source: str) -> str:
    """The source behind the largest part of a score, or the largest part's own name where it is a feature of no source.

    Args:
        told: parts of the score by name.
        names: of all parts.
        source: of the item: the answer where it is as good as any, and where no part adds to the score.
    """
    parts = {name: value for name, value in told.items() if name.startswith((_SOURCE, _FEATURE)) and value > 0}
    if not parts:
        return source
    first = max(parts, key=lambda name: (parts[name], name == _SOURCE + source))
    if first.startswith(_SOURCE):
        return first.removeprefix(_SOURCE)
    sources = [name.removeprefix(_SOURCE) for name in names if name.startswith(_SOURCE)]
    return max((one for one in sources if first.startswith(f"{_FEATURE}{one}_")), key=len, default=first)


def _reason(
    source: str,
    row: int,
    pinned_by: str | None,
    because: str | None,
    changes: Mapping[str, float],
    items: ItemTable,
    request: RecommendationRequest,
) -> str:
    if pinned_by is not None or source == PINNED_SOURCE:
        return f"pinned by rule {pinned_by}"
    if source == EXPLORED_SOURCE:
        reason = "shown to learn how it does"
    elif source == NEW_SOURCE:
        reason = "new in the catalogue"
    elif source in POPULARITY_SOURCES:
        here = np.array([row], dtype=np.int32)
        regions = (word for word in request.selection.region if items.passing(Selection(region=(word,)), here)[0])
        region = next(regions, None)
        reason = "popular" if region is None else f"popular in {region}"
    elif source.startswith(_FEATURE):
        reason = f"ranked by {source.removeprefix(_FEATURE)}"
    elif because is not None:
        title = items.fields(items.row(because), ["title"])["title"] if items.row(because) >= 0 else None
        reason = f'because of your interest in "{title or because}"'
    else:
        reason = f"fits your activity ({source})"
    moved = [f"{'lifted' if added > 0 else 'lowered'} by {name.replace(':', ' ')}" for name, added in changes.items()]
    return "; ".join([reason, *moved])
