"""Fitting a funnel: retrievers, then the blend, then the ranker, each on rows that the stage before has not seen.

`fit_funnel` fits the first stages on a fold's fit part, asks them for candidates of the fold's queries, and tunes what comes after
on the fold's targets. Folds come from `training.splits`; the outcome is a `training.pipeline.Pipeline`.

Legend: `B` queries, `K` candidates, `N` items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from training.blend_search import label_candidates
from training.bootstrap import PairedComparison
from training.candidates import CandidateSet, RankedLists
from training.cross_fit import Progress, ValidationCandidates, cross_fit
from training.evaluate import Evaluation, Recommend, evaluate
from training.feature_joins import fit_ranking_features
from training.first_stage import assemble, fit_sources, retrieve_by_blocks
from training.fold import drawn, users_within
from training.funnel_config import BlendConfig, FunnelConfig, RankerConfig, SourceBlend, SourceConfig
from training.interactions import FloatArray
from training.item_timeline import ItemTimeline
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.queries import QueryBatch
from training.ranked_lists import best_lists, completed
from training.rankers.registry import ranker_settings
from training.ranking_stage import RankingStage
from training.simulated_folds import fit_on_draws, new_item_features, simulated_draws
from training.splits import Fold
from training.union import fill
from training.weights import WeightStore

__all__ = ["BlendConfig", "FunnelConfig", "FunnelReport", "RankerConfig", "SourceBlend", "SourceConfig", "fit_funnel", "refit"]


@dataclass
class FunnelReport:
    """What fitting found out, all of it on validation and on users that blend and ranker were not fitted on.

    Args:
        ndcg10: each source alone, `blend`, and each ranker that was tried (mixed with the blend): a missed target counts 0.
        recall: share of the targets among the union's candidates (`union`), and among each source's.
        shipped: `blend`, or the kind of the ranker that ships.
        left_out: kinds of rankers for which there was no time.
        comparisons: ranker's kind -> its NDCG@10 less the blend's, with interval and p.
        weight: of that ranker against the blend.
        importance: feature -> share in the ranker that ships.
        seconds: stage -> wall time.
    """

    ndcg10: dict[str, float] = field(default_factory=dict)
    recall: dict[str, float] = field(default_factory=dict)
    shipped: str = "blend"
    left_out: tuple[str, ...] = ()
    comparisons: dict[str, PairedComparison] = field(default_factory=dict)
    weight: float | None = None
    importance: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class FittedFunnel:
    """A fitted funnel.

    Args:
        pipeline: first stages fitted on the fold's fit part, blend and ranker on its targets. Not to be measured on that fold.
        evaluation: of the whole funnel on the fold, every user scored by a blend and a ranker that were not fitted on that user.
        singles: the same for each source alone.
        report: everything else that was found out.
    """

    pipeline: Pipeline
    evaluation: Evaluation
    singles: dict[str, Evaluation]
    report: FunnelReport


def fit_funnel(
    config: FunnelConfig,
    data: TrainingData,
    fold: Fold,
    *,
    dataset: str,
    seed: int = 0,
    rankers: Sequence[RankerConfig] | None = None,
    weights: WeightStore | None = None,
    end_at: float | None = None,
    progress: Progress = lambda _: None,
) -> FittedFunnel:
    """Fit a funnel on a fold: first stages on `fold.fit`, blend and ranker on targets that the first stages have not seen.

    Args:
        config: sources, blend, ranker.
        data: attributes of users and items; its interactions are replaced by the fold's.
        fold: of stage validation; for a protocol's test stage, the validation fold inside its fit part. With `simulated_folds`,
            blend and ranker do not learn from its targets, which only judge them.
        dataset: the dataset's name.
        seed: of every random choice.
        rankers: several to compare instead of `config.ranker`; the pipeline's config names the one that ships.
        weights: where fitted sources are found and kept.
        end_at: `time.time()` by which rankers that cannot be trained are left out; None sets no limit.
        progress: told what is being done.

    Raises:
        StudyError: an unknown model, ranker or parameter.
        NotTrainableError: the fold has nothing to learn from.
    """
    report = FunnelReport()
    clock = _Clock(report.seconds)
    wanted = [config.ranker] if rankers is None else list(rankers)
    for ranker in wanted:
        if ranker.kind != "blend":
            ranker_settings(ranker.kind, ranker.config)  # before any work
    sources = fit_sources(config.sources, replace(data, interactions=fold.fit), seed=seed, weights=weights, progress=progress)
    clock.lap("sources")
    draft = assemble(config, sources, None, data, fold.fit, dataset)
    sample = drawn(fold, min(config.validation_users, users_within(fold.fit.num_items)), seed)
    progress("retrieving candidates of the validation users")
    candidates = retrieve_by_blocks(draft, sample)
    labels = label_candidates(candidates, sample.target_indptr, sample.target_idx)
    found = ValidationCandidates(sample.queries, candidates, labels, np.diff(sample.target_indptr))
    clock.lap("candidates")
    features = timeline = None
    learned = any(ranker.kind != "blend" for ranker in wanted)
    if config.simulated_folds:
        features = new_item_features(fold, draft.items, candidates.sources, seed) if learned else None
        draws = simulated_draws(
            config, data, fold, with_features=learned, seed=seed, weights=weights, end_at=end_at, progress=progress
        )
        clock.lap("simulated_folds")
        crossed = fit_on_draws(draws, found, features, config, wanted, seed=seed, progress=progress)
    else:
        if learned:
            features = fit_ranking_features(fold.fit, draft.items, candidates.sources, seed=seed)
            timeline = ItemTimeline.of(fold.fit.item_idx, fold.fit.time_us) if fold.fit.has_times else None
        clock.lap("features")
        # A ranker's features are fitted once more where the funnel is fitted anew on all rows.
        rankers_end_at = None if end_at is None else end_at - report.seconds["features"]
        crossed = cross_fit(found, config.blend, wanted, features, timeline, seed=seed, end_at=rankers_end_at, progress=progress)
    clock.lap("blend_and_ranker")
    stage = None
    if features is not None and crossed.ranker is not None:
        stage = RankingStage(features, crossed.ranker, crossed.weight)
    shipped = config.model_copy(update={"ranker": crossed.config})
    pipeline = replace(draft, config=shipped, blend=crossed.blend.blend, stage=stage)
    progress("measuring on the validation users")
    evaluation = evaluate(_looked_up(pipeline, found, crossed.scores, sample), sample, seed=seed)
    singles = {
        name: evaluate(_looked_up(pipeline, found, _alone(candidates, s), sample), sample, seed=seed)
        for s, name in enumerate(candidates.sources)
    }
    clock.lap("evaluation")
    report.shipped = crossed.config.kind
    report.left_out = crossed.left_out
    report.comparisons = crossed.comparisons
    report.weight = crossed.weight if crossed.ranker is not None else None
    report.importance = {} if crossed.ranker is None else crossed.ranker.importance()
    alone = {name: single.metrics["ndcg@10"] for name, single in singles.items()}
    report.ndcg10 = {name: round(value, 6) for name, value in {**alone, **crossed.ndcg}.items()}
    hit = labels[:, :, None] & ~np.isnan(candidates.rank)
    targets = max(len(sample.target_idx), 1)
    report.recall = {"union": round(float(labels.sum()) / targets, 6)}
    report.recall |= {name: round(float(hit[:, :, s].sum()) / targets, 6) for s, name in enumerate(candidates.sources)}
    return FittedFunnel(pipeline, evaluation, singles, report)


def refit(
    pipeline: Pipeline,
    data: TrainingData,
    *,
    seed: int = 0,
    weights: WeightStore | None = None,
    progress: Progress = lambda _: None,
) -> Pipeline:
    """The same funnel with everything of items and users fitted anew on all of `data`, for serving.

    Blend and ranker stay as they are: fitted on targets that their first stages had not seen, which no longer exist here.
    """
    sources = fit_sources(pipeline.config.sources, data, seed=seed, weights=weights, progress=progress)
    served = assemble(pipeline.config, sources, pipeline.blend, data, data.interactions, pipeline.dataset)
    if pipeline.stage is None:
        return served
    fitted = pipeline.stage.features
    features = fit_ranking_features(
        data.interactions,
        served.items,
        fitted.sources,
        seed=seed,
        item_columns=tuple(fitted.item_columns),
        periods=fitted.periods is not None,
    )
    # Item vectors have no fixed axes, but features see their cosines only.
    return replace(served, stage=replace(pipeline.stage, features=features))


class _Clock:
    """Wall time between laps."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.started = seconds, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.started = round(now - self.started, 3), now


def _alone(candidates: CandidateSet, source: int) -> FloatArray:
    """(B, K) float32: the source's own order, -inf for what it did not return."""
    rank = candidates.rank[:, :, source]
    return np.where(np.isnan(rank), -np.inf, -rank).astype(np.float32)


def _looked_up(pipeline: Pipeline, found: ValidationCandidates, scores: FloatArray, fold: Fold) -> Recommend:
    """A recommender that answers the fold's queries from scores that are already there, asked in the fold's order by blocks."""
    row_of_user = {int(user): row for row, user in enumerate(found.queries.user_idx)}

    def recommend(queries: QueryBatch, k: int) -> RankedLists:
        rows = np.array([row_of_user[int(user)] for user in queries.user_idx], dtype=np.int64)
        candidates = found.candidates.take(rows)
        filled = fill(candidates, k, pipeline.popular, queries, fold.allowed, fold.exclude_history)
        grown = filled.item_idx.shape[1] - scores.shape[1]
        known = np.pad(scores[rows], ((0, 0), (0, grown)), constant_values=-np.inf)
        return best_lists(filled, completed(known, filled, pipeline.popularity_rank), k, pipeline.source_names)

    return recommend
