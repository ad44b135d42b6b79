"""Evaluation: a recommender on a fold -> a table of metrics per user, their means and intervals.

Asks by blocks of users, so that memory is bounded whatever the catalogue. Works on lists, one longer than the largest k, and breaks
ties against the model (`training.metrics.pessimistic_hits`).

Legend: `B` users, `K` list length, `N` items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from training.bootstrap import PairedComparison, ci95, paired_difference
from training.candidates import RankedLists, Retrieved
from training.interactions import BoolArray, FloatArray, IdArray, IntArray
from training.list_metrics import ListMetrics
from training.metrics import METRICS, pessimistic_hits
from training.models.base import Retriever
from training.queries import QueryBatch
from training.segments import ItemSegments, Segment, history_segments
from training.segments import K as SEGMENT_K
from training.splits import Fold

KS = (5, 10, 20, 50)
BLOCK_CELLS = 16_000_000
"""Scores held at once: 64 MB of float32 a copy."""

Recommend = Callable[[QueryBatch, int], Retrieved | RankedLists]
"""Queries and k -> lists of k. Obeys the fold's `exclude_history` and `allowed`."""


@dataclass(frozen=True)
class Evaluation:
    """Outcome of one recommender on one fold.

    Args:
        protocol, stage, refit: of the fold.
        per_user: one row a user: `user_idx`, `history_length`, `num_targets` and each accuracy metric.
        metrics: name -> mean over users, and figures of all lists together (coverage, Gini, ...).
        ci95: name -> percentile interval over users, for the means.
        seconds: wall time of asking and counting.
        not_evaluated: reason -> users that the protocol could not ask about.
        segments: name -> the same in parts (`training.segments`).
    """

    protocol: str
    stage: str
    refit: bool
    per_user: pd.DataFrame
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    seconds: float
    not_evaluated: Mapping[str, int] = field(default_factory=dict)
    segments: Mapping[str, Segment] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that `shortlist evaluate --json` prints (DESIGN 4.3)."""
        return {
            "protocol": self.protocol,
            "stage": self.stage,
            "refit": self.refit,
            "users": len(self.per_user),
            "not_evaluated": dict(self.not_evaluated),
            "metrics": {name: round(value, 6) for name, value in self.metrics.items()},
            "ci95": {name: [round(low, 6), round(high, 6)] for name, (low, high) in self.ci95.items()},
            "segments": {name: segment.to_json() for name, segment in self.segments.items()},
            "seconds": round(self.seconds, 3),
        }


def retriever_recommend(model: Retriever, fold: Fold) -> Recommend:
    """The model alone as a recommender under the fold's rules."""

    def recommend(queries: QueryBatch, k: int) -> Retrieved:
        return model.retrieve(queries, k, fold.allowed, exclude_history=fold.exclude_history)

    return recommend


def evaluate(
    recommend: Recommend, fold: Fold, *, ks: Sequence[int] = KS, categories: IdArray | None = None, seed: int = 0
) -> Evaluation:
    """Ask for every user of the fold and measure.

    Items of the history that are not targets are dropped from the lists whoever put them there; where the fold does not exclude the
    history, lists are asked for long enough to fill their places.

    Args:
        recommend: what is measured.
        fold: from `training.splits`.
        ks: cutoffs of the accuracy metrics; coverage and the other figures of lists are taken at 10.
        categories: (N,) lists of category names, for the diversity of lists.
        seed: of the bootstrap.
    """
    started = time.perf_counter()
    num_items, longest = fold.fit.num_items, max(ks) + 1
    block = max(1, min(4096, BLOCK_CELLS // max(num_items, 1)))
    lists_at_10 = ListMetrics(fold.fit, 10, categories)
    by_item = ItemSegments(fold.fit) if SEGMENT_K in ks else None
    tables = []
    for start, queries in fold.queries.blocks(block):
        width = longest + (0 if fold.exclude_history else int(np.diff(queries.indptr).max(initial=0)))
        lists = recommend(queries, width)
        indptr = fold.target_indptr[start : start + len(queries) + 1]
        targets = fold.target_idx[indptr[0] : indptr[-1]]
        indptr = indptr - indptr[0]
        complete = width >= num_items
        item_idx, score = _without_history(lists.item_idx, lists.score, queries, indptr, targets, num_items)
        item_idx, score = item_idx[:, :longest], score[:, :longest]
        hits = pessimistic_hits(item_idx, score, indptr, targets, num_items, complete=complete)
        if by_item is not None:
            by_item.add(item_idx, score, indptr, targets, complete=complete)
        tables.append({**_block_metrics(hits, np.diff(indptr), ks), **lists_at_10.add(item_idx, queries)})
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    means, intervals = _means_and_intervals(columns, seed)
    num_allowed = num_items if fold.allowed is None else int(fold.allowed.sum())
    per_user = pd.DataFrame(
        {
            "user_idx": fold.queries.user_idx,
            "history_length": np.diff(fold.queries.indptr),
            "num_targets": np.diff(fold.target_indptr),
            **columns,
        }
    )
    return Evaluation(
        protocol=fold.protocol,
        stage=fold.stage,
        refit=fold.refit,
        per_user=per_user,
        metrics={**means, **lists_at_10.totals(num_allowed)},
        ci95=intervals,
        seconds=time.perf_counter() - started,
        not_evaluated=fold.not_evaluated,
        segments={}
        if by_item is None
        else {**history_segments(np.diff(fold.queries.indptr), columns, seed), **by_item.totals(seed)},
    )


def paired_bootstrap(a: Evaluation, b: Evaluation, metric: str) -> PairedComparison:
    """Difference of two evaluations of the same fold in one metric, with interval and p.

    Raises:
        ValueError: they are not of the same users, or lack the metric.
    """
    if not np.array_equal(a.per_user["user_idx"], b.per_user["user_idx"]):
        raise ValueError("a paired comparison needs two evaluations of the same fold: their users differ")
    if metric not in a.per_user or metric not in b.per_user:
        raise ValueError(f"no per-user metric {metric!r}; there are: {', '.join(a.per_user.columns[3:])}")
    return paired_difference(metric, a.per_user[metric].to_numpy(), b.per_user[metric].to_numpy())


def _means_and_intervals(
    columns: Mapping[str, np.ndarray[Any, Any]], seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Means and intervals of the columns, over the users who have a value; a metric that nobody has is left out."""
    means: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    whole = [name for name, column in columns.items() if not np.isnan(column).any()]
    groups = [whole] + [[name] for name in columns if name not in whole]
    for names in groups:
        values = np.column_stack([columns[name] for name in names]) if names else np.empty((0, 0))
        values = values[~np.isnan(values).any(axis=1)]
        if len(values) == 0:
            continue
        for name, mean, (low, high) in zip(names, values.mean(axis=0), ci95(values, seed=seed), strict=True):
            means[name], intervals[name] = float(mean), (float(low), float(high))
    return means, intervals


def _block_metrics(hits: BoolArray, num_targets: np.ndarray[Any, Any], ks: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{name}@{k}": metric(hits, num_targets, k) for k in ks for name, metric in METRICS.items()}


def _without_history(
    item_idx: IntArray,
    score: FloatArray,
    queries: QueryBatch,
    target_indptr: np.ndarray[Any, Any],
    target_idx: IntArray,
    num_items: int,
) -> tuple[IntArray, FloatArray]:
    """The lists with history items that are not targets taken out, the rest moved up."""
    rows = np.arange(len(queries), dtype=np.int64)
    targets = np.repeat(rows, np.diff(target_indptr)) * num_items + target_idx
    banned = np.setdiff1d(queries.row.astype(np.int64) * num_items + queries.item_idx, targets)
    if len(banned) == 0:
        return item_idx, score
    key = rows[:, None] * num_items + item_idx
    place = np.minimum(np.searchsorted(banned, key), len(banned) - 1)
    out = (banned[place] == key) & (item_idx >= 0)
    if not out.any():
        return item_idx, score
    order = np.argsort(out, axis=1, kind="stable")
    item_idx = np.take_along_axis(np.where(out, -1, item_idx), order, axis=1)
    score = np.take_along_axis(np.where(out, -np.inf, score), order, axis=1)
    return item_idx, score
