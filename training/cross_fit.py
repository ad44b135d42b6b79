"""Blend and rankers fitted on validation and judged on validation, never on the same users.

Users are split into folds. For each fold, blend and rankers are fitted on the other folds and score this one: the out-of-fold
scores give the honest figures, and decide whether a ranker ships and which. What ships is then fitted on all users.

Legend: `B` queries, `K` candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from training.blend_search import BlendSearch, candidate_ndcg, search_blend
from training.bootstrap import PairedComparison, paired_difference
from training.candidates import CandidateSet
from training.feature_joins import with_user_features
from training.funnel_config import BlendConfig, RankerConfig
from training.interactions import BoolArray, FloatArray, LongArray
from training.item_timeline import ItemTimeline
from training.queries import QueryBatch
from training.rankers.base import Ranker, mixed
from training.rankers.registry import ranker_class, ranker_settings
from training.ranking_features import RankingFeatures

WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Weights of the ranker that are tried: on few users it has learned noise too, which the blend evens out."""
FEATURE_BYTES = 1_000_000_000
"""Bound on the features held at once; fewer users are trained on where it is reached."""

Progress = Callable[[str], None]
"""Told in a few words what is being done."""


@dataclass(frozen=True)
class ValidationCandidates:
    """What blend and rankers are fitted on: candidates of first stages that have not seen the targets.

    Shapes: queries B; candidates (B, K); labels (B, K) bool, True for targets; num_targets (B,) of each query, those included that
    are no candidates.
    """

    queries: QueryBatch
    candidates: CandidateSet
    labels: BoolArray
    num_targets: LongArray

    def take(self, rows: npt.NDArray[np.int64]) -> ValidationCandidates:
        """The queries `rows`."""
        return ValidationCandidates(self.queries.take(rows), self.candidates.take(rows), self.labels[rows], self.num_targets[rows])


@dataclass(frozen=True)
class CrossFit:
    """Outcome.

    Args:
        blend: searched on all queries.
        scores: (B, K) out-of-fold scores of what ships.
        config: of what ships; kind `blend` where no ranker does.
        ranker: what ships, fitted on all queries; None where the blend does.
        weight: of the ranker in the mixture with the blend, see `mixed`.
        ndcg: `blend` and each ranker's kind -> NDCG@10 out of fold.
        comparisons: ranker's kind -> comparison with the blend, out of fold.
        left_out: kinds of rankers for which there was no time.
    """

    blend: BlendSearch
    scores: FloatArray
    config: RankerConfig
    ranker: Ranker | None
    weight: float = 1.0
    ndcg: dict[str, float] = field(default_factory=dict)
    comparisons: dict[str, PairedComparison] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def cross_fit(
    found: ValidationCandidates,
    blend_config: BlendConfig,
    rankers: Sequence[RankerConfig],
    features: RankingFeatures | None,
    timeline: ItemTimeline | None = None,
    *,
    seed: int,
    end_at: float | None = None,
    progress: Progress = lambda _: None,
) -> CrossFit:
    """Fit the blend and the rankers, and choose.

    Args:
        found: validation candidates.
        blend_config: how the blend is searched.
        rankers: those to compare; of those that beat the blend, the best out of fold ships. `blend` entries stand for none.
        features: for rankers; None where none is asked for.
        timeline: of the fold's activity.
        seed: of folds, search and rankers.
        end_at: `time.time()` by which all must be done: a ranker whose first fold says that it will not be is left out.
        progress: told what is being done.

    Raises:
        StudyError: an unknown ranker or parameter.
    """
    learned = [config for config in rankers if config.kind != "blend"]
    for config in learned:
        ranker_settings(config.kind, config.config)  # before any work
    progress("searching the blend")
    everyone = search_blend(found.candidates, found.labels, found.num_targets, blend_config, seed=seed)
    queries = len(found.labels)
    folds = min(max((config.folds for config in learned), default=RankerConfig().folds), queries // 2)
    floor = RankerConfig()
    if folds < 2 or not found.labels.any():
        return CrossFit(everyone, everyone.blend.score(found.candidates), floor, None, ndcg={"blend": everyone.ndcg})
    fold_of = np.random.default_rng(seed).permutation(np.arange(queries) % folds)
    searches, blend_scores = [], np.zeros(found.labels.shape, dtype=np.float32)
    for fold in range(folds):
        progress(f"searching the blend, fold {fold + 1} of {folds}")
        inside = found.take(np.flatnonzero(fold_of != fold))
        searches.append(search_blend(inside.candidates, inside.labels, inside.num_targets, blend_config, seed=seed))
        outside = np.flatnonzero(fold_of == fold)
        blend_scores[outside] = searches[-1].blend.score(found.candidates.take(outside))
    blend_ndcg = _ndcg(blend_scores, found)
    best = CrossFit(everyone, blend_scores, floor, None, ndcg={"blend": float(blend_ndcg.mean())})
    if not learned or features is None:
        return best

    chosen = _chosen(found.labels, features, max(config.max_users for config in learned), seed)
    asked = found.take(chosen)
    progress("joining features as of each request")
    batch = features.batch(with_user_features(features, asked.queries), asked.candidates, everyone.blend, timeline)
    fold_of_asked = fold_of[chosen]
    base = np.zeros_like(batch.base)
    raw = {config.kind: np.zeros_like(batch.base) for config in learned}
    rounds: dict[str, list[int]] = {config.kind: [] for config in learned}
    clock = _RankerClock(end_at, folds)
    for fold in range(folds):
        batch = features.reblended(batch, asked.candidates, searches[fold].blend)
        inside_rows, outside_rows = np.flatnonzero(fold_of_asked != fold), np.flatnonzero(fold_of_asked == fold)
        if not len(inside_rows) or not len(outside_rows):
            continue
        learn, held = batch.rows(inside_rows), batch.rows(outside_rows)
        base[outside_rows] = held.base
        for config in [config for config in learned if clock.admits(config.kind, fold)]:
            progress(f"training ranker {config.kind}, fold {fold + 1} of {folds}")
            ranker = new_ranker(config).fit(learn, asked.labels[inside_rows], seed=seed + fold)
            rounds[config.kind].append(ranker.rounds)
            raw[config.kind][outside_rows] = ranker.score(held)
            clock.done(config.kind)
    learned = [config for config in learned if config.kind not in clock.left_out]
    raw = {config.kind: raw[config.kind] for config in learned}
    best = replace(best, left_out=tuple(clock.left_out))
    if clock.left_out:
        progress(f"no time for ranker {', '.join(clock.left_out)}")
    mixtures = {kind: mixture_of(asked, base, scores, batch.valid, fold_of_asked) for kind, scores in raw.items()}
    comparisons: dict[str, PairedComparison] = {}
    for kind, mixture in mixtures.items():
        ndcg = blend_ndcg.copy()
        ndcg[chosen] = _ndcg(mixture.scores, asked)
        best.ndcg[kind] = float(ndcg.mean())
        comparisons[kind] = paired_difference("ndcg@10", ndcg, blend_ndcg, seed=seed)
    beating = [config for config in learned if beats(comparisons[config.kind], config.confidence)]
    if not beating:
        return replace(best, comparisons=comparisons)
    winner = max(beating, key=lambda config: best.ndcg[config.kind])
    progress(f"training ranker {winner.kind} on all validation users")
    batch = features.reblended(batch, asked.candidates, everyone.blend)
    rounds_of_all = max(round(float(np.mean(rounds[winner.kind]))), 1)
    final = new_ranker(winner).fit(batch, asked.labels, seed=seed, rounds=rounds_of_all)
    scores = blend_scores.copy()
    scores[chosen] = mixtures[winner.kind].scores
    return CrossFit(everyone, scores, winner, final, mixtures[winner.kind].weight, best.ndcg, comparisons)


class _RankerClock:
    """Which rankers there is time for: all their folds, and one fit on everybody, at the pace of the first fold."""

    def __init__(self, end_at: float | None, folds: int) -> None:
        self._end_at, self._folds = end_at, folds
        self._began = 0.0
        self._pace: dict[str, float] = {}
        self.left_out: list[str] = []

    def admits(self, kind: str, fold: int) -> bool:
        self._began = time.time()
        if kind in self.left_out:
            return False
        if self._end_at is not None:
            owed = sum(pace * (self._folds - fold) for other, pace in self._pace.items() if other not in self.left_out)
            if self._began + owed + self._pace.get(kind, 0.0) > self._end_at:
                self.left_out.append(kind)
                return False
        return True

    def done(self, kind: str) -> None:
        self._pace[kind] = max(self._pace.get(kind, 0.0), time.time() - self._began)


@dataclass(frozen=True)
class Mixture:
    """Out-of-fold scores of blend and ranker together, and the ranker's weight in what ships."""

    scores: FloatArray
    weight: float


def mixture_of(
    asked: ValidationCandidates, base: FloatArray, raw: FloatArray, valid: BoolArray, fold_of: npt.NDArray[np.int64]
) -> Mixture:
    """Weigh the ranker against the blend: for a fold by the out-of-fold scores of the others, for what ships by all."""
    mixes = [mixed(base, raw, valid, weight) for weight in WEIGHTS]
    ndcg = np.stack([_ndcg(scores, asked) for scores in mixes])
    scores = np.empty_like(base)
    for fold in np.unique(fold_of):
        here = fold_of == fold
        choice = int(ndcg[:, ~here].sum(axis=1).argmax())
        scores[here] = mixes[choice][here]
    return Mixture(scores, WEIGHTS[int(ndcg.sum(axis=1).argmax())])


def beats(comparison: PairedComparison, confidence: float) -> bool:
    """Whether the first is above the second in at least a share `confidence` of the bootstrap's resamples."""
    return comparison.difference > 0 and 1.0 - comparison.p / 2 >= confidence


def new_ranker(config: RankerConfig) -> Ranker:
    """A ranker by its configuration, not fitted."""
    return ranker_class(config.kind)(ranker_settings(config.kind, config.config))


def _ndcg(scores: FloatArray, found: ValidationCandidates) -> npt.NDArray[np.float64]:
    return candidate_ndcg(scores, found.labels, found.candidates.valid, found.num_targets)


def _chosen(labels: BoolArray, features: RankingFeatures, max_users: int, seed: int) -> npt.NDArray[np.int64]:
    """Queries with a target among their candidates, as many as the bounds allow: the others teach nothing and cannot be won."""
    rows = np.flatnonzero(labels.any(axis=1))
    limit = min(max_users, max(FEATURE_BYTES // (labels.shape[1] * len(features.names) * 4), 1))
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    return rows.astype(np.int64)
