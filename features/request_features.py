"""User x item features for whole candidate sets: the on-demand view's functions on columns.

The item side is prepared once (`ItemFeatureColumns`) and kept; a request then costs a few gathers.

Legend: `B` requests, `K` candidates, `N` items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.request_columns import REQUEST_FEATURES, ItemColumns, UserColumns, item_columns, pair_features, user_columns
from feature_repo.specs import CATEGORY_ATTRIBUTES, METADATA_PREFIX

FloatArray = npt.NDArray[np.float32]
LongArray = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.int32]
Columns = Mapping[str, npt.NDArray[Any]]

REQUEST_FEATURE_NAMES: tuple[str, ...] = tuple(REQUEST_FEATURES)
"""Names of the features, in order."""

_CELLS_PER_BLOCK = 4_000_000
"""Bound on the working arrays of one block of requests, in cells."""


@dataclass(frozen=True)
class ItemFeatureColumns:
    """The item side of the request features for a whole catalogue, prepared once.

    Args:
        columns: (N,)-aligned arrays.
        vocabulary: category -> number.
    """

    columns: ItemColumns
    vocabulary: Mapping[str, int]

    @classmethod
    def prepare(cls, item_features: Columns) -> ItemFeatureColumns:
        """From the columns of `item_activity` and `item_metadata`, as `item_features_at` or the online store gives them.

        Without metadata features, affinities are null. Item age counts from `metadata_created_at_us` where that is known.
        """
        first = item_features["item_first_event_us"]
        created = item_features.get(f"{METADATA_PREFIX}_created_at_us", first)
        categories = next(
            (
                item_features[f"{METADATA_PREFIX}_{name}"]
                for name in CATEGORY_ATTRIBUTES
                if f"{METADATA_PREFIX}_{name}" in item_features
            ),
            None,
        )
        vocabulary: dict[str, int] = {}
        columns = item_columns(
            item_features["item_events"],
            item_features["item_last_event_us"],
            np.where(np.isnan(created), first, created),
            item_features["item_day_tiles"],
            [()] * len(first) if categories is None else list(categories),
            vocabulary,
        )
        return cls(columns, vocabulary)


def request_features(
    user_features: Columns,
    item_features: Columns | ItemFeatureColumns,
    request_time_us: LongArray,
    item_idx: IntArray,
) -> dict[str, FloatArray]:
    """The on-demand features of every candidate.

    Args:
        user_features: columns of `user_activity`, (B,) each.
        item_features: the catalogue's columns, (N,) each, or what `ItemFeatureColumns.prepare` made of them.
        request_time_us: (B,) int64, microseconds since the epoch.
        item_idx: (B, K) int32 rows of the item columns; -1 is padding.

    Returns:
        name -> (B, K) float32; NaN for padding and where a value is unknown.
    """
    items = item_features if isinstance(item_features, ItemFeatureColumns) else ItemFeatureColumns.prepare(item_features)
    requests, width = item_idx.shape
    result = {name: np.empty((requests, width), dtype=np.float32) for name in REQUEST_FEATURE_NAMES}
    cells = width * items.columns.categories.shape[1] + len(items.vocabulary)
    step = max(1, _CELLS_PER_BLOCK // max(cells, 1))
    for start in range(0, requests, step):
        block = slice(start, min(start + step, requests))
        users = _users(user_features, block, items.vocabulary)
        rows = np.arange(block.stop - start)[:, None]
        idx = item_idx[block]
        padding = idx < 0
        pairs = pair_features(users, items.columns, rows, np.where(padding, 0, idx), request_time_us[block, None])
        for name, values in pairs.items():
            values[padding] = np.nan
            result[name][block] = values
    return result


def _users(features: Columns, block: slice, vocabulary: Mapping[str, int]) -> UserColumns:
    return user_columns(
        features["user_events"][block],
        features["user_last_event_us"][block],
        features["user_hour_tiles"][block],
        features["user_day_tiles"][block],
        list(features["user_categories"][block]),
        list(features["user_category_weights"][block]),
        vocabulary,
    )
