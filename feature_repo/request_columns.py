"""Features of a user x item pair at the moment of asking: one set of pure column functions.

The on-demand view (`feature_repo.request_views`) gives them to whoever asks Feast for a few pairs; `features.request_features`
calls the same functions on columns for hundreds of candidates. Windows are sums over stored tiles at read time, rounded to whole
tiles: `1d` is the last 24 clock hours with the running one, `7d` and `30d` are the last 7 and 30 UTC days with today.

Legend: `U` user rows, `I` item rows, `S` any shape of pairs, `W` tiles, `C` categories, `M` categories of one item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.specs import DAY_TILES, HOUR_TILES

FloatArray = npt.NDArray[np.float32]
LongArray = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.int32]

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
DAY_US = 24 * HOUR_US

REQUEST_FEATURES: dict[str, str] = {
    "user_events_1d": "Events of the user in the last 24 clock hours. [Float64, unit: events]",
    "user_events_7d": "Events of the user in the last 7 UTC days. [Float64, unit: events]",
    "user_events_30d": "Events of the user in the last 30 UTC days. [Float64, unit: events]",
    "item_events_7d": "Events on the item in the last 7 UTC days. [Float64, unit: events]",
    "item_events_30d": "Events on the item in the last 30 UTC days. [Float64, unit: events]",
    "item_age_days": "Days since the item's created_at, or else its first event; null if neither is known. [Float64, unit: days]",
    "days_since_last_event": "Days since the user's last event; null without one or without times. [Float64, unit: days]",
    "category_affinity": "Mean share of the user's recent events over the item's categories; null without. [Float64, unit: share]",
}
"""Name and description of each, in order. Window counts are 0 for who has no events and null where times are unknown."""

_NEVER = -(1 << 40)
"""Tile number of an event that never was: any request is far past it."""


@dataclass(frozen=True)
class UserColumns:
    """The user side, prepared once for any number of pairs.

    Shapes: hour_sums (U, 25) and day_sums (U, 31) float32: [:, n] is the sum of the newest n tiles, NaN where times are unknown;
    last_hour, last_day (U,) int64 tile numbers; last_us (U,) float64; category_weights (U, C + 1) float32, the last column 0.
    """

    hour_sums: FloatArray
    day_sums: FloatArray
    last_hour: LongArray
    last_day: LongArray
    last_us: npt.NDArray[np.float64]
    category_weights: FloatArray

    def rows(self, start: int, stop: int) -> UserColumns:
        """Rows `start` to `stop` (exclusive)."""
        return UserColumns(
            self.hour_sums[start:stop],
            self.day_sums[start:stop],
            self.last_hour[start:stop],
            self.last_day[start:stop],
            self.last_us[start:stop],
            self.category_weights[start:stop],
        )


@dataclass(frozen=True)
class ItemColumns:
    """The item side, prepared once for any number of pairs.

    Shapes: day_sums (I, 31) float32 as in UserColumns; last_day (I,) int64; born_us (I,) float64, NaN where unknown;
    categories (I, M) int32 padded with C; num_categories (I,) float32.
    """

    day_sums: FloatArray
    last_day: LongArray
    born_us: npt.NDArray[np.float64]
    categories: IntArray
    num_categories: FloatArray


def newest_sums(tiles: npt.NDArray[np.int32], events: LongArray, last_us: npt.NDArray[np.float64]) -> FloatArray:
    """Running sums over tiles (R, W), newest first, with a leading 0: (R, W + 1).

    Rows of NaN where there are events whose time is unknown: no window can be said.
    """
    sums = np.zeros((len(tiles), tiles.shape[1] + 1), dtype=np.float32)
    np.cumsum(tiles, axis=1, out=sums[:, 1:])
    sums[(events > 0) & np.isnan(last_us)] = np.nan
    return sums


def tile_numbers(time_us: npt.NDArray[np.float64], tile_us: int) -> LongArray:
    """Number of the tile that a time falls into; far in the past where the time is NaN."""
    known = ~np.isnan(time_us)
    return np.where(known, np.where(known, time_us, 0).astype(np.int64) // tile_us, _NEVER)


def window_count(sums: FloatArray, last_tile: LongArray, row: npt.NDArray[Any], request_tile: LongArray, window: int) -> FloatArray:
    """Events in the last `window` tiles as of the request's tile, for pairs (S) of table row and request tile.

    A request earlier than the row's last event (items as of a later cutoff) sees the window that ends at that event.
    """
    shift = np.maximum(request_tile - last_tile[row], 0)
    return sums[row, np.maximum(window - shift, 0)]


def category_affinity(
    weights: FloatArray, user_row: npt.NDArray[Any], categories: IntArray, num_categories: FloatArray, item_row: npt.NDArray[Any]
) -> FloatArray:
    """Mean over the item's categories of the user's weight for it; NaN for an item without categories."""
    total = weights[user_row[..., None], categories.take(item_row, axis=0)].sum(axis=-1, dtype=np.float32)
    count = num_categories.take(item_row)
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(np.nan)).astype(np.float32)


def pair_features(
    users: UserColumns, items: ItemColumns, user_row: npt.NDArray[Any], item_row: npt.NDArray[Any], request_us: LongArray
) -> dict[str, FloatArray]:
    """The features of `REQUEST_FEATURES` for pairs of a user row and an item row.

    Args:
        users, items: prepared columns.
        user_row, item_row: integer arrays that broadcast to S.
        request_us: int64, microseconds since the epoch, broadcasts to the shape of `user_row`.

    Returns:
        name -> float32 (S).
    """
    hour, day = request_us // HOUR_US, request_us // DAY_US
    shape = np.broadcast_shapes(user_row.shape, item_row.shape)
    request_days = request_us / DAY_US
    # The user's own windows are computed once a user row and spread over the pairs.
    of_user = {
        "user_events_1d": window_count(users.hour_sums, users.last_hour, user_row, hour, HOUR_TILES),
        "user_events_7d": window_count(users.day_sums, users.last_day, user_row, day, 7),
        "user_events_30d": window_count(users.day_sums, users.last_day, user_row, day, DAY_TILES),
        "days_since_last_event": np.maximum(request_days - users.last_us[user_row] / DAY_US, 0),
    }
    of_pair = {
        "item_events_7d": window_count(items.day_sums, items.last_day, item_row, day, 7),
        "item_events_30d": window_count(items.day_sums, items.last_day, item_row, day, DAY_TILES),
        "item_age_days": np.maximum(request_days - items.born_us[item_row] / DAY_US, 0),
        "category_affinity": category_affinity(users.category_weights, user_row, items.categories, items.num_categories, item_row),
    }
    values = of_user | of_pair
    return {name: np.broadcast_to(values[name], shape).astype(np.float32) for name in REQUEST_FEATURES}


def category_parts(categories: Sequence[str]) -> list[str]:
    """Distinct categories of an item, in order. A path `A > B > C` counts as each of its parts."""
    parts = (part.strip() for category in categories for part in category.split(" > "))
    return list(dict.fromkeys(part for part in parts if part))


def user_columns(
    events: LongArray,
    last_us: npt.NDArray[np.float64],
    hour_tiles: npt.NDArray[np.int32],
    day_tiles: npt.NDArray[np.int32],
    categories: Sequence[Sequence[str]],
    weights: Sequence[Sequence[float]],
    vocabulary: Mapping[str, int],
) -> UserColumns:
    """Prepare the user side from the values of `user_activity`; `vocabulary` is category -> column of the weights."""
    dense = np.zeros((len(events), len(vocabulary) + 1), dtype=np.float32)
    for row, (names, shares) in enumerate(zip(categories, weights, strict=True)):
        for name, share in zip(names, shares, strict=True):
            column = vocabulary.get(name)
            if column is not None:
                dense[row, column] = share
    return UserColumns(
        hour_sums=newest_sums(hour_tiles, events, last_us),
        day_sums=newest_sums(day_tiles, events, last_us),
        last_hour=tile_numbers(last_us, HOUR_US),
        last_day=tile_numbers(last_us, DAY_US),
        last_us=last_us,
        category_weights=dense,
    )


def item_columns(
    events: LongArray,
    last_us: npt.NDArray[np.float64],
    born_us: npt.NDArray[np.float64],
    day_tiles: npt.NDArray[np.int32],
    categories: Sequence[Sequence[str]],
    vocabulary: dict[str, int],
) -> ItemColumns:
    """Prepare the item side from the values of `item_activity` and the items' categories.

    `vocabulary` (category -> number) is extended by categories that it lacks.
    """
    numbers = [[vocabulary.setdefault(part, len(vocabulary)) for part in category_parts(names)] for names in categories]
    counts = np.array([len(row) for row in numbers], dtype=np.int64)
    padded = np.full((len(numbers), max(int(counts.max(initial=0)), 1)), len(vocabulary), dtype=np.int32)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = [number for row in numbers for number in row]
    return ItemColumns(
        day_sums=newest_sums(day_tiles, events, last_us),
        last_day=tile_numbers(last_us, DAY_US),
        born_us=born_us,
        categories=padded,
        num_categories=counts.astype(np.float32),
    )
