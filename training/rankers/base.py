"""The ranker protocol: a learned correction of the blend over a query's candidates.

Every ranker is residual: its score is the blend's, standardised within the query, plus what it has learned. Untrained it orders as
the blend does, and missing features pull it back there.

To add a ranker: write `training/rankers/<kind>.py` with a pydantic `Config` and a class deriving from `Ranker`, and add one line to
`training/rankers/registry.py`. What it has to promise is in `tests/training/funnel/test_rankers.py`; its `SMALL` names it.

Legend: `B` queries, `K` candidates, `F` features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from training.interactions import BoolArray, FloatArray, LongArray


class RankerSettings(BaseModel):
    """Base of all rankers' configurations: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class RankingBatch:
    """What a ranker sees of B queries.

    Shapes: features (B, K, F) float32, NaN where unknown; valid (B, K) bool, False for padding; base (B, K) float32, the blend's
    score standardised within each query (`standardised`); names: F feature names.
    """

    names: tuple[str, ...]
    features: FloatArray
    valid: BoolArray
    base: FloatArray

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, rows: npt.NDArray[np.integer]) -> RankingBatch:
        """The queries `rows`, copied."""
        return RankingBatch(self.names, self.features[rows], self.valid[rows], self.base[rows])


ReportRound = Callable[[int, float], bool]
"""Called after an epoch (or every few trees) with its number and NDCG@10 on held-out queries; returning True stops."""


class Ranker(ABC):
    """A learned order of candidates.

    Class attributes:
        kind: its name in `RankerConfig.kind` and manifests.
        Config: its pydantic configuration.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[RankerSettings]]

    def __init__(self, config: RankerSettings | None = None) -> None:
        self.config = config if config is not None else self.Config()
        self.rounds = 0
        """Trees or epochs of the fitted model."""

    @abstractmethod
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
        """Learn to put labelled candidates first; equal seeds give equal rankers.

        Args:
            batch: of B queries, each with a labelled candidate.
            labels: (B, K) bool, True for targets.
            seed: of every random choice.
            rounds: exactly so many trees or epochs on all queries; None holds some queries out and stops where NDCG@10 on them
                is best.
            on_round: told of progress where queries are held out.
            groups: (B,) queries of one group are held out together, or not; None holds out each by itself.
        """

    def best_rounds(self, batch: RankingBatch, labels: BoolArray, *, seed: int, groups: LongArray) -> int:
        """Trees or epochs, one at least, that do best where whole groups are held out.

        Args:
            batch: of B queries, each with a labelled candidate.
            labels: (B, K) bool, True for targets.
            seed: of every random choice.
            groups: (B,) group of each query.
        """
        alone = len(np.unique(groups)) < 2
        return max(self.fit(batch, labels, seed=seed, groups=None if alone else groups).rounds, 1)

    @abstractmethod
    def score(self, batch: RankingBatch) -> FloatArray:
        """(B, K) float32, higher is better, finite; values of padding mean nothing."""

    @property
    @abstractmethod
    def base_slope(self) -> float:
        """What one unit of the standardised blend adds to the score, learned corrections aside."""

    @abstractmethod
    def contributions(self, batch: RankingBatch) -> FloatArray:
        """(B, K, F) float32: what each feature adds to the learned correction, against an average candidate; 0 for padding.

        With the score of an average candidate they sum to `score` less `base_slope` times the blend.
        """

    @abstractmethod
    def importance(self) -> dict[str, float]:
        """Feature name -> its share in the model, 0 to 1, largest first."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted state below `folder` (which exists): text or safetensors."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: RankerSettings, names: tuple[str, ...]) -> Self:
        """Read what `save` wrote; scores are equal to those before.

        Raises:
            BundleError: the files are damaged or are of other features.
        """


def standardised(score: FloatArray, valid: BoolArray) -> FloatArray:
    """Scores less their mean, over their standard deviation, within each query; 0 for padding and where all are equal.

    Shapes: score (B, K) float32, valid (B, K) bool -> (B, K) float32.
    """
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    mean = np.where(valid, score, 0.0).sum(axis=1, keepdims=True) / count
    centred = np.where(valid, score - mean, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    return (centred / np.maximum(spread, 1e-6)).astype(np.float32)


def mixed(base: FloatArray, score: FloatArray, valid: BoolArray, weight: float) -> FloatArray:
    """`(1 - weight) * base + weight * standardised(score)`, (B, K) float32: blend and ranker on one scale."""
    return ((1.0 - weight) * base + weight * standardised(score, valid)).astype(np.float32)


def hold_out(
    queries: int, share: float, seed: int, groups: LongArray | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows to learn from and rows held out, `share` of them (one at least where there are two queries), drawn by the seed.

    With (B,) `groups`, whole groups are drawn, so many of them.
    """
    if groups is not None:
        names = np.unique(groups)
        _, held = hold_out(len(names), share, seed)
        out = np.isin(groups, names[held])
        return np.flatnonzero(~out), np.flatnonzero(out)
    order = np.random.default_rng(seed).permutation(queries)
    count = min(max(round(share * queries), 1), queries - 1) if queries > 1 else 0
    return np.sort(order[count:]), np.sort(order[:count])


def draw_candidates(
    batch: RankingBatch, labels: BoolArray, count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], BoolArray]:
    """Columns to train on: all targets, the better half of `count` by the blend, and random ones.

    Negatives that the blend ranks high are the ones that matter at the top of the list; random ones keep the rest in place.

    Returns:
        columns (B, min(count, K)) int64 and whether each is a candidate (padding is not).
    """
    width = batch.base.shape[1]
    if count >= width:
        return np.broadcast_to(np.arange(width), batch.base.shape), batch.valid
    order = np.argsort(-np.where(batch.valid, batch.base, -np.inf), axis=1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(width), order.shape), axis=1)
    # Smallest keys are kept: targets, then the blend's best, then the rest by chance, padding last.
    key = np.where(place < count // 2, place / width, 1.0 + rng.random(place.shape))
    key = np.where(labels, -1.0, np.where(batch.valid, key, 3.0))
    columns = np.argpartition(key, count - 1, axis=1)[:, :count]
    return columns, np.take_along_axis(batch.valid, columns, axis=1)


def row_blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
