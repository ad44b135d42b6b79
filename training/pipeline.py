"""Pipeline: retrievers, blend and ranker as one value. Evaluation, precompute, serving and the MLflow model all run this code.

`retrieve` gives candidates, `rank` orders them, `recommend` is both; the two halves may run in different processes, with the
CandidateSet between them. Fitting is `training.funnel`'s, the form on disk `training.bundle`'s.

Legend: `B` queries, `K` candidates, `S` sources, `N` items, `U` users.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from training.arrays import map_arrays, save_arrays
from training.blend import Blend
from training.bundle import (
    ITEMS_FILE,
    POPULARITY_FILE,
    POPULARITY_FILL,
    BundleManifest,
    DataFingerprint,
    feature_hash,
    open_bundle,
    seal_bundle,
)
from training.candidates import CandidateSet, RankedLists
from training.errors import BundleError, StudyError
from training.funnel_config import FunnelConfig, SourceConfig
from training.histories import Histories
from training.interactions import BoolArray, FloatArray, IdArray, IntArray, LongArray
from training.item_timeline import ItemTimeline
from training.models.base import Retriever
from training.models.registry import MODELS
from training.popular_order import PopularOrder
from training.queries import QueryBatch, queries_from_histories
from training.ranked_lists import ahead_of, best_lists, completed
from training.ranking_features import user_feature_names
from training.ranking_stage import RankingStage
from training.union import fill, unite
from training.vocabulary import Vocabulary

FUNNEL_FILE = "funnel.json"


@dataclass(frozen=True)
class Source:
    """A fitted retriever with its place in the funnel."""

    name: str
    retriever: Retriever
    quota: int


@dataclass(frozen=True)
class Pipeline:
    """A whole funnel, ready to answer.

    Args:
        dataset: its namespace.
        config: what it was built from.
        sources: fitted retrievers in the order of `CandidateSet.sources`.
        blend: over the same sources.
        items: (N,) rows in the order of item_idx: `item_id` and the attributes of training.
        histories: users and what they did as of training.
        by_popularity: (N,) int32 every item, most interacted with first.
        stage: the ranker and its features; None where the blend ranks.
        manifest: of the bundle that it was loaded from.
    """

    dataset: str
    config: FunnelConfig
    sources: tuple[Source, ...]
    blend: Blend
    items: pa.Table
    histories: Histories
    by_popularity: IntArray
    stage: RankingStage | None = None
    manifest: BundleManifest | None = field(default=None, compare=False)

    def without_attributes(self) -> Self:
        """The same with no more of the items than their ids, for an owner that holds the attributes in another form."""
        # In one piece: Arrow joins the pieces anew whenever some ids are taken, 2 ms at a million items.
        return replace(self, items=self.items.select(["item_id"]).combine_chunks())

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Item ids and their rows."""
        return Vocabulary(self.items.column("item_id").to_numpy(zero_copy_only=False))

    @property
    def item_ids(self) -> IdArray:
        """(N,) str, row number = item_idx."""
        return self.vocabulary.ids

    @property
    def num_items(self) -> int:
        """N."""
        return int(self.items.num_rows)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Sources of `RankedLists.source`: the retrievers' names, then `popular` for what fills a list."""
        return (*(source.name for source in self.sources), POPULARITY_FILL)

    @property
    def user_feature_names(self) -> tuple[str, ...]:
        """Columns of the feature service that belong into `QueryBatch.user_features`; without them they come from the history."""
        return user_feature_names() if self.stage is not None else ()

    @cached_property
    def timeline(self) -> ItemTimeline | None:
        """When items were taken, for queries that lie in the past; None where no ranker or no clock needs it."""
        if self.stage is None or not self.stage.features.has_times:
            return None
        return ItemTimeline.of(self.histories.item_idx, self.histories.time_us)

    @cached_property
    def popular(self) -> PopularOrder:
        """All items, most popular first."""
        return PopularOrder(self.by_popularity, self.num_items)

    @cached_property
    def activity(self) -> LongArray:
        """(N,) int64: interactions of each item as of the training."""
        return np.bincount(self.histories.item_idx, minlength=self.num_items).astype(np.int64)

    @cached_property
    def popularity_rank(self) -> FloatArray:
        """(N,) float32 in [0, 1): 0 for the most popular item."""
        return (self.popular.rank / np.float32(max(self.num_items, 1))).astype(np.float32)

    def queries_for(
        self,
        user_ids: Sequence[str] | None = None,
        *,
        recent_items: Sequence[Sequence[str]] | None = None,
        request_time_us: LongArray | None = None,
    ) -> QueryBatch:
        """A batch of queries from outside ids: histories as of training, or item sequences, oldest first.

        Unknown users have an empty history; unknown items are left out.

        Args:
            user_ids: B users.
            recent_items: B item sequences instead. With both, the sequence is appended to the user's history.
            request_time_us: (B,) int64 moment of asking; right after the last known interaction of all users where not given.

        Raises:
            ValueError: neither is given, or their lengths differ.
        """
        if user_ids is None and recent_items is None:
            raise ValueError("queries_for needs user_ids, recent_items or both")
        if user_ids is not None and recent_items is not None and len(user_ids) != len(recent_items):
            raise ValueError(f"user_ids has {len(user_ids)} entries and recent_items {len(recent_items)}: they must be as many")
        if user_ids is not None:
            known = self.histories.queries(self.histories.users.rows(user_ids), request_time_us)
            if recent_items is None:
                return known
        assert recent_items is not None
        sequences = [rows[rows >= 0] for rows in (self.vocabulary.rows(sequence) for sequence in recent_items)]
        if request_time_us is None:
            longest = max((len(sequence) for sequence in sequences), default=0)
            request_time_us = np.full(len(sequences), self.histories.end_us + longest + 1, dtype=np.int64)
        # Sequences come without times: they are taken to have happened just now, one microsecond apart.
        times = [request_time_us[b] - np.arange(len(sequence), 0, -1) for b, sequence in enumerate(sequences)]
        if user_ids is None:
            return queries_from_histories(sequences, times_us=times, request_time_us=request_time_us)
        both = queries_from_histories(
            [np.concatenate([known.history(b), sequence]) for b, sequence in enumerate(sequences)],
            times_us=[
                np.concatenate([known.time_us[known.indptr[b] : known.indptr[b + 1]], times[b]]) for b in range(len(sequences))
            ],
            request_time_us=request_time_us,
            user_idx=known.user_idx,
        )
        return replace(both, left_out=known.left_out)  # what a user has rejected is not asked for by a new session either

    def retrieve(
        self, queries: QueryBatch, allowed: BoolArray | None = None, k: int | None = None, *, exclude_history: bool = True
    ) -> CandidateSet:
        """The union of the sources' best items, each source's quota, filled from popular items to `k` where it is smaller.

        Args:
            queries: B queries.
            allowed: (N,) or (B, N) bool of items that may be returned; None allows all.
            k: candidates that every query should have at least, as far as the catalogue goes; None leaves the union as it is.
            exclude_history: leave out the items of the query's history.
        """
        lists = [
            source.retriever.retrieve(queries, source.quota, allowed, exclude_history=exclude_history) for source in self.sources
        ]
        candidates = unite([source.name for source in self.sources], lists)
        return candidates if k is None else fill(candidates, k, self.popular, queries, allowed, exclude_history)

    def score(self, queries: QueryBatch, candidates: CandidateSet) -> FloatArray:
        """(B, K) float32: the funnel's score of each candidate, higher is better; padding gets -inf.

        With a ranker, the `k_candidates` best by blend reach it and the others stay behind them. Items that only fill the list come
        after all others, by popularity.
        """
        blended = self._blended(candidates)
        if self.stage is None:
            return blended
        reaching, columns = self._reaching(candidates, blended)
        ranked = completed(self.stage.score(queries, reaching, self.blend, self.timeline), reaching, self.popularity_rank)
        return ranked if columns is None else ahead_of(columns, ranked, blended)

    def reaching(self, candidates: CandidateSet) -> tuple[CandidateSet, LongArray | None]:
        """The candidates that a ranker sees, and (B, k_candidates) their columns; all of them and None where they are few."""
        return self._reaching(candidates, self._blended(candidates))

    def _blended(self, candidates: CandidateSet) -> FloatArray:
        return completed(self.blend.score(candidates), candidates, self.popularity_rank)

    def _reaching(self, candidates: CandidateSet, blended: FloatArray) -> tuple[CandidateSet, LongArray | None]:
        if candidates.item_idx.shape[1] <= self.config.k_candidates:
            return candidates, None
        columns = np.sort(np.argsort(-blended, axis=1, kind="stable")[:, : self.config.k_candidates], axis=1)
        return candidates.columns(columns), columns

    def rank(self, queries: QueryBatch, candidates: CandidateSet, k: int) -> RankedLists:
        """The `k` best candidates of each query, best first, equal scores in the order of the candidates."""
        return best_lists(candidates, self.score(queries, candidates), k, self.source_names)

    def recommend(
        self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True
    ) -> RankedLists:
        """The `k` best items of each query; rows are shorter only where the catalogue has no more that may be returned."""
        return self.rank(queries, self.retrieve(queries, allowed, k, exclude_history=exclude_history), k)

    def save(
        self,
        folder: Path,
        *,
        seed: int,
        fingerprint: DataFingerprint,
        metrics: Mapping[str, float] | None = None,
        ci95: Mapping[str, tuple[float, float]] | None = None,
        git_commit: str | None = None,
    ) -> BundleManifest:
        """Write the bundle below `folder`, which is created and must be empty.

        Raises:
            BundleError: the folder holds something, or a weight is not finite.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BundleError(f"{folder} is not empty: a bundle is written into a folder of its own")
        for source in self.sources:
            target = folder / "sources" / source.name
            target.mkdir(parents=True)
            source.retriever.save(target)
        pq.write_table(self.items, folder / ITEMS_FILE, compression="zstd")
        save_arrays(folder / POPULARITY_FILE, {"by_popularity": self.by_popularity})
        self.histories.save(folder)
        if self.stage is not None:
            self.stage.save(folder)
        names = self.stage.features.names if self.stage is not None else ()
        state = {
            "config": self.config.model_dump(mode="json"),
            "blend": self.blend.to_json(),
            "ranker_weight": self.stage.weight if self.stage is not None else None,
        }
        (folder / FUNNEL_FILE).write_text(json.dumps(state, indent=2) + "\n")
        manifest = BundleManifest(
            dataset=self.dataset,
            git_commit=git_commit,
            seed=seed,
            sources={source.source: source.model_dump(mode="json") for source in self.config.sources},
            ranker=self.config.ranker.kind,
            feature_services=(self.config.feature_service,) if self.stage is not None else (),
            feature_names=names,
            feature_hash=feature_hash(names),
            fingerprint=fingerprint,
            metrics=dict(metrics or {}),
            ci95=dict(ci95 or {}),
        )
        return seal_bundle(folder, manifest)

    @classmethod
    def load(cls, folder: Path, *, expected_dataset: str | None = None) -> Pipeline:
        """Read a bundle, checked first (`training.bundle.open_bundle`).

        Raises:
            BundleError: it cannot be trusted or read.
        """
        folder = Path(folder)
        manifest = open_bundle(folder, expected_dataset=expected_dataset)
        for name in (FUNNEL_FILE, ITEMS_FILE, POPULARITY_FILE):
            if name not in manifest.files:
                raise BundleError(f"bundle {folder.name} lacks {name}; build it again")
        try:
            state = json.loads((folder / FUNNEL_FILE).read_text())
            config = FunnelConfig.model_validate(state["config"])
            blend = Blend.from_json(state["blend"])
            sources = tuple(_load_source(source, folder) for source in config.sources)
            items = pq.read_table(folder / ITEMS_FILE)
            stage = None
            if config.ranker.kind != "blend":
                stage = RankingStage.load(folder, config.ranker, float(state["ranker_weight"]), items)
        except (ValidationError, StudyError, json.JSONDecodeError, KeyError, pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"bundle {folder.name} cannot be read: {type(error).__name__}: {reason}") from error
        if stage is not None and feature_hash(stage.features.names) != manifest.feature_hash:
            raise BundleError(f"the features of bundle {folder.name} differ from those in its manifest; build it again")
        return cls(
            dataset=manifest.dataset,
            config=config,
            sources=sources,
            blend=blend,
            items=items,
            histories=Histories.load(folder),
            by_popularity=map_arrays(folder / POPULARITY_FILE)["by_popularity"].astype(np.int32, copy=False),
            stage=stage,
            manifest=manifest,
        )


def item_table(item_ids: npt.NDArray[np.object_], attributes: Mapping[str, npt.NDArray[np.generic]]) -> pa.Table:
    """Items as a bundle keeps them: `item_id` first, then one column an attribute; row number = item_idx."""
    columns: dict[str, pa.Array] = {"item_id": pa.array(item_ids, type=pa.string())}
    for name, values in attributes.items():
        columns[name] = pa.array(values.tolist() if values.dtype == object else values, from_pandas=True)
    return pa.table(columns)


def _load_source(config: SourceConfig, folder: Path) -> Source:
    if config.model not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise BundleError(f"bundle {folder.name} needs model {config.model!r}, which this release lacks; known: {known}")
    kind = MODELS[config.model]
    model = kind.load(folder / "sources" / config.source, kind.Config.model_validate(config.config))
    return Source(config.source, model, config.quota)
