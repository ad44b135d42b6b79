"""Rankers for new items learned on simulated ones: items with activity are hidden as if nobody had taken them, draw after draw.

The new items of a validation fold are few, and their users teach a ranker those items rather than what makes a new item right. Each
draw hides as many other items, fits the first stage without them, and asks for them: blend and ranker see only such draws. The
fold's own targets are left for judging: whether a ranker ships, and its weight.

Legend: `B` queries, `K` candidates, `k` of them that reach the ranker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from training.blend import Blend
from training.blend_search import candidate_ndcg, label_candidates, search_blend
from training.bootstrap import PairedComparison, paired_difference
from training.candidates import CandidateSet
from training.cross_fit import CrossFit, Progress, ValidationCandidates, beats, mixture_of, new_ranker
from training.errors import ProtocolError
from training.feature_joins import fit_ranking_features, with_user_features
from training.first_stage import assemble, concatenate, fit_sources, retrieve_by_blocks
from training.fold import Fold, drawn, fold_of_rows, users_within
from training.funnel_config import FunnelConfig, RankerConfig
from training.interactions import BoolArray, LongArray
from training.models.base import TrainingData
from training.ranked_lists import ahead_of
from training.rankers.base import RankingBatch
from training.ranking_features import RankingFeatures
from training.weights import WeightStore


def simulated_folds(fold: Fold, draws: int, seed: int) -> Iterator[Fold]:
    """Folds like `fold`, made of its fit part alone: each hides as many items as `fold` asks for, no item twice.

    Args:
        fold: of the cold-items protocol, ranked among its cold items.
        draws: how many.
        seed: of the draw.

    Raises:
        ProtocolError: the fold ranks more than its new items, or has too few others to hide.
    """
    active = np.bincount(fold.fit.item_idx, minlength=fold.fit.num_items) > 0
    if fold.protocol != "cold-items" or fold.allowed is None or (fold.allowed & active).any():
        raise ProtocolError(
            'simulated folds need protocol = "cold-items" and among = "cold": they stand for items without activity'
        )
    count = int(fold.allowed.sum())
    order = np.random.default_rng(seed).permutation(np.flatnonzero(active))
    if len(order) < 2 * draws * count:
        raise ProtocolError(f"{draws} simulated folds of {count} items would hide most of {len(order)}: ask for fewer")
    for draw in range(draws):
        hidden = np.zeros(fold.fit.num_items, dtype=bool)
        hidden[order[draw * count : (draw + 1) * count]] = True
        target = hidden[fold.fit.item_idx]
        part = fold_of_rows(
            "cold-items",
            "validation",
            fold.fit,
            fit=~target,
            history=~target,
            target=target,
            refit=False,
            reasons=("no hidden item taken", "nothing but hidden items taken", ""),
        )
        yield replace(part, allowed=hidden)


@dataclass(frozen=True)
class Draw:
    """A simulated fold as blend and rankers see it.

    Args:
        found: queries with a target among their candidates; the others teach nothing.
        features: fitted without the hidden items; None where no ranker asks.
    """

    found: ValidationCandidates
    features: RankingFeatures | None


def simulated_draws(
    config: FunnelConfig,
    data: TrainingData,
    fold: Fold,
    *,
    with_features: bool,
    seed: int,
    weights: WeightStore | None = None,
    end_at: float | None = None,
    progress: Progress = lambda _: None,
) -> list[Draw]:
    """Fit the sources of each simulated fold and collect its candidates.

    Args:
        config: names the sources and the number of draws.
        data: attributes; its interactions are replaced.
        fold: see `simulated_folds`.
        with_features: whether a ranker will ask for features.
        seed: of every random choice.
        weights: where fitted sources are found and kept.
        end_at: `time.time()` by which no draw is begun that will not be done; the first one is made in any case.
        progress: told what is being done.
    """
    draws: list[Draw] = []
    began = time.time()
    for part in simulated_folds(fold, config.simulated_folds, seed):
        if draws and end_at is not None and time.time() + (time.time() - began) / len(draws) > end_at:
            progress(f"no time for more than {len(draws)} simulated folds")
            break
        progress(f"simulated fold {len(draws) + 1} of {config.simulated_folds}")
        sources = fit_sources(config.sources, replace(data, interactions=part.fit), seed=seed, weights=weights)
        draft = assemble(config, sources, None, data, part.fit, "simulated")
        asked = drawn(part, min(config.validation_users, users_within(part.fit.num_items)), seed)
        candidates = retrieve_by_blocks(draft, asked)
        labels = label_candidates(candidates, asked.target_indptr, asked.target_idx)
        found = ValidationCandidates(asked.queries, candidates, labels, np.diff(asked.target_indptr))
        features = new_item_features(part, draft.items, candidates.sources, seed) if with_features else None
        draws.append(Draw(found.take(np.flatnonzero(labels.any(axis=1))), features))
    return draws


def new_item_features(fold: Fold, items: pa.Table, sources: tuple[str, ...], seed: int) -> RankingFeatures:
    """Features for items without activity: periods, and no columns of the item alone, which would be learned by heart."""
    return fit_ranking_features(fold.fit, items, sources, seed=seed, item_columns=(), periods=True)


def fit_on_draws(
    draws: Sequence[Draw],
    found: ValidationCandidates,
    features: RankingFeatures | None,
    config: FunnelConfig,
    rankers: Sequence[RankerConfig],
    *,
    seed: int,
    progress: Progress = lambda _: None,
) -> CrossFit:
    """Fit the blend and the rankers on the draws, and choose on validation, whose users neither has seen.

    Args:
        draws: what is learned from.
        found: validation candidates.
        features: of the validation fold; None where no ranker asks.
        config: of the funnel.
        rankers: those to compare; of those that beat the blend, the best ships. `blend` entries stand for none.
        seed: of search and rankers.
        progress: told what is being done.
    """
    progress("searching the blend on simulated folds")
    search = search_blend(*_sampled(draws, config.blend.max_users, seed), config.blend, seed=seed)
    blend_scores = search.blend.score(found.candidates)
    blend_ndcg = candidate_ndcg(blend_scores, found.labels, found.candidates.valid, found.num_targets)
    best = CrossFit(search, blend_scores, RankerConfig(), None, ndcg={"blend": float(blend_ndcg.mean())})
    learned = [ranker for ranker in rankers if ranker.kind != "blend"]
    if features is None or not learned:
        return best
    progress("joining features as of each request")
    parts = [reaching_batch(draw.found, draw.features or features, search.blend, config.k_candidates) for draw in draws]
    learn, labels = _stacked([batch for _, batch, _ in parts]), np.concatenate([seen.labels for seen, _, _ in parts])
    groups = np.repeat(np.arange(len(parts)), [len(batch) for _, batch, _ in parts])
    asked, held, columns = reaching_batch(found, features, search.blend, config.k_candidates)
    halves = np.random.default_rng(seed).permutation(np.arange(len(held)) % 2)
    comparisons: dict[str, PairedComparison] = {}
    for ranker_config in learned:
        progress(f"training ranker {ranker_config.kind} on simulated folds")
        rounds = new_ranker(ranker_config).best_rounds(learn, labels, seed=seed, groups=groups)
        ranker = new_ranker(ranker_config).fit(learn, labels, seed=seed, rounds=rounds)
        mixture = mixture_of(asked, held.base, ranker.score(held), held.valid, halves)
        ndcg = candidate_ndcg(mixture.scores, asked.labels, held.valid, asked.num_targets)
        best.ndcg[ranker_config.kind] = float(ndcg.mean())
        comparisons[ranker_config.kind] = paired_difference("ndcg@10", ndcg, blend_ndcg, seed=seed)
        shipped = best.ndcg[best.config.kind]
        if beats(comparisons[ranker_config.kind], ranker_config.confidence) and best.ndcg[ranker_config.kind] > shipped:
            scores = ahead_of(columns, np.where(held.valid, mixture.scores, -np.inf).astype(np.float32), blend_scores)
            best = replace(best, scores=scores, config=ranker_config, ranker=ranker, weight=mixture.weight)
    return replace(best, comparisons=comparisons)


def reaching_batch(
    found: ValidationCandidates, features: RankingFeatures, blend: Blend, count: int
) -> tuple[ValidationCandidates, RankingBatch, LongArray]:
    """The `count` best candidates by the blend, as a pipeline cuts them, with their features, and (B, k) their columns."""
    score = np.where(found.candidates.sourced, blend.score(found.candidates), -np.inf)
    columns = np.sort(np.argsort(-score, axis=1, kind="stable")[:, :count], axis=1)
    rows = np.arange(len(columns))[:, None]
    queries = with_user_features(features, found.queries)
    seen = ValidationCandidates(queries, found.candidates.columns(columns), found.labels[rows, columns], found.num_targets)
    return seen, features.batch(seen.queries, seen.candidates, blend), columns


def _sampled(draws: Sequence[Draw], max_users: int, seed: int) -> tuple[CandidateSet, BoolArray, LongArray]:
    """Candidates, labels and numbers of targets of `max_users` queries at most, of each draw as many."""
    rng, each = np.random.default_rng(seed), max(max_users // len(draws), 1)
    parts = []
    for draw in draws:
        rows = rng.permutation(len(draw.found.labels))[:each]
        parts.append(draw.found.take(np.sort(rows)))
    width = max(part.labels.shape[1] for part in parts)
    labels = [np.pad(part.labels, ((0, 0), (0, width - part.labels.shape[1]))) for part in parts]
    return concatenate([part.candidates for part in parts]), np.concatenate(labels), np.concatenate([p.num_targets for p in parts])


def _stacked(batches: Sequence[RankingBatch]) -> RankingBatch:
    """Batches of like features one after the other, padded to the widest."""
    width = max(batch.base.shape[1] for batch in batches)
    grow = [((0, 0), (0, width - batch.base.shape[1])) for batch in batches]
    return RankingBatch(
        batches[0].names,
        np.concatenate(
            [np.pad(batch.features, (*pad, (0, 0)), constant_values=np.nan) for batch, pad in zip(batches, grow, strict=True)]
        ),
        np.concatenate([np.pad(batch.valid, pad) for batch, pad in zip(batches, grow, strict=True)]),
        np.concatenate([np.pad(batch.base, pad) for batch, pad in zip(batches, grow, strict=True)]),
    )
