"""The first stage: retrievers fitted, put together as a pipeline without a ranker, and asked for candidates of a fold.

What comes after it, blend and ranker, is `training.funnel`'s. Legend: `B` queries, `K` candidates, `N` items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from training.blend import Blend, equal_blend
from training.candidates import CandidateSet
from training.cross_fit import Progress
from training.fold import Fold
from training.funnel_config import FunnelConfig, SourceConfig
from training.histories import Histories
from training.interactions import IntArray, Interactions
from training.models.base import TrainingData
from training.models.registry import build_model
from training.models.vector_retriever import VectorRetriever
from training.pipeline import Pipeline, Source, item_table
from training.weights import WORTH_KEEPING_SECONDS, WeightStore, data_sha256

BLOCK_CELLS = 16_000_000
"""Scores held at once while candidates are retrieved: 64 MB of float32 a copy."""


def fit_sources(
    configs: Sequence[SourceConfig],
    data: TrainingData,
    *,
    seed: int,
    weights: WeightStore | None = None,
    progress: Progress = lambda _: None,
) -> tuple[Source, ...]:
    """Fit every retriever on `data`, those alone that `weights` has not got.

    Args:
        configs: the sources.
        data: what they learn from.
        seed: of every random choice.
        weights: where fits that took long are found, and kept; None does neither.
        progress: told what is being done.

    Raises:
        StudyError: an unknown model or parameter.
    """
    built = [build_model(config.model, config.config) for config in configs]  # all configurations are checked before any work
    digest = "" if weights is None else data_sha256(data)
    fitted = []
    for config, model in zip(configs, built, strict=True):
        retriever = None if weights is None else weights.find(config.model, config.config, digest, seed)
        if retriever is None:
            progress(f"fitting source {config.source}")
            started = time.perf_counter()
            retriever = model.fit(data, seed=seed)
            if weights is not None and time.perf_counter() - started >= WORTH_KEEPING_SECONDS:
                weights.add(retriever, config.model, config.config, digest, seed)
        elif isinstance(retriever, VectorRetriever) and retriever.index is None:
            # A best epoch is kept as it was in the middle of its fit, without an index.
            retriever.vectors_changed(data.interactions, seed)
        fitted.append(Source(config.source, retriever, config.quota))
    return tuple(fitted)


def assemble(
    config: FunnelConfig,
    sources: tuple[Source, ...],
    blend: Blend | None,
    data: TrainingData,
    interactions: Interactions,
    dataset: str,
) -> Pipeline:
    """A pipeline out of fitted parts; without a blend, sources count alike."""
    names = tuple(source.name for source in sources)
    counts = np.bincount(interactions.item_idx, minlength=interactions.num_items)
    by_popularity: IntArray = np.argsort(-counts, kind="stable").astype(np.int32)
    return Pipeline(
        dataset=dataset,
        config=config,
        sources=sources,
        blend=blend or equal_blend(names),
        items=item_table(interactions.item_ids, data.item_attributes),
        histories=Histories.of(interactions, data.rejected),
        by_popularity=by_popularity,
    )


def retrieve_by_blocks(pipeline: Pipeline, fold: Fold) -> CandidateSet:
    """Candidates of all of a fold's queries, in blocks so that memory does not grow with users times items."""
    queries = fold.queries
    block = max(1, min(4096, BLOCK_CELLS // max(pipeline.num_items, 1)))
    parts = [pipeline.retrieve(part, fold.allowed, exclude_history=fold.exclude_history) for _, part in queries.blocks(block)]
    return concatenate(parts)


def concatenate(parts: Sequence[CandidateSet]) -> CandidateSet:
    """Candidate sets of consecutive queries as one, padded to the widest."""
    width = max(part.item_idx.shape[1] for part in parts)

    def widened(part: CandidateSet) -> CandidateSet:
        grow = width - part.item_idx.shape[1]
        pad = ((0, 0), (0, grow), (0, 0))
        return CandidateSet(
            part.sources,
            np.pad(part.item_idx, pad[:2], constant_values=-1),
            np.pad(part.score, pad, constant_values=np.nan),
            np.pad(part.rank, pad, constant_values=np.nan),
        )

    wide = [widened(part) for part in parts]
    return CandidateSet(
        parts[0].sources,
        np.concatenate([part.item_idx for part in wide]),
        np.concatenate([part.score for part in wide]),
        np.concatenate([part.rank for part in wide]),
    )
