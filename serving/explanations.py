"""Explanations in an answer: a reason for people, and contributions that sum to the score.

Contributions of a version's lists are `training.explain`'s; boosts and buries add theirs; a popular item's score is its popularity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.answer import EXPLORED_SOURCE, PINNED_SOURCE
from serving.explained_list import ExplainedList
from serving.item_table import ItemTable
from serving.popular_lists import NEW_SOURCE, POPULAR_SOURCE
from serving.schemas import RecommendationRequest
from serving.slate import Slate

POPULARITY_SOURCES = frozenset({POPULAR_SOURCE, "popularity"})


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
        if told is None:
            told = {entry["source"]: entry["score"] - sum(changes.values())}
        because = None if explained is None or n is None or not explained.because else explained.because[n]
        entry["reason"] = _reason(entry["source"], slate.pinned.get(row), because, changes, items, request)
        entry["contributions"] = {name: round(value, 6) for name, value in {**told, **changes}.items()}


def _own_parts(explained: ExplainedList | None, n: int | None) -> dict[str, float] | None:
    if explained is None or n is None or explained.parts is None:
        return None
    parts = explained.parts[n]
    return {explained.names[p]: float(parts[p]) for p in np.flatnonzero(parts).tolist()}


def _reason(
    source: str,
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
        region = request.selection.region[0] if request.selection.region else request.context.get("region")
        reason = f"popular in {region}" if region else "popular"
    elif because is not None:
        title = items.fields(items.row(because), ["title"])["title"] if items.row(because) >= 0 else None
        reason = f'because of your interest in "{title or because}"'
    else:
        reason = f"fits your activity ({source})"
    moved = [f"{'lifted' if added > 0 else 'lowered'} by {name.replace(':', ' ')}" for name, added in changes.items()]
    return "; ".join([reason, *moved])
