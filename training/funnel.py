"""Fitting a funnel: retrievers, then the blend, then the ranker, each on rows that the stage before has not seen.

`fit_funnel` fits the first stages on a fold's fit part, asks them for candidates of the fold's queries, and tunes what comes after
on the fold's targets. Folds come from `training.splits`; the outcome is a `training.pipeline.Pipeline`.

Legend: `B` queries, `K` candidates, `N` items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from training.blend import Blend
from training.blend_search import BlendSearch, label_candidates, search_blend
from training.candidates import CandidateSet
from training.funnel_config import BlendConfig, FunnelConfig, RankerConfig, SourceBlend, SourceConfig
from training.histories import Histories
from training.interactions import IntArray, Interactions
from training.models.base import TrainingData
from training.models.registry import build_model
from training.pipeline import Pipeline, Source, item_table
from training.queries import QueryBatch
from training.splits import Fold

__all__ = ["BlendConfig", "FunnelConfig", "FunnelReport", "RankerConfig", "SourceBlend", "SourceConfig", "fit_funnel", "refit"]

BLOCK_CELLS = 16_000_000
"""Scores held at once while candidates are retrieved: 64 MB of float32 a copy."""


@dataclass
class FunnelReport:
    """What fitting found out, all of it on validation.

    Args:
        ndcg10: `blend` and each source alone, NDCG@10 over the candidates of the fold's queries.
        recall: share of targets among the union's candidates, and among each source's.
        seconds: stage -> wall time.
    """

    ndcg10: dict[str, float] = field(default_factory=dict)
    recall: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ndcg10": self.ndcg10, "recall": self.recall, "seconds": self.seconds}


@dataclass(frozen=True)
class FittedFunnel:
    """A funnel whose first stages saw the fold's fit part only, and the report."""

    pipeline: Pipeline
    report: FunnelReport


def fit_sources(configs: Sequence[SourceConfig], data: TrainingData, *, seed: int) -> tuple[Source, ...]:
    """Fit every retriever on `data`.

    Raises:
        StudyError: an unknown model or parameter.
    """
    built = [build_model(config.model, config.config) for config in configs]  # all configurations are checked before any work
    return tuple(
        Source(config.source, model.fit(data, seed=seed), config.quota) for config, model in zip(configs, built, strict=True)
    )


def fit_funnel(config: FunnelConfig, data: TrainingData, fold: Fold, *, dataset: str, seed: int = 0) -> FittedFunnel:
    """Fit a funnel on a fold: first stages on `fold.fit`, blend on the targets that they have not seen.

    Args:
        config: sources, blend, ranker.
        data: attributes of users and items; its interactions are replaced by the fold's.
        fold: at stage validation; for a protocol's test stage, the validation fold inside its fit part.
        dataset: the dataset's name.
        seed: of every random choice.

    Raises:
        StudyError: an unknown model or parameter.
        NotTrainableError: the fold has nothing to learn from.
    """
    report = FunnelReport()
    clock = _Clock(report.seconds)
    sources = fit_sources(config.sources, replace(data, interactions=fold.fit), seed=seed)
    clock.lap("sources")
    draft = assemble(config, sources, None, data, fold.fit, dataset)
    candidates = retrieve_by_blocks(draft, fold)
    labels = label_candidates(candidates, fold.target_indptr, fold.target_idx)
    num_targets = np.diff(fold.target_indptr)
    clock.lap("candidates")
    found = search_blend(candidates, labels, num_targets, config.blend, seed=seed)
    clock.lap("blend")
    _report_retrieval(report, candidates, labels, int(num_targets.sum()), found)
    return FittedFunnel(replace(draft, blend=found.blend), report)


def refit(pipeline: Pipeline, data: TrainingData, *, seed: int = 0) -> Pipeline:
    """The same funnel with its first stages fitted anew on all of `data`, for serving; blend and ranker stay as they are."""
    sources = fit_sources(pipeline.config.sources, data, seed=seed)
    return assemble(pipeline.config, sources, pipeline.blend, data, data.interactions, pipeline.dataset)


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
        blend=blend or Blend(names, tuple(SourceBlend() for _ in names)),
        items=item_table(interactions.item_ids, data.item_attributes),
        histories=Histories.of(interactions),
        by_popularity=by_popularity,
    )


def retrieve_by_blocks(pipeline: Pipeline, fold: Fold, queries: QueryBatch | None = None) -> CandidateSet:
    """Candidates of all of a fold's queries, in blocks so that memory does not grow with users times items."""
    queries = fold.queries if queries is None else queries
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


class _Clock:
    """Wall time between laps."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.started = seconds, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.started = round(now - self.started, 3), now


def _report_retrieval(
    report: FunnelReport, candidates: CandidateSet, labels: np.ndarray[Any, np.dtype[np.bool_]], targets: int, found: BlendSearch
) -> None:
    report.ndcg10.update({**{name: round(value, 6) for name, value in found.singles.items()}, "blend": round(found.ndcg, 6)})
    hit = labels[:, :, None] & ~np.isnan(candidates.rank)
    report.recall["union"] = round(float(labels.sum() / max(targets, 1)), 6)
    for s, name in enumerate(candidates.sources):
        report.recall[name] = round(float(hit[:, :, s].sum() / max(targets, 1)), 6)
