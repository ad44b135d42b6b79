"""Rows of the feature log: the values that ranked some lists, computed once more from the very inputs of the ranking.

The same function on the same inputs, so the same values: for single requests (`serving.feature_log`) and for the blocks of
precompute alike, whose lists gateways then show out of the cache.

Legend: `B` lists, `F` features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from features.served import ServedRow, list_id
from serving.config import ServingConfig
from training.candidates import CandidateSet, RankedLists
from training.pipeline import Pipeline
from training.queries import QueryBatch

TOP = 50
"""Items of a list whose values are logged, the best."""


def feature_rows(
    config: ServingConfig,
    pipeline: Pipeline,
    version: str,
    units: Sequence[tuple[str, str | None]],
    queries: QueryBatch,
    candidates: CandidateSet,
    lists: RankedLists,
    now_us: int,
    *,
    dropped: int = 0,
) -> list[ServedRow]:
    """The rows of B lists.

    Args:
        config: of the stack.
        pipeline: the version's.
        version: its number.
        units: B units with their users, None for sessions.
        queries, candidates, lists: what was ranked, and the outcome.
        now_us: when the lists were computed, as they say themselves.
        dropped: lists that could not be logged since the last row.
    """
    reaching, _ = pipeline.reaching(candidates)
    names, values, users = _values(pipeline, queries, reaching)
    rows = []
    for b, (unit, user_id) in enumerate(units):
        at = {item: place for place, item in enumerate(reaching.item_idx[b].tolist())}
        items = [item for item in lists.item_idx[b].tolist() if item >= 0 and item in at][:TOP]
        key = list_id(unit, version, now_us)
        row = {
            "list_id": key,
            "site": config.site,
            "at": now_us,
            "user_id": user_id,
            "model_version": version,
            "request_time_us": int(queries.request_time_us[b]),
            "from_online_store": bool(queries.user_features),
            "user_features": json.dumps({name: _plain(column[b]) for name, column in users.items()}),
            "item_ids": pipeline.items["item_id"].take(items).to_pylist(),
            "feature_names": list(names),
            "values": values[b, [at[item] for item in items]].ravel(),
            "sample_rate": config.feature_log_rate,
            "dropped": dropped,
        }
        rows.append(ServedRow(key, row))
    return rows


def _values(
    pipeline: Pipeline, queries: QueryBatch, candidates: CandidateSet
) -> tuple[tuple[str, ...], npt.NDArray[np.float32], Mapping[str, npt.NDArray[Any]]]:
    """Names, (B, candidates, F) values, and the users' features as columns."""
    stage = pipeline.stage
    if stage is None:
        return tuple(f"{source}_score" for source in candidates.sources), candidates.score.astype(np.float32), {}
    users = stage.features.user_features(queries)  # of users whom the online store does not know: milliseconds, so once
    batch = stage.features.batch(replace(queries, user_features=users), candidates, pipeline.blend, pipeline.timeline)
    return batch.names, batch.features, users


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value
