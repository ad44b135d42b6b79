"""Order and times of imported histories, against a slow reading of the rules."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from features.event_ids import row_ids
from features.histories import ROW_SCHEMA, FileTraits, to_events

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = 1_000_000


def rows(**columns: list[object]) -> pa.Table:
    count = len(next(iter(columns.values())))
    full = {name: columns.get(name, [None] * count) for name in ROW_SCHEMA.names}
    full["action"] = columns.get("action", ["view"] * count)
    return pa.table(full, schema=ROW_SCHEMA)


def traits(table: pa.Table) -> FileTraits:
    times = [time for time in table["time_us"].to_pylist() if time is not None]
    return FileTraits(min(times) if times else None, table["position"].null_count < table.num_rows)


def history(table: pa.Table) -> pd.DataFrame:
    events, _ = to_events(table, traits(table), dataset="d", received_at=NOW)
    frame = events.to_pandas()
    frame["us"] = events["timestamp"].cast(pa.int64()).to_numpy()
    return frame.sort_values("user_id", kind="stable")


def slow_order(table: pa.Table) -> list[tuple[str, str, int, int]]:
    """(user, item, history position, time) by the words of the rules, one user and one row at a time."""
    first = traits(table).first_time_us or 0
    positioned = traits(table).has_positions
    result = []
    by_user: dict[str, list[dict[str, object]]] = {}
    for number, row in enumerate(table.to_pylist()):
        by_user.setdefault(row["user_id"], []).append({**row, "number": number})
    for user, own in sorted(by_user.items()):
        late = 1 << 62
        if positioned:
            own.sort(key=lambda r: (*(late if r[k] is None else r[k] for k in ("position", "time_us")), r["number"]))
        else:
            own.sort(key=lambda r: (first if r["time_us"] is None else r["time_us"], r["number"]))
        known = [r["time_us"] for r in own]
        previous, last_position = None, -1
        for place, row in enumerate(own):
            time = row["time_us"]
            if time is None and positioned:
                before = [t for t in known[:place] if t is not None]
                after = [t for t in known[place:] if t is not None]
                time = before[-1] if before else after[0] if after else first
            time = first if time is None else time
            raised = time if previous is None else max(time, previous[0])
            if not positioned:
                position = place
            else:
                position = last_position + 1 if row["position"] is None else row["position"]
                last_position = position
            final = raised + position
            if previous is not None:
                final = max(final, previous[1] + 1)
            previous = (raised, final)
            result.append((user, row["item_id"], position, final))
    return result


@st.composite
def files(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(1, 25))
    positioned = draw(st.booleans())
    times = st.none() | st.integers(0, 40).map(lambda s: s * SECOND + 7)
    positions = st.none() | st.integers(0, 6)
    return rows(
        user_id=draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count)),
        item_id=[f"i{n}" for n in range(count)],
        time_us=draw(st.lists(times, min_size=count, max_size=count)),
        position=draw(st.lists(positions, min_size=count, max_size=count)) if positioned else [None] * count,
    )


@given(files())
def test_order_and_times_follow_the_rules(table: pa.Table) -> None:
    found = history(table)
    assert list(zip(found.user_id, found.item_id, found.history_position, found.us, strict=True)) == slow_order(table)


@given(files())
def test_event_time_is_strictly_increasing_within_a_user(table: pa.Table) -> None:
    found = history(table)
    steps = found.groupby("user_id").us.diff().dropna()
    assert (steps > 0).all()


@given(files())
def test_rows_without_a_time_and_only_they_are_flagged(table: pa.Table) -> None:
    found = history(table).set_index("item_id")
    given_times = table.to_pandas().set_index("item_id")
    assert (found.timestamp_imputed == given_times.time_us.isna().reindex(found.index)).all()


def test_position_wins_over_time_and_the_time_is_raised() -> None:
    found = history(
        rows(user_id=["u"] * 3, item_id=list("abc"), time_us=[50 * SECOND, 10 * SECOND, 60 * SECOND], position=[0, 1, 2])
    )
    assert list(found.item_id) == ["a", "b", "c"]
    assert list(found.us) == [50 * SECOND, 50 * SECOND + 1, 60 * SECOND + 2]
    assert not found.timestamp_imputed.any()


def test_without_any_time_the_order_is_the_files_from_1970() -> None:
    found = history(rows(user_id=list("uvu"), item_id=list("abc")))
    assert list(zip(found.user_id, found.item_id, found.us, strict=True)) == [("u", "a", 0), ("u", "c", 1), ("v", "b", 0)]
    assert found.timestamp_imputed.all()


def test_equal_rows_repeat_and_a_different_split_does_not() -> None:
    table = rows(user_id=["u"] * 3, item_id=["a"] * 3, value=[4.0, 4.0, 4.0], split=["train", "test", "train"])
    events, repeated = to_events(table, traits(table), dataset="d", received_at=NOW)
    assert (events.num_rows, repeated) == (2, 1)


@given(files(), st.integers(0, 1000))
def test_ids_do_not_depend_on_the_order_of_the_file(table: pa.Table, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(table.num_rows)
    one, _ = to_events(table, traits(table), dataset="d", received_at=NOW)
    other, _ = to_events(table.take(pa.array(order)), traits(table), dataset="d", received_at=NOW)
    assert set(one["event_id"].to_pylist()) == set(other["event_id"].to_pylist())


def test_every_field_and_the_dataset_tell_ids_apart() -> None:
    base = {"user_id": "u", "item_id": "i", "action": "view", "time_us": 5, "value": 1.0, "position": 3, "split": "train"}
    variants = [base, *({**base, name: other} for name, other in [("user_id", "v"), ("item_id", "j"), ("action", "click")])]
    variants += [{**base, "time_us": 6}, {**base, "value": 2.0}, {**base, "position": 4}, {**base, "split": "test"}]
    variants += [{**base, name: None} for name in ("time_us", "value", "position", "split")]
    table = rows(**{name: [variant[name] for variant in variants] for name in base})
    ids = to_events(table, FileTraits(5, True), dataset="d", received_at=NOW)[0]["event_id"].to_pylist()
    elsewhere = to_events(table, FileTraits(5, True), dataset="e", received_at=NOW)[0]["event_id"].to_pylist()
    assert len({*ids, *elsewhere}) == 2 * len(variants)


def test_a_million_ids_are_distinct_and_stable() -> None:
    numbers = pa.array(np.arange(1_000_000))
    ids = row_ids("d", [pa.array(["u"] * 1_000_000), numbers])
    assert len(ids.unique()) == 1_000_000
    # Stored ids must never change: a second import of an old file would store its rows again.
    assert row_ids("d", [pa.array(["u", None]), pa.array([1, None], pa.int64())]).to_pylist() == [
        "475a6660a4ee957f5ba75e29960df67e",
        "0f7879e6b360175b765670f700db342f",
    ]
