"""The answer to a request for recommendations as a value, and its JSON envelope (DESIGN 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.assignment import Assignment
from serving.item_table import ItemTable
from serving.page_cursor import encode_cursor
from serving.schemas import RecommendationRequest, ServedFrom
from serving.slate import EXPLORED, PINNED, Slate

PINNED_SOURCE, EXPLORED_SOURCE = "pinned", "exploration"
_OTHER_SOURCES = {PINNED: PINNED_SOURCE, EXPLORED: EXPLORED_SOURCE}


@dataclass(slots=True)
class Answer:
    """An answer before it becomes JSON.

    `propensities`: probability of each item at its place given the places before it, 1 where nothing was left to chance; None where
    nothing was at all.
    """

    recommendation_id: str
    request: RecommendationRequest
    items: list[dict[str, Any]]
    computed_at_us: int
    model_version: str | None
    assignments: Sequence[Assignment]
    served_from: ServedFrom
    degraded: bool
    took_s: float
    next_cursor: str | None = None
    propensities: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The envelope."""
        return {
            "recommendation_id": self.recommendation_id,
            "user_id": self.request.user_id,
            "recommended_items": self.items,
            "last_updated": f"{np.datetime64(self.computed_at_us // 1000, 'ms')}+00:00",  # a third of what datetime takes
            "model_version": self.model_version,
            "assignments": [{"experiment": one.experiment, "variant": one.variant} for one in self.assignments],
            "served_from": self.served_from,
            "degraded": self.degraded,
            "took_ms": round(self.took_s * 1000, 3),
            "next_cursor": self.next_cursor,
        }


def shown_items(items: ItemTable, slate: Slate, sources: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
    """A slate as the answer shows it.

    Args:
        items: whose rows the slate has.
        slate: rows, scores, source numbers.
        sources: names by number.
        fields: attributes that are asked for.
    """
    item_ids, numbers = items.item_ids.take(slate.rows).tolist(), slate.sources.tolist()
    # Six digits, of all at once: `round` goes by way of decimals, which takes half a microsecond for each.
    scores = (np.rint(slate.scores.astype(np.float64) * 1e6) / 1e6).tolist()
    shown: list[dict[str, Any]] = [
        {"item_id": item_id, "score": score, "source": sources[number] if number >= 0 else _OTHER_SOURCES[number]}
        for item_id, score, number in zip(item_ids, scores, numbers, strict=True)
    ]
    if fields:
        for entry, row in zip(shown, slate.rows.tolist(), strict=True):
            entry.update(items.fields(row, fields))
    return shown


def next_cursor(items: ItemTable, request: RecommendationRequest, slate: Slate, top_k: int, *, ended: bool) -> str | None:
    """The cursor after this page; None where the list has `ended`, or is too long to be continued.

    Caps hold for a page: one that they have made short goes on with what they kept out of it.
    """
    if ended or not len(slate) or (len(slate) < top_k and not len(slate.rest)):
        return None
    hashes = items.hashes(slate.rows)
    return encode_cursor(hashes if not len(request.shown) else np.concatenate([request.shown, hashes]))
