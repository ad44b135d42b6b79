"""Stream equals batch: merging the states of parts gives the state of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.specs import ITEM_ACTIVITY_SPECS
from features.columns import missing_columns
from features.state_merge import batch_item_states, merge_item_states

DAY_US = 86_400_000_000


def world(rng: np.random.Generator, num_events: int, span_days: int) -> pa.Table:
    return pa.table(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 4, num_events)],
            "item_id": [f"i{n}" for n in rng.integers(0, 40, num_events)],
            # Coarse times, so that users have events at equal times.
            "timestamp": pa.array(rng.integers(0, span_days * 24, num_events) * (DAY_US // 24) + 10**15).cast(
                pa.timestamp("us", "UTC")
            ),
            "value": pa.array(
                np.where(rng.random(num_events) < 0.6, rng.integers(1, 11, num_events) / 2, np.nan), from_pandas=True
            ),
        }
    )


def aligned(ids: Any, columns: Any, wanted: Any, specs: Any) -> Any:
    """Columns of the wanted ids, neutral rows where an id is not there."""
    place = {name: row for row, name in enumerate(ids)}
    rows = [place.get(name) for name in wanted]
    empty = missing_columns(1, specs)
    return {
        name: stack([empty[name][0] if row is None else column[row] for row in rows], column) for name, column in columns.items()
    }


def stack(values: list[Any], like: Any) -> Any:
    if like.dtype != object:
        return np.array(values, dtype=like.dtype)
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        column[row] = value
    return column


def assert_same(actual: Any, expected: Any) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        for row in range(len(expected[name])):
            if name.endswith("value_mean"):
                np.testing.assert_allclose(actual[name][row], expected[name][row], rtol=1e-12)
            else:
                np.testing.assert_array_equal(actual[name][row], expected[name][row], err_msg=f"{name} row {row}")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_events=st.integers(1, 400), span_days=st.integers(1, 90), num_parts=st.integers(1, 6))
def test_parts_in_any_order_merge_into_the_batch(seed: int, num_events: int, span_days: int, num_parts: int) -> None:
    rng = np.random.default_rng(seed)
    events = world(rng, num_events, span_days)
    items, whole_items = batch_item_states(events)
    item_state = missing_columns(len(items), ITEM_ACTIVITY_SPECS)
    part_of = rng.integers(0, num_parts, num_events)
    for part in rng.permutation(num_parts):
        some = events.filter(pa.array(part_of == part))
        if not len(some):
            continue
        item_state = merge_item_states(item_state, aligned(*batch_item_states(some), items, ITEM_ACTIVITY_SPECS))
    assert_same(item_state, whole_items)


def test_negative_and_flagged_events_do_not_count(rng: np.random.Generator) -> None:
    events = world(rng, 50, 10)
    actions = rng.choice(["view", "rating", "dislike", "impression", "dismiss"], 50)
    flags = np.where(rng.random(50) < 0.2, "unknown_item", None)
    labelled = events.append_column("action", pa.array(actions)).append_column("flag", pa.array(flags, pa.string()))
    keep = np.isin(actions, ["view", "rating"]) & (flags == None)  # noqa: E711
    items, columns = batch_item_states(labelled)
    expected_items, expected = batch_item_states(events.filter(pa.array(keep)))
    assert list(items) == list(expected_items)
    assert_same(columns, expected)
