"""Where a score comes from: what each source and each of the ranker's features adds to it, and which history item is behind it.

A funnel's score is linear in what its blend and its ranker say: blend and ranker are standardised within the query and mixed, so
every part is scaled alike and all means go into `baseline`, which is the same for all candidates that the ranker saw. Parts and
baseline sum to the score. What a ranker's features add is the ranker's own answer (`Ranker.contributions`).

Legend: `K` candidates, `S` sources, `F` features, `P` parts, `n` explained items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.candidates import CandidateSet
from training.interactions import FloatArray, IntArray
from training.models.item_item import ItemItemRetriever
from training.pipeline import Pipeline
from training.queries import QueryBatch
from training.rankers.base import standardised

BASELINE = "baseline"


@dataclass(frozen=True)
class Explanation:
    """Parts of the scores of n items.

    Shapes: names: P; parts (n, P) float32, summing to the scores; because (n,) int32, the history item that speaks most for the
    item, -1 where none does.
    """

    names: tuple[str, ...]
    parts: FloatArray
    because: IntArray


def explained(pipeline: Pipeline, query: QueryBatch, candidates: CandidateSet, item_idx: IntArray) -> Explanation:
    """Parts of the scores that `pipeline.score` gives some candidates of one query.

    Args:
        pipeline: that scored them.
        query: one query.
        candidates: of the query.
        item_idx: (n,) items among the candidates.
    """
    scores = pipeline.score(query, candidates)[0]
    by_source = pipeline.blend.contributions(candidates)[0]
    names = tuple(f"source:{name}" for name in candidates.sources)
    parts = by_source
    reached = candidates.sourced[0]
    if pipeline.stage is not None:
        reached = _reached(pipeline, candidates)
        seen = candidates.columns(np.flatnonzero(reached)[None, :])  # scales of sources are those of what the ranker sees
        weight, features = _ranked_parts(pipeline, query, seen)
        parts = np.zeros((len(scores), by_source.shape[1] + features.shape[1]), dtype=np.float32)
        parts[reached] = np.concatenate([weight * pipeline.blend.contributions(seen)[0], features], axis=1)
        names = (*names, *(f"feature:{name}" for name in pipeline.stage.features.names))
    parts = np.where(reached[:, None], parts, 0.0)
    baseline = np.where(candidates.valid[0], scores - parts.sum(axis=1, dtype=np.float64), 0.0)
    order = np.argsort(candidates.item_idx[0], kind="stable")
    place = order[np.searchsorted(candidates.item_idx[0], item_idx, sorter=order)]
    together = np.concatenate([parts, baseline[:, None]], axis=1).astype(np.float32)[place]
    return Explanation((*names, BASELINE), together, nearest_history(pipeline, query, item_idx))


def nearest_history(pipeline: Pipeline, query: QueryBatch, item_idx: IntArray) -> IntArray:
    """(n,) int32: of the 50 newest history items the one that an item-to-item source, or else the item vectors, bring nearest."""
    history = np.unique(query.history(0)[-50:])
    nothing = np.full(len(item_idx), -1, dtype=np.int32)
    if not len(history) or not len(item_idx):
        return nothing
    for source in pipeline.sources:
        if isinstance(source.retriever, ItemItemRetriever):
            nearness = np.asarray(source.retriever.weights[history][:, item_idx].todense())
            break
    else:
        if pipeline.stage is None:
            return nothing
        vectors = pipeline.stage.features.vectors
        nearness = vectors[history] @ vectors[item_idx].T
    best = nearness.argmax(axis=0)
    return np.where(nearness[best, np.arange(len(item_idx))] > 0, history[best], -1).astype(np.int32)


def _reached(pipeline: Pipeline, candidates: CandidateSet) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(K,) bool: candidates that the ranker sees, as `Pipeline.score` chooses them."""
    sourced = candidates.sourced[0]
    if candidates.item_idx.shape[1] <= pipeline.config.k_candidates:
        return sourced
    blended = np.where(sourced, pipeline.blend.score(candidates)[0], -np.inf)
    best = np.zeros(len(sourced), dtype=bool)
    best[np.argsort(-blended, kind="stable")[: pipeline.config.k_candidates]] = True
    return np.asarray(best & sourced)


def _ranked_parts(pipeline: Pipeline, query: QueryBatch, candidates: CandidateSet) -> tuple[float, FloatArray]:
    """What one unit of a source's blend contribution adds to the final score, and (K, F) what each feature adds."""
    stage = pipeline.stage
    assert stage is not None
    batch = stage.features.batch(query, candidates, pipeline.blend, pipeline.timeline)
    learned = stage.ranker.score(batch)
    per_blend = _slope(pipeline.blend.score(candidates), batch.base)
    per_learned = stage.weight * _slope(learned, standardised(learned, batch.valid))
    per_base = (1.0 - stage.weight) + per_learned * stage.ranker.base_slope
    return per_base * per_blend, (per_learned * stage.ranker.contributions(batch)[0]).astype(np.float32)


def _slope(given: FloatArray, shown: FloatArray) -> float:
    """How much `shown`, a linear function of `given` within the query, moves with it; 0 where it does not."""
    low, high = int(given[0].argmin()), int(given[0].argmax())
    spread = float(given[0, high]) - float(given[0, low])
    return (float(shown[0, high]) - float(shown[0, low])) / spread if spread > 1e-9 else 0.0
