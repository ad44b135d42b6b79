"""Items like one item: what the funnel's sources give after that item alone, popularity left out.

Sources are weighed as the blend weighs them; ranker and filling do not take part. An item without activity has none: what it is
made of is all there is to go by, and that is the caller's business.
"""

from __future__ import annotations

import numpy as np

from training.candidates import RankedLists, Retrieved
from training.interactions import BoolArray
from training.models.popularity import Popularity
from training.pipeline import Pipeline
from training.queries import queries_from_histories
from training.ranked_lists import best_lists
from training.union import unite

LEAST = 1e-3
"""Blend scores below this are those of items that a source gives only because nothing else is left."""


def similar_items(pipeline: Pipeline, item_idx: int, k: int, allowed: BoolArray) -> RankedLists:
    """One list of up to k items, best first.

    Args:
        pipeline: asked.
        item_idx: the item.
        k: items wanted.
        allowed: (N,) bool of items that may be returned; the item itself never is.
    """
    allowed = allowed.copy()
    allowed[item_idx] = False
    now_us = np.array([pipeline.histories.end_us + 2], dtype=np.int64)
    query = queries_from_histories(
        [np.array([item_idx], dtype=np.int32)],
        times_us=[now_us - 1],
        request_time_us=now_us,
        user_idx=np.array([-1], dtype=np.int32),
    )
    nothing = Retrieved(np.zeros((1, 0), dtype=np.int32), np.zeros((1, 0), dtype=np.float32))
    known = pipeline.activity[item_idx] > 0
    lists = [
        source.retriever.retrieve(query, source.quota, allowed)
        if known and not isinstance(source.retriever, Popularity)
        else nothing
        for source in pipeline.sources
    ]
    candidates = unite([source.name for source in pipeline.sources], lists)
    scores = np.where(candidates.valid, pipeline.blend.score(candidates), -np.inf)
    return best_lists(candidates, np.where(scores > LEAST, scores, -np.inf).astype(np.float32), k, pipeline.source_names)
