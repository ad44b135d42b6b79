"""LambdaMART by LightGBM: gradient-boosted trees on the blend's residual, saved as LightGBM text.

The standardised blend, times `base_weight`, is the initial score that boosting starts from, and also a feature. A few thousand rows
are scored from that text (`tree_scorer.py`): LightGBM itself is imported where it trains, explains, or scores more than those.

Source: Burges 2010, "From RankNet to LambdaRank to LambdaMART". Legend: `B` queries, `K` candidates, `F` features.
"""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field

from training.errors import BundleError
from training.interactions import BoolArray, FloatArray, LongArray
from training.native import preload_openmp
from training.rankers.base import Ranker, RankerSettings, RankingBatch, ReportRound, draw_candidates, hold_out
from training.rankers.tree_scorer import MAX_LEAVES, TreeScorer
from training.rankers.tree_text import read_trees

MODEL_FILE = "lambdamart.txt"
REPORT_EVERY = 10
PARALLEL_ROWS = 200_000
"""Below, a second thread costs more than it gives, far more where the cores are shared; above, all that OpenMP may use."""
FEW_ROWS = 20_000
"""So many are scored in this thread, by bits; LightGBM takes more with all threads that OpenMP may use."""
CROSS_VALIDATION_FOLDS = 4
"""Into which whole groups are dealt out to count trees; each costs about what the final fit does."""


def load_lightgbm() -> Any:
    """The lightgbm module, imported at first use: it needs OpenMP loaded before it and does not bring its own."""
    preload_openmp()
    return importlib.import_module("lightgbm")


class LambdaMartConfig(RankerSettings):
    """Parameters of the trees and of their training."""

    num_leaves: int = Field(default=31, ge=2, le=1024)
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    max_trees: int = Field(default=400, ge=1, le=5_000)
    min_data_in_leaf: int = Field(default=100, ge=1)
    """Candidates a leaf at least; lowered on small data to a hundredth of the rows."""
    feature_fraction: float = Field(default=0.8, gt=0, le=1)
    bagging_fraction: float = Field(default=0.8, gt=0, le=1)
    lambda_l2: float = Field(default=1.0, ge=0)
    truncation_level: int = Field(default=20, ge=1)
    """Pairs are looked at where one of the two is among so many best."""
    base_weight: float = Field(default=1.0, ge=0, le=20)
    """Weight of the standardised blend in the initial score."""
    max_bins: int = Field(default=63, ge=3, le=255)
    """Values that a feature is binned into."""
    train_candidates: int = Field(default=100, ge=10)
    """Candidates a query that training looks at."""
    patience: int = Field(default=40, ge=1)
    """Trees without improvement after which training stops."""
    held_out: float = Field(default=0.15, gt=0, lt=0.9)
    """Share of the queries that decide where to stop."""


class LambdaMart(Ranker):
    """Trees over candidate features; see the module."""

    kind: ClassVar[str] = "lambdamart"
    Config: ClassVar[type[RankerSettings]] = LambdaMartConfig
    config: LambdaMartConfig
    text: str
    """The trees, as LightGBM writes them."""
    names: tuple[str, ...]
    """Features that they were trained on."""

    def fit(
        self,
        batch: RankingBatch,
        labels: BoolArray,
        *,
        seed: int,
        rounds: int | None = None,
        on_round: ReportRound | None = None,
        groups: LongArray | None = None,
    ) -> Self:
        """See `Ranker.fit`."""
        lgb = load_lightgbm()
        config, rng = self.config, np.random.default_rng(seed)
        if rounds is None:
            learn, held = hold_out(len(batch), config.held_out, seed, groups)
            train = self._dataset(batch.rows(learn), labels[learn], rng)
            valid_sets = [self._dataset(batch.rows(held), labels[held], rng, reference=train)] if len(held) else []
        else:
            train, valid_sets = self._dataset(batch, labels, rng), []
        callbacks: list[Any] = []
        if valid_sets:
            callbacks.append(lgb.early_stopping(config.patience, verbose=False))
            if on_round is not None:
                callbacks.append(_progress(on_round))
        params = self._parameters(len(train.label), seed)
        booster = lgb.train(params, train, num_boost_round=rounds or config.max_trees, valid_sets=valid_sets, callbacks=callbacks)
        rounds = booster.best_iteration if valid_sets else booster.num_trees()
        # Through text and back: what is kept is what will be loaded, cut at the best number of trees.
        return self._read(booster.model_to_string(num_iteration=rounds))

    def _read(self, text: str) -> Self:
        """Take the trees of `text`.

        Raises:
            ValueError: it is damaged, or not of plain numerical trees.
        """
        self.names, trees = read_trees(text)
        self.text, self.rounds = text, len(trees)
        self._scorer = TreeScorer(trees) if max(len(tree.leaf_value) for tree in trees) <= MAX_LEAVES else None
        return self

    @cached_property
    def booster(self) -> Any:
        """The trees as LightGBM has them, read at first use."""
        return load_lightgbm().Booster(model_str=self.text)

    def best_rounds(self, batch: RankingBatch, labels: BoolArray, *, seed: int, groups: LongArray) -> int:
        """See `Ranker.best_rounds`: where the mean over cross-validation's folds is best, for one fold's curve stops by chance."""
        names = np.unique(groups)
        if len(names) < 2:
            return super().best_rounds(batch, labels, seed=seed, groups=groups)
        lgb, rng = load_lightgbm(), np.random.default_rng(seed)
        data = self._dataset(batch, labels, rng)
        fold_of_group = rng.permutation(len(names)) % CROSS_VALIDATION_FOLDS
        fold = np.repeat(fold_of_group[np.searchsorted(names, groups)], data.group)
        curves = lgb.cv(
            self._parameters(len(fold), seed),
            data,
            num_boost_round=self.config.max_trees,
            folds=[(np.flatnonzero(fold != held), np.flatnonzero(fold == held)) for held in np.unique(fold_of_group)],
            callbacks=[lgb.early_stopping(self.config.patience, verbose=False)],
        )
        return len(next(iter(curves.values())))

    def _parameters(self, rows: int, seed: int) -> dict[str, Any]:
        config = self.config
        return {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "lambdarank_truncation_level": config.truncation_level,
            "num_leaves": config.num_leaves,
            "learning_rate": config.learning_rate,
            "min_data_in_leaf": min(config.min_data_in_leaf, max(rows // 100, 1)),
            "max_bin": config.max_bins,
            "feature_fraction": config.feature_fraction,
            "bagging_fraction": config.bagging_fraction,
            "bagging_freq": 1,
            "lambda_l2": config.lambda_l2,
            "seed": seed,
            "num_threads": 1 if rows < PARALLEL_ROWS else 0,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _dataset(self, batch: RankingBatch, labels: BoolArray, rng: np.random.Generator, reference: Any = None) -> Any:
        columns, there = draw_candidates(batch, labels, self.config.train_candidates, rng)
        rows = np.arange(len(batch))[:, None]
        return load_lightgbm().Dataset(
            batch.features[rows, columns][there],
            label=np.take_along_axis(labels, columns, axis=1)[there].astype(np.float32),
            group=there.sum(axis=1),
            init_score=self.config.base_weight * batch.base[rows, columns][there].astype(np.float64),
            feature_name=list(batch.names),
            reference=reference,
        )

    def score(self, batch: RankingBatch) -> FloatArray:
        """See `Ranker.score`."""
        learned = np.zeros(batch.valid.shape, dtype=np.float32)
        if batch.valid.any():
            rows = batch.features[batch.valid]
            if self._scorer is not None and len(rows) <= FEW_ROWS:
                learned[batch.valid] = self._scorer.score(rows)
            else:
                learned[batch.valid] = self.booster.predict(rows, num_threads=1 if len(rows) <= FEW_ROWS else 0)
        return learned + np.float32(self.config.base_weight) * batch.base

    @property
    def base_slope(self) -> float:
        """See `Ranker.base_slope`."""
        return self.config.base_weight

    def contributions(self, batch: RankingBatch) -> FloatArray:
        """See `Ranker.contributions`: LightGBM's own SHAP values (Lundberg et al. 2018, exact for trees)."""
        parts = np.zeros(batch.features.shape, dtype=np.float32)
        if batch.valid.any():
            parts[batch.valid] = self.booster.predict(batch.features[batch.valid], pred_contrib=True, num_threads=1)[:, :-1]
        return parts

    def importance(self) -> dict[str, float]:
        """See `Ranker.importance`: share of the total gain."""
        gain = self.booster.feature_importance("gain")
        total = max(float(gain.sum()), 1e-12)
        shares = {name: float(value) / total for name, value in zip(self.booster.feature_name(), gain, strict=True)}
        return dict(sorted(shares.items(), key=lambda pair: -pair[1]))

    def save(self, folder: Path) -> None:
        """See `Ranker.save`: LightGBM's text format."""
        (folder / MODEL_FILE).write_text(self.text)

    @classmethod
    def load(cls, folder: Path, config: RankerSettings, names: tuple[str, ...]) -> Self:
        """See `Ranker.load`."""
        try:
            ranker = cls(config)._read((folder / MODEL_FILE).read_text())
        except (OSError, ValueError) as error:
            raise BundleError(f"{MODEL_FILE} cannot be read ({error}); fetch or build the bundle again") from error
        if ranker.names != names:
            raise BundleError(f"{MODEL_FILE} was trained on other features than the bundle lists; build it again")
        return ranker


def _progress(on_round: ReportRound) -> Any:
    """A LightGBM callback that reports every `REPORT_EVERY` trees."""

    def report(env: Any) -> None:
        if (env.iteration + 1) % REPORT_EVERY == 0 and env.evaluation_result_list:
            value = env.evaluation_result_list[0][2]
            if on_round(env.iteration + 1, float(value)):
                raise load_lightgbm().callback.EarlyStopException(env.iteration, env.evaluation_result_list)

    return report
