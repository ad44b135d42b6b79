"""The ranking half of a version: candidates to a ranked list; and its Serve deployment."""

from __future__ import annotations

from pathlib import Path

from serving.config import ServingConfig
from serving.process import import_trees
from training.candidates import CandidateSet, RankedLists
from training.pipeline import Pipeline
from training.queries import QueryBatch


class RankerStage:
    """Ranking by one version's pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def rank(self, queries: QueryBatch, candidates: CandidateSet, k: int) -> RankedLists:
        """The `k` best candidates of each query, best first."""
        return self._pipeline.rank(queries, candidates, k)


class Ranker:
    """Serve deployment of the separate graph.

    Args:
        config_json: ServingConfig as JSON.
        bundle_folder: the version's bundle.
    """

    def __init__(self, config_json: str, bundle_folder: str) -> None:
        config = ServingConfig.model_validate_json(config_json)
        import_trees(Path(bundle_folder))
        self._stage = RankerStage(Pipeline.load(Path(bundle_folder), expected_dataset=config.dataset))

    async def rank(self, queries: QueryBatch, candidates: CandidateSet, k: int) -> RankedLists:
        """See `RankerStage.rank`."""
        return self._stage.rank(queries, candidates, k)
