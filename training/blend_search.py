"""The search for a blend on validation candidates: normalisation, power and weight of every source.

The objective is NDCG over the funnel's candidates, ties counted against the blend. Single sources and the equal blend are tried
first, so the result is never below the best single source on the users that it was searched on.

Legend: `B` queries, `K` candidates, `S` sources, `T` targets of all queries together.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna

from training.blend import Blend, equal_blend, normalised
from training.candidates import CandidateSet
from training.funnel_config import BlendConfig, Normalisation, SourceBlend
from training.interactions import BoolArray, FloatArray, LongArray

DoubleArray = npt.NDArray[np.float64]
POWERS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0)
TEMPERATURES: dict[Normalisation, tuple[float, ...]] = {
    "minmax": (1.0,),
    "softmax": (0.3, 0.5, 1.0, 2.0),
    "rank": (3.0, 10.0, 30.0, 60.0),
}
"""Values tried. Reciprocal rank fusion's usual constant is 60 (Cormack et al. 2009); short lists want less."""
WIDTH, FUSION = 200, 10.0
"""Candidates a query that trials look at, the first by reciprocal rank fusion with this constant."""
CUTOFF = 10
"""The blend is searched for NDCG@10."""


@dataclass(frozen=True)
class BlendSearch:
    """Outcome: the blend, and its NDCG@10 on the users that it was searched on."""

    blend: Blend
    ndcg: float


def label_candidates(candidates: CandidateSet, target_indptr: LongArray, target_idx: npt.NDArray[np.int32]) -> BoolArray:
    """(B, K) bool: which candidates are targets of their query (as in `training.splits.Fold`)."""
    span = int(max(candidates.item_idx.max(initial=-1), target_idx.max(initial=-1))) + 2
    owner = np.repeat(np.arange(len(target_indptr) - 1, dtype=np.int64), np.diff(target_indptr))
    wanted = owner * span + target_idx
    key = np.arange(len(candidates.item_idx), dtype=np.int64)[:, None] * span + candidates.item_idx
    return np.asarray(np.isin(key, wanted) & candidates.valid, dtype=bool)


def candidate_ndcg(scores: FloatArray, labels: BoolArray, valid: BoolArray, num_targets: LongArray, k: int = CUTOFF) -> DoubleArray:
    """NDCG@k of each query when its candidates are ordered by `scores`, ties counted against it.

    Targets that are no candidates count as missed: the ideal is over all of the query's targets.

    Shapes: scores (B, K) float32; labels, valid (B, K) bool; num_targets (B,) -> (B,) float64.
    """
    rows, columns = np.nonzero(labels)
    scores = np.where(valid, scores, -np.inf)
    at_target = scores[rows, columns]
    of_row = scores[rows]
    ahead = ((of_row > at_target[:, None]) | ((of_row == at_target[:, None]) & ~labels[rows])).sum(axis=1)
    # Targets of one query with equal scores stand one behind the other.
    twins = (of_row == at_target[:, None]) & labels[rows] & (np.arange(scores.shape[1]) < columns[:, None])
    rank = ahead + twins.sum(axis=1)
    gain = np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])[np.minimum(num_targets, k)]
    return np.bincount(rows, weights=gain, minlength=len(scores)) / np.maximum(ideal, 1e-12)


def search_blend(
    candidates: CandidateSet, labels: BoolArray, num_targets: LongArray, config: BlendConfig, *, seed: int
) -> BlendSearch:
    """Search the blend on validation candidates.

    Args:
        candidates: of B validation queries, from first stages that have not seen their targets.
        labels: (B, K) bool, as `label_candidates` gives.
        num_targets: (B,) targets of each query, those included that are no candidates.
        config: given parts, or how long to search.
        seed: of the users drawn and of the sampler.
    """
    names = candidates.sources
    chosen = _informative(labels, config.max_users, seed)
    sample, sample_labels, sample_targets = candidates.take(chosen), labels[chosen], num_targets[chosen]
    # Mean over all B queries: those without a target among the candidates are zeros, known without looking.
    queries = max(len(labels) * len(chosen) / max(int(labels.any(axis=1).sum()), 1), 1e-9)

    def ndcg_of(blend: Blend) -> float:
        return float(candidate_ndcg(blend.score(sample), sample_labels, sample.valid, sample_targets).sum() / queries)

    if config.sources is not None:
        given = Blend(names, tuple(config.sources[name] for name in names))
        return BlendSearch(given, ndcg_of(given))
    singles = {name: ndcg_of(_single(names, name)) for name in names}
    contenders = [_single(names, max(names, key=lambda name: singles[name])), equal_blend(names)]
    if config.trials and len(names) > 1 and len(chosen):
        contenders.append(_searched(_Trimmed(sample, sample_labels, sample_targets), config.trials, seed))
    values = [ndcg_of(blend) for blend in contenders]
    best = int(np.argmax(values))
    return BlendSearch(contenders[best], values[best])


class _Trimmed:
    """The candidates that can reach the top of a blend, with every source's scales ready: what a trial costs is a sum.

    Scales are taken over all of a query's candidates; then those outside the first `WIDTH` by reciprocal rank fusion are dropped,
    targets among them too, which then count as missed.
    """

    def __init__(self, sample: CandidateSet, labels: BoolArray, num_targets: LongArray) -> None:
        fused = np.nansum(1.0 / (FUSION + sample.rank), axis=2)
        width = min(WIDTH, fused.shape[1])
        columns = np.argpartition(-fused, width - 1, axis=1)[:, :width]
        self.sources, self.num_targets = sample.sources, num_targets
        self.labels = np.take_along_axis(labels, columns, axis=1)
        self.valid = np.take_along_axis(sample.valid, columns, axis=1)
        self.scales = {
            (s, kind, temperature): np.take_along_axis(
                normalised(sample.score[:, :, s], sample.rank[:, :, s], SourceBlend(normalisation=kind, temperature=temperature)),
                columns,
                axis=1,
            )
            for s in range(len(sample.sources))
            for kind, temperatures in TEMPERATURES.items()
            for temperature in temperatures
        }

    def ndcg(self, blend: Blend) -> float:
        """Mean NDCG@10 over the sample."""
        total = np.zeros(self.valid.shape, dtype=np.float32)
        for s, part in enumerate(blend.parts):
            scale = self.scales[s, part.normalisation, part.temperature]
            total += np.float32(part.weight) * (scale if part.power == 1.0 else np.power(scale, np.float32(part.power)))
        return float(candidate_ndcg(total, self.labels, self.valid, self.num_targets).mean())


def _searched(trimmed: _Trimmed, trials: int, seed: int) -> Blend:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # Sampling weights and powers jointly is marked experimental since 2.0; optuna is pinned, and worth the gain.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=20)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: trimmed.ndcg(_suggest(trial, trimmed.sources)), n_trials=trials)
    return _suggest(optuna.trial.FixedTrial(study.best_params), trimmed.sources)


def _informative(labels: BoolArray, max_users: int, seed: int) -> LongArray:
    """Queries with a target among their candidates, at most `max_users`, drawn by the seed; others cannot tell blends apart."""
    rows = np.flatnonzero(labels.any(axis=1))
    if len(rows) > max_users:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_users, replace=False))
    return rows.astype(np.int64)


def _single(names: tuple[str, ...], alone: str) -> Blend:
    """One source by rank, which is the order that it gave; the others silent."""
    parts = (SourceBlend(normalisation="rank", temperature=60.0, weight=float(name == alone)) for name in names)
    return Blend(names, tuple(parts))


def _suggest(trial: optuna.trial.BaseTrial, names: tuple[str, ...]) -> Blend:
    parts = []
    for name in names:
        kind = trial.suggest_categorical(f"{name}.normalisation", list(TEMPERATURES))
        temperature = 1.0
        if len(TEMPERATURES[kind]) > 1:
            temperature = trial.suggest_categorical(f"{name}.{kind}.temperature", TEMPERATURES[kind])
        power = trial.suggest_categorical(f"{name}.power", POWERS)
        parts.append((kind, temperature, power, trial.suggest_float(f"{name}.weight", 0.0, 1.0)))
    total = sum(weight for *_, weight in parts) or 1.0
    return Blend(
        names,
        tuple(
            SourceBlend(normalisation=kind, temperature=temperature, power=power, weight=weight / total)
            for kind, temperature, power, weight in parts
        ),
    )
