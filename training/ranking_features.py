"""Features of candidates for rankers, assembled on whole columns: what the sources said, the user, the item, and both together.

| columns | from |
|---|---|
| `<source>_score`, `_z`, `_inverse_rank`, `_present` | the candidate set |
| `source_count`, `blend_score`, `blend_z`, `blend_inverse_rank` | the candidate set and the blend |
| `similarity_last`, `_max`, `_mean`, `history_log_length` | the query's history and `training.item_vectors` |
| `period_*` | times of the history and `training.item_periods`, for rankers of new items |
| `item_*`, `metadata_*` | Feast's item views as of the training's cutoff, kept in memory |
| `own_user_columns` | what `feature_repo.own_views` computes of a user, at the moment of asking |
| `user_*`, category affinity, windows, ages | Feast's user view at the moment of asking, `features.request_features` |

User features come with the query (`QueryBatch.user_features`, from Feast online); where they do not, they are computed from the
query's history by the same aggregates.

Legend: `B` queries, `K` candidates, `F` features, `N` items, `S` sources.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.own_views import own_user_specs
from feature_repo.request_columns import ItemColumns
from feature_repo.specs import USER_ACTIVITY, USER_ACTIVITY_SPECS, category_attribute
from features.activity_log import activity_log
from features.aggregates import UserStates, categories_of
from features.columns import missing_columns, table_columns
from features.own_tables import own_tables
from features.request_features import REQUEST_FEATURE_NAMES, ItemFeatureColumns, request_features
from training.arrays import AnyArray, map_arrays, save_arrays
from training.blend import Blend
from training.candidates import CandidateSet
from training.errors import BundleError
from training.interactions import FloatArray
from training.item_periods import PERIOD_FEATURES, period_columns
from training.item_timeline import ItemTimeline
from training.item_vectors import history_similarity
from training.queries import MAX_HISTORY, QueryBatch
from training.rankers.base import RankingBatch, standardised

ARRAYS_FILE = "features.safetensors"
STATE_FILE = "features.json"
USER_FEATURES: tuple[str, ...] = (
    "user_events",
    "user_last_event_us",
    "user_hour_tiles",
    "user_day_tiles",
    "user_categories",
    "user_category_weights",
    "recent_distinct_items",
)
"""Columns of `user_activity` that a ranker reads: what serving has to fetch from the online store."""
USER_SPECS = tuple(spec for spec in USER_ACTIVITY_SPECS if spec.name in USER_FEATURES)


def user_feature_names() -> tuple[str, ...]:
    """`USER_FEATURES`, and those of the views of one's own."""
    return (*USER_FEATURES, *(spec.name for spec in own_user_specs()))


PAST_WINDOWS = {"item_events_7d": 7, "item_events_30d": 30}
"""Request features that are item windows, and their UTC days."""
OWN_KINDS = ("count", "integer", "number", "flag")
"""Kinds of own user features that a ranker reads; times, texts and lists are for retrievers and request features."""
REQUEST_PARTS = ("day_sums", "last_day", "born_us", "categories", "num_categories")
"""Fields of `ItemColumns`, as a bundle keeps them."""


@dataclass(frozen=True)
class RankingFeatures:
    """Everything about items that the features need, fitted on the same rows as the first stages.

    Args:
        sources: S names, the order of `CandidateSet.sources`.
        item_columns: feature name -> (N,) float32.
        vectors: (N, D) float32 item vectors.
        request: the item side of the request features.
        items: (N,) `item_id` and the categories, for users' tastes.
        has_times: False where times are only an order.
        periods: (N, 2) of `training.item_periods`, None for rankers without its columns.
    """

    sources: tuple[str, ...]
    item_columns: Mapping[str, FloatArray]
    vectors: FloatArray
    request: ItemFeatureColumns
    items: pa.Table
    has_times: bool
    periods: FloatArray | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """F names, the order of the last axis."""
        per_source = [f"{source}_{part}" for source in self.sources for part in ("score", "z", "inverse_rank", "present")]
        blend = ["source_count", "blend_score", "blend_z", "blend_inverse_rank"]
        history = [
            "similarity_last",
            "similarity_max",
            "similarity_mean",
            "history_log_length",
            "user_log_recent_distinct",
        ]
        periods = () if self.periods is None else PERIOD_FEATURES
        return (*per_source, *blend, *history, *periods, *self.item_columns, *own_user_columns(), *REQUEST_FEATURE_NAMES)

    def batch(
        self, queries: QueryBatch, candidates: CandidateSet, blend: Blend, timeline: ItemTimeline | None = None
    ) -> RankingBatch:
        """Features of the candidates of B queries. Items that only fill a list count as padding.

        Args:
            queries: B queries.
            candidates: of the same queries.
            blend: of the funnel.
            timeline: counts the item windows of requests that are not later than its end; None takes the item columns for all.
        """
        shape, item = candidates.item_idx.shape, np.maximum(candidates.item_idx, 0)
        user = self.user_features(queries)
        columns: list[npt.NDArray[Any]] = []
        for s in range(len(self.sources)):
            score, rank = candidates.score[:, :, s], candidates.rank[:, :, s]
            present = ~np.isnan(rank)
            z = np.where(present, standardised(np.where(present, score, 0.0), present), np.nan)
            columns += [score, z, np.where(present, 1.0 / (1.0 + rank), 0.0), present]
        columns += [(~np.isnan(candidates.rank)).sum(axis=2), *blend_columns(candidates, blend)]
        columns += history_similarity(self.vectors, queries, candidates.item_idx)
        # Capped, because serving shows a ranker the most recent entries only.
        for of_query in (np.minimum(np.diff(queries.indptr), MAX_HISTORY), user["recent_distinct_items"]):
            columns.append(np.broadcast_to(np.log1p(of_query.astype(np.float32))[:, None], shape))
        if self.periods is not None:
            columns += period_columns(self.periods, queries, candidates.item_idx)
        columns += [column.take(item) for column in self.item_columns.values()]
        for column in own_user_columns(user).values():
            columns.append(np.broadcast_to(column[:, None], shape))
        pairs = request_features(user, self.request, queries.request_time_us, candidates.item_idx)
        if timeline is not None and self.has_times:
            self._count_past_windows(pairs, queries, candidates, timeline)
        columns += [pairs[name] for name in REQUEST_FEATURE_NAMES]
        features = np.empty((*shape, len(columns)), dtype=np.float32)
        for f, column in enumerate(columns):
            features[:, :, f] = column
        return RankingBatch(self.names, features, candidates.sourced, features[:, :, self.names.index("blend_z")].copy())

    def _count_past_windows(
        self, pairs: dict[str, FloatArray], queries: QueryBatch, candidates: CandidateSet, timeline: ItemTimeline
    ) -> None:
        """Replace the item windows of requests that lie within the timeline."""
        past = np.flatnonzero(queries.request_time_us <= timeline.end_us)
        if not len(past):
            return
        item, moment = candidates.item_idx[past], queries.request_time_us[past]
        for name, days in PAST_WINDOWS.items():
            counts = timeline.window_counts(np.maximum(item, 0), moment, days)
            pairs[name][past] = np.where(item >= 0, counts, np.float32(np.nan))

    def reblended(self, batch: RankingBatch, candidates: CandidateSet, blend: Blend) -> RankingBatch:
        """The batch with the columns of another blend, written over those in place: the given batch is not to be used again."""
        first = batch.names.index("blend_score")
        for offset, column in enumerate(blend_columns(candidates, blend)):
            batch.features[:, :, first + offset] = column
        return replace(batch, base=batch.features[:, :, first + 1].copy())

    def user_features(self, queries: QueryBatch) -> Mapping[str, npt.NDArray[Any]]:
        """Columns of `user_feature_names` for each query: as given with it, else from its history.

        A column that was given for some features only is taken as not known for the rest.
        """
        if queries.user_features:
            missing = missing_columns(len(queries), (*USER_SPECS, *own_user_specs()))
            return {name: queries.user_features.get(name, column) for name, column in missing.items()}
        return self._from_history(queries)

    def _from_history(self, queries: QueryBatch) -> dict[str, npt.NDArray[Any]]:
        """The same values without the join: the state after the last entry of each history."""
        columns = missing_columns(len(queries), (*USER_SPECS, *own_user_specs()))
        asked = np.flatnonzero(np.diff(queries.indptr))
        if not len(asked):
            return columns
        log = activity_log(self.events(queries)[0], "user", has_times=self.has_times)
        rows = np.arange(len(log.ids), dtype=np.int64)
        states = pa.concat_tables(UserStates(log, self.categories_of(queries)).after(rows, log.indptr[1:]))
        known = table_columns(states, USER_SPECS)
        for view, rows in own_tables(USER_ACTIVITY, states):
            known |= table_columns(rows, view.specs)
        for name, column in columns.items():
            column[asked] = known[name]
        return columns

    def categories_of(self, queries: QueryBatch) -> dict[str, list[str]]:
        """item_id -> categories of the items in the histories: those of all items would take seconds and 0.3 GB at a million."""
        return categories_of(self.items.take(pa.array(np.unique(queries.item_idx))))

    def events(self, queries: QueryBatch) -> tuple[pa.Table, npt.NDArray[np.object_]]:
        """Histories as an events table, the query's number standing for the user, and the (B,) numbers as they stand there."""
        width = len(str(len(queries)))
        ids = np.array([f"{b:0{width}d}" for b in range(len(queries))], dtype=np.object_)  # padded: text order is row order
        events = pa.table(
            {
                "user_id": pa.array(ids[queries.row], type=pa.string()),
                "item_id": self.items["item_id"].take(pa.array(queries.item_idx)),
                "timestamp": pa.array(queries.time_us, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
                "value": pa.nulls(len(queries.item_idx), pa.float64()),
            }
        )
        return events, ids

    def save(self, folder: Path) -> None:
        """Write arrays and names below `folder`."""
        arrays: dict[str, AnyArray] = {f"item.{name}": column for name, column in self.item_columns.items()}
        arrays |= {f"request.{name}": getattr(self.request.columns, name) for name in REQUEST_PARTS}
        if self.periods is not None:
            arrays["periods"] = self.periods
        save_arrays(folder / ARRAYS_FILE, {**arrays, "vectors": self.vectors})
        state = {
            "sources": self.sources,
            "item_columns": list(self.item_columns),
            "vocabulary": list(self.request.vocabulary),
            "has_times": self.has_times,
        }
        (folder / STATE_FILE).write_text(json.dumps(state) + "\n")

    @classmethod
    def load(cls, folder: Path, items: pa.Table) -> RankingFeatures:
        """Read what `save` wrote.

        Args:
            folder: of the bundle's ranker.
            items: the bundle's items.

        Raises:
            BundleError: a file is damaged.
        """
        arrays = map_arrays(folder / ARRAYS_FILE)
        try:
            state = json.loads((folder / STATE_FILE).read_text())
            parts: dict[str, Any] = {name: arrays[f"request.{name}"] for name in REQUEST_PARTS}
            vocabulary = {name: number for number, name in enumerate(state["vocabulary"])}
            return cls(
                sources=tuple(state["sources"]),
                item_columns={name: arrays[f"item.{name}"].astype(np.float32, copy=False) for name in state["item_columns"]},
                vectors=arrays["vectors"].astype(np.float32, copy=False),
                request=ItemFeatureColumns(ItemColumns(**parts), vocabulary),
                items=category_columns(items),
                has_times=bool(state["has_times"]),
                periods=arrays["periods"].astype(np.float32, copy=False) if "periods" in arrays else None,
            )
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise BundleError(f"{folder.name}/{STATE_FILE} cannot be read ({error}); fetch or build the bundle again") from error


def stored_vectors(folder: Path) -> FloatArray | None:
    """(N, D) float32 item vectors of a ranker's features below `folder`, as a memory map; None where there are none.

    Raises:
        BundleError: the file is damaged.
    """
    file = folder / ARRAYS_FILE
    return map_arrays(file)["vectors"].astype(np.float32, copy=False) if file.exists() else None


def category_columns(items: pa.Table) -> pa.Table:
    """Of the items the columns that `categories_of` reads."""
    name = category_attribute(items.column_names)
    return items.select(["item_id"] if name is None else ["item_id", name]).combine_chunks()


def blend_columns(candidates: CandidateSet, blend: Blend) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`blend_score`, `blend_z` and `blend_inverse_rank`, (B, K) float32 each."""
    there = candidates.sourced
    score = np.where(there, blend.score(candidates), 0.0).astype(np.float32)
    order = np.argsort(-np.where(there, score, -np.inf), axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return score, standardised(score, there), (1.0 / (1.0 + place)).astype(np.float32)


def own_user_columns(user: Mapping[str, npt.NDArray[Any]] | None = None) -> dict[str, FloatArray]:
    """Numeric features of users of the views of one's own as ranker columns, in the forms of `item_scalars`.

    Args:
        user: (B,) columns; None gives the names, with nothing in them.
    """
    columns: dict[str, FloatArray] = {}
    for spec in own_user_specs():
        if spec.kind in OWN_KINDS:
            values = missing_columns(0, [spec])[spec.name] if user is None else user[spec.name]
            counted = spec.kind == "count"
            columns[f"{spec.name}_log" if counted else spec.name] = (np.log1p(values) if counted else values).astype(np.float32)
    return columns


def item_scalars(item_features: Mapping[str, npt.NDArray[Any]], names: tuple[str, ...] | None = None) -> dict[str, FloatArray]:
    """Numeric item features as ranker columns: counts as log1p, numbers and flags as they are; times, texts and lists left out.

    Args:
        item_features: (N,) columns as `features.columns` describes them.
        names: the columns wanted, in order; None takes those that are not the same for every item.
    """
    columns: dict[str, FloatArray] = {}
    for name, values in item_features.items():
        if values.ndim != 1 or values.dtype == np.object_ or name.endswith("_us"):
            continue
        counted = values.dtype.kind == "i"
        column = (np.log1p(values) if counted else values).astype(np.float32)
        finite = column[np.isfinite(column)]
        if names is not None or (len(finite) and float(finite.min()) < float(finite.max())):
            columns[f"{name}_log" if counted else name] = column
    return columns if names is None else {name: columns[name] for name in names}
