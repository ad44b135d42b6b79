"""The ranking stage of a pipeline: a fitted ranker with the features that it reads, and their place in a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from training.blend import Blend
from training.bundle import FEATURES_FOLDER, RANKER_FOLDER
from training.candidates import CandidateSet
from training.funnel_config import RankerConfig
from training.interactions import FloatArray
from training.item_timeline import ItemTimeline
from training.queries import QueryBatch
from training.rankers.base import Ranker, mixed
from training.rankers.registry import ranker_class, ranker_settings
from training.ranking_features import RankingFeatures


@dataclass(frozen=True)
class RankingStage:
    """A ranker and its features.

    Args:
        features: what it reads.
        ranker: fitted.
        weight: of the ranker against the blend, above 0 to 1 (`training.rankers.base.mixed`).
    """

    features: RankingFeatures
    ranker: Ranker
    weight: float = 1.0

    def score(self, queries: QueryBatch, candidates: CandidateSet, blend: Blend, timeline: ItemTimeline | None) -> FloatArray:
        """(B, K) float32; values of padding and of items that only fill a list mean nothing."""
        batch = self.features.batch(queries, candidates, blend, timeline)
        return mixed(batch.base, self.ranker.score(batch), batch.valid, self.weight)

    def save(self, folder: Path) -> None:
        """Write below the bundle's folder."""
        for name in (RANKER_FOLDER, FEATURES_FOLDER):
            (folder / name).mkdir()
        self.ranker.save(folder / RANKER_FOLDER)
        self.features.save(folder / FEATURES_FOLDER)

    @classmethod
    def load(cls, folder: Path, config: RankerConfig, weight: float, items: pa.Table) -> RankingStage:
        """Read what `save` wrote.

        Raises:
            BundleError: a file is damaged or belongs to other features.
            StudyError: the bundle's configuration of the ranker is not one of this release.
        """
        features = RankingFeatures.load(folder / FEATURES_FOLDER, items)
        settings = ranker_settings(config.kind, config.config)
        ranker = ranker_class(config.kind).load(folder / RANKER_FOLDER, settings, features.names)
        return cls(features, ranker, weight)
